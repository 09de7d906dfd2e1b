"""How well clusters of frames agree with phones: purities and PNMI.

Source: Hsu et al., "HuBERT" (2021), section IV.G.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Shares = NDArray[Any]


class ClusterScores(NamedTuple):
    """How phones and clusters depend on each other, between 0 and 1."""

    phone_purity: float  # accuracy when each cluster stands for one phone
    cluster_purity: float  # accuracy when each phone stands for one cluster
    pnmi: float  # share of the uncertainty about the phone that is removed
    clusters: int  # that occur


def cluster_scores(phones: ArrayLike, clusters: ArrayLike) -> ClusterScores:
    """Compare the phone and the cluster of each frame.

    Arguments
    ---------
    phones, clusters : array of int, (N,)
        Any numbers that stand for phones and clusters, at least one frame.
        Many clusters raise phone purity and PNMI by themselves: numbers can
        be compared where there are about as many.

    Example
    -------
    >>> cluster_scores([0, 0, 1, 1], [7, 7, 5, 7])[:2]
    (0.75, 0.75)
    >>> cluster_scores([0, 1, 2, 0], [3, 1, 2, 3]).pnmi
    1.0
    """
    phone_ids, rows = np.unique(phones, return_inverse=True)
    cluster_ids, columns = np.unique(clusters, return_inverse=True)
    shape = len(phone_ids), len(cluster_ids)
    cells = rows.ravel() * shape[1] + columns.ravel()
    # Few of all cells are filled when there are many clusters.
    filled, counts = np.unique(cells, return_counts=True)
    joint = counts / counts.sum()
    rows, columns = np.divmod(filled, shape[1])
    of_phones: Shares = np.bincount(rows, joint)
    of_clusters: Shares = np.bincount(columns, joint)
    entropy = _entropy(of_phones)
    information = entropy + _entropy(of_clusters) - _entropy(joint)
    return ClusterScores(
        float(_largest(joint, columns, shape[1]).sum()),
        float(_largest(joint, rows, shape[0]).sum()),
        # With one phone there is no uncertainty.
        float(information / entropy) if shape[0] > 1 else 1.0,
        shape[1],
    )


def _entropy(shares: Shares) -> float:
    return float(-(shares * np.log(shares)).sum())


def _largest(joint: Shares, places: NDArray[np.int64], size: int) -> Shares:
    """Return the largest share at each place."""
    largest = np.zeros(size)
    np.maximum.at(largest, places, joint)
    return largest
