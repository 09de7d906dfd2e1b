"""LibriSpeech: one manifest per split, with speakers and transcripts.

Layout: `SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac` beside
`SPEAKER-CHAPTER.trans.txt`, whose lines are "NAME TRANSCRIPT".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from summarymixing.data.prepare.account import Outcome
from summarymixing.data.prepare.common import (
    assign_splits,
    find_corpus,
    list_files,
    require,
)
from summarymixing.data.prepare.corpus import Corpus, option
from summarymixing.data.prepare.listing import Recording, add_row
from summarymixing.data.prepare.pipeline import Plan

SPLITS = ("train-clean-100", "dev-clean", "test-clean", "test-other")
LAYOUT = (
    "SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac beside "
    "SPEAKER-CHAPTER.trans.txt"
)
TRANSCRIPT_SUFFIX = ".trans.txt"


@dataclass(frozen=True)
class LibriSpeechOptions:
    """The options of `prepare.py librispeech`."""

    splits: tuple[str, ...] | None = option(
        None,
        f"the splits to take (default: {', '.join(SPLITS)}, as far as they "
        "are there)",
        metavar="NAME",
    )


def plan_librispeech(source: Path, options: LibriSpeechOptions) -> Plan:
    """Plan SPLIT.csv for each split, with labels speaker and transcript.

    SOURCE is the folder `LibriSpeech`, which holds the splits, or a folder
    above it. Each chapter is one item of the work.
    """
    source, splits = _find_splits(source, options.splits)
    files = [
        file
        for split in splits
        for file in list_files(
            source, (".flac", TRANSCRIPT_SUFFIX), below=split
        )
    ]
    chapters = {str(PurePosixPath(file.relative).parent) for file in files}
    advice = (
        f"Expected {LAYOUT}. Repair these splits, or leave them out with "
        "--splits."
    )
    return Plan(
        source=source,
        files=files,
        work_items=sorted(chapters),
        work=partial(process_chapter, root=source),
        assign=partial(assign_splits, splits=splits, advice=advice),
    )


def process_chapter(chapter: str, *, root: Path) -> Outcome:
    """Match the recordings of one chapter with their transcripts.

    The chapter is a folder "SPLIT/SPEAKER/CHAPTER" below `root`.
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
            reason = "recording without a transcript"
            outcome.problems.append((reason, relative))
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


def _find_splits(
    source: Path, splits: Sequence[str] | None
) -> tuple[Path, list[str]]:
    """Return the folder that holds the splits, and their names."""
    wanted = list(dict.fromkeys(splits or SPLITS))

    def list_present(folder: Path) -> list[str]:
        return [name for name in wanted if (folder / name).is_dir()]

    source = find_corpus(source, lambda folder: bool(list_present(folder)))
    present = list_present(source)
    missing = [name for name in wanted if name not in present]
    require(
        bool(present) and not (splits and missing),
        f"{source} has no split {', '.join(missing)}. Give the folder "
        f"LibriSpeech, which holds the splits, as SOURCE ({LAYOUT}).",
    )
    return source, present


CORPUS = Corpus(
    name="librispeech",
    summary="LibriSpeech (train-clean-100, dev-clean, test-clean, test-other)",
    layout=LAYOUT,
    list_work=plan_librispeech,
    options=LibriSpeechOptions,
)
