"""Libri-Light as downloaded: clips of voice activity, joined as in the paper.

Layout: `SPLIT/SPEAKER/BOOK/NAME.flac` beside `NAME.json`, whose key
`voice_activity` lists the (start, stop) of each clip in seconds. Only the
JSON files and the headers of the recordings are read, and no audio is
written: a row lists its clips.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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
    find_corpus,
    list_files,
    require,
)
from summarymixing.data.prepare.corpus import Corpus, option
from summarymixing.data.prepare.cutting import ROUNDING_S, Clip, join_clips
from summarymixing.data.prepare.pipeline import Plan
from summarymixing.errors import UserError

SPLITS = ("small", "medium", "large")
MAX_OVERLAP_S = 0.05  # of neighbours: cut off, where more is malformed
MAX_VALID_FRACTION = 0.05  # a bound for small corpora

LAYOUT = "SPLIT/SPEAKER/BOOK/NAME.flac beside NAME.json with voice_activity"
DEPTH = LAYOUT.count("/")  # folders above a recording, the split included


@dataclass(frozen=True)
class LibriLightOptions:
    """The options of `prepare.py librilight`; the lengths are the clip rule."""

    splits: tuple[str, ...] | None = option(
        None,
        f"the splits to take (default: {', '.join(SPLITS)}, as far as they "
        "are there)",
        metavar="NAME",
    )
    max_joined_seconds: float = option(
        30.0, "join adjacent clips up to this sum"
    )
    max_clip_seconds: float = option(60.0, "drop longer clips")
    min_seconds: float = option(2.0, "drop shorter sequences")
    valid_hours: float = option(
        5.0,
        "hours of validation, at most 5 % of what is kept; 0 for none, and "
        "training then needs a valid.csv from elsewhere",
    )
    valid_by: str = option(
        "recording",
        "what train and valid never share",
        choices=("recording", "speaker"),
    )


class MetadataError(Exception):
    """A JSON file that does not say where the speech is."""


def plan_librilight(source: Path, options: LibriLightOptions) -> Plan:
    """Plan train.csv and valid.csv for Libri-Light.

    SOURCE is a split (`.../medium`), a folder that holds splits, or a folder
    above that. Each recording is one item of the work.
    """
    _check_options(options)
    source, root, splits = _find_splits(source, options.splits)
    files = [
        file
        for split in splits
        for file in list_files(root, (".flac", ".json"), below=split)
    ]
    _check_level(source, files)
    return Plan(
        source=source,
        files=files,
        work_items=sorted({f.relative.rpartition(".")[0] for f in files}),
        work=partial(process_recording, root=root, options=options),
        assign=partial(
            assign_train_valid,
            max_fraction=MAX_VALID_FRACTION,
            max_seconds=3600 * options.valid_hours,
        ),
        replaces=(TRAIN_NAME, VALID_NAME),
    )


def process_recording(
    stem: str, *, root: Path, options: LibriLightOptions
) -> Outcome:
    """Cut one recording, "SPLIT/SPEAKER/BOOK/NAME" without an ending.

    `root` is the folder that holds the splits.
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
        group=stem if options.valid_by == "recording" else parts[1],
        found_s=duration_s,
    )
    _cut(outcome, clips, stem, path, options)
    return outcome


def read_voice_activity(path: Path) -> list[Clip]:
    """Read the clips of a recording.

    Arguments
    ---------
    path : Path
        The JSON file beside the recording.

    Returns
    -------
    list of (float, float)
        The (start, stop) of each clip in seconds, in order of time.

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
    outcome: Outcome,
    clips: list[Clip],
    stem: str,
    path: Path,
    options: LibriLightOptions,
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
        max_joined_s=options.max_joined_seconds,
        max_clip_s=options.max_clip_seconds,
    )
    for clip in too_long:
        reason = f"clip longer than {options.max_clip_seconds:g} s"
        outcome.dropped.append((reason, clip[1] - clip[0]))
    for sequence in sequences:
        _add_sequence(outcome, sequence, stem, path, options.min_seconds)
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


def _check_options(options: LibriLightOptions) -> None:
    require(
        0
        < options.min_seconds
        <= options.max_joined_seconds
        <= options.max_clip_seconds,
        f"Lengths must satisfy 0 < min_seconds ({options.min_seconds:g}) <= "
        f"max_joined_seconds ({options.max_joined_seconds:g}) <= "
        f"max_clip_seconds ({options.max_clip_seconds:g}).",
    )
    require(options.valid_hours >= 0, "--valid_hours must be 0 or more.")


def _find_splits(
    source: Path, splits: Sequence[str] | None
) -> tuple[Path, Path, list[str]]:
    """Return the corpus, the folder that holds the splits, and their names."""
    wanted = sorted(set(splits or SPLITS))

    def list_present(folder: Path) -> list[str]:
        return [name for name in wanted if (folder / name).is_dir()]

    def is_corpus(folder: Path) -> bool:
        return bool(list_present(folder)) or folder.name in wanted

    source = find_corpus(source, is_corpus)
    present = list_present(source)
    missing = [name for name in wanted if name not in present]
    require(
        not (splits and missing),
        f"{source} has no split {', '.join(missing)}. Give the folder that "
        "holds the splits as SOURCE, or a split without --splits.",
    )
    if present:
        return source, source, present
    return source, source.parent, [source.name]


def _check_level(source: Path, files: Sequence[FoundFile]) -> None:
    """Find out whether the user pointed above or below a split."""
    require(
        bool(files),
        f"There is no .flac or .json file in {source}. Expected {LAYOUT}; "
        "give a split folder, such as .../medium, or the folder above it.",
    )
    depths = Counter(file.relative.count("/") for file in files)
    depth = depths.most_common(1)[0][0]
    if depth == DEPTH:
        return
    side = "above" if depth > DEPTH else "below"
    example = next(f for f in files if f.relative.count("/") == depth)
    raise UserError(
        f"{source} seems to be a folder {side} the splits: most "
        f"recordings are like {example.relative}, expected {LAYOUT}. Give a "
        "split folder, such as .../medium, or the folder that holds small, "
        "medium and large (other names: --splits)."
    )


CORPUS = Corpus(
    name="librilight",
    summary="Libri-Light as downloaded (FLAC and JSON, not cut)",
    layout=LAYOUT,
    list_work=plan_librilight,
    options=LibriLightOptions,
)
