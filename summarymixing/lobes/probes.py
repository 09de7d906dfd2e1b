"""Probes: a frozen encoder, a learned mixture of its layers, a small head.

Letters: B utterances, S samples at 16 kHz, T frames (20 ms), D width,
L layers, C outputs of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from summarymixing.nnet.masking import zero_padding


class WeightedSum(nn.Module):
    """Mixture of hidden states with learned weights that sum to one.

    Arguments
    ---------
    num_states : int
        Number of hidden states, L + 1: the input of the first layer counts.
        Their weights are equal at the start.

    Example
    -------
    >>> mixture = WeightedSum(2)
    >>> mixture([torch.zeros(1, 1, 2), torch.ones(1, 1, 2)])
    tensor([[[0.5000, 0.5000]]], grad_fn=<AddBackward0>)
    """

    def __init__(self, num_states: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_states))

    def weights(self) -> Tensor:
        """Return the weights, (L + 1,)."""
        return self.logits.softmax(dim=0)

    def forward(self, hidden_states: Sequence[Tensor] | Tensor) -> Tensor:
        """Mix L + 1 tensors (B, T, D) to one (B, T, D), in float32."""
        if isinstance(hidden_states, Tensor):
            # Stacked: both passes read the states once, eight times as fast.
            mixed = self.weights() @ hidden_states.float().flatten(1)
            return mixed.view(hidden_states.shape[1:])
        # A running sum: stacked, the states would be in memory twice.
        total = torch.zeros((), device=self.logits.device)
        for weight, state in zip(self.weights(), hidden_states, strict=True):
            total = total + weight * state.float()
        return total


class Probe(nn.Module):
    """All parts of a probe that learn, as one module for DDP.

    Arguments
    ---------
    num_states : int
        Number of hidden states, L + 1.
    head : nn.Module
        `head(features, padding_mask)`; see `summarymixing.lobes.heads`.

    Example
    -------
    >>> probe = Probe(2, head=lambda features, padding_mask: features.sum())
    >>> probe(
    ...     [torch.zeros(1, 3, 8), torch.ones(1, 3, 8)], torch.zeros(1, 3) > 0
    ... )
    tensor(12., grad_fn=<SumBackward0>)
    """

    def __init__(self, num_states: int, head: nn.Module) -> None:
        super().__init__()
        self.weighted_sum = WeightedSum(num_states)
        self.head = head

    def forward(
        self, hidden_states: Sequence[Tensor] | Tensor, padding_mask: Tensor
    ) -> Any:
        """Mix the states and apply the head.

        Arguments
        ---------
        hidden_states : sequence of L + 1 Tensors, (B, T, D), or one Tensor
            The states of a `FrozenEncoder`, finite on padding.
        padding_mask : Tensor, bool, (B, T)
            True on padding.

        Returns
        -------
        Tensor or UtteranceOutput
            What the head predicts.
        """
        features = self.weighted_sum(hidden_states)
        return self.head(zero_padding(features, padding_mask), padding_mask)
