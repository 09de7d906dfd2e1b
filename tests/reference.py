"""Slow, obvious references, written from the formulas: loops, concatenation.

They read the parameters of the module under test and share no other code
with it. Use float64, in which rounding cannot hide a mistake.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def masked_mean(x: Tensor, padding_mask: Tensor) -> Tensor:
    """Average of the valid frames, frame by frame: (B, T, D) -> (B, D)."""
    means = []
    for frames, mask in zip(x, padding_mask, strict=True):
        total, count = torch.zeros_like(frames[0]), 0
        for frame, is_padding in zip(frames, mask, strict=True):
            if not is_padding:
                total, count = total + frame, count + 1
        means.append(total / max(count, 1))
    return torch.stack(means)


def summary_mixing(
    mixer: nn.Module, x: Tensor, padding_mask: Tensor | None = None
) -> Tensor:
    """Equation 1 with its concatenation; one head and one frame at a time."""
    outputs = []
    for b, frames in enumerate(x):
        valid = [
            t
            for t in range(len(frames))
            if padding_mask is None or not padding_mask[b, t]
        ]
        summary = torch.zeros_like(frames[0])
        for t in valid:
            summary = summary + _branch(mixer, frames[t], "summary") / len(
                valid
            )
        for t, frame in enumerate(frames):
            if t not in valid:
                outputs.append(torch.zeros_like(frame))
            elif mixer.mode == "lite":
                outputs.append(summary)
            else:
                outputs.append(_combine(mixer, frame, summary))
    return torch.stack(outputs).view_as(x)


def _branch(mixer: nn.Module, frame: Tensor, branch: str) -> Tensor:
    """s(x_t) or f(x_t): two layers with GELU, head by head."""
    width = mixer.width
    first = 0 if branch == "summary" else width
    out = mixer.summary_out if branch == "summary" else mixer.local_out
    heads = []
    for h in range(mixer.num_heads):
        columns = slice(first, first + width)
        hidden = F.gelu(
            frame[h * width : (h + 1) * width]
            @ mixer.hidden.weight[h, :, columns]
            + mixer.hidden.bias[h, 0, columns]
        )
        heads.append(F.gelu(hidden @ out.weight[h] + out.bias[h, 0]))
    return torch.cat(heads)


def _combine(mixer: nn.Module, frame: Tensor, summary: Tensor) -> Tensor:
    """c([f(x_t), summary]): one linear layer over 2 D inputs, GELU."""
    joined = torch.cat([_branch(mixer, frame, "local"), summary])
    weight = torch.cat(
        [mixer.combine_local.weight, mixer.combine_summary.weight], dim=1
    )
    return F.gelu(weight @ joined + mixer.combine_local.bias)


def attention(
    mixer: nn.Module, x: Tensor, padding_mask: Tensor | None = None
) -> Tensor:
    """Multi-head attention with its softmax written out."""
    outputs = []
    for b, frames in enumerate(x):
        valid = torch.ones(len(frames), dtype=torch.bool, device=x.device)
        if padding_mask is not None:
            valid = ~padding_mask[b]
        query, key, value = mixer.project_in(frames[valid]).chunk(3, dim=-1)
        heads = []
        for h in range(mixer.num_heads):
            own = slice(h * mixer.width, (h + 1) * mixer.width)
            scores = query[:, own] @ key[:, own].T / math.sqrt(mixer.width)
            weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
            heads.append(weights @ value[:, own])
        output = torch.zeros_like(frames)
        output[valid] = mixer.project_out(torch.cat(heads, dim=1))
        outputs.append(output)
    return torch.stack(outputs)


def quantise(
    quantiser: nn.Module, x: Tensor, gumbel: Tensor, temperature: float
) -> Tensor:
    """Gumbel-softmax quantisation of x (N, D_in), code by code.

    Forward: the code with the highest noisy logit. Backward: as if it were
    the average of all codes, weighted by the softmax at the temperature.
    """
    targets = []
    for n, frame in enumerate(x):
        logits = quantiser.to_logits.weight @ frame + quantiser.to_logits.bias
        chosen = []
        for g in range(quantiser.num_groups):
            codes = quantiser.num_codes
            noisy = logits[g * codes : (g + 1) * codes] + gumbel[n, g]
            soft = (noisy / temperature).exp()
            soft = soft / soft.sum()
            best = int(noisy.argmax())
            total = torch.zeros_like(quantiser.codebook[g, 0])
            for v in range(codes):
                hard = float(v == best)
                weight = hard + soft[v] - soft[v].detach()
                total = total + weight * quantiser.codebook[g, v]
            chosen.append(total)
        targets.append(quantiser.project(torch.cat(chosen)))
    return torch.stack(targets)


def contrastive_loss(
    context: Tensor,
    targets: Tensor,
    target_ids: Tensor,
    negatives: Tensor,
    counts: Sequence[int],
    temperature: float,
) -> tuple[Tensor, int]:
    """Equation 3 summed over frames, and the frames that are told apart."""
    loss, correct = context.new_zeros(()), 0
    for b, count in enumerate(counts):
        for m in range(count):
            positive = _cosine(context[b, m], targets[b, m]) / temperature
            others = [
                _cosine(context[b, m], targets[b, k]) / temperature
                for k in negatives[b, m].tolist()
                if target_ids[b, k] != target_ids[b, m]
            ]
            partition = positive.exp() + sum(other.exp() for other in others)
            loss = loss - (positive.exp() / partition).log()
            correct += all(bool(positive > other) for other in others)
    return loss, correct


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def values_and_gradients(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    parameters: Iterable[Tensor] = (),
) -> tuple[Tensor, ...]:
    """function(x) and the gradients of a fixed projection of it.

    Returns the value, the gradient of x, the gradient of every parameter.
    """
    x = x.detach().requires_grad_()
    value = function(x)
    slope = torch.linspace(
        -1, 2, value.numel(), dtype=value.dtype, device=value.device
    )
    wanted = [x, *parameters]
    gradients = torch.autograd.grad(
        (value * slope.view_as(value)).sum(), wanted, materialize_grads=True
    )
    return value.detach(), *gradients


class _Saved:
    """Holds a tensor as long as the graph needs it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_for_backward(function: Callable[[], object]) -> list[Tensor]:
    """Tensors that a forward pass keeps for backward, one for each storage."""
    alive: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        # Detached: an output that a node saves would keep its node alive.
        saved = _Saved(tensor.detach())
        alive.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda s: s.tensor):
        output = function()
    storages = {
        saved.tensor.untyped_storage().data_ptr(): saved.tensor
        for saved in alive
    }
    del output  # the graph, and with it what was saved, lived until here
    return list(storages.values())


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Memory behind tensors of different storages."""
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
