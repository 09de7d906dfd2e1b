"""Less memory for the backward pass: keep products, compute the rest again.

Most of what a layer keeps for its backward pass is cheap to compute again:
norms, activations, dropout, masks. What costs time are its matrix products. A
value of such a product is a sum of some length: over the frames of a kernel,
the width of a head, the width D of the layer, or that of a feed-forward
module. The shorter the sum, the fewer multiply-adds are spent for a byte that
is not kept, so the products with the shortest sums are given up first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
# Products, and which of their arguments has the summed dimension last.
SUMMED = {
    aten.mm.default: 0,
    aten.bmm.default: 0,
    aten.addmm.default: 1,
    aten.baddbmm.default: 1,
}


def shortest_sums(budget: float, num_layers: int, d_model: int) -> list[float]:
    """Choose what each layer keeps for the backward pass.

    Arguments
    ---------
    budget : float
        Share in [0, 1] of the activations that is kept, about. 1 keeps all;
        0.4 all products, nothing else; 0.3 the products that sum over D
        values or more; 0.1 those that sum over more; 0 the input of each
        layer. Between two of these the first layers keep less than the last.
    num_layers, d_model : int
        Number of layers, and width D.

    Returns
    -------
    list of float
        For each layer the `shortest_sum` of `recomputed`.

    Example
    -------
    >>> shortest_sums(0.7, num_layers=4, d_model=768)
    [1, 1, 0, 0]
    """
    if not 0 <= budget <= 1:
        raise ValueError(f"the budget ({budget}) must be a share from 0 to 1.")
    steps = [
        (1.0, 0),
        (0.4, 1),
        (0.3, d_model),
        (0.1, d_model + 1),
        (0.0, math.inf),
    ]
    step = next(i for i in range(4) if budget >= steps[i + 1][0])
    (high, more), (low, less) = steps[step : step + 2]
    with_less = round(num_layers * (high - budget) / (high - low))
    return [less] * with_less + [more] * (num_layers - with_less)


def recomputed(
    layer: Callable[..., Any], *inputs: Tensor | None, shortest_sum: float
) -> Any:
    """Call a layer; let the backward pass compute again what is not kept.

    Values, gradients and random numbers are those of `layer(*inputs)`.

    Arguments
    ---------
    layer : callable
        Any module, or part of one, without side effects. It may call this
        function for its own parts: then backward holds one part at a time.
    *inputs : Tensor or None
        Its inputs, which are kept.
    shortest_sum : float
        Products of at least this many summands are kept, too. 1 keeps all of
        them, infinity none; 0 keeps everything, as without this function.
    """
    if shortest_sum == 0 or not torch.is_grad_enabled():
        return layer(*inputs)
    if shortest_sum == math.inf:
        return checkpoint(layer, *inputs, use_reentrant=False)
    keep = partial(
        create_selective_checkpoint_contexts,
        partial(_keep_product, shortest_sum),
    )
    out = checkpoint(layer, *inputs, use_reentrant=False, context_fn=keep)
    # Until its end autocast keeps copies of weights that nothing else needs.
    torch.clear_autocast_cache()
    return out


def _keep_product(
    shortest_sum: float, _: Any, operator: OpOverload, *args: Any, **kwargs: Any
) -> CheckpointPolicy:
    if num_summands(operator, args, kwargs) >= shortest_sum:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def num_summands(
    operator: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> float:
    """Return how many products each value of an operator's output sums.

    0 for what is no product; infinity for fused attention, whose sums are as
    long as the utterance, and for products that have no rule here.

    Fused attention with dropout counts as none, so it is computed again: if
    its output were kept, its random numbers would not be drawn a second time,
    and all dropout behind it would get others than in the forward pass.
    """
    if operator in SUMMED:
        return int(args[SUMMED[operator]].shape[-1])
    if operator is aten.convolution.default:
        return math.prod(args[1].shape[1:])
    packet = getattr(operator, "_overloadpacket", None)
    if packet not in flop_registry or _drops(operator, args, kwargs):
        return 0
    return math.inf


def _drops(
    operator: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    names = [argument.name for argument in operator._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    return given.get("dropout_p", 0.0) > 0
