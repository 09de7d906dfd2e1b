"""Texts for a folder of audio: a table, or a text file beside each recording.

A recording is one utterance and is never cut, since nobody knows where in it
a word is said.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from summarymixing.data.audio import audio_info
from summarymixing.data.manifest import Manifest
from summarymixing.data.prepare.account import Account, Outcome
from summarymixing.data.prepare.common import (
    TEST_NAME,
    TRAIN_NAME,
    VALID_NAME,
    FoundFile,
    find_file,
    list_files,
    require,
)
from summarymixing.data.prepare.cutting import (
    ROUNDING_S,
    DamagedAudioError,
    check_samples,
)
from summarymixing.data.prepare.listing import (
    Listing,
    Recording,
    process_recording,
)
from summarymixing.data.prepare.pipeline import Assign, Plan
from summarymixing.files import open_atomically

BESIDE = "beside"  # what users type in place of a table
TEXT_SUFFIX = ".txt"
LABEL = "transcript"  # the column that recognition reads
HEADERS = ("path", "file", "id")  # the first cell of a line that is no text
CHARACTERS_NAME = "characters.tsv"
NO_AUDIO = "transcript without audio"
AMBIGUOUS = "transcript for several audio files (left out)"


@dataclass(frozen=True)
class Limits:
    """The lengths that an utterance may have, in seconds."""

    min_s: float
    max_s: float


def plan_transcribed(
    source: Path,
    audio: Sequence[FoundFile],
    *,
    transcripts: str,
    limits: Limits,
    by_folder: bool,
    assign: Assign,
) -> Plan:
    """Plan the manifests of a folder whose recordings have texts.

    Arguments
    ---------
    source : Path
        The folder.
    audio : Sequence of FoundFile
        Its recordings.
    transcripts : str
        "beside", or the path of a table: path or id, tab, text in each line.
        UserError where there is none.
    limits : Limits
        Others are dropped.
    by_folder : bool
        Whether what stands in one folder at the top of `source` stays
        together.
    assign : callable
        See `Plan`.
    """
    listing, used = Listing(), set()
    names = [file.relative for file in audio]
    if transcripts == BESIDE:
        texts = list_files(source, (TEXT_SUFFIX,))
        found = _texts_beside(listing, source, names, texts)
        depends = [*audio, *texts]
    else:
        table = Path(os.path.abspath(transcripts))
        require(
            table.is_file(),
            f"--transcripts={transcripts} is no file. Give a table (a path "
            f"below SOURCE or the name of a recording, a tab, its text), or "
            f"{BESIDE} for NAME{TEXT_SUFFIX} beside NAME.wav.",
        )
        found = _texts_of_table(listing, source, names, table)
        depends = [*audio, find_file(str(table), table)]
    for name, text, place in found:
        used.add(name)
        group = name.split("/")[0] if by_folder else name
        text = " ".join(text.split())
        listing.add(Recording(group, name, name, {LABEL: text}), place)
    for name in names:
        if name not in used:
            listing.note(f"no {LABEL}", name)
    plan = listing.plan(
        source,
        depends,
        assign=assign,
        replaces=(TRAIN_NAME, VALID_NAME, TEST_NAME, CHARACTERS_NAME),
        finish=list_characters,
    )
    return replace(
        plan, work=partial(process_utterance, root=source, limits=limits)
    )


def process_utterance(item: str, *, root: Path, limits: Limits) -> Outcome:
    """Make the row of one recording, unless it is too short or too long."""
    outcome = process_recording(item, root=root)
    if not outcome.rows:
        return outcome
    (row,) = outcome.rows
    reason = ""
    if row.duration < limits.min_s - ROUNDING_S:
        reason = f"shorter than {limits.min_s:g} s"
    elif row.duration > limits.max_s + ROUNDING_S:
        reason = f"longer than {limits.max_s:g} s, and not cut"
    if reason:
        outcome.dropped.append((reason, row.duration))
        outcome.rows.clear()
        return outcome
    try:
        # The header is enough, except that floats may be NaN.
        if audio_info(Path(row.path)).is_float:
            check_samples(Path(row.path))
    except DamagedAudioError as error:
        return Outcome(problems=[(str(error), row.id)])
    return outcome


def _texts_beside(
    listing: Listing,
    source: Path,
    names: Sequence[str],
    texts: Sequence[FoundFile],
) -> Iterator[tuple[str, str, str]]:
    """Yield (recording, text, place) from the text files."""
    by_stem = _group(names, _without_suffix)
    for file in texts:
        audio = by_stem.get(_without_suffix(file.relative), [])
        if len(audio) == 1:
            lines = listing.read_lines(source, file.relative)
            text = " ".join(line for _, line in lines)
            yield audio[0], text, file.relative
        else:
            listing.note(AMBIGUOUS if audio else NO_AUDIO, file.relative)


def _texts_of_table(
    listing: Listing, source: Path, names: Sequence[str], table: Path
) -> Iterator[tuple[str, str, str]]:
    """Yield (recording, text, place) from the lines of a table.

    A recording is named by its path below `source`, with or without its
    ending, or by the name of its file, if no other has it.
    """
    forms = [
        _group(names, form)
        for form in (str, _without_suffix, _file_name, _stem)
    ]
    root = f"{source}/"
    for place, line in listing.read_lines(table.parent, table.name):
        key, tab, text = line.partition("\t")
        key = str(PurePosixPath(key.strip().removeprefix(root)))
        matches = next((form[key] for form in forms if key in form), [])
        is_first = place == f"{table.name}:1"
        if not matches and is_first and key.lower() in HEADERS:
            continue
        if not tab or "\t" in text:
            listing.note("line is not a path or id, a tab and a text", place)
        elif len(matches) == 1:
            yield matches[0], text, place
        else:
            reason = AMBIGUOUS if matches else NO_AUDIO
            listing.note(reason, f"{place} ({key})")


def _group(
    names: Sequence[str], form: Callable[[str], str]
) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(form(name), []).append(name)
    return groups


def _without_suffix(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _file_name(name: str) -> str:
    return PurePosixPath(name).name


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def list_characters(account: Account) -> None:
    """Write characters.tsv, and name utterances that cannot be recognised.

    A recogniser knows the characters of train.csv alone.

    Arguments
    ---------
    account : Account
        The account of manifests that are there; it gets the count of lines,
        and a problem for each utterance with a character that is not in
        train.csv.
    """
    folder = Path(account.manifests_folder)
    splits = [
        name
        for name in (TRAIN_NAME, VALID_NAME, TEST_NAME)
        if name in account.manifests
    ]
    counts = {name: Counter[str]() for name in splits}
    for name in splits:
        for row in Manifest.read(folder / name, [LABEL]):
            text = row.labels[LABEL]
            counts[name].update(text)
            unknown = sorted(set(text) - set(counts[TRAIN_NAME]))
            if unknown:
                account.problems.setdefault(
                    "characters that train.csv never has", []
                ).append(f"{row.id} ({' '.join(unknown)})")
    characters = sorted(set().union(*counts.values()))
    with open_atomically(folder / CHARACTERS_NAME) as file:
        file.write("\t".join(["character", "code", *splits]) + "\n")
        for character in characters:
            shown = repr(character) if character.isspace() else character
            numbers = [str(counts[name][character]) for name in splits]
            code = f"U+{ord(character):04X}"
            file.write("\t".join([shown, code, *numbers]) + "\n")
    account.other_files[CHARACTERS_NAME] = len(characters)
