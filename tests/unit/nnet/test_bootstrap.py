"""Intervals, against one replicate after the other in plain Python."""

import numpy as np
import pytest
import torch

from summarymixing.nnet.bootstrap import (
    REPLICATES,
    mean_interval,
    percentile_interval,
    ratio_interval,
    resampled_counts,
)
from summarymixing.nnet.verification import (
    equal_error_interval,
    equal_error_rate,
)


@pytest.mark.parametrize("num_units", [1, 7, 5000])
def test_every_replicate_has_as_many_units(num_units):
    parts = list(resampled_counts(num_units))
    counts = np.concatenate(parts)
    assert counts.shape == (REPLICATES, num_units)
    assert (counts.sum(axis=1) == num_units).all()
    assert counts.mean(axis=0) == pytest.approx(1, abs=0.2)
    # Multinomial: each count has variance (N - 1) / N.
    variance = (num_units - 1) / num_units
    assert counts.var() == pytest.approx(variance, abs=0.05)
    np.testing.assert_equal(
        counts, np.concatenate([*resampled_counts(num_units)])
    )


def test_a_ratio_against_a_loop():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 30, size=80)
    errors = rng.binomial(sizes, 0.3)
    replicates = []
    for counts in np.concatenate([*resampled_counts(len(sizes))]):
        drawn = [i for i, times in enumerate(counts) for _ in range(times)]
        wrong = sum(int(errors[i]) for i in drawn)
        replicates.append(100 * wrong / sum(int(sizes[i]) for i in drawn))
    found = ratio_interval(errors, sizes)
    assert found == pytest.approx(percentile_interval(replicates), rel=1e-9)
    assert found[0] < 100 * errors.sum() / sizes.sum() < found[1]


def test_the_interval_of_a_share_is_that_of_the_binomial():
    low, high = ratio_interval([1] * 200 + [0] * 800, [1] * 1000)
    assert (low, high) == pytest.approx((17.5, 22.5), abs=0.4)


def test_no_error_is_no_certainty():
    low, high = ratio_interval([0] * 30, [1] * 30)
    assert low == 0 and high == pytest.approx(11.57, abs=0.01)
    low, high = ratio_interval([1] * 30, [1] * 30)
    assert high == 100 and low == pytest.approx(88.43, abs=0.01)


def test_one_utterance_has_no_interval():
    assert ratio_interval([1], [7]) == ratio_interval([1, 1], [0, 0]) == []


def test_it_holds_the_truth_in_about_95_of_100_test_sets():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        low, high = ratio_interval(rng.random(150) < 0.2, np.ones(150))
        held += low <= 20 <= high
    assert 180 <= held <= 199


def test_an_empty_transcript_is_drawn_like_any_other():
    low, high = ratio_interval([1, 0, 2, 0], [0, 4, 0, 4])
    assert 0 <= low <= high < float("inf")


def make_trials(num_speakers=12, each=4, seed=0):
    """Return scores, targets and speakers of all pairs of utterances."""
    generator = torch.Generator().manual_seed(seed)
    speakers = torch.arange(num_speakers * each) // each
    pairs = torch.combinations(torch.arange(len(speakers)))
    units = speakers[pairs]
    is_target = units[:, 0] == units[:, 1]
    of_speaker = torch.randn(num_speakers, generator=generator)
    noise = torch.randn(len(pairs), generator=generator)
    scores = 2.0 * is_target + noise + 0.7 * of_speaker[units].sum(dim=1)
    return (scores * 8).round() / 8, is_target, units  # some are equal


def test_equal_errors_of_drawn_speakers_against_a_loop():
    scores, is_target, units = make_trials()
    replicates = []
    for counts in np.concatenate([*resampled_counts(12)]):
        times = torch.tensor(
            [
                counts[a] if a == b else counts[a] * counts[b]
                for a, b in units.tolist()
            ]
        )
        rows = torch.arange(len(scores)).repeat_interleave(times)
        replicates.append(equal_error_rate(scores[rows], is_target[rows]))
    found = equal_error_interval(scores, is_target, units)
    assert found == pytest.approx(percentile_interval(replicates), abs=1e-9)
    assert found[0] < equal_error_rate(scores, is_target) < found[1]


def test_pairs_that_share_speakers_say_less_than_as_many_that_do_not():
    scores, is_target, units = make_trials(each=10)
    low, high = equal_error_interval(scores, is_target, units)
    alone = torch.arange(len(scores)).unsqueeze(1).expand(-1, 2)
    narrow_low, narrow_high = equal_error_interval(scores, is_target, alone)
    assert high - low > 1.5 * (narrow_high - narrow_low)


def test_draws_without_non_targets_are_left_out():
    units = torch.tensor([[0, 0], [0, 1], [1, 1], [0, 1]])
    is_target = units[:, 0] == units[:, 1]
    scores = torch.tensor([0.9, 0.2, 0.4, 0.6])
    low, high = equal_error_interval(scores, is_target, units)
    assert low == high == equal_error_rate(scores, is_target)


def test_the_mean_of_folds_is_known_better_than_each():
    same = mean_interval([50.0] * 4, [[40.0, 60.0]] * 4)
    assert same == pytest.approx([45.0, 55.0])
    assert mean_interval([50.0, 60.0], [[40.0, 60.0], []]) == []
