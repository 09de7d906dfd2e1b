"""The memory of a training step, exact and without a GPU.

Fake tensors have a shape and a type, but no values: a whole update of a large
model is followed in seconds. What an operator allocates for itself while it
runs, and what the allocator and the driver take, is not seen. Nor is what
`torch.compile` changes: compiled layers run as if they were not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from summarymixing.nnet import layers


class LiveMemory(TorchDispatchMode):
    """Follow the memory of all tensors that are made inside `with`.

    A storage counts once, however many tensors share it, from the operator
    that makes it until the last of them is gone.

    Attributes
    ----------
    live, peak : int
        Bytes in use now, and the most so far.

    Example
    -------
    >>> with LiveMemory() as memory:
    ...     x = torch.ones(2, 4)
    ...     y = (x + x).sum()
    >>> memory.live, memory.peak
    (36, 68)
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def add(self, *tensors: Tensor) -> None:
        """Count tensors, unless their storage is counted already."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._storages:
                forget = partial(self._forget, key, size)
                self._storages[key] = weakref.ref(storage, forget)
                self.live += size
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int, _: Any) -> None:
        del self._storages[key]
        self.live -= size

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and count what it returns."""
        result = operator(*args, **kwargs or {})
        # Views and what is changed in place are no new memory.
        if not any(new.alias_info for new in operator._schema.returns):
            leaves = tree_leaves(result)
            self.add(*(x for x in leaves if isinstance(x, Tensor)))
        return result


def kept_for_backward(function: Callable[[], Tensor]) -> int:
    """Return the bytes that live between a forward and a backward pass.

    Arguments
    ---------
    function : callable
        The forward pass. What it returns is not counted, nor are tensors that
        were there before. Copies of weights in the type of autocast are.

    Example
    -------
    >>> x = torch.ones(2, 4, requires_grad=True)
    >>> kept_for_backward(lambda: x.exp().sin())  # the input of sin
    32
    """
    with LiveMemory() as memory:
        output = function()
        return memory.live - output.untyped_storage().nbytes()


@contextmanager
def fake_tensors() -> Iterator[FakeTensorMode]:
    """Make tensors without values: shapes are computed, and nothing else.

    SpeechBrain keeps rotary positions for every model of the process. Those
    made inside have no values, and are forgotten at the end.
    """
    from speechbrain.nnet.attention import _get_precomputed_values

    with (
        mock.patch.dict(_get_precomputed_values.memo, clear=True),
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
    ):
        yield mode


@contextmanager
def fake_training(device_type: str = "cuda") -> Iterator[FakeTensorMode]:
    """Make tensors without values, with the types that a device would have.

    The backward pass of fake CUDA tensors needs a driver. So they are fake
    CPU tensors, and where CUDA has other rules, these are followed: under
    autocast layer norm returns float32, dropout keeps one byte a value, fused
    attention keeps no weights.

    Arguments
    ---------
    device_type : str
        "cuda", or "cpu" for the CPU's own rules.
    """
    with ExitStack() as rules:
        if device_type == "cuda":
            for name, function in CUDA_RULES.items():
                rules.enter_context(mock.patch.object(F, name, function))
            # Nor are there the kernels that only CPUs have.
            rules.enter_context(mock.patch.object(layers, "_HAS_ONEDNN", False))
        yield rules.enter_context(fake_tensors())


_layer_norm, _attend = F.layer_norm, F.scaled_dot_product_attention


def _layer_norm_in_float32(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    wide = torch.is_autocast_enabled("cpu")
    return _layer_norm(x.float() if wide else x, *args, **kwargs)


def _native_dropout(
    x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if training and p else x


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    **kwargs: Any,
) -> Tensor:
    return _attend(query, key, value, attn_mask, **kwargs)


CUDA_RULES = {
    "layer_norm": _layer_norm_in_float32,
    "dropout": _native_dropout,
    "scaled_dot_product_attention": _fused_attention,
}


class UpdateMemory(NamedTuple):
    """What an update needs, in bytes."""

    at_rest: int  # weights and states of the optimiser
    peak: int  # at rest included


def trace_update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    compute_loss: Callable[[], Tensor],
    *,
    accumulation: int = 2,
    autocast: torch.dtype | None = None,
) -> UpdateMemory:
    """Return what an update needs that is not the first of its run.

    Arguments
    ---------
    model, optimizer : Module, Optimizer
        On the CPU, or fake tensors made under `fake_training`.
    compute_loss : callable
        Forward pass of a micro-batch.
    accumulation : int
        Micro-batches of an update. In the second one there are gradients
        already; DistributedDataParallel keeps them from the first on, so say
        2 for it.
    autocast : dtype, optional
        Type of matrix products.
    """
    with LiveMemory() as memory:
        memory.add(*model.parameters(), *model.buffers())
        make_states(optimizer)
        memory.peak = at_rest = memory.live
        make_update(
            model,
            optimizer,
            compute_loss,
            accumulation=min(accumulation, 2),
            autocast=autocast,
        )
    return UpdateMemory(at_rest, memory.peak)


def make_states(optimizer: torch.optim.Optimizer) -> None:
    """Make the states that an optimiser makes in its first step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def make_update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    compute_loss: Callable[[], Tensor],
    *,
    accumulation: int = 1,
    autocast: torch.dtype | None = None,
    device_type: str = "cpu",
) -> None:
    """Make an update; the arguments are those of `trace_update`."""
    for _ in range(accumulation):
        wanted = autocast is not None
        with torch.autocast(device_type, autocast, enabled=wanted):
            loss = compute_loss()
        loss.backward()
        del loss
    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    optimizer.zero_grad()


def measure_peak(function: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that a call allocates, by torch's own records.

    Arguments
    ---------
    function : callable
        What is called.
    device : torch.device
        Where. On a GPU that is the allocator's peak, and what was there
        before the call is subtracted.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    # Imported here, for it is slow.
    from torch.autograd.profiler import profile

    with profile(profile_memory=True) as record:
        function()
    events = record.kineto_results.events()
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in events
        if event.name() == "[memory]"
    )
    return max(accumulate(nbytes for _, nbytes in changes), default=0)
