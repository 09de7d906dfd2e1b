"""Scores and error rates of speaker verification, in O(n log n).

SpeechBrain's EER walks over all scores for each threshold in Python, and its
minDCF makes a tensor of thresholds by positives: gigabytes for VoxCeleb1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from summarymixing.nnet.bootstrap import percentile_interval, resampled_counts

PAIRS_AT_A_TIME = 2**13
REPLICATES_AT_A_TIME = 50


def cosine_scores(embeddings: Tensor, enrol: Tensor, test: Tensor) -> Tensor:
    """Compare pairs of embeddings.

    Some thousand pairs at a time. The product of all embeddings with all
    others would be simpler, but for VoxCeleb1 it computes 22 million scores
    of which 37,611 are asked for, and for its larger trial lists 21 billion.

    Arguments
    ---------
    embeddings : Tensor, float, (N, E)
    enrol, test : Tensor, int64, (P,)
        Rows of `embeddings` that make a pair.

    Returns
    -------
    Tensor, float, (P,)
        Cosine similarities in [-1, 1].

    Example
    -------
    >>> embeddings = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
    >>> cosine_scores(embeddings, torch.tensor([0, 2]), torch.tensor([1, 0]))
    tensor([0.0000, 0.7071])
    """
    unit = F.normalize(embeddings, dim=1)
    pairs = torch.stack([enrol, test], dim=1).split(PAIRS_AT_A_TIME)
    return torch.cat([torch.linalg.vecdot(*unit[part.T]) for part in pairs])


def error_curve(
    scores: Tensor, is_target: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Error rates at every threshold that makes a difference.

    A pair is accepted when its score reaches the threshold.

    Arguments
    ---------
    scores : Tensor, float, (P,)
    is_target : Tensor, bool, (P,)
        Whether a pair is the same speaker.
    weights : Tensor, (R, P), optional
        How often each pair counts, in R replicates; by default once.

    Returns
    -------
    Tensor, float64, (K + 1,) or (R, K + 1)
        Miss rate: shares of targets that are rejected, falling.
    Tensor, float64, (K + 1,) or (R, K + 1)
        False-alarm rate: shares of non-targets that are accepted, rising.
        First nothing is accepted, then one more of the K distinct scores at
        a time. ValueError unless there are targets and non-targets; NaN in a
        replicate without.

    Example
    -------
    >>> scores = torch.tensor([0.9, 0.2, 0.1])
    >>> misses, false_alarms = error_curve(scores, scores != 0.2)
    >>> misses.tolist(), false_alarms.tolist()
    ([1.0, 0.5, 0.5, 0.0], [0.0, 0.0, 1.0, 1.0])
    """
    if not 0 < int(is_target.sum()) < len(scores):
        raise ValueError("error rates need targets and non-targets")
    if weights is None:
        weights = torch.ones_like(scores)
    scores, order = scores.sort(descending=True)
    weights, is_target = weights[..., order], is_target[order]
    # Equal scores are accepted together: keep the last of each group.
    last = torch.ones_like(is_target)
    last[:-1] = scores[:-1] != scores[1:]

    def accepted_share(is_counted: Tensor) -> Tensor:
        count = (weights * is_counted).cumsum(-1, dtype=torch.float64)
        return F.pad(count[..., last], (1, 0)) / count[..., -1:]

    return 1 - accepted_share(is_target), accepted_share(~is_target)


def equal_error_rate(scores: Tensor, is_target: Tensor) -> float:
    """Return the rate at which misses and false alarms are equally frequent.

    Between the two neighbouring points of the curve where one overtakes the
    other it is interpolated along the straight line.

    Arguments
    ---------
    scores, is_target
        See `error_curve`.

    Example
    -------
    >>> scores = torch.tensor([0.9, 0.6, 0.5, 0.1])
    >>> equal_error_rate(scores, torch.tensor([True, False, True, False]))
    0.5
    """
    once = torch.ones(1, len(scores))
    return float(equal_error_rates(scores, is_target, once)[0])


def equal_error_rates(
    scores: Tensor, is_target: Tensor, weights: Tensor
) -> Tensor:
    """Return `equal_error_rate` for each replicate of the pairs, (R,).

    Arguments
    ---------
    scores, is_target, weights
        See `error_curve`.
    """
    misses, false_alarms = error_curve(scores, is_target, weights)
    difference = misses - false_alarms  # from 1 down to -1
    after = (difference <= 0).int().argmax(dim=1, keepdim=True)  # the first
    before = (after - 1).clamp(min=0)
    start, stop = difference.gather(1, before), difference.gather(1, after)
    low, high = misses.gather(1, before), misses.gather(1, after)
    return (low + start / (start - stop) * (high - low)).squeeze(1)


def equal_error_interval(
    scores: Tensor, is_target: Tensor, units: Tensor
) -> list[float]:
    """Return the 95 % interval of the equal error rate, drawing units.

    Pairs that share a speaker are not independent, so whole speakers are
    drawn: a pair of two speakers counts as often as the product of their
    draws, a pair within a speaker as often as that one. Drawing pairs would
    make the interval of VoxCeleb1, with 37,611 pairs of 40 speakers, far too
    narrow. A draw without targets or non-targets is left out. Where targets
    and non-targets are apart, the interval has no width.

    Arguments
    ---------
    scores, is_target
        See `error_curve`.
    units : Tensor, int64, (P, 2)
        Numbers, from 0, of the speakers in each pair; or of its utterances.

    Returns
    -------
    list of two floats
        The interval, as shares; empty where every draw is left out.
    """
    left, right = units.unbind(dim=1)
    order = scores.argsort(descending=True)  # once for all
    scores, is_target = scores[order], is_target[order]
    left, right = left[order], right[order]
    other = left != right
    rates = []
    for counts in resampled_counts(int(units.max()) + 1):
        parts = torch.from_numpy(counts).float().split(REPLICATES_AT_A_TIME)
        for part in parts:
            weights = part[:, left]
            weights = torch.where(other, weights * part[:, right], weights)
            rates.append(equal_error_rates(scores, is_target, weights))
    found = torch.cat(rates)
    found = found[found.isfinite()]
    return percentile_interval(found.numpy()) if len(found) else []


def min_detection_cost(
    scores: Tensor,
    is_target: Tensor,
    *,
    target_prior: float = 0.01,
    miss_cost: float = 1.0,
    false_alarm_cost: float = 1.0,
) -> float:
    """Return the detection cost at the best threshold (minDCF, NIST).

    Arguments
    ---------
    scores, is_target
        See `error_curve`.
    target_prior, miss_cost, false_alarm_cost : float

    Returns
    -------
    float
        In [0, 1]: divided by the cost of accepting all or none, whichever is
        cheaper. SpeechBrain's minDCF is not divided: with the defaults it is
        a hundredth of this one.

    Example
    -------
    >>> scores = torch.tensor([0.9, 0.6, 0.5, 0.1])
    >>> is_target = torch.tensor([True, False, True, False])
    >>> min_detection_cost(scores, is_target)
    0.5
    """
    misses, false_alarms = error_curve(scores, is_target)
    of_misses = miss_cost * target_prior
    of_false_alarms = false_alarm_cost * (1 - target_prior)
    cost = of_misses * misses + of_false_alarms * false_alarms
    return float(cost.min() / min(of_misses, of_false_alarms))
