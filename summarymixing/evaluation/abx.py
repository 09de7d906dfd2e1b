"""ABX errors of an encoder, by layer, and how they are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from summarymixing.errors import UserError
from summarymixing.evaluation.items import (
    BYTES_PER_VALUE,
    AbxSettings,
    CodeScores,
    ItemSet,
    score_layers,
)
from summarymixing.lobes.encoders import (
    FrozenEncoder,
)
from summarymixing.nnet.abx import AbxErrors

DECIMALS = 2


def evaluate(
    encoder: FrozenEncoder,
    items: ItemSet,
    layers: Sequence[int] | None = None,
    settings: AbxSettings | None = None,
    *,
    device: torch.device | str = "cpu",
    memory: float = 4e9,
) -> dict[int, AbxErrors]:
    """Return the ABX errors of the hidden states of an encoder.

    Arguments
    ---------
    encoder : FrozenEncoder
        On the device.
    items : ItemSet
        What is compared.
    layers : sequence of int, optional
        0 is the input of the first layer; by default all.
    settings : AbxSettings, optional
        How; by default as ZeroSpeech does.
    device : torch.device or str
        Where to compute.
    memory : float
        Bytes for hidden states that wait: where those of all layers need
        more, the audio is encoded more than once.
    """
    inner = encoder.inner
    chosen = list(range(inner.num_layers + 1)) if layers is None else layers
    if wrong := [n for n in chosen if not 0 <= n <= inner.num_layers]:
        raise UserError(
            f"--layers: there is no layer {wrong[0]}; this encoder has 0 (the "
            f"input of the first layer) to {inner.num_layers}"
        )
    of_layer = items.num_frames() * inner.d_model * BYTES_PER_VALUE
    errors = score_layers(
        encoder,
        items,
        chosen,
        settings,
        device=device,
        compare_on=device,
        layers_at_a_time=max(1, int(memory / of_layer)),
        show_progress=True,
    )
    return dict(errors)


def best_layer(errors: Mapping[int, AbxErrors], kind: str) -> int | None:
    """Return the layer with the lowest error, "within" or "across"."""
    found = {n: getattr(error, kind) for n, error in errors.items()}
    found = {n: error for n, error in found.items() if not math.isnan(error)}
    return min(found, key=found.__getitem__) if found else None


def as_table(errors: Mapping[int, AbxErrors]) -> str:
    """Return a line for each layer, in percent; * marks the best."""
    best = [best_layer(errors, kind) for kind in AbxErrors._fields]
    lines = ["layer  within %  across %"]
    for layer, error in errors.items():
        cells = [
            f"{_percent(value):>8}{'*' if layer == of_kind else ' '}"
            for value, of_kind in zip(error, best, strict=True)
        ]
        lines.append(f"{layer:>5} {' '.join(cells)}".rstrip())
    return "\n".join(lines)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.{DECIMALS}f}"


def describe_codes(scores: CodeScores) -> str:
    """Return a line for the codes of each group, and for all together."""
    rows = [("all groups", scores.codes)]
    rows += [(f"group {n}", s) for n, s in enumerate(scores.groups, start=1)]
    lines = ["codes       used  phone purity %  cluster purity %  PNMI %"]
    for name, score in rows:
        lines.append(
            f"{name:<10}{score.clusters:>6}{_percent(score.phone_purity):>16}"
            f"{_percent(score.cluster_purity):>18}{_percent(score.pnmi):>8}"
        )
    return "\n".join(lines)


def as_json(
    errors: Mapping[int, AbxErrors], codes: CodeScores | None
) -> dict[str, Any]:
    """Return the scores in percent; null where there is nothing to compare."""

    def rounded(share: float) -> float | None:
        return None if math.isnan(share) else round(100 * share, 6)

    layers = [
        {"layer": n, **{k: rounded(v) for k, v in error._asdict().items()}}
        for n, error in errors.items()
    ]
    if codes is None:
        return {"layers": layers}
    shares = ("phone_purity", "cluster_purity", "pnmi")
    named = {"all": codes.codes}
    named |= {f"group_{n}": s for n, s in enumerate(codes.groups, start=1)}
    return {
        "layers": layers,
        "codes": {
            name: {
                "used": score.clusters,
                **{share: rounded(getattr(score, share)) for share in shares},
            }
            for name, score in named.items()
        },
    }
