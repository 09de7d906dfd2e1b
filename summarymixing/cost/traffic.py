"""Kernels started and bytes moved by a step, counted and not timed.

Every operator reads its inputs and writes its outputs once, as an eager step
on a GPU does; views move nothing. What a kernel reads twice, and copies inside
an operator, are not seen, so the bytes are a lower limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from summarymixing.cost.memory import fake_training, kept_for_backward
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

    It may run on fake tensors (`memory.fake_training`), at any size.

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
        Layer drop counts as none, memory budgets as 1.
    utterances, frames : int
        B and T of the batch.
    """
    with fake_training():
        twin = encoder.untrained_twin(layer_drop=0.0).train()
        channels = encoder.config["front_end_channels"]
        latents = torch.zeros(utterances, frames, channels, requires_grad=True)
        padding_mask = torch.zeros(utterances, frames, dtype=torch.bool)

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                encoded = twin.contextualise(latents, padding_mask)
            encoded.output.sum().backward()

        return count_traffic(step)


def kept_per_frame(encoder: Wav2Vec2Encoder, frames: int) -> float:
    """Return the bytes that a layer keeps for the backward pass per frame.

    Of a GPU in bf16, without what does not grow with the batch, for utterances
    of so many frames.
    """
    with fake_training():
        layer = encoder.untrained_twin().conformer.layers[0].train()

        def kept(utterances: int) -> int:
            x = torch.zeros(
                utterances, frames, encoder.d_model, requires_grad=True
            )
            padding_mask = torch.zeros(utterances, frames, dtype=torch.bool)

            def forward() -> Tensor:
                with torch.autocast("cpu", torch.bfloat16):
                    return layer(x, padding_mask)

            return kept_for_backward(forward)

        return (kept(3) - kept(2)) / frames


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
