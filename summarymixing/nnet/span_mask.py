"""Span masking of wav2vec 2.0, for one utterance at a time.

Two schemes: the one of SpeechBrain's stock recipe, which the paper's runs
follow and which masks about 65 % of the frames, and fairseq's, where spans
may overlap and about 49 % are masked. Unlike both, the number of masked
frames of an utterance never depends on the rest of its batch, and an
utterance of any length, one frame included, gets a mask.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.int64]
MaskScheme = Callable[[int, np.random.Generator], Frames]

# Even a short utterance keeps this share of context in the filled scheme.
MIN_CONTEXT = 0.2


def _spans(
    num_frames: int, num_spans: int, length: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Mark `num_spans` spans with different starts; they may overlap."""
    # A span as long as the utterance would leave no context at all.
    length = min(length, max(num_frames // 2, 1))
    possible_starts = num_frames - length + 1
    starts = rng.choice(
        possible_starts, min(num_spans, possible_starts), replace=False
    )
    masked = np.zeros(num_frames, dtype=bool)
    masked[(starts[:, None] + np.arange(length)).ravel()] = True
    return masked


def filled_spans(
    num_frames: int,
    rng: np.random.Generator,
    *,
    probability: float = 0.65,
    length: int = 10,
) -> Frames:
    """Mask `probability` of the frames, as SpeechBrain's stock recipe does.

    The lengths of the spans sum to the target; single frames make up for
    what overlaps take away.

    Arguments
    ---------
    num_frames : int
        Valid frames of the utterance, at least 1.
    rng : numpy.random.Generator
        Source of the draws.
    probability : float
        Share of masked frames.
    length : int
        Frames (20 ms each) in a span.

    Returns
    -------
    numpy array, int64, (M,)
        Indices of the masked frames, ascending.

    Example
    -------
    >>> rng = np.random.default_rng(0)
    >>> 0.65 <= len(filled_spans(1500, rng)) / 1500 <= 0.67
    True
    """
    num_spans = int(probability * num_frames / length + rng.random() + 1)
    limit = max(int((1 - MIN_CONTEXT) * num_frames), 1)
    target = min(num_spans * length, limit)
    masked = _spans(num_frames, target // length or 1, length, rng)
    missing = target - int(masked.sum())
    if missing > 0:
        masked[rng.choice(np.flatnonzero(~masked), missing, replace=False)] = 1
    return np.flatnonzero(masked)


def overlapping_spans(
    num_frames: int,
    rng: np.random.Generator,
    *,
    probability: float = 0.65,
    length: int = 10,
) -> Frames:
    """Mask spans that may overlap, as fairseq does (about 49 % of the frames).

    Arguments and result are those of `filled_spans`, but here `probability`
    is the share that would be masked if no spans overlapped.

    Example
    -------
    >>> rng = np.random.default_rng(0)
    >>> 0.44 <= len(overlapping_spans(1500, rng)) / 1500 <= 0.54
    True
    """
    num_spans = max(int(probability * num_frames / length + rng.random()), 1)
    return np.flatnonzero(_spans(num_frames, num_spans, length, rng))


MASK_SCHEMES: dict[str, Callable[..., Frames]] = {
    "stock": filled_spans,
    "fairseq": overlapping_spans,
}
