"""Any folder of audio: one row for a short file, several for a long one."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from pathlib import Path

from summarymixing.data.audio import AudioError, AudioInfo, audio_info
from summarymixing.data.manifest import Row
from summarymixing.data.prepare.account import Outcome
from summarymixing.data.prepare.common import (
    TRAIN_NAME,
    VALID_NAME,
    assign_train_valid,
    check_source,
    list_files,
    require,
)
from summarymixing.data.prepare.cutting import (
    ROUNDING_S,
    Clip,
    DamagedAudioError,
    check_samples,
    cut_by_energy,
    cut_evenly,
    join_clips,
)
from summarymixing.data.prepare.pipeline import Corpus, Preparation

SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
MIN_SECONDS = 1.0
MAX_SECONDS = 30.0
VALID_FRACTION = 0.05

Cutter = Callable[[Path, AudioInfo, float], list[list[Clip]]]


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of a folder of audio.

    Arguments
    ---------
    parser : ArgumentParser
        Of `prepare.py folder`.
    """
    parser.add_argument(
        "--cut",
        choices=tuple(CUTTERS),
        default="energy",
        help="how to cut files over --max_seconds: at pauses, which are left "
        "out, or into even pieces (default: %(default)s)",
    )
    parser.add_argument(
        "--max_seconds",
        type=float,
        default=MAX_SECONDS,
        help="longest row (default: %(default)g)",
    )
    parser.add_argument(
        "--min_seconds",
        type=float,
        default=MIN_SECONDS,
        help="drop shorter rows (default: %(default)g)",
    )
    parser.add_argument(
        "--valid_fraction",
        type=float,
        default=VALID_FRACTION,
        help="most of the audio that validation may take; 0 for none, and "
        "training then needs a valid.csv from elsewhere (default: "
        "%(default)g)",
    )
    parser.add_argument(
        "--split_by",
        choices=("file", "folder"),
        default="file",
        help="what train and valid never share: files, or the folders at the "
        "top of SOURCE, for example of speakers (default: %(default)s)",
    )


def plan_folder(
    corpus_dir: Path,
    manifest_dir: Path,
    *,
    cut: str = "energy",
    max_seconds: float = MAX_SECONDS,
    min_seconds: float = MIN_SECONDS,
    valid_fraction: float = VALID_FRACTION,
    split_by: str = "file",
) -> Preparation:
    """Plan train.csv and valid.csv for any folder of audio.

    Arguments
    ---------
    corpus_dir : Path
        Searched recursively for flac, wav, ogg, opus and mp3 files of any
        rate and number of channels.
    manifest_dir : Path
        Where the manifests and report.json are written.
    cut : str
        "energy" or "even": how longer files are cut.
    max_seconds, min_seconds : float
        Longest and shortest row.
    valid_fraction : float
        Most of the audio that validation may take, in [0, 1).
    split_by : str
        "file" or "folder": what train and valid never share.

    Returns
    -------
    Preparation
        Its report tells the hours kept and dropped, by reason.
    """
    require(
        0 < min_seconds <= max_seconds,
        f"Lengths must satisfy 0 < min_seconds ({min_seconds:g}) <= "
        f"max_seconds ({max_seconds:g}).",
    )
    require(
        0 <= valid_fraction < 1,
        f"--valid_fraction is {valid_fraction:g}; it must be in [0, 1).",
    )
    require(cut in CUTTERS, f"--cut is {cut!r}; give {' or '.join(CUTTERS)}.")
    require(
        split_by in ("file", "folder"),
        f"--split_by is {split_by!r}; give file or folder.",
    )
    corpus_dir = check_source(corpus_dir)
    files = list_files(corpus_dir, SUFFIXES)
    require(
        bool(files),
        f"There is no audio ({', '.join(SUFFIXES)}) in {corpus_dir}. Give the "
        "folder that holds the files; its sub-folders are searched too.",
    )
    return Preparation(
        corpus="folder",
        corpus_dir=corpus_dir,
        manifest_dir=manifest_dir,
        options={
            "cut": cut,
            "max_seconds": max_seconds,
            "min_seconds": min_seconds,
            "valid_fraction": valid_fraction,
            "split_by": split_by,
        },
        files=files,
        tasks=[file.relative for file in files],
        work=partial(
            process_file,
            root=corpus_dir,
            cut=cut,
            max_seconds=max_seconds,
            min_seconds=min_seconds,
            split_by=split_by,
        ),
        assign=partial(
            assign_train_valid,
            max_fraction=valid_fraction,
            max_seconds=float("inf"),
        ),
        expected=f"audio files ({', '.join(SUFFIXES)})",
        replaces=(TRAIN_NAME, VALID_NAME),
    )


def process_file(
    name: str,
    *,
    root: Path,
    cut: str,
    max_seconds: float,
    min_seconds: float,
    split_by: str,
) -> Outcome:
    """Turn one file into rows.

    Arguments
    ---------
    name : str
        Path of the file below `root`.
    root : Path
        The corpus.
    cut : str
        How to cut it if it is longer than `max_seconds`.
    max_seconds, min_seconds : float
        Longest and shortest row.
    split_by : str
        "file" or "folder".

    Returns
    -------
    Outcome
        Rows, or the problem.
    """
    path = root / name
    try:
        info = audio_info(path)
        pieces = _cut_file(path, info, cut, max_seconds)
    except AudioError as error:
        return Outcome(problems=[(error.reason, name)])
    except DamagedAudioError as error:
        return Outcome(problems=[(str(error), name)])
    outcome = Outcome(
        group=name if split_by == "file" else name.split("/")[0],
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
    add_arguments=add_arguments,
    plan=plan_folder,
)
