"""Identity functions with modified gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return x; its gradient is multiplied by `factor` (0 stops it).

    wav2vec 2.0 in fairseq slows the front end down by 0.1; small runs need
    it to keep the codebook from collapsing.

    Example
    -------
    >>> x = torch.ones(1, requires_grad=True)
    >>> scale_gradient(3 * x, 0.1).backward()
    >>> x.grad
    tensor([0.3000])
    """
    return x if factor == 1 else _ScaleGradient.apply(x, factor)


class _WithZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return grad, *(torch.zeros_like(p) for p in ctx.parameters)


def with_zero_gradients(x: Tensor, parameters: list[Tensor]) -> Tensor:
    """Return x; `parameters` receive a gradient of zero.

    A layer that is dropped this time thus still takes part in the backward
    pass: DistributedDataParallel waits for a gradient of every parameter and
    would hang, or silently leave processes apart, if one never came.

    Example
    -------
    >>> x, unused = (
    ...     torch.ones(1, requires_grad=True),
    ...     torch.nn.Parameter(torch.ones(2)),
    ... )
    >>> with_zero_gradients(x, [unused]).sum().backward()
    >>> unused.grad
    tensor([0., 0.])
    """
    wanted = [p for p in parameters if p.requires_grad]
    if not wanted or not torch.is_grad_enabled():
        return x
    return _WithZeroGradients.apply(x, *wanted)
