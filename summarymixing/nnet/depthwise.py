"""Depthwise convolution over the time of frames (B, T, D), in several forms.

All forms give the values and gradients of `torch.nn.Conv1d` with D groups
and K // 2 frames of padding; they differ in speed. Letters: B utterances,
T frames, D width, K frames of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from summarymixing.nnet.layers import is_for_onednn

Form = Callable[[Tensor, Tensor, Tensor | None], Tensor]
BLOCK = 2**19  # values of a block of frames: 2 MiB, which a cache holds


def transposed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve (B, D, T): PyTorch copies what enters into this layout."""
    y = F.conv1d(
        x.transpose(1, 2),
        weight,
        bias,
        padding=weight.shape[-1] // 2,
        groups=len(weight),
    )
    return y.transpose(1, 2)


def channels_last(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve an image (B, D, 1, T) whose memory is that of x: no copy."""
    y = F.conv2d(
        x.unsqueeze(1).permute(0, 3, 1, 2),
        weight.unsqueeze(2),
        bias,
        padding=(0, weight.shape[-1] // 2),
        groups=len(weight),
    )
    return y.permute(0, 2, 3, 1).squeeze(1)


def shifted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Add K shifted and weighted copies of x: for a compiler to fuse.

    Added up in float32, as the kernels of the other forms do.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    length, reach = x.shape[1], weight.shape[-1] // 2
    padded = F.pad(x, (0, 0, reach, reach))
    y = x.new_zeros((), dtype=wide) if bias is None else bias.to(wide)
    for k in range(weight.shape[-1]):
        y = y + padded[:, k : k + length] * weight[:, 0, k].to(wide)
    return y.to(x.dtype)


class _Blocked(torch.autograd.Function):
    """`channels_last`, whose gradient of the weight oneDNN computes slowly."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        return channels_last(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        grad = grad.contiguous()
        return (
            # The convolution with the mirrored kernel.
            channels_last(grad, weight.flip(-1), None) if of_x else None,
            _weight_gradient(x, grad, weight) if of_weight else None,
            grad.sum((0, 1)) if of_bias else None,
        )


def _weight_gradient(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """Sum x, shifted, times the gradient over frames: (D, 1, K)."""
    batch, length, d_model = x.shape
    kernel = weight.shape[-1]
    padded = F.pad(x, (0, 0, kernel // 2, kernel // 2))
    total = x.new_zeros(kernel, d_model)
    size = max(1, BLOCK // (batch * d_model))
    for start in range(0, length, size):
        block = grad[:, start : start + size]
        for k in range(kernel):
            window = padded[:, start + k : start + k + block.shape[1]]
            total[k] += (window * block).sum((0, 1))
    return total.t().unsqueeze(1)


def blocked(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve as `channels_last`, with the CPU's faster gradient."""
    return _Blocked.apply(x, weight, bias)


FORMS: dict[str, Form] = {
    "transposed": transposed,
    "channels_last": channels_last,
    "shifted": shifted,
    "blocked": blocked,
}
# The form of other devices, and of compiled code. Width 768 and 31 frames in
# bf16 are known to be fast this way; recipes/benchmark can time the others.
DEFAULT_FORM = "transposed"


def depthwise_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Convolve each channel over time, frames in and out.

    Arguments
    ---------
    x : Tensor, (B, T, D)
        Frames.
    weight : Tensor, (D, 1, K)
        Kernels, K odd, as in `torch.nn.Conv1d`.
    bias : Tensor, (D,), optional
        Added to every frame.

    Returns
    -------
    Tensor, (B, T, D)
        Frame t sees the frames t - K // 2 to t + K // 2 of x.

    Example
    -------
    >>> x, weight = torch.rand(2, 5, 8), torch.rand(8, 1, 3)
    >>> depthwise_convolution(x, weight, torch.zeros(8)).shape
    torch.Size([2, 5, 8])
    """
    if is_for_onednn(x):
        return blocked(x, weight, bias)
    return FORMS[DEFAULT_FORM](x, weight, bias)
