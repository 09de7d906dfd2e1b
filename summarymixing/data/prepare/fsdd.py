"""Free Spoken Digit Dataset: how to add your own corpus.

It is one folder of files `DIGIT_SPEAKER_INDEX.wav` without tables. Copy this
file and change three things:

1. `plan_fsdd` finds the recordings. Each becomes a `Recording`: the split that
   it belongs to, an id, its path and its labels. A `Listing` collects them and
   notes what is wrong instead of raising: one bad name must not stop a million
   good ones. `listing.plan` does the rest: it reads the lengths in parallel,
   goes on where it was interrupted, and writes one manifest for each split and
   report.json, which says what was found, kept and dropped.
2. `FsddOptions` declares what users may turn. A corpus without options leaves
   it out (`NoOptions`, as in `commonvoice.py`).
3. `CORPUS` names the corpus. `__init__.py` of this folder says how
   `recipes/prepare.py` finds it.

Audio of any rate is taken as it is. A corpus of long recordings lists
`segments` in its rows, as `librilight.py` does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from summarymixing.data.prepare.by_speaker import (
    BY_SPEAKER_NAMES,
    divide_by_speaker,
)
from summarymixing.data.prepare.common import assign_splits, list_files, require
from summarymixing.data.prepare.corpus import Corpus, option
from summarymixing.data.prepare.listing import Listing, Recording
from summarymixing.data.prepare.pipeline import Plan

LAYOUT = "DIGIT_SPEAKER_INDEX.wav, such as 7_theo_12.wav"
NAME = re.compile(r"(\d)_([^_]+)_(\d+)")

# Index 0 to 4 of each speaker and digit are the test set, as in the original.
FIRST_INDEX = {"train": 10, "valid": 5, "test": 0}


@dataclass(frozen=True)
class FsddOptions:
    """The options of `prepare.py fsdd`."""

    test_speakers: tuple[str, ...] = option(
        ("theo", "yweweler"),
        "at least two speakers to verify, who are not in speakers_train.csv",
        metavar="NAME",
    )


def plan_fsdd(source: Path, options: FsddOptions) -> Plan:
    """Plan train.csv, valid.csv and test.csv, with labels digit and speaker.

    The same rows are divided by speaker as well, see `divide_by_speaker`.

    Arguments
    ---------
    source : Path
        A folder, searched recursively.
    options : FsddOptions
        The options of the command line.

    Returns
    -------
    Plan
        The work, with the names of unusable files.
    """
    listing, speakers = Listing(), set()
    files = list_files(source, (".wav",))
    for file in files:
        name = PurePosixPath(file.relative).stem
        match = NAME.fullmatch(name)
        if not match:
            listing.note(f"name is not like {LAYOUT}", file.relative)
            continue
        digit, speaker, index = match.groups()
        split = next(s for s, i in FIRST_INDEX.items() if int(index) >= i)
        labels = {"digit": digit, "speaker": speaker}
        recording = Recording(split, name, file.relative, labels)
        listing.add(recording, place=file.relative)
        speakers.add(speaker)
    require(
        bool(speakers),
        f"No file in {source} is named {LAYOUT}. Give the folder of the "
        "recordings as SOURCE.",
    )
    tested = set(options.test_speakers)
    require(
        tested <= speakers and 2 <= len(tested) < len(speakers),
        f"--test_speakers is {' '.join(options.test_speakers)}; give at least "
        "two of the speakers, and not all: "
        f"{' '.join(sorted(speakers))}.",
    )
    advice = f"Expected {LAYOUT}, with indices from 0 to more than 10."
    return listing.plan(
        source,
        files,
        assign=partial(assign_splits, splits=tuple(FIRST_INDEX), advice=advice),
        replaces=[
            *(f"{split}.csv" for split in FIRST_INDEX),
            *BY_SPEAKER_NAMES,
        ],
        finish=partial(divide_by_speaker, test_speakers=options.test_speakers),
    )


CORPUS = Corpus(
    name="fsdd",
    summary="Free Spoken Digit Dataset: an example of your own corpus",
    layout=LAYOUT,
    list_work=plan_fsdd,
    options=FsddOptions,
)
