"""Kernels started and bytes moved by a step, counted and not timed.

Every operator reads its inputs and writes its outputs once, as an eager step
on a GPU does; views move nothing. What a kernel reads twice, and copies inside
an operator, are not seen, so the bytes are a lower limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from summarymixing.cost.operations import without_content
from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder

aten = torch.ops.aten
# These make no kernel, though torch does not call them views.
NO_KERNEL = {
    aten._unsafe_view.default,
    aten._local_scalar_dense.default,
    aten.transpose_.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.empty_strided.default,
    aten.new_empty_strided.default,
}
# Their first argument is written, not read.
OVERWRITES = {aten.copy_.default, aten.zero_.default, aten.fill_.Scalar}


class Traffic(NamedTuple):
    """What a step starts and moves."""

    kernels: int
    num_bytes: int


def count_traffic(step: Callable[[], object]) -> Traffic:
    """Run a function and count operators and the bytes that they move.

    It may run on fake tensors (`operations.without_content`), at any size.

    Example
    -------
    >>> count_traffic(lambda: torch.ones(2, 3) + 1)
    Traffic(kernels=2, num_bytes=72)
    """
    with _Census() as census:
        step()
    return Traffic(census.kernels, census.num_bytes)


def encoder_traffic(
    encoder: Wav2Vec2Encoder, utterances: int, frames: int
) -> Traffic:
    """Count forward and backward of an encoder in bf16, as a GPU runs it.

    Arguments
    ---------
    encoder : Wav2Vec2Encoder
        Attention must be without dropout, see `as_on_cuda`; layer drop counts
        as none.
    utterances, frames : int
        B and T of the batch.
    """
    mode, traced = without_content(encoder)
    traced.train().conformer.layer_drop = 0.0
    channels = encoder.config["front_end_channels"]

    def step() -> None:
        latents = torch.zeros(utterances, frames, channels, requires_grad=True)
        padding_mask = torch.zeros(utterances, frames, dtype=torch.bool)
        with as_on_cuda():
            encoded = traced.contextualise(latents, padding_mask)
        encoded.output.sum().backward()

    with mode:
        return count_traffic(step)


class _Census(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.num_bytes = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        is_kernel = func.namespace == "aten" and not func.is_view
        if is_kernel and func not in NO_KERNEL:
            read = args[1:] if func in OVERWRITES else args
            tensors = tree_leaves((read, kwargs, out))
            self.kernels += 1
            self.num_bytes += sum(map(_num_bytes, tensors))
        return out


def _num_bytes(x: Any) -> int:
    if not isinstance(x, Tensor):
        return 0
    # Along an expanded dimension the same bytes are read again, from cache.
    sizes = zip(x.shape, x.stride(), strict=True)
    return x.element_size() * prod(n for n, step in sizes if step or not n)


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Let a forward pass on the CPU take the steps of one on a GPU in bf16.

    CUDA's autocast computes and returns layer norms in float32, the CPU's
    does not; and dropout is one kernel there, three here. Attention with
    dropout stays different: here it makes the (T, T) weights, there it does
    not; count it without.
    """
    with torch.autocast("cpu", torch.bfloat16), _CudaFunctions():
        yield


class _CudaFunctions(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.layer_norm:
            args = (args[0].float(), *args[1:])
        if func is F.dropout and kwargs["training"]:
            return torch.native_dropout(args[0], kwargs["p"], True)[0]
        return func(*args, **kwargs)
