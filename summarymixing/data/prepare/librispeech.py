"""LibriSpeech: one manifest per split, with speakers and transcripts.

Layout: `SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac` beside
`SPEAKER-CHAPTER.trans.txt`, whose lines are "NAME TRANSCRIPT".
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from summarymixing.data.prepare.account import Outcome
from summarymixing.data.prepare.common import (
    assign_splits,
    check_source,
    list_files,
)
from summarymixing.data.prepare.listing import Recording, add_row
from summarymixing.data.prepare.pipeline import Corpus, Preparation
from summarymixing.errors import UserError

SPLITS = ("train-clean-100", "dev-clean", "test-clean", "test-other")
LAYOUT = (
    "SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac beside "
    "SPEAKER-CHAPTER.trans.txt"
)
TRANSCRIPT_SUFFIX = ".trans.txt"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of LibriSpeech.

    Arguments
    ---------
    parser : ArgumentParser
        Of `prepare.py librispeech`.
    """
    parser.add_argument(
        "--splits",
        nargs="+",
        metavar="NAME",
        help=f"splits below SOURCE (default: {', '.join(SPLITS)}; those "
        "present)",
    )


def plan_librispeech(
    corpus_dir: Path,
    manifest_dir: Path,
    *,
    splits: Sequence[str] | None = None,
) -> Preparation:
    """Plan SPLIT.csv for each split, with labels speaker and transcript.

    Arguments
    ---------
    corpus_dir : Path
        The folder `LibriSpeech`, which holds the splits.
    manifest_dir : Path
        Where the manifests and report.json are written.
    splits : Sequence of str, optional
        Splits to take; by default those of the MP3S benchmark, if present.

    Returns
    -------
    Preparation
        Its report tells the hours kept, and the names of unusable files.
    """
    corpus_dir = check_source(corpus_dir)
    splits = _find_splits(corpus_dir, splits)
    files = [
        file
        for split in splits
        for file in list_files(
            corpus_dir, (".flac", TRANSCRIPT_SUFFIX), below=split
        )
    ]
    chapters = {str(PurePosixPath(file.relative).parent) for file in files}
    return Preparation(
        corpus="librispeech",
        corpus_dir=corpus_dir,
        manifest_dir=manifest_dir,
        options={"splits": splits},
        files=files,
        tasks=sorted(chapters),
        work=partial(process_chapter, root=corpus_dir),
        assign=partial(
            assign_splits,
            splits=splits,
            advice=f"Expected {LAYOUT}. Repair these splits, or leave them "
            "out with --splits.",
        ),
        expected=LAYOUT,
    )


def process_chapter(chapter: str, *, root: Path) -> Outcome:
    """Match the recordings of one chapter with their transcripts.

    Arguments
    ---------
    chapter : str
        "SPLIT/SPEAKER/CHAPTER".
    root : Path
        The corpus.

    Returns
    -------
    Outcome
        Rows, and the problems of each file.
    """
    folder = root / chapter
    recordings = {
        path.stem: path
        for path in sorted(folder.glob("*.flac"))
        if not path.name.startswith(".")
    }
    outcome = Outcome(
        group=chapter.split("/")[0], num_recordings=len(recordings)
    )
    if chapter.count("/") != 2:
        reason = f"not in the layout {LAYOUT}"
        names = [path.name for path in folder.iterdir() if path.is_file()]
        outcome.problems = [(reason, f"{chapter}/{n}") for n in sorted(names)]
        return outcome
    transcripts = _read_transcripts(folder, chapter, outcome)
    speaker = chapter.split("/")[1]
    for name, path in recordings.items():
        relative = f"{chapter}/{path.name}"
        if name in transcripts:
            labels = {"speaker": speaker, "transcript": transcripts[name]}
            recording = Recording(outcome.group, name, relative, labels)
            add_row(outcome, recording, root)
        else:
            outcome.problems.append(
                ("recording without a transcript", relative)
            )
    for name in sorted(transcripts.keys() - recordings.keys()):
        reason = "transcript without a recording"
        outcome.problems.append((reason, f"{chapter}/{name}"))
    return outcome


def _read_transcripts(
    folder: Path, chapter: str, outcome: Outcome
) -> dict[str, str]:
    """Return the transcript of each utterance; note malformed lines."""
    _, speaker, number = chapter.split("/")
    prefix = f"{speaker}-{number}-"
    transcripts: dict[str, str] = {}
    for path in sorted(folder.glob(f"[!.]*{TRANSCRIPT_SUFFIX}")):
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            name = f"{chapter}/{path.name}"
            outcome.problems.append(("unreadable transcripts", name))
            continue
        for count, line in enumerate(lines, start=1):
            name, _, text = line.strip().partition(" ")
            where = f"{chapter}/{path.name}:{count}"
            if name in transcripts:
                reason = "utterance listed twice (the first counts)"
                outcome.problems.append((reason, where))
            elif name.startswith(prefix) and text.strip():
                transcripts[name] = text.strip()
            elif name:
                outcome.problems.append(("malformed transcript line", where))
    return transcripts


def _find_splits(corpus_dir: Path, splits: Sequence[str] | None) -> list[str]:
    wanted = list(dict.fromkeys(splits or SPLITS))
    present = [name for name in wanted if (corpus_dir / name).is_dir()]
    missing = [name for name in wanted if name not in present]
    if not present or (splits and missing):
        raise UserError(
            f"{corpus_dir} has no split {', '.join(missing)}. Give the folder "
            f"LibriSpeech, which holds the splits, as SOURCE ({LAYOUT})."
        )
    return present


CORPUS = Corpus(
    name="librispeech",
    summary="LibriSpeech (train-clean-100, dev-clean, test-clean, test-other)",
    add_arguments=add_arguments,
    plan=plan_librispeech,
)
