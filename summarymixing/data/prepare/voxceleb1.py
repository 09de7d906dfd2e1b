"""VoxCeleb1: speakers to train on, and trials of others to verify.

Layout: `wav/SPEAKER/SESSION/UTTERANCE.wav` for all speakers, and
`veri_test2.txt`, here or below `meta`, with lines "LABEL ENROL TEST". No
speaker of the trials is trained on.

A training utterance has one row for each full 3 s of it. So its share of the
training grows with its length, while the training may draw its 3 s from
anywhere in the recording: `recording_s` says how long that is.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from summarymixing.data.manifest import Manifest, Row
from summarymixing.data.prepare.account import Account, Outcome
from summarymixing.data.prepare.common import (
    TEST_NAME,
    TRAIN_NAME,
    VALID_NAME,
    add_trials,
    check_fraction,
    find_corpus,
    find_file,
    list_files,
    require,
    shuffling_key,
)
from summarymixing.data.prepare.corpus import Corpus, option
from summarymixing.data.prepare.listing import Listing, measure
from summarymixing.data.prepare.pipeline import Plan
from summarymixing.data.trials import TRIALS_NAME, Trial

ROUNDING = 1e-6  # of a chunk: times are sums of binary fractions

AUDIO = "wav"
LAYOUT = f"{AUDIO}/SPEAKER/SESSION/UTTERANCE.wav and veri_test2.txt"
TRIAL_FILES = ("veri_test2.txt", "meta/veri_test2.txt")

TRAIN, TEST, UNUSED = "train", "test", "unused"  # what to do with utterances


@dataclass(frozen=True)
class VoxCeleb1Options:
    """The options of `prepare.py voxceleb1`."""

    trials: Path | None = option(
        None,
        "the list of trials (default: veri_test2.txt in SOURCE or in its "
        "folder meta)",
        metavar="FILE",
    )
    chunk_seconds: float = option(
        3.0, "the length of a training row; shorter utterances are dropped"
    )
    valid_fraction: float = option(
        0.1,
        "the share of the training utterances of each speaker that goes to "
        "valid.csv, at least one of several; 0 for none, and training then "
        "needs a valid.csv from elsewhere",
    )


def plan_voxceleb1(source: Path, options: VoxCeleb1Options) -> Plan:
    """Plan train.csv, valid.csv, test.csv and trials.csv.

    The labels are speaker and recording_s, the seconds of the whole
    recording. SOURCE is the folder that holds `wav`, with all speakers, or
    folders that do, such as `dev` and `test`; or a folder above it.
    """
    require(
        options.chunk_seconds >= 0.1,
        f"--chunk_seconds is {options.chunk_seconds:g}; it must be at least "
        "0.1.",
    )
    check_fraction("--valid_fraction", options.valid_fraction)
    source = find_corpus(
        source,
        lambda folder: (
            bool(_list_audio(folder))
            and any(path.is_file() for path in _place_trials(folder, options))
        ),
    )
    folders = _list_audio(source)
    require(
        bool(folders),
        f"{source} has no {AUDIO}, and no folder in it has one. Give the "
        f"folder that holds {LAYOUT}, or dev/{AUDIO} and test/{AUDIO} in place "
        f"of {AUDIO}, as SOURCE.",
    )
    trial_file = _find_trials(_place_trials(source, options))
    listing = Listing()
    trials = _read_trials(trial_file, listing)
    files = [
        file
        for folder in folders
        for file in list_files(source, (".wav",), below=folder)
    ]
    return Plan(
        source=source,
        files=[*files, find_file(str(trial_file), trial_file)],
        work_items=_list_work_items(
            [file.relative for file in files], trials, listing
        ),
        work=partial(
            process_utterance, root=source, chunk_seconds=options.chunk_seconds
        ),
        assign=partial(
            _split_utterances, valid_fraction=options.valid_fraction
        ),
        replaces=(TRAIN_NAME, VALID_NAME, TEST_NAME, TRIALS_NAME),
        listing_outcome=listing.outcome,
        finish=partial(_finish_trials, trials=trials),
    )


def _list_audio(folder: Path) -> list[str]:
    """Return `wav`, or those of archives that were unpacked side by side."""
    if (folder / AUDIO).is_dir():
        return [AUDIO]
    return sorted(
        f"{path.parent.name}/{AUDIO}"
        for path in folder.glob(f"*/{AUDIO}")
        if path.is_dir()
    )


def _place_trials(folder: Path, options: VoxCeleb1Options) -> list[Path]:
    """Return where the list of trials may be."""
    if options.trials is not None:
        return [Path(os.path.abspath(options.trials))]
    return [folder / name for name in TRIAL_FILES]


def _read_trials(path: Path, listing: Listing) -> list[Trial]:
    """Read lines of "LABEL ENROL TEST", the names with or without .wav."""
    trials = []
    for place, line in listing.read_lines(path.parent, path.name):
        target, *names = line.split()
        names = [name.removesuffix(".wav") for name in names]
        if len(names) != 2 or any(name.count("/") != 2 for name in names):
            listing.note("malformed line", place)
        elif target not in ("0", "1"):
            listing.note("label is neither 0 nor 1", place)
        else:
            trials.append(Trial(target, *names))
    require(
        bool(trials),
        f"There is no trial in {path}. Its lines should be like "
        '"1 id10270/5r0dWxy17C8/00001.wav id10270/zjwijMp0Qyw/00002.wav"; '
        "copy it again, or give another file with --trials=FILE.",
    )
    return trials


def _list_work_items(
    paths: Collection[str], trials: Sequence[Trial], listing: Listing
) -> list[str]:
    """Return use, name and path with tabs between, sorted by name.

    In the official list the same 40 speakers stand on both sides of the
    trials. The trials may name utterances that are not there.
    """
    tested = {name for trial in trials for name in (trial.enrol, trial.test)}
    test_speakers = {name.split("/")[0] for name in tested}
    found: dict[str, str] = {}
    for path in paths:
        # Behind "wav/", which may itself be in a folder of an archive.
        name = f"/{path}".split(f"/{AUDIO}/", 1)[1].removesuffix(".wav")
        if name.count("/") != 2:
            listing.note(f"not in the layout {LAYOUT}", path)
        elif found.setdefault(name, path) != path:
            listing.note("utterance found twice", path)
    work_items = []
    for name in sorted(found.keys() | tested):
        unused = name.split("/")[0] in test_speakers
        use = TEST if name in tested else UNUSED if unused else TRAIN
        path = found.get(name, f"{AUDIO}/{name}.wav")
        work_items.append("\t".join((use, name, path)))
    return work_items


def process_utterance(
    item: str, *, root: Path, chunk_seconds: float
) -> Outcome:
    """Make the rows of one utterance.

    The item is what to do with the utterance, its name and its path below
    `root`, with tabs between. A training row has `chunk_seconds`.
    """
    use, name, path = item.split("\t")
    outcome = Outcome(group=TEST if use == TEST else name)
    duration_s = measure(outcome, root, path)
    whole = Row(
        id=name,
        path=str(root / path),
        segments=(),
        duration=duration_s,
        labels={"speaker": name.split("/")[0], "recording_s": str(duration_s)},
    )
    if not duration_s:
        return outcome
    if use == TEST:
        outcome.rows.append(whole)
    elif use == UNUSED:
        reason = "of a speaker of the trials, but not in them"
        outcome.dropped.append((reason, duration_s))
    else:
        _add_chunks(outcome, whole, chunk_seconds)
    return outcome


def _split_utterances(
    group_seconds: Mapping[str, float], *, valid_fraction: float
) -> dict[str, str]:
    """Share the utterances of each speaker out to train.csv and valid.csv."""
    speakers: dict[str, list[str]] = defaultdict(list)
    for name in group_seconds.keys() - {TEST}:
        speakers[name.split("/")[0]].append(name)
    manifest_of = {TEST: TEST_NAME} if TEST in group_seconds else {}
    for names in speakers.values():
        # By hash: the choice does not depend on the order of files, and
        # changes little when files are added.
        names.sort(key=shuffling_key)
        # One of several goes to validation even where that exceeds the
        # fraction; one alone trains.
        wanted = max(1, round(valid_fraction * len(names)))
        num_valid = min(wanted, len(names) - 1) if valid_fraction else 0
        manifest_of |= dict.fromkeys(names[:num_valid], VALID_NAME)
        manifest_of |= dict.fromkeys(names[num_valid:], TRAIN_NAME)
    _require_every_part(set(manifest_of.values()), valid_fraction)
    return manifest_of


def _finish_trials(account: Account, *, trials: Sequence[Trial]) -> None:
    """Write the trials whose two utterances are in test.csv."""
    manifest = Manifest.read(Path(account.manifests_folder) / TEST_NAME)
    known = {row.id for row in manifest}
    usable = [t for t in trials if {t.enrol, t.test} <= known]
    unusable = [
        f"{t.enrol} {t.test}" for t in trials if not {t.enrol, t.test} <= known
    ]
    if unusable:
        account.problems["trial without its recordings"] = unusable
    add_trials(account, usable)


def _add_chunks(outcome: Outcome, whole: Row, chunk_seconds: float) -> None:
    """Add one row for each full chunk; the rest is dropped."""
    num_chunks = int(whole.duration / chunk_seconds + ROUNDING)
    for index in range(num_chunks):
        start_s = index * chunk_seconds
        outcome.rows.append(
            replace(
                whole,
                id=f"{whole.id}@{start_s:g}",
                segments=((start_s, start_s + chunk_seconds),),
                duration=chunk_seconds,
            )
        )
    rest_s = whole.duration - num_chunks * chunk_seconds
    if rest_s > ROUNDING:
        kind = "rest of an utterance" if num_chunks else "utterance"
        reason = f"{kind} shorter than {chunk_seconds:g} s"
        outcome.dropped.append((reason, rest_s))


def _find_trials(places: Sequence[Path]) -> Path:
    found = [path for path in places if path.is_file()]
    require(
        bool(found),
        f"There is no list of trials {' or '.join(map(str, places))}. Give "
        "its path with --trials=FILE; veri_test2.txt comes with VoxCeleb1.",
    )
    return found[0]


def _require_every_part(present: Collection[str], fraction: float) -> None:
    require(
        TEST_NAME in present,
        "None of the utterances of the trials is usable. Copy the test "
        "speakers into the folder of the others, or give the trials of this "
        "corpus with --trials=FILE.",
    )
    require(
        TRAIN_NAME in present,
        "There is nothing to train on: all speakers are in the trials, or "
        "their utterances are too short. Copy the development speakers into "
        "the folder of the others, or lower --chunk_seconds.",
    )
    require(
        VALID_NAME in present or not fraction,
        "No speaker has two usable utterances, one to train on and one for "
        "valid.csv. Add utterances, or ask for no validation set with "
        "--valid_fraction=0.",
    )


CORPUS = Corpus(
    name="voxceleb1",
    summary="VoxCeleb1: training chunks, and trials of other speakers",
    layout=LAYOUT,
    list_work=plan_voxceleb1,
    options=VoxCeleb1Options,
)
