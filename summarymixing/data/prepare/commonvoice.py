"""Common Voice: one language, with speakers and transcripts.

Layout: `clips/NAME.mp3` with `train.tsv`, `dev.tsv` and `test.tsv` beside
`clips`. All clips are taken and the text is left as it is: how long a clip
may be, and how few words it may have, is for the training to say.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePosixPath

from summarymixing.data.prepare.common import (
    assign_splits,
    check_holds,
    find_corpus,
    list_files,
)
from summarymixing.data.prepare.corpus import Corpus, NoOptions
from summarymixing.data.prepare.listing import Listing, Recording
from summarymixing.data.prepare.pipeline import Plan
from summarymixing.errors import UserError

SPLITS = ("train", "dev", "test")
CLIPS = "clips"
LAYOUT = "clips/NAME.mp3 beside train.tsv, dev.tsv and test.tsv"

# Names of columns; their order differs between releases.
CLIP, SPEAKER, SENTENCE = "path", "client_id", "sentence"


def plan_commonvoice(source: Path, _: NoOptions) -> Plan:
    """Plan train.csv, dev.csv and test.csv of one language.

    The labels are speaker and transcript; white space in transcripts is
    collapsed, case and punctuation are kept. SOURCE is the folder of the
    language, for example `cv-corpus-11.0-2022-09-21/cy`, or one above it.
    """
    names = [CLIPS, *(f"{split}.tsv" for split in SPLITS)]
    source = find_corpus(
        source, lambda folder: all((folder / n).exists() for n in names)
    )
    check_holds(
        source,
        names,
        "Give the folder of one language, such as "
        f".../cv-corpus-11.0-2022-09-21/cy, as SOURCE ({LAYOUT}).",
    )
    listing = Listing()
    for split in SPLITS:
        _list_split(source, split, listing)
    advice = f"Expected {LAYOUT}. Unpack the archive again."
    return listing.plan(
        source,
        list_files(source, (".mp3", *names[1:])),
        assign=partial(assign_splits, splits=SPLITS, advice=advice),
        replaces=[f"{split}.csv" for split in SPLITS],
    )


def _list_split(source: Path, split: str, listing: Listing) -> None:
    """Read the table of a split; its first line names the columns."""
    lines = listing.read_lines(source, f"{split}.tsv")
    _, header = next(lines, ("", ""))
    columns = header.split("\t")
    missing = [c for c in (CLIP, SPEAKER, SENTENCE) if c not in columns]
    if missing:
        raise UserError(
            f"{source / split}.tsv has no column {', '.join(missing)}; "
            f"its first line is {header[:80]!r}. Copy it again from the "
            "archive."
        )
    for place, line in lines:
        cells = line.split("\t")  # the tables do not quote
        about = dict(zip(columns, cells, strict=False))
        name = about.get(CLIP, "").strip()
        if len(cells) != len(columns) or not name:
            listing.note("malformed line", place)
            continue
        labels = {
            "speaker": about[SPEAKER].strip(),
            "transcript": " ".join(about[SENTENCE].split()),
        }
        stem = PurePosixPath(name).stem
        recording = Recording(split, stem, f"{CLIPS}/{name}", labels)
        listing.add(recording, place)


CORPUS = Corpus(
    name="commonvoice",
    summary="Common Voice, one language (train, dev, test)",
    layout=LAYOUT,
    list_work=plan_commonvoice,
)
