"""What every corpus needs: checks of its folders, files, splits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from summarymixing.data.prepare.account import Account
from summarymixing.data.trials import TRIALS_NAME, Trial, write_trials
from summarymixing.errors import UserError

# How far below SOURCE a corpus is searched, and in how many folders.
SEARCH_LEVELS = 3
SEARCH_FOLDERS = 1000

TRAIN_NAME, VALID_NAME, TEST_NAME = "train.csv", "valid.csv", "test.csv"


class FoundFile(NamedTuple):
    """A file of a corpus, with what tells whether it has changed."""

    relative: str  # the path below the folder that was listed
    size: int  # bytes; -1 for a dangling link
    mtime_ns: int


def check_source(source: Path) -> Path:
    """Return the absolute path of SOURCE, which must be a folder.

    Symbolic links are kept, since users know their names.
    """
    source = Path(os.path.abspath(source))
    if not source.exists():
        raise UserError(
            f"SOURCE {source} does not exist. Give the folder of the "
            "corpus; a relative path starts at the current folder."
        )
    if not source.is_dir():
        raise UserError(
            f"SOURCE {source} is a file. Give the folder of the corpus "
            "(unpack an archive first)."
        )
    return source


def find_corpus(source: Path, is_corpus: Callable[[Path], bool]) -> Path:
    """Return SOURCE, or the only folder below it that holds the corpus.

    Arguments
    ---------
    source : Path
        What the user gave as SOURCE.
    is_corpus : Callable[[Path], bool]
        Whether a folder is one that should be given.

    Returns
    -------
    Path
        SOURCE itself, too, where the corpus is not below it: the caller says
        what is missing. UserError where there are several; it names them.
    """
    if is_corpus(source):
        return source
    found, level, num_listed = [], [source], 0
    for _ in range(SEARCH_LEVELS):
        below: list[Path] = []
        for folder in level:
            # Such large folders are corpora, and it takes minutes to see all.
            if num_listed < SEARCH_FOLDERS:
                below += _list_folders(folder)
                num_listed += 1
        found += [folder for folder in below if is_corpus(folder)]
        level = [folder for folder in below if folder not in found]
    require(
        len(found) < 2,
        f"SOURCE {source} holds several corpora of this kind. Give one of "
        f"them: {', '.join(map(str, found))}.",
    )
    return found[0] if found else source


def _list_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder that are not hidden, sorted."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                Path(entry.path)
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir()
            )
    except OSError:  # not ours to complain about: it may be of no interest
        return []


def check_holds(folder: Path, names: Sequence[str], advice: str) -> None:
    """Raise `UserError` where a folder is not the one that it should be.

    Arguments
    ---------
    folder : Path
        The folder that the user gave, for example as SOURCE.
    names : Sequence of str
        The files or folders that it must hold.
    advice : str
        What to give instead.
    """
    missing = [name for name in names if not (folder / name).exists()]
    require(not missing, f"{folder} has no {', '.join(missing)}. {advice}")


def require(condition: bool, message: str) -> None:
    """Raise `UserError` with a message unless a condition holds."""
    if not condition:
        raise UserError(message)


def check_fraction(name: str, fraction: float) -> None:
    """Raise `UserError` unless the fraction of an option is in [0, 1)."""
    require(0 <= fraction < 1, f"{name} is {fraction:g}; it must be in [0, 1).")


def list_files(
    root: Path, suffixes: Collection[str], *, below: str = ""
) -> list[FoundFile]:
    """List files recursively, sorted, following links to folders once.

    Arguments
    ---------
    root : Path
        The folder that the paths are relative to.
    suffixes : Collection[str]
        The endings to take, in lower case, with the dot.
    below : str
        The only folder of `root` to look into.

    Returns
    -------
    list of FoundFile
        The files, without hidden ones (as macOS leaves them). UserError where
        a folder cannot be read: its files would be lost in silence.
    """
    found: list[FoundFile] = []
    visited: set[tuple[int, int]] = set()
    endings = tuple(suffixes)

    def visit(relative: str) -> None:
        stat = os.stat(root / relative)
        if (stat.st_dev, stat.st_ino) in visited:
            return
        visited.add((stat.st_dev, stat.st_ino))
        with os.scandir(root / relative) as iterator:
            entries = sorted(
                (e for e in iterator if not e.name.startswith(".")),
                key=lambda entry: entry.name,
            )
        for entry in entries:
            _check_name(entry)
            path = f"{relative}/{entry.name}" if relative else entry.name
            if entry.is_dir():
                visit(path)
            elif entry.name.lower().endswith(endings):
                found.append(find_file(path, entry))

    try:
        visit(below)
    except OSError as error:
        raise UserError(
            f"Cannot list {error.filename}: {error.strerror}. Repair its "
            "permissions, or move it out of the corpus."
        ) from error
    return sorted(found)


def choose_validation(
    group_seconds: Mapping[str, float], budget_s: float
) -> set[str]:
    """Choose groups for validation; the same ones on every machine.

    Groups are taken in the order of a hash of their names while they fit the
    budget, so that a corpus that grows keeps most of its choice.

    Arguments
    ---------
    group_seconds : Mapping[str, float]
        Seconds of audio of each recording, speaker or folder.
    budget_s : float
        The most seconds to take; one group is taken even if it is longer.

    Returns
    -------
    set of str
        The chosen groups; empty for a budget of 0.

    Example
    -------
    >>> choose_validation({"a": 30.0, "b": 5.0, "c": 100.0}, budget_s=10)
    {'b'}
    """
    if budget_s <= 0:
        return set()
    if len(group_seconds) < 2:
        raise UserError(
            f"Only one recording or group is usable ({', '.join(group_seconds)}"
            "), and training and validation must not share it. Add audio, "
            "split in a finer way, or ask for no validation set with 0 as "
            "its size."
        )
    chosen: set[str] = set()
    for group in sorted(group_seconds, key=shuffling_key):
        if group_seconds[group] <= budget_s:
            chosen.add(group)
            budget_s -= group_seconds[group]
    if not chosen:
        return {min(group_seconds, key=lambda g: (group_seconds[g], g))}
    if len(chosen) == len(group_seconds):
        chosen.remove(max(group_seconds, key=lambda g: (group_seconds[g], g)))
    return chosen


def assign_train_valid(
    group_seconds: Mapping[str, float],
    *,
    max_fraction: float,
    max_seconds: float,
    test_fraction: float = 0.0,
) -> dict[str, str]:
    """Say whether each group stands in train.csv, valid.csv or test.csv.

    Arguments
    ---------
    group_seconds : Mapping[str, float]
        Seconds of audio of each recording, speaker or folder.
    max_fraction, max_seconds : float
        The largest part of the corpus for validation, in [0, 1), and the
        largest number of seconds; the smaller one counts.
    test_fraction : float
        The largest part of the corpus for test.csv, which is chosen first.

    Returns
    -------
    dict[str, str]
        File name of the manifest of each group.
    """
    total_s = sum(group_seconds.values())
    test = choose_validation(group_seconds, test_fraction * total_s)
    rest = {g: s for g, s in group_seconds.items() if g not in test}
    budget_s = min(max_seconds, max_fraction * total_s)
    valid = choose_validation(rest, budget_s)
    return {
        **dict.fromkeys(group_seconds, TRAIN_NAME),
        **dict.fromkeys(valid, VALID_NAME),
        **dict.fromkeys(test, TEST_NAME),
    }


def assign_splits(
    group_seconds: Mapping[str, float], *, splits: Sequence[str], advice: str
) -> dict[str, str]:
    """Give each split its manifest; none of them may be empty.

    Arguments
    ---------
    group_seconds : Mapping[str, float]
        Seconds of audio of each split.
    splits : Sequence of str
        The splits that the corpus should have.
    advice : str
        What is expected, and how to repair it, for the error message.

    Returns
    -------
    dict[str, str]
        File name of the manifest of each split.
    """
    missing = [split for split in splits if split not in group_seconds]
    require(not missing, f"Nothing usable in {', '.join(missing)}. {advice}")
    return {split: f"{split}.csv" for split in splits}


def add_trials(account: Account, trials: Sequence[Trial]) -> None:
    """Write trials.csv beside the manifests.

    Arguments
    ---------
    account : Account
        The account of this preparation, which counts the trials.
    trials : Sequence of Trial
        Trials of the same speaker and of two; UserError otherwise.
    """
    require(
        {trial.target for trial in trials} == {"0", "1"},
        f"Only {len(trials):,} trials are usable, and error rates need trials "
        "of the same speaker (1) as well as of two speakers (0). Repair the "
        f"corpus.\n{account.summary()}",
    )
    write_trials(Path(account.manifests_folder) / TRIALS_NAME, trials)
    account.other_files[TRIALS_NAME] = len(trials)


def shuffling_key(name: str) -> str:
    """Return a key that sorts names at random, but the same everywhere."""
    return hashlib.sha256(name.encode()).hexdigest()


def _check_name(entry: os.DirEntry[str]) -> None:
    try:
        entry.name.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"The name of {entry.path!r} is not UTF-8 text, so it cannot "
            "stand in a manifest. Rename it."
        ) from error


def find_file(path: str, entry: os.DirEntry[str] | Path) -> FoundFile:
    """Return a file with what tells whether it has changed.

    Arguments
    ---------
    path : str
        The path that it shall have in the result.
    entry : DirEntry or Path
        The file.

    Returns
    -------
    FoundFile
        The file, with a size of -1 where there is none.
    """
    try:
        stat = entry.stat()
    except FileNotFoundError:  # a dangling link: reported when it is opened
        return FoundFile(path, -1, -1)
    return FoundFile(path, stat.st_size, stat.st_mtime_ns)
