"""Rows of a manifest of Libri-Light, whose recordings are not there."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from summarymixing.data.manifest import Row
from summarymixing.data.manifest_reader import Segments
from summarymixing.data.prepare.cutting import join_clips
from summarymixing.miniature.librilight import (
    ACTIVITY_DECIMALS,
    CLIP_LOG_SIGMA,
    CLIP_MEDIAN_S,
)

RECORDINGS = 500  # that are drawn; with more rows they come again
ROWS_PER_RECORDING = 100
# The paper joins clips up to 30 s and drops those over 60 s.
MAX_JOINED_S, MAX_CLIP_S = 30.0, 60.0
PAUSE_S = 0.5


def make_rows(count: int) -> Iterator[Row]:
    """Yield rows as Libri-Light has them: 27 s and 250 bytes in the mean.

    Clips are drawn like those of its voice activity, then joined as in the
    paper.

    Arguments
    ---------
    count : int
        The number of rows.

    Yields
    ------
    Row
        100 to a recording; the paths lead nowhere.

    Example
    -------
    >>> rows = list(make_rows(1000))
    >>> 20 < sum(row.duration for row in rows) / 1000 < 30
    True
    """
    drawn = _draw_recordings(np.random.default_rng(0))
    for number in range(count):
        recording, part = divmod(number, ROWS_PER_RECORDING)
        name = (
            f"large/{recording % 7000}/sea_fairies_{recording:07d}_librivox_"
            f"64kb_mp3/{recording % 40:02d}_baum_sea_fairies_64kb"
        )
        segments = drawn[recording % RECORDINGS][part]
        seconds = sum(stop - start for start, stop in segments)
        path = f"/data/librilight/{name}.flac"
        yield Row(f"{name}-{part:04d}", path, segments, seconds)


def _draw_recordings(rng: np.random.Generator) -> list[list[Segments]]:
    """Return the segments of the rows of each recording."""
    found = []
    for _ in range(RECORDINGS):
        # Some 2.6 clips make a row.
        clips = rng.lognormal(
            math.log(CLIP_MEDIAN_S), CLIP_LOG_SIGMA, 4 * ROWS_PER_RECORDING
        )
        starts = np.cumsum(clips + PAUSE_S) - clips
        times = np.stack([starts, starts + clips], axis=1)
        sequences, _ = join_clips(
            times.round(ACTIVITY_DECIMALS).tolist(),
            max_joined_s=MAX_JOINED_S,
            max_clip_s=MAX_CLIP_S,
        )
        rows = sequences[:ROWS_PER_RECORDING]
        found.append([tuple((a, b) for a, b in row) for row in rows])
    return found
