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
    check_source,
    list_files,
)
from summarymixing.data.prepare.listing import (
    Listing,
    Recording,
    process_recording,
)
from summarymixing.data.prepare.pipeline import (
    Corpus,
    Preparation,
    add_no_arguments,
)
from summarymixing.errors import UserError

SPLITS = ("train", "dev", "test")
CLIPS = "clips"
LAYOUT = "clips/NAME.mp3 beside train.tsv, dev.tsv and test.tsv"

# Of the columns, which stand in another order in other releases.
CLIP, SPEAKER, SENTENCE = "path", "client_id", "sentence"


def plan_commonvoice(
    corpus_dir: Path,
    manifest_dir: Path,
) -> Preparation:
    """Plan train.csv, dev.csv and test.csv of one language.

    The labels are speaker and transcript; white space in transcripts is
    collapsed, case and punctuation are kept.

    Arguments
    ---------
    corpus_dir : Path
        The folder of the language, for example
        `cv-corpus-11.0-2022-09-21/cy`.
    manifest_dir : Path
        Where the manifests and report.json are written.

    Returns
    -------
    Preparation
        Its report tells the hours kept, and the names of unusable clips and
        lines.
    """
    corpus_dir = check_source(corpus_dir)
    tables = [f"{split}.tsv" for split in SPLITS]
    check_holds(
        corpus_dir,
        [CLIPS, *tables],
        "Give the folder of one language, such as "
        f".../cv-corpus-11.0-2022-09-21/cy, as SOURCE ({LAYOUT}).",
    )
    listing = Listing()
    for split in SPLITS:
        _list_split(corpus_dir, split, listing)
    return Preparation(
        corpus="commonvoice",
        corpus_dir=corpus_dir,
        manifest_dir=manifest_dir,
        options={},
        files=list_files(corpus_dir, (".mp3", *tables)),
        tasks=listing.tasks,
        work=partial(process_recording, root=corpus_dir),
        assign=partial(
            assign_splits,
            splits=SPLITS,
            advice=f"Expected {LAYOUT}. Unpack the archive again.",
        ),
        expected=LAYOUT,
        replaces=[f"{split}.csv" for split in SPLITS],
        listed=listing.outcome,
    )


def _list_split(corpus_dir: Path, split: str, listing: Listing) -> None:
    """Read the table of a split; its first line names the columns."""
    lines = listing.read_lines(corpus_dir, f"{split}.tsv")
    _, header = next(lines, ("", ""))
    columns = header.split("\t")
    missing = [c for c in (CLIP, SPEAKER, SENTENCE) if c not in columns]
    if missing:
        raise UserError(
            f"{corpus_dir / split}.tsv has no column {', '.join(missing)}; "
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
        recording = Recording(
            group=split,
            id=PurePosixPath(name).stem,
            path=f"{CLIPS}/{name}",
            labels=labels,
        )
        listing.add(recording, place)


CORPUS = Corpus(
    name="commonvoice",
    summary="Common Voice, one language (train, dev, test)",
    add_arguments=add_no_arguments,
    plan=plan_commonvoice,
)
