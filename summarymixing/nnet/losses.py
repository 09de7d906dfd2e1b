"""Contrastive and diversity losses of wav2vec 2.0 (section 2, equations 3-4).

Letters: B utterances, M masked frames of the longest, C width of targets,
K negatives.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from summarymixing.nnet.quantiser import perplexity
from summarymixing.nnet.randomness import random_bits

# 64 MiB in float32, what 12 utterances of 35 s have in pre-training.
MAX_SIMILARITIES = 2**24


def draw_negatives(keys: Tensor, counts: Tensor, num_negatives: int) -> Tensor:
    """Draw negatives from the other masked frames of each utterance.

    Arguments
    ---------
    keys : Tensor, int64, (B, M)
        A number of `splitmix64` for each masked frame.
    counts : Tensor, int64, (B,)
        Masked frames of each utterance.
    num_negatives : int
        Number K of negatives of each frame, drawn with replacement.

    Returns
    -------
    Tensor, int64, (B, M, K)
        Indices into the utterance's masked frames; row i never holds i. All
        are valid indices on padding, too, and 0 where there is one frame.

    Example
    -------
    >>> keys, counts = torch.tensor([[5, 6]]), torch.tensor([2])
    >>> draw_negatives(keys, counts, 3)
    tensor([[[1, 1, 1],
             [0, 0, 0]]])
    """
    others = (counts - 1).clamp(min=0)[:, None, None]
    own = torch.arange(keys.shape[1], device=keys.device).unsqueeze(1)
    # The high half of a product of 31 bits: probabilities are equal to 1 in
    # 2 ** 31 / count, and nothing is divided.
    drawn = random_bits(keys, num_negatives, 31).mul_(others) >> 31
    return drawn + ((drawn >= own) & (others > 0))  # skip the frame itself


class Contrast(NamedTuple):
    """Sums over valid masked frames; divide by their number for means."""

    loss: Tensor  # (), the contrastive loss, with its gradient
    correct: Tensor  # (), frames whose positive beats all remaining negatives
    chance: Tensor  # (), expected `correct` of a guess among what remains
    excluded: Tensor  # (), negatives equal to the positive


def contrastive_loss(
    context: Tensor,
    targets: Tensor,
    target_ids: Tensor,
    negatives: Tensor,
    *,
    padding_mask: Tensor,
    temperature: float = 0.1,
    max_similarities: int = MAX_SIMILARITIES,
) -> Contrast:
    """Tell the quantised frame from K others of the same utterance.

    Similarities are computed once for all pairs of an utterance, (M, M), and
    picked by index: the (1 + K, B, M, C) tensor of targets and negatives is
    never made. Negatives whose codes equal the positive's are left out.

    Arguments
    ---------
    context : Tensor, (B, M, C)
        Projected encoder output at the masked frames.
    targets : Tensor, (B, M, C)
        Quantised frames, the positives.
    target_ids : Tensor, int64, (B, M)
        Numbers that are equal where targets are (`Quantised.code_ids`).
    negatives : Tensor, int64, (B, M, K)
        Indices into the M masked frames of the same utterance.
    padding_mask : Tensor, bool, (B, M)
        True where an utterance has fewer than M masked frames.
    temperature : float
        Divisor of the cosine similarity.
    max_similarities : int
        Above so many, B M M, blocks of rows are computed one after the other,
        and again in the backward pass: memory is linear in M.
    """
    batch, widest = padding_mask.shape
    with torch.autocast(context.device.type, enabled=False):
        wide = torch.promote_types(context.dtype, torch.float32)
        context = F.normalize(context.to(wide), dim=-1, eps=1e-8)
        targets = F.normalize(targets.to(wide), dim=-1, eps=1e-8)
        rows = max(max_similarities // (batch * widest), 1)
        blocks = [
            (
                first,
                context[:, first : first + rows],
                targets,
                target_ids,
                negatives[:, first : first + rows],
                padding_mask[:, first : first + rows],
                temperature,
            )
            for first in range(0, widest, rows)
        ]
        if len(blocks) == 1:
            return _contrast_rows(*blocks[0])
        recomputed = partial(
            checkpoint,
            _contrast_rows,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing is drawn
        )
        sums = zip(*(recomputed(*block) for block in blocks), strict=True)
        return Contrast(*(torch.stack(parts).sum() for parts in sums))


def _contrast_rows(
    first: int,
    context: Tensor,
    targets: Tensor,
    target_ids: Tensor,
    negatives: Tensor,
    padding_mask: Tensor,
    temperature: float,
) -> Contrast:
    """Contrast R frames, of which `first` is the first, to all M targets.

    Arguments as of `contrastive_loss`, normalised; context, negatives and
    padding_mask have R rows in place of M.
    """
    similarity = torch.bmm(context, targets.transpose(1, 2))  # (B, R, M)
    positive = similarity.diagonal(first, 1, 2) / temperature
    drawn_ids = target_ids.gather(1, negatives.flatten(1)).view_as(negatives)
    own_ids = target_ids[:, first : first + context.shape[1]]
    equal = drawn_ids == own_ids.unsqueeze(-1)
    # Backward adds to a similarity once for each time it was drawn. A GPU has
    # no order for that, but the summands are equal: results can be repeated.
    others = similarity.gather(2, negatives) / temperature
    others = others.masked_fill(equal, float("-inf"))
    # A row of -inf alone is fine: the positive is always in the sum.
    all_logits = torch.cat([positive.unsqueeze(-1), others], dim=-1)
    partition = all_logits.logsumexp(dim=-1)
    valid = ~padding_mask
    remaining = (~equal).sum(dim=-1)
    chance = (1 + remaining).to(positive.dtype).reciprocal()
    return Contrast(
        loss=(partition - positive).masked_fill(padding_mask, 0).sum(),
        correct=((positive > others.amax(dim=-1)) & valid).sum(),
        chance=(chance * valid).sum(),
        excluded=(equal & valid.unsqueeze(-1)).sum(),
    )


def diversity_loss(probability_sums: Tensor) -> Tensor:
    """Share of the codebook that is not used: (G V - perplexity) / (G V).

    Arguments
    ---------
    probability_sums : Tensor, (G, V)
        Softmax of the logits, summed over frames. The loss is 0 when all
        codes are equally probable on average.

    Example
    -------
    >>> abs(diversity_loss(torch.ones(2, 64)).item()) < 1e-4
    True
    """
    num_codes = probability_sums.numel()
    return (num_codes - perplexity(probability_sums)) / num_codes
