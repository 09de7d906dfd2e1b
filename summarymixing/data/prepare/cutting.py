"""Where to cut recordings: joining clips, even pieces, speech by energy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

Clip = tuple[float, float]  # start, stop in seconds

# Half of the last digit of Libri-Light's times (4 decimals): a sum that
# exceeds a limit by less is rounding.
ROUNDING_S = 5e-5

FRAME_S = 0.02  # energy is measured over frames of 20 ms
BLOCK_FRAMES = 1500  # read at a time: 30 s
SILENCE_DBFS = -70.0  # below it nothing is speech
MIN_CONTRAST_DB = 6.0  # speech and pauses differ by more, or all is speech
SPEECH_SHARE = 0.3  # threshold between the levels of pauses and of speech
MIN_BURST_S = 0.1  # shorter bursts are clicks
MAX_PAUSE_S = 0.4  # shorter pauses stay inside a clip
MARGIN_S = 0.2  # kept on both sides: onsets and endings are quiet


class DamagedAudioError(Exception):
    """The samples of a recording are not what its header promises."""


def join_clips(
    clips: Sequence[Clip], *, max_joined_s: float, max_clip_s: float
) -> tuple[list[list[Clip]], list[Clip]]:
    """Join adjacent clips of one recording into sequences.

    Clips are added to a sequence while its sum is at most `max_joined_s`; a
    longer clip stays alone. A clip over `max_clip_s` is dropped and ends the
    sequence: what stands on its two sides is not adjacent.

    Arguments
    ---------
    clips : Sequence of (float, float)
        (start, stop) in seconds, in order of time.
    max_joined_s : float
        Longest sum of joined clips in seconds.
    max_clip_s : float
        Longest clip in seconds.

    Returns
    -------
    sequences : list of lists of (float, float)
        The clips of each sequence.
    dropped : list of (float, float)
        The clips over `max_clip_s`.

    Example
    -------
    >>> clips = [(0, 10), (11, 21), (22, 57)]
    >>> join_clips(clips, max_joined_s=30, max_clip_s=60)
    ([[(0, 10), (11, 21)], [(22, 57)]], [])
    >>> clips = [(0, 10), (11, 81), (82, 92)]
    >>> join_clips(clips, max_joined_s=30, max_clip_s=60)
    ([[(0, 10)], [(82, 92)]], [(11, 81)])
    """
    sequences: list[list[Clip]] = []
    dropped: list[Clip] = []
    room_s = -math.inf  # left in the last sequence
    for start, stop in clips:
        duration = stop - start
        if duration > max_clip_s + ROUNDING_S:
            dropped.append((start, stop))
            room_s = -math.inf
        elif duration <= room_s + ROUNDING_S:
            sequences[-1].append((start, stop))
            room_s -= duration
        else:
            sequences.append([(start, stop)])
            room_s = max_joined_s - duration
    return sequences, dropped


def cut_evenly(duration_s: float, max_seconds: float) -> list[Clip]:
    """Cut a recording into the fewest equal pieces.

    Arguments
    ---------
    duration_s : float
        Length of the recording in seconds.
    max_seconds : float
        Longest piece in seconds.

    Returns
    -------
    list of (float, float)
        (start, stop) in seconds, without gaps.

    Example
    -------
    >>> cut_evenly(50.0, max_seconds=30.0)
    [(0.0, 25.0), (25.0, 50.0)]
    """
    num_pieces = math.ceil((duration_s - ROUNDING_S) / max_seconds)
    bounds = [i * duration_s / num_pieces for i in range(num_pieces + 1)]
    return list(zip(bounds[:-1], bounds[1:], strict=True))


def cut_by_energy(path: Path, max_seconds: float) -> list[Clip]:
    """Find the stretches of speech in a recording, by its energy.

    The file is streamed, 30 s at a time.

    Arguments
    ---------
    path : Path
        The recording.
    max_seconds : float
        Longest stretch in seconds; longer speech is cut where it is quietest.

    Returns
    -------
    list of (float, float)
        (start, stop) in seconds, in order of time; empty for silence.

    Raises
    ------
    DamagedAudioError
        Truncated file, NaN or infinite samples.
    """
    levels, frame_s, duration_s = _measure_levels(path)
    clips = []
    for first, last in _find_speech(levels):
        for start, stop in _cut_at_quietest(
            levels, first, last, max(2, int(max_seconds / frame_s))
        ):
            clips.append((start * frame_s, min(stop * frame_s, duration_s)))
    return clips


def check_samples(path: Path) -> None:
    """Stream a recording and check that its samples are finite.

    Arguments
    ---------
    path : Path
        The recording.

    Raises
    ------
    DamagedAudioError
        Truncated file, NaN or infinite samples.
    """
    _measure_levels(path)


def _measure_levels(path: Path) -> tuple[NDArray[np.float64], float, float]:
    """Return levels in dBFS, seconds per frame, and the duration."""
    levels, num_read = [], 0
    try:
        with soundfile.SoundFile(path) as file:
            rate, num_expected = file.samplerate, file.frames
            frame_size = max(1, round(FRAME_S * rate))
            blocks = file.blocks(
                frame_size * BLOCK_FRAMES, dtype="float32", always_2d=True
            )
            for block in blocks:
                levels.append(_levels_of_block(block, frame_size))
                num_read += len(block)
    except soundfile.SoundFileError as error:
        raise DamagedAudioError("truncated or damaged audio") from error
    if num_read < num_expected - frame_size:
        raise DamagedAudioError("truncated or damaged audio")
    return np.concatenate(levels), frame_size / rate, num_read / rate


def _levels_of_block(
    block: NDArray[np.float32], frame_size: int
) -> NDArray[np.float64]:
    """Return the level of each frame in dBFS; the last may be shorter."""
    power = np.square(block, dtype=np.float64).mean(axis=1)
    if not np.isfinite(power).all():
        raise DamagedAudioError("NaN or infinite samples")
    starts = np.arange(0, len(power), frame_size)
    sizes = np.diff(np.append(starts, len(power)))
    mean_power: NDArray[np.float64] = np.add.reduceat(power, starts) / sizes
    return 10 * np.log10(mean_power + 1e-12)


def _find_speech(levels: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Return the first frame of each stretch, and the one after its last."""
    pauses, speech = np.percentile(levels, [10, 99])
    if speech < SILENCE_DBFS:
        return []
    if speech - pauses < MIN_CONTRAST_DB:
        return [(0, len(levels))]
    threshold = max(pauses + SPEECH_SHARE * (speech - pauses), SILENCE_DBFS)
    active = np.concatenate([[0], levels > threshold, [0]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(active)).reshape(-1, 2)
    stretches: list[tuple[int, int]] = []
    margin = round(MARGIN_S / FRAME_S)
    for first, last in edges.tolist():
        if stretches and first - stretches[-1][1] <= MAX_PAUSE_S / FRAME_S:
            stretches[-1] = (stretches[-1][0], last)
        elif last - first >= MIN_BURST_S / FRAME_S:
            stretches.append((first, last))
    return [
        (max(0, first - margin), min(len(levels), last + margin))
        for first, last in stretches
    ]


def _cut_at_quietest(
    levels: NDArray[np.float64], first: int, last: int, max_frames: int
) -> list[tuple[int, int]]:
    """Cut a stretch of speech into pieces of at most `max_frames`."""
    pieces = []
    while last - first > max_frames:
        # Cut in the second half only, so that no piece is tiny.
        search = first + max_frames // 2
        cut = search + int(np.argmin(levels[search : first + max_frames])) + 1
        pieces.append((first, cut))
        first = cut
    return [*pieces, (first, last)]
