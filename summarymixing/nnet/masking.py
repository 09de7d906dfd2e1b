"""Padding masks and statistics that never see padding.

True means padding, as everywhere in SpeechBrain. Letters: B utterances,
T frames, S samples, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def padding_mask_from_lengths(lengths: Tensor, max_length: int) -> Tensor:
    """Mark what lies beyond the end of each utterance.

    Arguments
    ---------
    lengths : Tensor, int64, (B,)
        Valid frames (or samples) of each utterance.
    max_length : int
        Frames (or samples) of the padded batch.

    Returns
    -------
    Tensor, bool, (B, max_length)
        True on padding.

    Example
    -------
    >>> padding_mask_from_lengths(torch.tensor([3, 1]), 3)
    tensor([[False, False, False],
            [False,  True,  True]])
    """
    positions = torch.arange(max_length, device=lengths.device)
    return positions.unsqueeze(0) >= lengths.unsqueeze(1)


def absolute_lengths(relative_lengths: Tensor, num_samples: int) -> Tensor:
    """Convert SpeechBrain's relative lengths into numbers of samples.

    Arguments
    ---------
    relative_lengths : Tensor, float, (B,)
        Length of each utterance divided by the longest of the batch, in (0, 1].
    num_samples : int
        Samples (S) of the padded batch.

    Returns
    -------
    Tensor, int64, (B,)
        Valid samples of each utterance, at least 1, at most `num_samples`.

    Raises
    ------
    ValueError
        If lengths are integers, that is samples, as in other libraries.

    Example
    -------
    >>> absolute_lengths(torch.tensor([1.0, 0.5]), 16_000)
    tensor([16000,  8000])
    """
    if not relative_lengths.is_floating_point():
        raise ValueError(
            f"lengths are shares of the longest utterance, in (0, 1], as in "
            f"SpeechBrain, not {relative_lengths.dtype}; divide the numbers of "
            f"samples by {num_samples}"
        )
    # float64: in float32 an hour of audio would be some samples off.
    lengths = (relative_lengths.double() * num_samples).round().long()
    return lengths.clamp(1, num_samples)


def zero_padding(x: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Set the padded frames of x, (B, T, ...), to zero.

    A fill, not a product: zero times NaN would still be NaN.
    """
    if padding_mask is None:
        return x
    trailing = (1,) * (x.dim() - padding_mask.dim())
    return x.masked_fill(padding_mask.view(*padding_mask.shape, *trailing), 0)


def masked_sum(x: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Add up the valid frames of each utterance, see `masked_mean`."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return zero_padding(x, padding_mask).sum(dim=1, dtype=dtype)


def masked_mean(x: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Average the valid frames of each utterance, in float32.

    A bf16 sum over some thousand frames would lose the last ones: their
    contribution falls below the rounding step of the sum.

    Arguments
    ---------
    x : Tensor, (B, T, D) or (B, T, H, width)
        Frames; padding may hold anything.
    padding_mask : Tensor, bool, (B, T), or None
        True on padding.

    Returns
    -------
    Tensor, float32 (float64 for float64 input), (B, D) or (B, H, width)
        Means; zero for an utterance that is nothing but padding.

    Example
    -------
    >>> x = torch.tensor([[[1.0], [3.0], [99.0]]])
    >>> masked_mean(x, torch.tensor([[False, False, True]]))
    tensor([[2.]])
    """
    if padding_mask is None:
        return x.mean(dim=1, dtype=torch.promote_types(x.dtype, torch.float32))
    total = masked_sum(x, padding_mask)
    valid = (~padding_mask).sum(dim=1).clamp(min=1)
    return total / valid.view(-1, *(1,) * (total.dim() - 1))
