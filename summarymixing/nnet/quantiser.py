"""Product quantiser with Gumbel-softmax (wav2vec 2.0, section 2).

Letters: N frames, G groups, V codes in a group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from summarymixing.nnet.randomness import random_bits


class Quantised(NamedTuple):
    """What the quantiser returns for N frames."""

    targets: Tensor  # (N, target_dim), projected codes
    code_ids: Tensor  # (N,), int64, equal exactly where the targets are equal
    probability_sums: Tensor  # (G, V), softmax of the logits, summed over N
    code_counts: Tensor  # (G, V), int64, frames that choose each code


class GumbelQuantiser(nn.Module):
    """Choose one code in each group and return their concatenation.

    In training the choice is argmax(logits + Gumbel noise) with the gradient
    of the softmax at the given temperature (straight through); in evaluation
    it is argmax(logits). The codes are fetched by one product per group: the
    (N, G V, target_dim / G) tensor of the usual formulation is never made.
    Everything runs in float32, whose products GPUs with TF32 round to 10 bits
    where SpeechBrain is imported, which allows it: logits start with a
    standard deviation of about sqrt(input_dim).

    Arguments
    ---------
    input_dim : int
        Width of the frames.
    num_groups, num_codes : int
        G and V; the paper has 2 x 320.
    target_dim : int
        Width of the targets, a multiple of `num_groups` (ValueError).

    Example
    -------
    >>> quantiser = GumbelQuantiser(8, num_groups=2, num_codes=4, target_dim=6)
    >>> quantiser(torch.rand(5, 8)).targets.shape
    torch.Size([5, 6])
    """

    def __init__(
        self,
        input_dim: int,
        num_groups: int = 2,
        num_codes: int = 320,
        target_dim: int = 256,
    ) -> None:
        super().__init__()
        if target_dim % num_groups:
            raise ValueError(
                f"target_dim ({target_dim}) must be a multiple of num_groups "
                f"({num_groups})."
            )
        self.num_groups, self.num_codes = num_groups, num_codes
        self.codebook = nn.Parameter(
            torch.rand(num_groups, num_codes, target_dim // num_groups)
        )
        self.to_logits = nn.Linear(input_dim, num_groups * num_codes)
        nn.init.normal_(self.to_logits.weight)
        nn.init.zeros_(self.to_logits.bias)
        self.project = nn.Linear(target_dim, target_dim)

    def forward(
        self,
        x: Tensor,
        *,
        gumbel: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Quantised:
        """Quantise frames.

        Arguments
        ---------
        x : Tensor, (N, input_dim)
            Frames.
        gumbel : Tensor, (N, G, V), or None
            Gumbel noise; None in evaluation, where the logits get no gradient.
        temperature : float
            Temperature of the softmax that carries the gradient.
        """
        with torch.autocast(x.device.type, enabled=False):
            logits = self.to_logits(x.to(self.codebook.dtype))
            logits = logits.view(-1, self.num_groups, self.num_codes)
            noisy = logits if gumbel is None else logits + gumbel
            codes = noisy.argmax(dim=-1)  # (N, G)
            weights = F.one_hot(codes, self.num_codes).to(logits.dtype)
            if gumbel is not None:
                soft = (noisy / temperature).softmax(dim=-1)
                weights = weights - soft.detach() + soft
            # A product, not an index: it carries the softmax's gradient.
            chosen = torch.einsum("ngv,gvd->ngd", weights, self.codebook)
            targets = self.project(chosen.flatten(1))
        # Perplexity counts the choice without noise, as in the stock recipe.
        choice = logits.argmax(dim=-1)
        groups = torch.arange(self.num_groups, device=x.device)
        return Quantised(
            targets=targets,
            code_ids=(codes * self.num_codes**groups).sum(dim=1),
            probability_sums=logits.softmax(dim=-1).sum(dim=0),
            code_counts=F.one_hot(choice, self.num_codes).sum(dim=0),
        )


def gumbel_noise(keys: Tensor, num_groups: int, num_codes: int) -> Tensor:
    """Draw standard Gumbel noise.

    Arguments
    ---------
    keys : Tensor, int64, (N,)
        A number of `splitmix64` for each frame.
    num_groups, num_codes : int
        G and V.

    Returns
    -------
    Tensor, float32, (N, G, V)
        Between -2.9 and 16.7: float32 has 24 bits for a uniform number
        between 0 and 1, both excluded.
    """
    bits = random_bits(keys, num_groups * num_codes, 23)
    uniform = bits.float().add_(0.5).mul_(2.0**-23)
    noise = uniform.log_().neg_().log_().neg_()
    return noise.view(-1, num_groups, num_codes)


def perplexity(counts: Tensor) -> Tensor:
    """Sum over groups of exp(entropy); G V when all codes are used equally.

    Arguments
    ---------
    counts : Tensor, (G, V)
        Counts or probabilities, not necessarily normalised.

    Example
    -------
    >>> round(perplexity(torch.ones(2, 64)).item(), 2)
    128.0
    """
    counts = counts.to(torch.promote_types(counts.dtype, torch.float32))
    share = counts / counts.sum(dim=-1, keepdim=True).clamp(min=1e-7)
    entropy = -(share * torch.log(share + 1e-7)).sum(dim=-1)
    return entropy.exp().sum()


def temperature_at(
    update: int, start: float = 2.0, end: float = 0.25, factor: float = 0.999995
) -> float:
    """Temperature of the Gumbel softmax at an update (0-based).

    Example
    -------
    >>> temperature_at(0), temperature_at(10**9)
    (2.0, 0.25)
    """
    return max(start * factor**update, end)
