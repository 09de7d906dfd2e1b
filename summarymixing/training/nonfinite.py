"""Where NaN or infinity arose in an update that was left out.

Looked for after the fact: the batches of an update are a function of its
number, so they are made once more, and the model runs over them with hooks.
Nothing is kept or copied for that while updates are finite.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from summarymixing.lobes.pretraining import (
    PretrainingOutput,
    Wav2Vec2Pretraining,
)
from summarymixing.training.pretraining_data import PretrainingBatch


class Origin(NamedTuple):
    """Where the first value that is not finite arose."""

    place: str
    ids: list[str]  # of the utterances concerned


def find_origin(
    model: Wav2Vec2Pretraining,
    batch: PretrainingBatch,
    ids: Sequence[str],
    forward: Callable[[], PretrainingOutput],
) -> Origin | None:
    """Compute a micro-batch once more and look at every module.

    Without a collective, in training mode, without compiled code, and
    without a trace in weights, gradients and the state of random numbers.

    Arguments
    ---------
    model : Wav2Vec2Pretraining
        The model, without DDP.
    batch : PretrainingBatch
        The micro-batch, on the model's device.
    ids : sequence of str
        Of the utterances, in the order of the batch.
    forward : callable
        Computes the losses of the batch, seeded as the first time.

    Returns
    -------
    Origin or None
        None where all is finite this time.
    """
    weights = [n for n, p in model.named_parameters() if _is_bad(p)]
    if weights:
        more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
        return Origin(f"the weights {weights[0]}{more}", list(ids))
    name = partial(_name_utterances, batch=batch, ids=ids)
    if _is_bad(batch.wavs):
        return Origin("the audio", name(batch.wavs))
    with _alone(model):
        with torch.no_grad(), _watching(model) as found:
            loss = forward().loss
        if found:
            place, value = found[0]
            return Origin(place, name(value))
        if _is_bad(loss):
            return Origin("the losses", list(ids))
        gradient = _first_bad_gradient(model, forward)
    if gradient is None:
        return None
    place = "the backward pass, first in the gradient of"
    return Origin(f"{place} {gradient}", list(ids))


@contextlib.contextmanager
def _alone(model: Wav2Vec2Pretraining) -> Iterator[None]:
    """Let the model run as in training, without other processes."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    modes = [norm.training for norm in norms]
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.compiler.set_stance("force_eager"),
    ):
        broke_off, model.exchange = model.broke_off, False
        for norm in norms:
            norm.eval()  # its statistics are those of all processes
        try:
            yield
        finally:
            model.exchange, model.broke_off = True, broke_off
            for norm, mode in zip(norms, modes, strict=True):
                norm.train(mode)


@contextlib.contextmanager
def _watching(model: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """Note the place and the value where something is not finite first."""
    found: list[tuple[str, Tensor]] = []

    def look(place: str, values: Any) -> None:
        bad = [x for x in tree_leaves(values) if _is_bad(x)]
        if bad and not found:
            found.append((place, bad[0]))

    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.callback(
                module.register_forward_pre_hook(
                    lambda _, args, name=name: look(
                        f"the input of {name}", args
                    )
                ).remove
            )
            hooks.callback(
                module.register_forward_hook(
                    lambda _module, _args, out, name=name: look(name, out)
                ).remove
            )
        yield found


def _first_bad_gradient(
    model: nn.Module, forward: Callable[[], PretrainingOutput]
) -> str | None:
    """Return the weight whose gradient is the first that is not finite."""
    bad: list[str] = []

    def look(gradient: Tensor, name: str) -> None:
        if _is_bad(gradient):
            bad.append(name)

    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with contextlib.ExitStack() as hooks:
        for name, weight in weights.items():
            hook = weight.register_hook(partial(look, name=name))
            hooks.callback(hook.remove)
        # Unlike `backward`, it leaves .grad, and DDP, alone.
        torch.autograd.grad(
            forward().loss, list(weights.values()), allow_unused=True
        )
    return bad[0] if bad else None


def _is_bad(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and not bool(value.isfinite().all())
    )


def _name_utterances(
    value: Tensor, *, batch: PretrainingBatch, ids: Sequence[str]
) -> list[str]:
    """Return the utterances whose part of a value is not finite.

    All of them where it cannot be told, since the value has neither a row for
    each utterance nor one for each masked frame.
    """
    rows = torch.arange(len(ids))
    masked = batch.masked
    if value.dim() and len(value) == len(masked.frames):
        rows = masked.frames.cpu() // masked.span_mask.shape[1]
    elif not value.dim() or len(value) != len(ids):
        return list(ids)
    is_bad = ~value.detach().isfinite().flatten(1).all(dim=1).cpu()
    return [ids[row] for row in rows[is_bad].unique().tolist()]
