"""Free Spoken Digit Dataset: how to add a corpus of one's own.

It has one folder of files `DIGIT_SPEAKER_INDEX.wav` and no tables. What this
file does, and what yours would do:

1. List the files (`list_files`), and refuse a folder that holds none.
2. Turn each into a `Recording`: the split that it belongs to, an id, its path
   and its labels. A `Listing` collects them, and notes what is wrong instead
   of raising: one bad name must not stop a million good ones.
3. Hand all over to `Preparation`. It reads the length of each recording in
   parallel, goes on where it was interrupted, and writes one manifest for
   each split and a report of what was found, kept and dropped.
4. Describe the corpus in `CORPUS`, and add it to `CORPORA` in the
   `__init__.py` of this folder. `prepare.py` then knows the command:

       python recipes/prepare.py fsdd free-spoken-digit-dataset manifests/fsdd

Audio of any rate is taken as it is. A corpus of long recordings would list
`segments` in its rows, as `librilight.py` does.

Index 0 to 4 of each speaker and digit are the test set, as in the original
corpus, 5 to 9 are for validation, and the rest is for training. To verify
speakers there is another division of the same rows, by speaker. It is made
in `finish`, which a corpus without further files leaves out.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from heapq import nsmallest
from itertools import combinations
from pathlib import Path, PurePosixPath

from summarymixing.data.manifest import Manifest, Row, write_manifest
from summarymixing.data.prepare.account import Report
from summarymixing.data.prepare.common import (
    TEST_NAME,
    TRAIN_NAME,
    VALID_NAME,
    add_trials,
    assign_splits,
    check_source,
    hash_of,
    list_files,
    require,
)
from summarymixing.data.prepare.listing import (
    Listing,
    Recording,
    process_recording,
)
from summarymixing.data.prepare.pipeline import Corpus, Preparation
from summarymixing.data.trials import TRIALS_NAME, Trial

LAYOUT = "DIGIT_SPEAKER_INDEX.wav, such as 7_theo_12.wav"
NAME = re.compile(r"(\d)_([^_]+)_(\d+)")
FIRST_INDEX = {"train": 10, "valid": 5, "test": 0}  # of each split

TEST_SPEAKERS = ("theo", "yweweler")
TRIALS_OF_EACH_KIND = 2000  # of the same speaker, and of two
SPEAKERS_TRAIN = f"speakers_{TRAIN_NAME}"
SPEAKERS_VALID = f"speakers_{VALID_NAME}"
SPEAKERS_TEST = f"speakers_{TEST_NAME}"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the corpus.

    Arguments
    ---------
    parser : ArgumentParser
        Of `prepare.py fsdd`.
    """
    parser.add_argument(
        "--test_speakers",
        nargs="+",
        default=TEST_SPEAKERS,
        metavar="NAME",
        help="at least two, to verify; the others train (default: "
        f"{' '.join(TEST_SPEAKERS)})",
    )


def plan_fsdd(
    corpus_dir: Path,
    manifest_dir: Path,
    *,
    test_speakers: Sequence[str] = TEST_SPEAKERS,
) -> Preparation:
    """Plan manifests to classify digits, and to verify speakers.

    For digits: train.csv, valid.csv and test.csv, with labels digit and
    speaker. For speakers: speakers_train.csv, speakers_valid.csv,
    speakers_test.csv, with labels speaker and recording_s (the seconds of
    the recording), and trials.csv.

    Arguments
    ---------
    corpus_dir : Path
        Searched recursively.
    manifest_dir : Path
        Where the manifests, the trials and report.json are written.
    test_speakers : Sequence of str
        Speakers of the trials; they are not in speakers_train.csv.

    Returns
    -------
    Preparation
        Its report tells the hours kept, and the names of unusable files.
    """
    corpus_dir = check_source(corpus_dir)
    files = list_files(corpus_dir, (".wav",))
    listing = Listing()
    speakers = {_list_recording(f.relative, listing) for f in files} - {""}
    require(
        bool(speakers),
        f"No file in {corpus_dir} is named {LAYOUT}. Give the folder of the "
        "recordings as SOURCE.",
    )
    _check_speakers(test_speakers, speakers)
    return Preparation(
        corpus="fsdd",
        corpus_dir=corpus_dir,
        manifest_dir=manifest_dir,
        options={"test_speakers": sorted(test_speakers)},
        files=files,
        tasks=listing.tasks,
        work=partial(process_recording, root=corpus_dir),
        assign=partial(
            assign_splits,
            splits=tuple(FIRST_INDEX),
            advice=f"Expected {LAYOUT}, with indices from 0 to more than 10.",
        ),
        expected=LAYOUT,
        replaces=(
            *(TRAIN_NAME, VALID_NAME, TEST_NAME, TRIALS_NAME),
            *(SPEAKERS_TRAIN, SPEAKERS_VALID, SPEAKERS_TEST),
        ),
        listed=listing.outcome,
        finish=partial(_divide_by_speaker, test_speakers=test_speakers),
    )


def _list_recording(path: str, listing: Listing) -> str:
    """Read labels from the name of a file; return the speaker, or ""."""
    name = PurePosixPath(path).stem
    match = NAME.fullmatch(name)
    if not match:
        listing.note(f"name is not like {LAYOUT}", path)
        return ""
    digit, speaker, index = match.groups()
    split = next(s for s, i in FIRST_INDEX.items() if int(index) >= i)
    labels = {"digit": digit, "speaker": speaker}
    listing.add(Recording(split, name, path, labels), place=path)
    return speaker


def _divide_by_speaker(report: Report, *, test_speakers: Sequence[str]) -> None:
    """Write the manifests and trials to verify speakers.

    Of the speakers who train, speakers_valid.csv has what valid.csv and
    test.csv have.
    """
    folder = Path(report.manifest_dir)
    parts: dict[str, list[Row]] = {
        name: [] for name in (SPEAKERS_TRAIN, SPEAKERS_VALID, SPEAKERS_TEST)
    }
    for name in (TRAIN_NAME, VALID_NAME, TEST_NAME):
        for row in Manifest.read(folder / name):
            speaker = row.labels["speaker"]
            part = SPEAKERS_TRAIN if name == TRAIN_NAME else SPEAKERS_VALID
            if speaker in test_speakers:
                part = SPEAKERS_TEST
            labels = {"speaker": speaker, "recording_s": str(row.duration)}
            parts[part].append(replace(row, labels=labels))
    for name, rows in parts.items():
        require(bool(rows), f"No recording is usable for {name}.")
        write_manifest(folder / name, rows)
        report.further[name] = len(rows)
    add_trials(report, _draw_trials(parts[SPEAKERS_TEST]))


def _draw_trials(rows: Sequence[Row]) -> list[Trial]:
    """Draw as many trials of one speaker as of two, always the same ones."""
    pairs: dict[bool, list[Trial]] = {True: [], False: []}
    for one, other in combinations(rows, 2):
        same = one.labels["speaker"] == other.labels["speaker"]
        pairs[same].append(Trial(str(int(same)), one.id, other.id))
    number = min(TRIALS_OF_EACH_KIND, *map(len, pairs.values()))
    return [
        trial
        for kind in pairs.values()
        for trial in nsmallest(
            number, kind, key=lambda t: hash_of(f"{t.enrol} {t.test}")
        )
    ]


def _check_speakers(test_speakers: Sequence[str], speakers: set[str]) -> None:
    unknown = set(test_speakers) - speakers
    require(
        not unknown and 2 <= len(set(test_speakers)) < len(speakers),
        f"--test_speakers is {' '.join(test_speakers)}; give at least two of "
        f"the speakers, and not all: {' '.join(sorted(speakers))}.",
    )


CORPUS = Corpus(
    name="fsdd",
    summary="Free Spoken Digit Dataset: an example of a corpus of one's own",
    add_arguments=add_arguments,
    plan=plan_fsdd,
)
