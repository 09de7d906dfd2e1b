"""95 % intervals by bootstrap: how far another test set could move a result.

A test set of N units (utterances, or speakers) stands for all that could have
been recorded. Drawing N of them with replacement, again and again, shows how
the result varies with the draw (Bisani and Ney, ICASSP 2004). What else varies,
such as the seed of the training, is not in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

REPLICATES = 1000
SEED = 1986  # the same scores give the same interval
TAIL = 0.025  # on each side of 95 %
COUNTS_AT_A_TIME = 2**22


def resampled_counts(num_units: int) -> Iterator[NDArray[np.int64]]:
    """Yield how often each unit is drawn in each replicate.

    Arguments
    ---------
    num_units : int
        Units of the test set, N.

    Yields
    ------
    ndarray, int64, (r, N)
        Rows that sum to N; over all parts there are `REPLICATES` of them.
    """
    generator = np.random.default_rng(SEED)
    rows = max(1, COUNTS_AT_A_TIME // num_units)
    for start in range(0, REPLICATES, rows):
        num = min(rows, REPLICATES - start)
        drawn = generator.integers(num_units, size=(num, num_units))
        drawn += num_units * np.arange(num)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=num * num_units)
        yield counts.reshape(num, num_units)


def percentile_interval(
    replicates: Sequence[float] | NDArray[np.float64],
) -> list[float]:
    """Return the bounds that hold 95 % of the replicates, as [low, high]."""
    return np.quantile(replicates, [TAIL, 1 - TAIL]).tolist()


def ratio_interval(errors: ArrayLike, sizes: ArrayLike) -> list[float]:
    """Return the interval of sum(errors) / sum(sizes), drawing utterances.

    Where no utterance has an error, every draw has none, so the upper bound is
    that of a binomial share instead (Clopper and Pearson); and in the same way
    where everything is wrong.

    Arguments
    ---------
    errors, sizes : array, (N,)
        Errors and reference tokens of each utterance; for a share of
        utterances, 0 or 1 and ones.

    Returns
    -------
    list of two floats
        The interval in percent; empty for a single utterance, and without
        reference tokens.

    Example
    -------
    >>> low, high = ratio_interval([0, 1] * 200, [1, 1] * 200)
    >>> round(low), round(high)
    (45, 55)
    """
    errors, sizes = np.asarray(errors, float), np.asarray(sizes, float)
    if len(errors) < 2 or not sizes.any():
        return []
    bound = TAIL ** (1 / len(errors))
    if not errors.any():
        return [0.0, 100 * (1 - bound)]
    if (errors == sizes).all():
        return [100 * bound, 100.0]
    parts = [
        np.stack([counts @ errors, counts @ sizes])
        for counts in resampled_counts(len(errors))
    ]
    wrong, total = np.concatenate(parts, axis=1)
    return percentile_interval(100 * wrong[total > 0] / total[total > 0])


def mean_interval(
    values: Sequence[float], intervals: Sequence[Sequence[float]]
) -> list[float]:
    """Return the interval of a mean of results on separate test sets.

    Their deviations are independent, so distances from the results to their
    bounds add as squares do.

    Arguments
    ---------
    values : sequence of float
        The results, for example of the folds of a corpus.
    intervals : sequence of (float, float)
        Their intervals; without one of them, the mean has none.

    Example
    -------
    >>> mean_interval([60.0, 70.0], [[57.0, 66.0], [66.0, 78.0]])
    [62.5, 70.0]
    """
    if not all(intervals):
        return []
    below, above = np.abs(np.array(intervals).T - np.array(values))
    mean = float(np.mean(values))
    distance = [np.linalg.norm(side) / len(values) for side in (below, above)]
    return [float(mean - distance[0]), float(mean + distance[1])]
