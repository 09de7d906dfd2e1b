"""Any folder of audio: one row for a short file, several for a long one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from summarymixing.data.audio import AudioError, AudioInfo, audio_info
from summarymixing.data.manifest import Row
from summarymixing.data.prepare.account import Outcome
from summarymixing.data.prepare.common import (
    TEST_NAME,
    TRAIN_NAME,
    VALID_NAME,
    assign_train_valid,
    check_fraction,
    list_files,
    require,
)
from summarymixing.data.prepare.corpus import Corpus, option
from summarymixing.data.prepare.cutting import (
    ROUNDING_S,
    Clip,
    DamagedAudioError,
    check_samples,
    cut_by_energy,
    cut_evenly,
    join_clips,
)
from summarymixing.data.prepare.pipeline import Plan
from summarymixing.data.prepare.transcripts import (
    BESIDE,
    CHARACTERS_NAME,
    Limits,
    plan_transcribed,
)

SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")

Cutter = Callable[[Path, AudioInfo, float], list[list[Clip]]]


@dataclass(frozen=True)
class FolderOptions:
    """The options of `prepare.py folder`."""

    cut: str = option(
        "energy",
        "how to cut files over --max_seconds: at pauses, which are left out, "
        "or into even pieces",
        choices=("energy", "even"),
    )
    max_seconds: float = option(30.0, "the longest row")
    min_seconds: float | None = option(
        None, "drop shorter rows (default: 1, or 0.1 with --transcripts)"
    )
    valid_fraction: float = option(
        0.05,
        "the largest part of the audio that validation may take; 0 for none, "
        "and training then needs a valid.csv from elsewhere",
    )
    split_by: str = option(
        "file",
        "what train and valid never share: files, or the folders at the top "
        "of SOURCE, for example of speakers",
        choices=("file", "folder"),
    )
    transcripts: str | None = option(
        None,
        "texts, for fine-tuning: a table (path or name of a recording, tab, "
        f"text), or {BESIDE} for NAME.txt beside NAME.wav; then no file is cut",
        metavar="FILE.tsv",
    )
    test_fraction: float | None = option(
        None,
        "the largest part of the audio for test.csv (default: 0.1 with "
        "--transcripts, 0 without)",
    )


def plan_folder(source: Path, options: FolderOptions) -> Plan:
    """Plan train.csv, valid.csv and perhaps test.csv for a folder of audio.

    SOURCE is searched recursively for flac, wav, ogg, opus and mp3 files of
    any rate and number of channels. Each file is one item of the work.
    """
    has_texts = options.transcripts is not None
    min_seconds = _or(options.min_seconds, 0.1 if has_texts else 1.0)
    test_fraction = _or(options.test_fraction, 0.1 if has_texts else 0.0)
    require(
        0 < min_seconds <= options.max_seconds,
        f"Lengths must satisfy 0 < min_seconds ({min_seconds:g}) <= "
        f"max_seconds ({options.max_seconds:g}).",
    )
    check_fraction("--valid_fraction", options.valid_fraction)
    check_fraction("--test_fraction", test_fraction)
    files = list_files(source, SUFFIXES)
    require(
        bool(files),
        f"There is no audio ({', '.join(SUFFIXES)}) in {source}. Give the "
        "folder that holds the files; its sub-folders are searched too.",
    )
    assign = partial(
        assign_train_valid,
        max_fraction=options.valid_fraction,
        max_seconds=float("inf"),
        test_fraction=test_fraction,
    )
    if options.transcripts is not None:
        return plan_transcribed(
            source,
            files,
            transcripts=options.transcripts,
            limits=Limits(min_seconds, options.max_seconds),
            by_folder=options.split_by == "folder",
            assign=assign,
        )
    return Plan(
        source=source,
        files=files,
        work_items=[file.relative for file in files],
        work=partial(
            process_file,
            root=source,
            options=options,
            min_seconds=min_seconds,
        ),
        assign=assign,
        replaces=(TRAIN_NAME, VALID_NAME, TEST_NAME, CHARACTERS_NAME),
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def process_file(
    name: str, *, root: Path, options: FolderOptions, min_seconds: float
) -> Outcome:
    """Turn one file below `root` into rows, or name its problem."""
    path = root / name
    try:
        info = audio_info(path)
        pieces = _cut_file(path, info, options.cut, options.max_seconds)
    except AudioError as error:
        return Outcome(problems=[(error.reason, name)])
    except DamagedAudioError as error:
        return Outcome(problems=[(str(error), name)])
    outcome = Outcome(
        group=name if options.split_by == "file" else name.split("/")[0],
        found_s=info.duration_s,
    )
    _add_rows(outcome, pieces, name, path, min_seconds)
    return outcome


def _cut_file(
    path: Path, info: AudioInfo, cut: str, max_seconds: float
) -> list[list[Clip]]:
    """Return the clips of each row; no clips at all mean the whole file."""
    if info.duration_s <= max_seconds + ROUNDING_S:
        # The header is enough, except that floats may be NaN.
        if info.is_float:
            check_samples(path)
        return [[]]
    return CUTTERS[cut](path, info, max_seconds)


def _by_energy(
    path: Path, info: AudioInfo, max_seconds: float
) -> list[list[Clip]]:
    clips = cut_by_energy(path, max_seconds)
    sequences, _ = join_clips(
        clips, max_joined_s=max_seconds, max_clip_s=info.duration_s
    )
    return sequences


def _evenly(
    path: Path, info: AudioInfo, max_seconds: float
) -> list[list[Clip]]:
    if info.is_float:
        check_samples(path)
    return [[clip] for clip in cut_evenly(info.duration_s, max_seconds)]


CUTTERS: dict[str, Cutter] = {"energy": _by_energy, "even": _evenly}


def _add_rows(
    outcome: Outcome,
    pieces: list[list[Clip]],
    name: str,
    path: Path,
    min_seconds: float,
) -> None:
    """Add the rows of a file and what is dropped of it."""
    silence_s = outcome.found_s
    for clips in pieces:
        duration_s = sum(stop - start for start, stop in clips)
        if not clips:
            duration_s = outcome.found_s
        silence_s -= duration_s
        if duration_s < min_seconds - ROUNDING_S:
            reason = f"shorter than {min_seconds:g} s"
            outcome.dropped.append((reason, duration_s))
            continue
        row_id = f"{name}/{len(outcome.rows):04d}" if clips else name
        outcome.rows.append(Row(row_id, str(path), tuple(clips), duration_s))
    if silence_s > ROUNDING_S:
        outcome.dropped.append(("silence", silence_s))
    if not pieces:
        outcome.problems.append(("nothing above silence", name))


CORPUS = Corpus(
    name="folder",
    summary="any folder of audio (flac, wav, ogg, opus, mp3)",
    layout=f"audio files ({', '.join(SUFFIXES)})",
    list_work=plan_folder,
    options=FolderOptions,
)
