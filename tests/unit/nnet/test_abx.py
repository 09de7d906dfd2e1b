"""ABX against an implementation by its definition, triplet by triplet."""

import itertools
import math

import numpy as np
import pytest
import torch

from summarymixing.nnet import abx
from summarymixing.nnet.abx import (
    ItemFrames,
    ItemLabels,
    abx_errors,
    dtw,
    pool_items,
)

ALL = {"max_size_group": None, "max_x_across": None}


def reference_dtw(costs):
    """Mean cost along the cheapest path, by recursion over the matrix."""
    height, width = costs.shape
    total, steps = {}, {}
    for i, j in itertools.product(range(height), range(width)):
        # Of equal totals, min takes the first.
        before = [(i - 1, j - 1), (i, j - 1), (i - 1, j)]
        before = [cell for cell in before if cell in total]
        best = min(before, key=total.get, default=None)
        total[i, j] = costs[i, j] + total.get(best, 0)
        steps[i, j] = 1 + steps.get(best, 0)
    return total[height - 1, width - 1] / steps[height - 1, width - 1]


def reference_distance(x, y):
    """Angles between float64 frames, along the path."""
    costs = [
        [math.acos(min(cosine(u, v), 1.0)) / math.pi for v in y] for u in x
    ]
    return reference_dtw(np.array(costs))


def cosine(u, v):
    return u @ v / math.sqrt((u @ u) * (v @ v))


def reference_abx(items, labels, *, across):
    """Loop over all triplets; average scores, speakers, pairs of phones."""
    num_items = len(items)
    distances = [[reference_distance(x, y) for y in items] for x in items]
    by_pair = {}
    for x, a, b in itertools.product(range(num_items), repeat=3):
        px, pa, pb = labels.phones[[x, a, b]]
        sx, sa, sb = labels.speakers[[x, a, b]]
        contexts = labels.contexts[[x, a, b]]
        if px != pa or pa == pb or sa != sb or len(set(contexts)) > 1:
            continue
        if x == a or (sx != sa) != across:
            continue
        to_a, to_b = distances[x][a], distances[x][b]
        score = (to_a > to_b) + 0.5 * (to_a == to_b)
        speakers = by_pair.setdefault((pa, pb), {}).setdefault(sa, {})
        speakers.setdefault((contexts[0], sx), []).append(score)
    return np.mean(
        [
            np.mean(
                [
                    np.mean([np.mean(cell) for cell in cells.values()])
                    for cells in speakers.values()
                ]
            )
            for speakers in by_pair.values()
        ]
    )


def draw_items(num_items=36, seed=0, width=4):
    rng = np.random.default_rng(seed)
    labels = ItemLabels(*(rng.integers(3, size=(3, num_items))))
    lengths = rng.integers(1, 6, size=num_items)
    means = rng.normal(size=(3, width))
    items = [
        means[phone] + 2 * rng.normal(size=(length, width))
        for phone, length in zip(labels.phones, lengths, strict=True)
    ]
    return items, labels


def pack(items):
    lengths = torch.tensor([len(item) for item in items])
    starts = lengths.cumsum(0) - lengths
    frames = torch.from_numpy(np.concatenate(items))
    return ItemFrames(frames, starts, lengths)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("values_at_a_time", [1, 300, 2**20])
def test_errors_are_those_of_the_definition(
    seed, values_at_a_time, monkeypatch
):
    monkeypatch.setattr(abx, "VALUES_AT_A_TIME", values_at_a_time)
    monkeypatch.setattr(abx, "PAIRS_AT_A_TIME", values_at_a_time)
    items, labels = draw_items(seed=seed)
    errors = abx_errors(pack(items), labels, **ALL)
    for across in (False, True):
        expected = reference_abx(items, labels, across=across)
        assert 0.05 < expected < 0.6
        assert errors[across] == pytest.approx(expected, abs=1e-9)


def test_pooled_errors_compare_mean_frames():
    items, labels = draw_items()
    means = [item.mean(axis=0, keepdims=True) for item in items]
    errors = abx_errors(pack(items), labels, pooled=True, **ALL)
    assert errors != abx_errors(pack(items), labels, **ALL)
    for across in (False, True):
        expected = reference_abx(means, labels, across=across)
        assert errors[across] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (4, 7), (7, 4)])
@pytest.mark.parametrize("ties", [False, True])
def test_dtw_follows_the_cheapest_path(shape, ties):
    rng = np.random.default_rng(0)
    costs = rng.random((20, 9, 9))
    if ties:
        costs = np.round(2 * costs)
    height, width = shape
    lengths = [torch.full((20,), n) for n in shape]
    distances = dtw(torch.from_numpy(costs), *lengths)
    expected = [reference_dtw(cost[:height, :width]) for cost in costs]
    np.testing.assert_allclose(distances, expected, rtol=1e-12)


def test_items_may_overlap_and_lie_anywhere():
    items, labels = draw_items()
    packed = pack(items)
    expected = abx_errors(packed, labels, **ALL)
    noise = torch.full((3, 4), 1e3, dtype=torch.float64)
    moved = ItemFrames(
        torch.cat([noise, packed.frames, noise]),
        packed.starts + 3,
        packed.lengths,
    )
    assert abx_errors(moved, labels, **ALL) == expected


def test_identical_items_are_a_blind_guess():
    items, labels = draw_items()
    same = [np.array([[0.1, 0.7, -0.3, 0.9]]) for _ in items]
    assert abx_errors(pack(same), labels, **ALL) == (0.5, 0.5)
    silent = [np.zeros((2, 4)) for _ in items]
    assert abx_errors(pack(silent), labels, **ALL) == (0.5, 0.5)


def test_angles_that_float32_cannot_tell_apart_count():
    """A collapsed encoder may still know the phones."""
    rng = np.random.default_rng(0)
    labels = ItemLabels(
        np.arange(12) % 2, np.zeros(12, int), np.arange(12) // 4
    )
    angles = 1e-5 * (labels.phones + 0.1 * rng.random(12))
    items = [np.array([[math.cos(x), math.sin(x)]]) for x in angles]
    assert abx_errors(pack(items), labels, **ALL) == (0.0, 0.0)


def test_limits_draw_from_large_groups():
    rng = np.random.default_rng(0)
    labels = ItemLabels(
        np.arange(600) % 2, np.zeros(600, int), np.arange(600) // 100
    )
    items = [rng.normal(size=(2, 3)) + label for label in labels.phones]
    exact = abx_errors(pack(items), labels, pooled=True, **ALL)
    drawn = {
        seed: abx_errors(
            pack(items),
            labels,
            pooled=True,
            max_size_group=20,
            max_x_across=3,
            seed=seed,
        )
        for seed in range(3)
    }
    assert len(set(drawn.values())) == 3
    for errors in drawn.values():
        np.testing.assert_allclose(errors, exact, atol=0.08)
    untouched = {"max_size_group": 50, "max_x_across": 5}
    assert abx_errors(pack(items), labels, pooled=True, **untouched) == exact


def test_without_triplets_there_is_no_error_rate():
    items, labels = draw_items()
    one_phone = labels._replace(phones=np.zeros(36, int))
    assert all(map(math.isnan, abx_errors(pack(items), one_phone)))
    one_speaker = labels._replace(speakers=np.zeros(36, int))
    errors = abx_errors(pack(items), one_speaker)
    assert math.isfinite(errors.within)
    assert math.isnan(errors.across)


def test_pooling_keeps_the_order_of_items():
    packed = pack([np.full((n, 2), float(n)) for n in (3, 1, 2)])
    assert pool_items(packed).frames[:, 0].tolist() == [3, 1, 2]
