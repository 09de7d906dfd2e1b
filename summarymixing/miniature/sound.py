"""From synthetic speech to recordings: level, background noise, files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torchaudio.transforms import Resample

from summarymixing.data.audio import SAMPLE_RATE_HZ
from summarymixing.miniature.espeak import ESPEAK_RATE_HZ

Samples = NDArray[np.float32]

# Of the speech, before noise. Noise at 0 dB below speech at the highest level
# reaches 0.25 or so: the sum stays clear of 1.
MAX_PEAK = 0.7
SPEECH_LEVELS_DBFS = (-32.0, -22.0)

CLEAN_SNRS_DB = (18.0, 35.0)
NOISY_SNRS_DB = (6.0, 14.0)

NUM_COLOUR_TAPS = 8

EDGE_SILENCES_S = (0.15, 0.5)  # around an utterance


@dataclass(frozen=True, slots=True)
class Background:
    """The conditions of one recording."""

    level_dbfs: float  # root mean square of the speech, to full scale
    snr_db: float  # both root mean square; silences do not count
    colour: Samples  # (8,), impulse response of energy 1: colours white noise

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        snrs_db: tuple[float, float] = CLEAN_SNRS_DB,
    ) -> Background:
        """Draw conditions, with a speech-to-noise ratio between two bounds."""
        colour = rng.standard_normal(NUM_COLOUR_TAPS, dtype=np.float32)
        return cls(
            level_dbfs=rng.uniform(*SPEECH_LEVELS_DBFS),
            snr_db=rng.uniform(*snrs_db),
            colour=colour / np.linalg.norm(colour),
        )

    def record(self, speech: Samples, rng: np.random.Generator) -> Samples:
        """Bring speech to its level and add the noise.

        Arguments
        ---------
        speech : ndarray, float32, (samples,)
            Not silent; silences are exact zeros.
        rng : numpy.random.Generator
            Draws the noise.

        Returns
        -------
        ndarray, float32, (samples,)
            In (-1, 1).
        """
        power = np.mean(np.square(speech[speech != 0], dtype=np.float64))
        level = float(np.sqrt(power))
        gain = min(
            10 ** (self.level_dbfs / 20) / level,
            MAX_PEAK / float(np.abs(speech).max()),
        )
        white = rng.standard_normal(len(speech), dtype=np.float32)
        noise_level = gain * level * 10 ** (-self.snr_db / 20)
        noise = np.convolve(white, self.colour, mode="same")
        return np.float32(gain) * speech + np.float32(noise_level) * noise


def to_rate(speech: Samples, sample_rate_hz: int = SAMPLE_RATE_HZ) -> Samples:
    """Resample speech (samples,) from the 22,050 Hz of the synthesiser."""
    resample = _resampler(sample_rate_hz)
    resampled: Samples = resample(torch.from_numpy(speech)).numpy()
    return resampled


@lru_cache
def _resampler(sample_rate_hz: int) -> Resample:
    return Resample(ESPEAK_RATE_HZ, sample_rate_hz)


def silence(seconds: float, sample_rate_hz: int = SAMPLE_RATE_HZ) -> Samples:
    """Return that many seconds of zeros."""
    return np.zeros(round(seconds * sample_rate_hz), dtype=np.float32)


def frame_utterance(
    speech: Samples,
    rng: np.random.Generator,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
) -> Samples:
    """Resample speech (samples,) of 22,050 Hz, and put silence around it.

    The generator draws how long the two silences are.
    """
    before_s, after_s = rng.uniform(*EDGE_SILENCES_S, size=2)
    return put_silences(speech, before_s, after_s, sample_rate_hz)


def put_silences(
    speech: Samples,
    before_s: float,
    after_s: float,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
) -> Samples:
    """Resample speech (samples,) of 22,050 Hz, between two silences."""
    before, after = (silence(s, sample_rate_hz) for s in (before_s, after_s))
    return np.concatenate([before, to_rate(speech, sample_rate_hz), after])


def write_audio(
    path: Path, samples: Samples, sample_rate_hz: int = SAMPLE_RATE_HZ
) -> None:
    """Write mono samples in (-1, 1), and the folders of the file where missing.

    The suffix (.flac, .wav, .mp3) says which format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, sample_rate_hz)
