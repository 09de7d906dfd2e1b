"""Error rates of verification against slow definitions and SpeechBrain."""

import time

import pytest
import torch
import torch.nn.functional as F
from speechbrain.utils.metric_stats import EER, minDCF

from summarymixing.nnet import verification
from summarymixing.nnet.verification import (
    cosine_scores,
    equal_error_rate,
    error_curve,
    min_detection_cost,
)


def make_trials(num_trials=400, ties=False, shift=1.0):
    torch.manual_seed(0)
    is_target = torch.rand(num_trials) < 0.5
    scores = torch.randn(num_trials) + shift * is_target
    return (scores.round(decimals=1) if ties else scores), is_target


@pytest.mark.parametrize("ties", [False, True])
def test_curve_against_its_definition(ties):
    scores, is_target = make_trials(60, ties)
    misses, false_alarms = error_curve(scores, is_target)
    thresholds = [float("inf"), *sorted(set(scores.tolist()), reverse=True)]
    assert len(misses) == len(thresholds)
    for k, threshold in enumerate(thresholds):
        accepted = scores >= threshold
        missed = (~accepted & is_target).sum() / is_target.sum()
        alarms = (accepted & ~is_target).sum() / (~is_target).sum()
        assert misses[k].item() == pytest.approx(missed.item(), abs=1e-6)
        assert false_alarms[k].item() == pytest.approx(alarms.item(), abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_equal_error_rate_is_speechbrains(shift):
    """It takes the nearest point of the curve, we the line between two."""
    scores, is_target = make_trials(shift=shift)
    theirs, _ = EER(scores[is_target], scores[~is_target])
    ours = equal_error_rate(scores, is_target)
    assert ours == pytest.approx(theirs, abs=1 / 400)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("prior", [0.01, 0.3])
def test_cost_is_speechbrains_over_the_cost_of_no_system(ties, prior):
    scores, is_target = make_trials(ties=ties)
    theirs, _ = minDCF(
        scores[is_target], scores[~is_target], p_target=prior, c_miss=2.0
    )
    ours = min_detection_cost(
        scores, is_target, target_prior=prior, miss_cost=2.0
    )
    # SpeechBrain never tries to accept all or none.
    expected = min(theirs / min(2.0 * prior, 1 - prior), 1.0)
    assert ours == pytest.approx(expected, rel=1e-5)


def test_extremes():
    is_target = torch.tensor([True, True, False, False])
    good = torch.tensor([2.0, 1.0, 0.0, -1.0])
    for scores, eer, cost in (
        (good, 0.0, 0.0),
        (-good, 1.0, 1.0),
        (torch.zeros(4), 0.5, 1.0),
    ):
        assert equal_error_rate(scores, is_target) == eer
        assert min_detection_cost(scores, is_target) == cost


@pytest.mark.parametrize("is_target", [torch.ones(3), torch.zeros(3)])
def test_one_kind_of_trial_is_not_enough(is_target):
    with pytest.raises(ValueError, match="targets and non-targets"):
        equal_error_rate(torch.rand(3), is_target.bool())


@pytest.mark.parametrize("pairs", [1, 30, 10**6])
def test_scores_of_pairs(pairs, monkeypatch):
    monkeypatch.setattr(verification, "PAIRS_AT_A_TIME", pairs)
    torch.manual_seed(0)
    embeddings = torch.randn(11, 4)
    enrol, test = torch.randint(11, (2, 50))
    expected = F.cosine_similarity(embeddings[enrol], embeddings[test])
    torch.testing.assert_close(cosine_scores(embeddings, enrol, test), expected)


def test_the_trials_of_voxceleb1_take_a_moment_and_little_memory():
    """37,611 trials of 4,708 utterances: the aim is 1 s and 200 MB."""
    torch.manual_seed(0)
    embeddings = torch.randn(4_708, 512)
    enrol, test = torch.randint(4_708, (2, 37_611))
    is_target = torch.rand(37_611) < 0.5
    largest = _LargestTensor()
    start = time.process_time()
    with largest:
        scores = cosine_scores(embeddings, enrol, test)
        equal_error_rate(scores, is_target)
        min_detection_cost(scores, is_target)
    assert time.process_time() - start < 3  # one thread of a busy machine
    assert largest.num_bytes < 50e6


class _LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the largest tensor that any operation returns."""

    num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = out if isinstance(out, tuple | list) else [out]
        sizes = [t.nbytes for t in tensors if isinstance(t, torch.Tensor)]
        self.num_bytes = max([self.num_bytes, *sizes])
        return out
