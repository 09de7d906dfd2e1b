"""Libri-Light as downloaded: clips of voice activity, joined as in the paper.

Layout: `SPLIT/SPEAKER/BOOK/NAME.flac` beside `NAME.json`, whose key
`voice_activity` lists the (start, stop) of each clip in seconds. Only the
JSON files and the headers of the recordings are read, and no audio is
written: a row lists its clips.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from summarymixing.data.audio import END_TOLERANCE_S, AudioError, audio_info
from summarymixing.data.manifest import Row
from summarymixing.data.prepare.account import Outcome
from summarymixing.data.prepare.common import (
    TRAIN_NAME,
    VALID_NAME,
    FoundFile,
    assign_train_valid,
    check_source,
    list_files,
    require,
)
from summarymixing.data.prepare.cutting import ROUNDING_S, Clip, join_clips
from summarymixing.data.prepare.pipeline import Corpus, Preparation
from summarymixing.errors import UserError

SPLITS = ("small", "medium", "large")
MAX_JOINED_SECONDS = 30.0
MAX_CLIP_SECONDS = 60.0
MIN_SECONDS = 2.0
VALID_HOURS = 5.0
MAX_OVERLAP_S = 0.05  # of neighbours: cut off, where more is malformed
MAX_VALID_FRACTION = 0.05  # a bound for small corpora

LAYOUT = "SPLIT/SPEAKER/BOOK/NAME.flac beside NAME.json with voice_activity"
DEPTH = LAYOUT.count("/")  # folders above a recording, the split included


@dataclass(frozen=True)
class Limits:
    """The lengths of the clip rule, in seconds.

    Arguments
    ---------
    min_seconds : float
        Shorter sequences are dropped.
    max_joined_seconds : float
        Adjacent clips are joined up to this sum.
    max_clip_seconds : float
        Longer clips are dropped.
    """

    min_seconds: float = MIN_SECONDS
    max_joined_seconds: float = MAX_JOINED_SECONDS
    max_clip_seconds: float = MAX_CLIP_SECONDS


class MetadataError(Exception):
    """A JSON file that does not say where the speech is."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of Libri-Light.

    Arguments
    ---------
    parser : ArgumentParser
        Of `prepare.py librilight`.
    """
    parser.add_argument(
        "--splits",
        nargs="+",
        metavar="NAME",
        help="splits below SOURCE (default: small, medium and large, those "
        "present)",
    )
    parser.add_argument(
        "--max_joined_seconds",
        type=float,
        default=MAX_JOINED_SECONDS,
        help="join adjacent clips up to this sum (default: %(default)g)",
    )
    parser.add_argument(
        "--max_clip_seconds",
        type=float,
        default=MAX_CLIP_SECONDS,
        help="drop longer clips (default: %(default)g)",
    )
    parser.add_argument(
        "--min_seconds",
        type=float,
        default=MIN_SECONDS,
        help="drop shorter sequences (default: %(default)g)",
    )
    parser.add_argument(
        "--valid_hours",
        type=float,
        default=VALID_HOURS,
        help="hours of validation, at most 5 %% of what is kept; 0 for none, "
        "and training then needs a valid.csv from elsewhere (default: "
        "%(default)g)",
    )
    parser.add_argument(
        "--valid_by",
        choices=("recording", "speaker"),
        default="recording",
        help="what train and valid never share (default: %(default)s)",
    )


def plan_librilight(
    corpus_dir: Path,
    manifest_dir: Path,
    *,
    splits: Sequence[str] | None = None,
    min_seconds: float = MIN_SECONDS,
    max_joined_seconds: float = MAX_JOINED_SECONDS,
    max_clip_seconds: float = MAX_CLIP_SECONDS,
    valid_hours: float = VALID_HOURS,
    valid_by: str = "recording",
) -> Preparation:
    """Plan train.csv and valid.csv for Libri-Light.

    Arguments
    ---------
    corpus_dir : Path
        A split (`.../medium`), or a folder that holds splits.
    manifest_dir : Path
        Where the manifests and report.json are written.
    splits : Sequence of str, optional
        Splits to take; by default small, medium and large, those present.
    min_seconds, max_joined_seconds, max_clip_seconds : float
        The clip rule, see `Limits`.
    valid_hours : float
        Hours of validation, at most 5 % of what is kept.
    valid_by : str
        "recording" or "speaker": what train and valid never share.

    Returns
    -------
    Preparation
        Its report tells the hours kept and dropped, by reason.
    """
    limits = Limits(min_seconds, max_joined_seconds, max_clip_seconds)
    _check_options(limits, valid_hours, valid_by)
    corpus_dir = check_source(corpus_dir)
    root, splits = _find_splits(corpus_dir, splits)
    files = [
        file
        for split in splits
        for file in list_files(root, (".flac", ".json"), below=split)
    ]
    _check_level(corpus_dir, files)
    return Preparation(
        corpus="librilight",
        corpus_dir=corpus_dir,
        manifest_dir=manifest_dir,
        options={
            **asdict(limits),
            "splits": splits,
            "valid_hours": valid_hours,
            "valid_by": valid_by,
        },
        files=files,
        tasks=sorted({file.relative.rpartition(".")[0] for file in files}),
        work=partial(
            process_recording, root=root, limits=limits, group_by=valid_by
        ),
        assign=partial(
            assign_train_valid,
            max_fraction=MAX_VALID_FRACTION,
            max_seconds=3600 * valid_hours,
        ),
        expected=LAYOUT,
        replaces=(TRAIN_NAME, VALID_NAME),
    )


def process_recording(
    stem: str, *, root: Path, limits: Limits, group_by: str
) -> Outcome:
    """Cut one recording.

    Arguments
    ---------
    stem : str
        "SPLIT/SPEAKER/BOOK/NAME", without an ending.
    root : Path
        Folder that holds the splits.
    limits : Limits
        The clip rule.
    group_by : str
        "recording" or "speaker".

    Returns
    -------
    Outcome
        Rows, or the problem.
    """
    parts = stem.split("/")
    if len(parts) != DEPTH + 1:
        return Outcome(problems=[(f"not in the layout {LAYOUT}", stem)])
    path = root / f"{stem}.flac"
    try:
        clips = read_voice_activity(root / f"{stem}.json")
        if not path.exists():
            raise MetadataError("JSON without a recording")
        duration_s = audio_info(path).duration_s
    except MetadataError as error:
        return Outcome(problems=[(str(error), stem)])
    except AudioError as error:
        reason = f"recording: {error.reason}"
        return Outcome(problems=[(reason, f"{stem}.flac")])
    outcome = Outcome(
        group=stem if group_by == "recording" else parts[1],
        found_s=duration_s,
    )
    _cut(outcome, clips, stem, path, limits)
    return outcome


def read_voice_activity(path: Path) -> list[Clip]:
    """Read the clips of a recording.

    Arguments
    ---------
    path : Path
        The JSON file beside it.

    Returns
    -------
    list of (float, float)
        (start, stop) in seconds, in order of time; empty for silence.

    Raises
    ------
    MetadataError
        Says what is wrong with the file.
    """
    try:
        metadata = json.loads(path.read_bytes())
        activity = metadata["voice_activity"]
    except FileNotFoundError as error:
        raise MetadataError("recording without JSON") from error
    except OSError as error:
        raise MetadataError("unreadable JSON") from error
    except ValueError as error:
        raise MetadataError("malformed JSON") from error
    except (KeyError, TypeError) as error:
        raise MetadataError("JSON without voice_activity") from error
    try:
        clips = [(float(start), float(stop)) for start, stop in activity]
    except (TypeError, ValueError) as error:
        raise MetadataError("malformed voice_activity") from error
    cut, end = [], 0.0
    for start, stop in clips:
        # Comparisons that NaN fails.
        if not (
            end <= start + MAX_OVERLAP_S and start <= stop + ROUNDING_S < 1e9
        ):
            raise MetadataError("malformed voice_activity")
        start = max(end, start)
        if stop - start > ROUNDING_S:
            cut.append((start, stop))
        end = stop
    return cut


def _cut(
    outcome: Outcome, clips: list[Clip], stem: str, path: Path, limits: Limits
) -> None:
    """Add the rows of a recording and what is dropped of it."""
    duration_s = outcome.found_s
    inside, beyond = _split_at_end(clips, duration_s)
    if not clips:
        outcome.problems.append(("empty voice_activity", f"{stem}.json"))
    if beyond:
        reason = "voice_activity beyond the end of the recording"
        outcome.problems.append((reason, f"{stem}.json"))
    sequences, too_long = join_clips(
        inside,
        max_joined_s=limits.max_joined_seconds,
        max_clip_s=limits.max_clip_seconds,
    )
    for clip in too_long:
        reason = f"clip longer than {limits.max_clip_seconds:g} s"
        outcome.dropped.append((reason, clip[1] - clip[0]))
    for sequence in sequences:
        _add_sequence(outcome, sequence, stem, path, limits.min_seconds)
    silence_s = duration_s - sum(stop - start for start, stop in inside)
    if silence_s > ROUNDING_S:
        outcome.dropped.append(("no voice activity", silence_s))


def _split_at_end(
    clips: list[Clip], duration_s: float
) -> tuple[list[Clip], list[Clip]]:
    """Clip what ends slightly late; part off what is not in the recording."""
    limit_s = duration_s + END_TOLERANCE_S
    inside = [
        (start, min(stop, duration_s))
        for start, stop in clips
        if stop <= limit_s and start < duration_s
    ]
    return inside, clips[len(inside) :]


def _add_sequence(
    outcome: Outcome,
    sequence: list[Clip],
    stem: str,
    path: Path,
    min_seconds: float,
) -> None:
    duration_s = sum(stop - start for start, stop in sequence)
    if duration_s < min_seconds - ROUNDING_S:
        outcome.dropped.append((f"shorter than {min_seconds:g} s", duration_s))
        return
    _, speaker, book, _ = stem.split("/")
    outcome.rows.append(
        Row(
            id=f"{stem}/{len(outcome.rows):04d}",
            path=str(path),
            segments=tuple(sequence),
            duration=duration_s,
            labels={"speaker": speaker, "book": book},
        )
    )


def _check_options(limits: Limits, valid_hours: float, valid_by: str) -> None:
    require(
        0
        < limits.min_seconds
        <= limits.max_joined_seconds
        <= limits.max_clip_seconds,
        f"Lengths must satisfy 0 < min_seconds ({limits.min_seconds:g}) <= "
        f"max_joined_seconds ({limits.max_joined_seconds:g}) <= "
        f"max_clip_seconds ({limits.max_clip_seconds:g}).",
    )
    require(valid_hours >= 0, "--valid_hours must be 0 or more.")
    require(
        valid_by in ("recording", "speaker"),
        f"--valid_by is {valid_by!r}; give recording or speaker.",
    )


def _find_splits(
    corpus_dir: Path, splits: Sequence[str] | None
) -> tuple[Path, list[str]]:
    """Return the folder that holds the splits, and their names."""
    if splits:
        missing = [s for s in splits if not (corpus_dir / s).is_dir()]
        require(
            not missing,
            f"{corpus_dir} has no split {', '.join(missing)}. Give the folder "
            "that holds the splits as SOURCE, or a split without --splits.",
        )
        return corpus_dir, sorted(set(splits))
    present = [name for name in SPLITS if (corpus_dir / name).is_dir()]
    if present:
        return corpus_dir, present
    return corpus_dir.parent, [corpus_dir.name]


def _check_level(corpus_dir: Path, files: Sequence[FoundFile]) -> None:
    """Find out whether the user pointed above or below a split."""
    require(
        bool(files),
        f"There is no .flac or .json file in {corpus_dir}. Expected {LAYOUT}; "
        "give a split folder, such as .../medium, or the folder above it.",
    )
    depths = Counter(file.relative.count("/") for file in files)
    depth = depths.most_common(1)[0][0]
    if depth == DEPTH:
        return
    side = "above" if depth > DEPTH else "below"
    example = next(f for f in files if f.relative.count("/") == depth)
    raise UserError(
        f"{corpus_dir} seems to be a folder {side} the splits: most "
        f"recordings are like {example.relative}, expected {LAYOUT}. Give a "
        "split folder, such as .../medium, or the folder that holds small, "
        "medium and large (other names: --splits)."
    )


CORPUS = Corpus(
    name="librilight",
    summary="Libri-Light as downloaded (FLAC and JSON, not cut)",
    add_arguments=add_arguments,
    plan=plan_librilight,
)
