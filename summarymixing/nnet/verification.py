"""Scores and error rates of speaker verification, in O(n log n).

SpeechBrain's EER walks over all scores for each threshold in Python, and its
minDCF makes a tensor of thresholds by positives: gigabytes for VoxCeleb1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PAIRS_AT_A_TIME = 2**13


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
    return torch.cat(
        [
            torch.linalg.vecdot(unit[left], unit[right])
            for left, right in zip(
                enrol.split(PAIRS_AT_A_TIME),
                test.split(PAIRS_AT_A_TIME),
                strict=True,
            )
        ]
    )


def error_curve(scores: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor]:
    """Error rates at every threshold that makes a difference.

    A pair is accepted when its score reaches the threshold.

    Arguments
    ---------
    scores : Tensor, float, (P,)
    is_target : Tensor, bool, (P,)
        Whether a pair is the same speaker.

    Returns
    -------
    Tensor, float64, (K + 1,)
        Miss rate: shares of targets that are rejected, falling.
    Tensor, float64, (K + 1,)
        False-alarm rate: shares of non-targets that are accepted, rising.
        First nothing is accepted, then one more of the K distinct scores at
        a time. ValueError unless there are targets and non-targets.

    Example
    -------
    >>> scores = torch.tensor([0.9, 0.2, 0.1])
    >>> misses, false_alarms = error_curve(scores, scores != 0.2)
    >>> misses.tolist(), false_alarms.tolist()
    ([1.0, 0.5, 0.5, 0.0], [0.0, 0.0, 1.0, 1.0])
    """
    num_targets = int(is_target.sum())
    if not 0 < num_targets < len(scores):
        raise ValueError("error rates need targets and non-targets")
    scores, order = scores.sort(descending=True)
    accepted = is_target[order].cumsum(0, dtype=torch.float64)
    # Equal scores are accepted together: keep the last of each group.
    last = torch.ones_like(scores, dtype=torch.bool)
    last[:-1] = scores[:-1] != scores[1:]
    accepted_targets = accepted[last]
    accepted_all = last.nonzero().squeeze(1).double() + 1
    accepted_others = accepted_all - accepted_targets
    start = accepted.new_zeros(1)
    misses = 1 - torch.cat([start, accepted_targets]) / num_targets
    false_alarms = torch.cat([start, accepted_others])
    return misses, false_alarms / (len(scores) - num_targets)


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
    misses, false_alarms = error_curve(scores, is_target)
    difference = misses - false_alarms  # from 1 down to -1
    after = int((difference <= 0).nonzero()[0])
    before = after - 1
    share = difference[before] / (difference[before] - difference[after])
    rate = misses[before] + share * (misses[after] - misses[before])
    return float(rate)


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
