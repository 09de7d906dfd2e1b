"""Audio files to waveforms: the segments of a row, mono, at 16 kHz."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from summarymixing.data.manifest import Row
from summarymixing.errors import UserError

if TYPE_CHECKING:
    from torchaudio.transforms import Resample

SAMPLE_RATE_HZ = 16_000

# Voice activity and encoders disagree by a frame or two about the end of a
# recording; a larger gap means that audio is missing.
END_TOLERANCE_S = 0.05

# A header without a length (a stream that was never closed) shows as 2**63-1.
MAX_FRAMES = 2**48
MIN_SAMPLE_RATE_HZ = 1000  # below, it is not speech

FLOAT_SUBTYPES = frozenset({"FLOAT", "DOUBLE"})

# Largest term of the ratio of rates: bounds the resampling kernel (which has
# that many phases) for odd rates, at a pitch error below one in a million.
# 44.1, 22.05, 11.025, 48, 32, 24, 12 and 8 kHz are exact.
MAX_RESAMPLING_PHASES = 1000


class AudioError(UserError):
    """A recording that cannot be used.

    Arguments
    ---------
    message : str
        Which, why, and how to repair.
    reason : str
        Why, in a word or two: for counts of many.
    """

    def __init__(self, message: str, reason: str = "unusable") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What the header of an audio file says."""

    duration_s: float  # positive
    sample_rate_hz: int  # samples per second of each channel
    channels: int
    is_float: bool  # samples are floats, so they may be NaN or infinite


def read_audio(row: Row) -> Tensor:
    """Read the segments of a row, and nothing else of its recording.

    Arguments
    ---------
    row : Row
        An item of a manifest. A segment may reach 50 ms past the end of the
        recording; it is clipped there.

    Returns
    -------
    Tensor, float32, (S,)
        The segments one after the other, mono (mean of the channels), 16 kHz,
        in [-1, 1] for integer formats.

    Raises
    ------
    AudioError
        Missing, unreadable, truncated or empty file; NaN or infinite samples.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = str(Path(folder) / "a.wav")
    ...     soundfile.write(path, np.zeros((8000, 2)), samplerate=8000)
    ...     wav = read_audio(Row("a", path, ((0.0, 0.25), (0.5, 0.75)), 0.5))
    >>> wav.shape
    torch.Size([8000])
    """
    with _open(row.path) as (file, info):
        parts = list(_read_segments(file, row))
    wav = parts[0] if len(parts) == 1 else torch.cat(parts)
    if info.sample_rate_hz == SAMPLE_RATE_HZ:
        return wav
    resampled: Tensor = _resampler(info.sample_rate_hz)(wav)
    return resampled


class AudioBlocks:
    """The audio of a row, block by block, for recordings of any length.

    Joined, the blocks are what `read_audio` returns, to rounding where the
    rate is another one. Every iteration reads the file again, and raises what
    `read_audio` raises.

    Arguments
    ---------
    row : Row
        An item of a manifest.
    seconds : float
        Length of a block, about.

    Example
    -------
    >>> path = str(getfixture("tmp_path") / "a.wav")
    >>> soundfile.write(path, np.zeros(16_000), samplerate=16_000)
    >>> [len(block) for block in AudioBlocks(Row("a", path, (), 1.0), 0.4)]
    [6400, 6400, 3200]
    """

    def __init__(self, row: Row, seconds: float = 30.0) -> None:
        self.row, self.seconds = row, seconds

    def __iter__(self) -> Iterator[Tensor]:
        """Iterate over tensors, float32, (S_i,), mono, 16 kHz."""
        with _open(self.row.path) as (file, info):
            size = max(1, round(self.seconds * info.sample_rate_hz))
            blocks = _read_segments(file, self.row, size)
            if info.sample_rate_hz != SAMPLE_RATE_HZ:
                blocks = _resample(blocks, _resampler(info.sample_rate_hz))
            yield from blocks


def audio_info(path: Path) -> AudioInfo:
    """Read the header of an audio file in any format of libsndfile.

    Arguments
    ---------
    path : Path
        The file; AudioError where it is missing, unreadable or has no samples.

    Returns
    -------
    AudioInfo
        Duration, rate and channels.
    """
    with _open(str(path)) as (_, info):
        return info


@contextmanager
def _open(path: str) -> Iterator[tuple[soundfile.SoundFile, AudioInfo]]:
    """Open a file; whatever goes wrong with it becomes an AudioError."""
    try:
        with soundfile.SoundFile(path) as file:
            yield file, _check_header(file, path)
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(path, error) from error


def _check_header(file: soundfile.SoundFile, path: str) -> AudioInfo:
    problem = ""
    if file.frames <= 0:
        problem = "has no samples"
    elif file.frames >= MAX_FRAMES:
        problem = "states no length"
    elif file.samplerate < MIN_SAMPLE_RATE_HZ:
        problem = "has a sample rate below 1 kHz"
    if problem:
        raise AudioError(
            f"{path} {problem}. Remove it from the corpus, or make it again "
            "from its source, and prepare the corpus again.",
            reason=problem,
        )
    return AudioInfo(
        duration_s=file.frames / file.samplerate,
        sample_rate_hz=file.samplerate,
        channels=file.channels,
        is_float=file.subtype in FLOAT_SUBTYPES,
    )


def _read_segments(
    file: soundfile.SoundFile, row: Row, size: int = MAX_FRAMES
) -> Iterator[Tensor]:
    """Yield the mono samples of all segments at the rate of the file.

    Each segment is one tensor, (S_i,), or several of `size` samples.
    """
    # A whole file must be as long as its row says: libsndfile reads a
    # truncated wav without complaint, as a shorter one.
    segments = row.segments or ((0.0, row.duration),)
    frames_of = [_to_frames(file, row, *segment) for segment in segments]
    if not row.segments:
        frames_of = [(0, file.frames)]
    for start, stop in frames_of:
        yield from _read_frames(file, row, start, stop, size)


def _to_frames(
    file: soundfile.SoundFile, row: Row, start_s: float, stop_s: float
) -> tuple[int, int]:
    """Return the first frame and the frame after the last."""
    start, stop = round(start_s * file.samplerate), stop_s * file.samplerate
    excess_s = (stop - file.frames) / file.samplerate
    if excess_s > END_TOLERANCE_S or start >= file.frames:
        raise AudioError(
            f"{row.path} (id {row.id}) is {file.frames / file.samplerate:g} s "
            f"long, but {start_s:g}-{stop_s:g} s is asked for: it is "
            "truncated, or changed since the corpus was prepared. Copy it "
            "again from its source, or prepare the corpus again.",
            reason="truncated",
        )
    return start, min(round(stop), file.frames)


def _read_frames(
    file: soundfile.SoundFile, row: Row, start: int, stop: int, size: int
) -> Iterator[Tensor]:
    """Yield the mono samples of one stretch, `size` at a time."""
    if start > 0 or file.tell() > 0:
        file.seek(start)
    end = start  # of what was read
    while end < stop:
        frames = file.read(
            min(size, stop - end), dtype="float32", always_2d=True
        )
        if not len(frames):
            break
        end += len(frames)
        yield torch.from_numpy(_to_mono(frames, row))
    # The header of an mp3 may be an estimate, so allow for the tolerance.
    missing_s = (stop - end) / file.samplerate
    if missing_s > END_TOLERANCE_S or end == start:
        raise AudioError(
            f"{row.path} (id {row.id}) ends at frame {end} of "
            f"{stop}: it is truncated. Copy it again from its source, or "
            "remove it from the corpus, and prepare the corpus again.",
            reason="truncated",
        )


def _to_mono(frames: NDArray[np.float32], row: Row) -> NDArray[np.float32]:
    """Average the channels of finite samples: (S, channels) -> (S,)."""
    if not np.isfinite(frames).all():
        raise AudioError(
            f"{row.path} (id {row.id}) contains NaN or infinite samples. "
            "Make the file again from its source, or remove it from the "
            "corpus, and prepare the corpus again.",
            reason="NaN or infinite samples",
        )
    if frames.shape[1] == 1:
        return frames[:, 0]
    # Channel after channel: a mean over pairs is slower than decoding them.
    return np.ascontiguousarray(frames.T).mean(axis=0, dtype=np.float32)


def _resample(
    blocks: Iterable[Tensor], resampler: Resample
) -> Iterator[Tensor]:
    """Resample audio that comes in blocks, as if it came as a whole.

    A group of samples in, `old`, becomes one of `new` samples out; it sees
    `reach` groups before and behind it, which is kept of earlier blocks and
    waited for.
    """
    old = resampler.orig_freq // resampler.gcd
    new = resampler.new_freq // resampler.gcd
    if old == new:  # rates as near as 15,999 and 16,000 Hz
        yield from blocks
        return
    reach = resampler.width // old + 2
    rest, before = torch.zeros(0), 0  # groups of `rest` that are done
    for block in blocks:
        rest = torch.cat([rest, block])
        ready = len(rest) // old - reach
        if ready > before:
            out = resampler(rest[: (ready + reach) * old])
            yield out[before * new : ready * new]
            drop = max(ready - reach, 0)
            rest, before = rest[drop * old :], ready - drop
    out = resampler(rest)[before * new :]
    if len(out):
        yield out


@lru_cache(maxsize=16)
def _resampler(sample_rate_hz: int) -> Resample:
    """Build a resampler; the kernel costs more than its use on one row."""
    # Here: audio of 16 kHz needs no torchaudio.
    from torchaudio.transforms import Resample

    ratio = Fraction(sample_rate_hz, SAMPLE_RATE_HZ).limit_denominator(
        MAX_RESAMPLING_PHASES
    )
    return Resample(ratio.numerator, ratio.denominator)


def _unreadable(path: str, error: Exception) -> AudioError:
    if not os.path.isfile(path):
        return AudioError(
            f"There is no audio file {path}. If the corpus was moved, prepare "
            "it again, or run: python recipes/prepare.py relocate MANIFEST "
            "OLD_PREFIX NEW_PREFIX",
            reason="missing",
        )
    return AudioError(
        f"{path} cannot be read as audio ({error}). Copy it again from its "
        "source, or remove it from the corpus, and prepare the corpus again.",
        reason="unreadable",
    )
