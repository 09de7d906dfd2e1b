"""ABX: whether a phone is closer to itself than to others in its context.

X and A are two items of one phone, B is an item of another. An error is that X
is closer to B than to A. Within speakers one person says all three; across
speakers, another one says X. No labels are learned from, so the number speaks
of the features alone. Source: Schatz et al., "Evaluating speech features with
the minimal-pair ABX task" (Interspeech 2013); averages and limits are those of
ZeroSpeech 2021 and Libri-Light, as fastabx computes them.

Letters: N items, F frames of all items, D width, P pairs of items.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from summarymixing.nnet.randomness import derive_seed

# Bounds of memory: distances that wait to be compared, and values of frames
# and alignments that are computed at once.
PAIRS_AT_A_TIME = 2**21
VALUES_AT_A_TIME = 2**22

# Rounding of a cosine near 1; the angle of it is 1e-7.
COSINE_ROUNDING = 1e-14

Indices = NDArray[np.int64]


class ItemFrames(NamedTuple):
    """Frames of recordings, and which of them are an item; items overlap."""

    frames: Tensor  # (F, D), float
    starts: Tensor  # (N,), int64, first frame of each item
    lengths: Tensor  # (N,), int64, frames of each item, at least 1


class ItemLabels(NamedTuple):
    """What each item is; numbers stand for names."""

    phones: Indices  # (N,)
    contexts: Indices  # (N,), of previous and next phone
    speakers: Indices  # (N,)


class AbxErrors(NamedTuple):
    """Error rates between 0 and 1; blind guesses have 0.5.

    NaN where the items have no triplet to compare.
    """

    within: float  # A, B and X of one speaker
    across: float  # X of another speaker than A and B


class Comparison(NamedTuple):
    """Triplets with all A and all X of one phone, and B of all others."""

    phone: int  # of A and X
    speaker: int  # of A and B
    x: Indices
    a: Indices  # within a speaker, the same items as `x`
    b: Indices  # of all other phones, in their order
    b_phones: Indices  # the other phones, each once
    b_starts: Indices  # where the items of each begin in `b`


def abx_errors(
    items: ItemFrames,
    labels: ItemLabels,
    *,
    pooled: bool = False,
    max_size_group: int | None = 10,
    max_x_across: int | None = 5,
    seed: int = 0,
) -> AbxErrors:
    """Compute the ABX error within and across speakers.

    Items of one phone, context and speaker are a group. A score is the mean
    over the triplets of three groups. Scores are averaged over contexts (and
    speakers of X), then over speakers of A and B, then over pairs of phones,
    where (A, B) and (B, A) are two.

    Arguments
    ---------
    items : ItemFrames
        What is compared, by the angle between frames, along the path of
        dynamic time warping.
    labels : ItemLabels
        What the items are.
    pooled : bool
        Compare the mean frames of items instead.
    max_size_group : int, optional
        Items that are drawn of larger groups; None takes all.
    max_x_across : int, optional
        Speakers of X that are drawn for each A; None takes all.
    seed : int
        Decides what is drawn.

    Example
    -------
    >>> angles = torch.tensor([0.0, 0.1, 0.2, 1.0, 1.2, 1.4])
    >>> frames = torch.stack([angles.cos(), angles.sin()], dim=1)
    >>> phones, same = np.array([0, 0, 0, 1, 1, 1]), np.zeros(6, int)
    >>> items = ItemFrames(frames, torch.arange(6), torch.ones(6).long())
    >>> abx_errors(items, ItemLabels(phones, same, same))
    AbxErrors(within=0.0, across=nan)
    """
    if pooled:
        items = pool_items(items)
    norms = items.frames.double().norm(dim=1)
    # A vector without a direction is at a right angle to all.
    norms = norms.masked_fill(norms == 0, math.inf)
    scores: dict[bool, list[tuple[int, int, int, float]]] = {
        False: [],
        True: [],
    }
    comparisons = _comparisons(labels, max_size_group, max_x_across, seed)
    for block in _in_blocks(comparisons):
        distances = _PairDistances(block, items, norms)
        for comparison in block:
            errors = _errors(comparison, distances)
            is_across = comparison.x is not comparison.a
            for phone, error in zip(comparison.b_phones, errors, strict=True):
                key = comparison.phone, int(phone), comparison.speaker
                scores[is_across].append((*key, error))
    return AbxErrors(_average(scores[False]), _average(scores[True]))


def pool_items(items: ItemFrames) -> ItemFrames:
    """Replace each item by the mean of its frames."""
    num_items = len(items.lengths)
    positions = torch.arange(num_items, device=items.frames.device)
    means = [
        items.frames[start : start + length].double().mean(dim=0)
        for start, length in zip(
            items.starts.tolist(), items.lengths.tolist(), strict=True
        )
    ]
    return ItemFrames(torch.stack(means), positions, torch.ones_like(positions))


def _comparisons(
    labels: ItemLabels,
    max_size_group: int | None,
    max_x_across: int | None,
    seed: int,
) -> Iterator[Comparison]:
    """Yield what is compared, context by context."""
    order = np.lexsort((labels.phones, labels.speakers, labels.contexts))
    keys = np.stack([values[order] for values in labels], axis=1)
    is_new = np.any(keys[1:] != keys[:-1], axis=1)
    groups = np.split(order, np.flatnonzero(is_new) + 1)
    # Context -> speaker -> phone -> items.
    contexts: dict[int, dict[int, dict[int, Indices]]] = {}
    for group in groups:
        phone, context, speaker = (int(values[group[0]]) for values in labels)
        drawn = _draw(group, max_size_group, seed, phone, context, speaker)
        speakers = contexts.setdefault(context, {})
        speakers.setdefault(speaker, {})[phone] = drawn
    for context, speakers in contexts.items():
        for speaker, phones in speakers.items():
            if len(phones) < 2:
                continue
            for phone, a in phones.items():
                others = {p: b for p, b in phones.items() if p != phone}
                sizes = [len(b) for b in others.values()]
                against = (
                    np.concatenate(list(others.values())),
                    np.array(list(others)),
                    np.cumsum([0, *sizes[:-1]]),
                )
                if len(a) > 1:
                    yield Comparison(phone, speaker, a, a, *against)
                strangers = np.array(
                    [s for s, own in speakers.items() if phone in own]
                )
                strangers = strangers[strangers != speaker]
                names = phone, context, speaker, "x"
                for stranger in _draw(strangers, max_x_across, seed, *names):
                    x = speakers[int(stranger)][phone]
                    yield Comparison(phone, speaker, x, a, *against)


def _draw(
    among: Indices, limit: int | None, seed: int, *names: int | str
) -> Indices:
    """Draw at most so many, which depend on the seed and the names alone."""
    if limit is None or len(among) <= limit:
        return among
    rng = np.random.default_rng(derive_seed(seed, *names))
    return np.sort(rng.permutation(among)[:limit])


def _in_blocks(
    comparisons: Iterator[Comparison],
) -> Iterator[list[Comparison]]:
    """Join comparisons to lists of a bounded number of pairs."""
    block: list[Comparison] = []
    num_pairs = 0
    for comparison in comparisons:
        size = len(comparison.x) * (len(comparison.a) + len(comparison.b))
        if block and num_pairs + size > PAIRS_AT_A_TIME:
            yield block
            block, num_pairs = [], 0
        block.append(comparison)
        num_pairs += size
    if block:
        yield block


class _PairDistances:
    """Distances of all pairs that some comparisons need, each once."""

    def __init__(
        self,
        comparisons: Sequence[Comparison],
        items: ItemFrames,
        norms: Tensor,
    ) -> None:
        self.num_items = len(items.lengths)
        wanted = [
            np.unique(self._keys(c.x, others))
            for c in comparisons
            for others in (c.a, c.b)
        ]
        self.keys = np.unique(np.concatenate(wanted))
        first, second = np.divmod(self.keys, self.num_items)
        self.distances = _distances(items, norms, first, second)

    def _keys(self, x: Indices, others: Indices) -> Indices:
        """Return a number for each pair, the same in both directions."""
        low = np.minimum(x[:, None], others)
        return low * self.num_items + np.maximum(x[:, None], others)

    def __call__(self, x: Indices, others: Indices) -> Tensor:
        """Return the distances (len(x), len(others)), infinite to itself."""
        found = self.distances[
            np.searchsorted(self.keys, self._keys(x, others))
        ]
        is_same = torch.from_numpy(x[:, None] == others)
        return found.masked_fill_(is_same, math.inf)


def _errors(
    comparison: Comparison, distances: _PairDistances
) -> NDArray[np.float64]:
    """Return the error rate against each phone of B.

    X itself, when it is among A, is infinitely far: it wins over no B.
    """
    to_a = distances(comparison.x, comparison.a).sort(dim=1).values
    to_b = distances(comparison.x, comparison.b)
    # Twice the A that are closer than B: those that are as close count half.
    twice = torch.searchsorted(to_a, to_b).double()
    twice += torch.searchsorted(to_a, to_b, right=True)
    num_a = len(comparison.a) - (comparison.x is comparison.a)
    errors = (1 - twice / (2 * num_a)).mean(dim=0).numpy()
    sizes = np.diff([*comparison.b_starts, len(comparison.b)])
    return np.add.reduceat(errors, comparison.b_starts) / sizes


def _average(scores: Sequence[tuple[int, int, int, float]]) -> float:
    """Average over contexts, then over speakers, then over pairs of phones."""
    by_speaker = defaultdict(list)
    for phone, other, speaker, error in scores:
        by_speaker[phone, other, speaker].append(error)
    by_pair = defaultdict(list)
    for (phone, other, _), errors in by_speaker.items():
        by_pair[phone, other].append(np.mean(errors))
    means = [np.mean(errors) for errors in by_pair.values()]
    return float(np.mean(means)) if means else math.nan


def _distances(
    items: ItemFrames, norms: Tensor, first: Indices, second: Indices
) -> Tensor:
    """Return the distances of pairs, float64 on the CPU, (P,).

    In float64, since frames of a collapsed encoder differ by angles that
    float32 cannot tell apart; some pairs of similar lengths at a time.
    """
    lengths = items.lengths.cpu().numpy()
    found = torch.empty(len(first), dtype=torch.float64)
    order = np.lexsort((lengths[second], lengths[first]))
    width = items.frames.shape[1]
    start = 0
    while start < len(order):
        # The lengths of the first items rise, and bound how many fit.
        longest = int(lengths[second].max())
        own = int(lengths[first[order[start]]])
        each = (own + longest) * width + 2 * (own + 1) * (longest + 1)
        stop = start + max(1, VALUES_AT_A_TIME // each)
        chunk = order[start:stop]
        pair = torch.from_numpy(np.stack([first[chunk], second[chunk]]))
        pair = pair.to(items.frames.device)
        cosines = _cosines(items, norms, *pair)
        angles = cosines.clamp_(-1, 1).acos_() / math.pi
        ends = items.lengths[pair]
        found[torch.from_numpy(chunk)] = dtw(angles, *ends).cpu()
        start = stop
    return found


def _cosines(
    items: ItemFrames, norms: Tensor, first: Tensor, second: Tensor
) -> Tensor:
    """Return the cosines between all frames of pairs, (P, T, T')."""
    sides = []
    for side in (first, second):
        lengths = items.lengths[side]
        steps = torch.arange(int(lengths.max()), device=side.device)
        # What stands behind the end of an item is never looked at.
        steps = torch.minimum(steps, lengths[:, None] - 1)
        frames = items.starts[side][:, None] + steps
        sides.append((items.frames[frames].double(), norms[frames]))
    (x, x_norms), (y, y_norms) = sides
    cosines = x @ y.transpose(1, 2)
    cosines /= x_norms[:, :, None]
    cosines /= y_norms[:, None, :]
    return cosines.masked_fill_(cosines > 1 - COSINE_ROUNDING, 1.0)


def dtw(costs: Tensor, lengths: Tensor, other_lengths: Tensor) -> Tensor:
    """Compute distances by dynamic time warping, mean along the path.

    A path goes on by one step in one sequence, or in both. The cheapest one
    is taken; of equal ones, that of the step in both, then in the second.

    Arguments
    ---------
    costs : Tensor, float, (P, T, T')
        Distances between the frames of each pair, anything on padding.
    lengths, other_lengths : Tensor, int64, (P,)
        Frames of both sequences of each pair, from 1 to T and T'.

    Returns
    -------
    Tensor, float, (P,)
        Sum of the costs along the path, divided by its steps.

    Example
    -------
    >>> costs = torch.tensor([[[0.0, 1.0, 1.0], [1.0, 0.75, 0.0]]])
    >>> dtw(costs, torch.tensor([2]), torch.tensor([3]))
    tensor([0.2500])
    """
    num_pairs, height, width = costs.shape
    # Pairs last, so that each step works on rows of memory; a border that no
    # path comes from, but the corner.
    shape = (height + 1, width + 1, num_pairs)
    total = costs.new_full(shape, math.inf)
    total[0, 0] = 0
    steps = torch.zeros_like(total)
    total[1:, 1:] = costs.permute(1, 2, 0)
    total, steps = total.flatten(0, 1), steps.flatten(0, 1)
    row = width + 1
    for diagonal in range(2, height + width + 1):
        # Cells (i, diagonal - i) of the bordered matrix, i from low to high.
        low, high = max(1, diagonal - width), min(height, diagonal - 1)
        here = slice(low * width + diagonal, high * width + diagonal + 1, width)
        one, second, both = (_back(here, n) for n in (row, 1, row + 1))
        takes_second = total[second] <= total[one]
        cheaper = torch.where(takes_second, total[second], total[one])
        takes_both = total[both] <= cheaper
        fewer = torch.where(takes_second, steps[second], steps[one])
        steps[here] = torch.where(takes_both, steps[both], fewer) + 1
        total[here] += torch.where(takes_both, total[both], cheaper)
    ends = (lengths * row + other_lengths)[None]
    return (total.gather(0, ends) / steps.gather(0, ends))[0]


def _back(cells: slice, positions: int) -> slice:
    return slice(cells.start - positions, cells.stop - positions, cells.step)
