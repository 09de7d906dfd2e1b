"""SummaryMixing: mixing frames over time at linear cost.

Written from equation 1 of "Linear-Complexity Self-Supervised Learning for
Speech Processing" and the description in arXiv 2307.07421. Letters: B
utterances, T frames, D width, H heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from summarymixing.nnet.layers import Dropout, Linear
from summarymixing.nnet.masking import masked_mean, masked_sum, zero_padding


def head_width(d_model: int, num_heads: int) -> int:
    """Return the width of one head; ValueError if heads do not divide it."""
    if d_model < 1:
        raise ValueError(f"d_model ({d_model}) must be at least 1.")
    if num_heads < 1 or d_model % num_heads:
        lower = max(d_model // max(num_heads, 1), 1) * num_heads
        raise ValueError(
            f"d_model ({d_model}) must be a multiple of num_heads "
            f"({num_heads}); with {num_heads} heads the nearest widths are "
            f"{lower} and {lower + num_heads}."
        )
    return d_model // num_heads


class HeadwiseLinear(nn.Module):
    """A separate linear layer for each head: a block-diagonal matrix.

    Arguments
    ---------
    num_heads, d_in, d_out : int
        Number of heads, and width of one head before and after.

    Example
    -------
    >>> HeadwiseLinear(4, 8, 16)(torch.rand(2, 5, 4, 8)).shape
    torch.Size([2, 5, 4, 16])
    """

    def __init__(self, num_heads: int, d_in: int, d_out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(d_in)  # as nn.Linear, for the fan-in of a head
        self.weight = nn.Parameter(
            torch.empty(num_heads, d_in, d_out).uniform_(-bound, bound)
        )
        self.bias = nn.Parameter(torch.zeros(num_heads, 1, d_out))

    def forward(self, x: Tensor, outputs: slice | None = None) -> Tensor:
        """Map x (B, T, H, d_in) to (B, T, H, d_out), or to some outputs of it.

        The memory of the result is (H, B, T, d_out), which the next product
        and all that works on single values take as it is.
        """
        batch, length, num_heads, d_in = x.shape
        by_head = x.permute(2, 0, 1, 3).reshape(num_heads, -1, d_in)
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if outputs is not None:
            weight, bias = weight[..., outputs], bias[..., outputs]
        out = torch.baddbmm(bias, by_head, weight)
        return out.view(num_heads, batch, length, -1).permute(1, 2, 0, 3)


class SummaryMixing(nn.Module):
    """Mix frames through one average per utterance (equation 1).

        summary = mean over valid frames of s(x_t)
        h_t     = c([f(x_t), summary])

    s and f have one hidden layer and work on each head alone; c is one linear
    layer over all heads; GELU follows every layer. Since c is linear before
    its activation, c([f, s]) = GELU(W_f f + W_s s + b): the summary costs one
    product per utterance, and neither [f, s] nor a (B, T, D) copy of the
    summary is ever made. The first layers of s and f are one product, so x
    is read once.

    Arguments
    ---------
    d_model : int
        Width D of input and output.
    num_heads : int
        Must divide d_model (ValueError).
    mode : str
        "full", or "lite": no f and no c, every frame gets the summary
        (arXiv 2307.07421).
    dropout : float
        Dropout of the hidden layers of s and f in training.

    Example
    -------
    >>> mixer = SummaryMixing(d_model=16, num_heads=2)
    >>> padding_mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    >>> mixer(torch.rand(2, 5, 16), padding_mask).shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int = 8,
        mode: str = "full",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if mode not in ("full", "lite"):
            raise ValueError(f"mode must be 'full' or 'lite', not {mode!r}.")
        width = head_width(d_model, num_heads)
        self.num_heads, self.width, self.mode = num_heads, width, mode
        self.dropout = Dropout(dropout)
        branches = 2 if mode == "full" else 1
        self.hidden = HeadwiseLinear(num_heads, width, branches * width)
        self.summary_out = HeadwiseLinear(num_heads, width, width)
        if mode == "full":
            self.local_out = HeadwiseLinear(num_heads, width, width)
            self.combine_local = Linear(d_model, d_model)
            self.combine_summary = nn.Linear(d_model, d_model, bias=False)
            # The halves of one matrix: its 2 D inputs give the bound.
            bound = 1 / math.sqrt(2 * d_model)
            nn.init.uniform_(self.combine_local.weight, -bound, bound)
            nn.init.uniform_(self.combine_summary.weight, -bound, bound)
            nn.init.zeros_(self.combine_local.bias)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Mix the frames x (B, T, D) of each utterance, see `Mixer`."""
        # NaN in padding would reach the gradient of the weights as 0 x NaN.
        hidden = self._hidden(zero_padding(x, padding_mask))
        widths = [self.width, hidden.shape[-1] - self.width]
        of_summary, of_local = hidden.split(widths, dim=-1)
        frames = self._summarised(of_summary)
        summary = masked_mean(frames, padding_mask).flatten(1)
        return self._mix(of_local, summary, padding_mask)

    def summarise(
        self, x: Tensor, padding_mask: Tensor | None = None
    ) -> Tensor:
        """Add up s(x_t), (B, T, D) -> (B, D), see `BlockwiseMixer`."""
        x = zero_padding(x, padding_mask)
        frames = self._summarised(self._hidden(x, slice(self.width)))
        return masked_sum(frames, padding_mask).flatten(1)

    def combine(
        self, x: Tensor, summary: Tensor, padding_mask: Tensor | None = None
    ) -> Tensor:
        """Mix x (B, T, D) with a summary (B, D), see `BlockwiseMixer`."""
        x = zero_padding(x, padding_mask)
        hidden = self._hidden(x, slice(self.width, None))
        return self._mix(hidden, summary, padding_mask)

    def _hidden(self, x: Tensor, outputs: slice | None = None) -> Tensor:
        """First layers of s and f, or of one: (B, T, H, branches * width)."""
        by_head = x.unflatten(-1, (self.num_heads, self.width))
        return self.dropout(F.gelu(self.hidden(by_head, outputs)))

    def _summarised(self, hidden: Tensor) -> Tensor:
        """Second layer of s: s(x_t), (B, T, H, width)."""
        return F.gelu(self.summary_out(hidden))

    def _mix(
        self, hidden: Tensor, summary: Tensor, padding_mask: Tensor | None
    ) -> Tensor:
        """Second layer of f, and c: (B, T, D), zero on padding.

        hidden is (B, T, H, width), or (B, T, H, 0) in mode "lite"; summary is
        (B, D), of any type.
        """
        summary = summary.to(hidden.dtype)
        if self.mode == "lite":
            mixed = summary.unsqueeze(1).expand(-1, hidden.shape[1], -1)
        else:
            # c([f, summary]) without the concatenation.
            local = F.gelu(self.local_out(hidden)).flatten(2)
            shift = self.combine_summary(summary).unsqueeze(1)  # (B, 1, D)
            mixed = F.gelu(self.combine_local(local) + shift)
        return zero_padding(mixed, padding_mask)
