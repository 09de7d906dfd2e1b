"""PyTorch's linear layer, layer norm and dropout, where they can be cheaper.

Same parameters, same results up to rounding. On a CPU products and dropout
have faster kernels; on other devices, for other types and when compiled they
are PyTorch's own. Letters: B utterances,
T frames, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HAS_ONEDNN = torch.backends.mkldnn.is_available()
# Matrix products of MKL use half the width of the registers on an AMD CPU
# with AVX-512; the convolutions of oneDNN use all of it everywhere.
_HAS_WIDE_REGISTERS = torch.backends.cpu.get_cpu_capability() == "AVX512"


def is_for_onednn(x: Tensor) -> bool:
    """Tell whether x is for oneDNN's kernels: float32, eager, on a CPU."""
    return (
        _HAS_ONEDNN
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply frames by a matrix, as `torch.nn.functional.linear`.

    Arguments
    ---------
    x : Tensor, (B, T, d_in), or any other shape that ends in d_in
        Only three dimensions take the fast way.
    weight : Tensor, (d_out, d_in)
        The matrix.
    bias : Tensor, (d_out,), optional
        Added to every frame.

    Returns
    -------
    Tensor, (B, T, d_out)
        Frames in the memory layout of PyTorch's own product.

    Example
    -------
    >>> linear(torch.rand(2, 5, 8), torch.rand(3, 8)).shape
    torch.Size([2, 5, 3])
    """
    if not (_HAS_WIDE_REGISTERS and x.dim() == 3 and is_for_onednn(x)):
        return F.linear(x, weight, bias)
    # A convolution of one frame over (B, d_in, 1, T), a view: no copies. The
    # dilation has no meaning for one frame; without it a single thread would
    # be given MKL's product again.
    y = F.conv2d(
        x.unsqueeze(1).permute(0, 3, 1, 2),
        weight[:, :, None, None],
        bias,
        dilation=(2, 1),
    )
    return y.permute(0, 2, 3, 1).squeeze(1)


class Linear(nn.Linear):
    """`torch.nn.Linear` by the function `linear`.

    Example
    -------
    >>> Linear(8, 3)(torch.rand(2, 5, 8)).shape
    torch.Size([2, 5, 3])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., d_in) to (..., d_out)."""
        return linear(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` whose result has autocast's type.

    It computes in float32, as on CUDA under autocast, where PyTorch's own
    also returns float32: masks, GELU and what they keep would then work on
    twice the bytes, up to the next product, which rounds all the same.

    Example
    -------
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     LayerNorm(8)(torch.rand(2, 5, 8)).dtype
    torch.bfloat16
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., D)."""
        kind = x.device.type
        if not torch.is_autocast_enabled(kind):
            return super().forward(x)
        return super().forward(x).to(torch.get_autocast_dtype(kind))


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` with cheaper random numbers on a CPU.

    Two values share a draw of 64 bits from torch's global generator, where
    PyTorch draws for each alone; the rate is exact to 2^-32.

    Example
    -------
    >>> Dropout(0.5)(torch.ones(1000)).unique()
    tensor([0., 2.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Drop values of x in training, and scale the others up."""
        if not (self.training and 0 < self.p < 1 and is_for_onednn(x)):
            return super().forward(x)
        draws = torch.empty((x.numel() + 1) // 2, dtype=torch.int64)
        bits = draws.random_(-(2**63), None).view(torch.int32)[: x.numel()]
        first_kept = round(self.p * 2**32) - 2**31
        keep = (bits >= min(first_kept, 2**31 - 1)).view(x.shape)
        return x * keep.to(x.dtype).div_(1 - self.p)
