"""Purities and PNMI against their definitions."""

import math

import numpy as np
import pytest

from summarymixing.nnet.clusters import cluster_scores


def reference(phones, clusters):
    """Loop over the joint distribution, as in the HuBERT paper."""
    frames = list(zip(phones, clusters, strict=True))

    def share(phone=None, cluster=None):
        hits = [phone in (None, p) and cluster in (None, c) for p, c in frames]
        return sum(hits) / len(frames)

    ys, zs = sorted(set(phones)), sorted(set(clusters))
    information = sum(
        share(y, z) * math.log(share(y, z) / share(y) / share(cluster=z))
        for y in ys
        for z in zs
        if share(y, z)
    )
    entropy = -sum(share(y) * math.log(share(y)) for y in ys)
    return (
        sum(max(share(y, z) for y in ys) for z in zs),
        sum(max(share(y, z) for z in zs) for y in ys),
        information / entropy,
        len(zs),
    )


@pytest.mark.parametrize("num_clusters", [1, 3, 40])
def test_scores_are_those_of_the_definition(num_clusters):
    rng = np.random.default_rng(num_clusters)
    phones = rng.integers(5, size=60).tolist()
    clusters = rng.integers(num_clusters, size=60) * 1000
    clusters = (clusters + 7 * np.array(phones) * (num_clusters > 1)).tolist()
    scores = cluster_scores(phones, clusters)
    assert scores == pytest.approx(reference(phones, clusters), abs=1e-9)


def test_clusters_that_are_the_phones_remove_all_uncertainty():
    phones = [3, 1, 4, 1, 5, 9, 2, 6]
    assert cluster_scores(phones, [-p for p in phones])[:3] == pytest.approx(
        (1, 1, 1)
    )


def test_one_cluster_removes_none():
    scores = cluster_scores([0, 0, 1], [5, 5, 5])
    assert scores.phone_purity == pytest.approx(2 / 3)
    assert scores.cluster_purity == pytest.approx(1)
    assert scores.pnmi == pytest.approx(0)
