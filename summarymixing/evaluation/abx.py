"""ABX errors of an encoder, by layer: how well features tell phones apart.

Nothing is trained: the numbers need an item file, which says where each phone
is, and the recordings. An error of 50 % is a blind guess. ITEMS has the format
of ZeroSpeech and Libri-Light (`dev-clean.item`); AUDIO is a folder that holds
the recordings at any depth, or a manifest of them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from summarymixing.errors import UserError, exit_on_user_error
from summarymixing.evaluation.items import (
    BYTES_PER_VALUE,
    AbxSettings,
    CodeScores,
    ItemSet,
    score_codes,
    score_layers,
)
from summarymixing.files import describe_os_error, write_json
from summarymixing.lobes.encoders import (
    PRECISIONS,
    FrozenEncoder,
    digest,
    load_frozen_encoder,
)
from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
from summarymixing.nnet.abx import AbxErrors
from summarymixing.pretrained import load_quantiser

ALL = "all"
DECIMALS = 2


def evaluate(
    encoder: FrozenEncoder,
    items: ItemSet,
    layers: Sequence[int] | None = None,
    settings: AbxSettings | None = None,
    *,
    device: torch.device | str = "cpu",
    memory_gb: float = 4.0,
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
    memory_gb : float
        For hidden states that wait: where those of all layers need more, the
        audio is encoded more than once.
    """
    inner = encoder.inner
    chosen = list(range(inner.num_layers + 1)) if layers is None else layers
    if wrong := [n for n in chosen if not 0 <= n <= inner.num_layers]:
        raise UserError(
            f"--layers: there is no layer {wrong[0]}; this encoder has 0 (the "
            f"input of the first layer) to {inner.num_layers}"
        )
    layer_gb = items.num_frames() * inner.d_model * BYTES_PER_VALUE / 1e9
    errors = score_layers(
        encoder,
        items,
        chosen,
        settings,
        device=device,
        compare_on=device,
        layers_at_a_time=max(1, int(memory_gb / layer_gb)),
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


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="summarymixing abx",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "encoder",
        help="OUTPUT_FOLDER/encoder of a run, a name on the Hugging Face hub, "
        "or log_mel",
    )
    add("items", type=Path, help="item file")
    add("audio", type=Path, help="folder or manifest of the recordings")
    add("--layers", default=ALL, metavar="N,N", help="default: all, from 0")
    add("--random", action="store_true", help="draw its weights anew")
    add("--seed", type=int, default=0, help="of what is drawn")
    pooled = "compare the mean frame of items, without time warping"
    add("--pooled", action="store_true", help=pooled)
    add(
        "--max_size_group",
        type=int,
        default=AbxSettings.max_size_group,
        metavar="N",
        help="items of one phone, context and speaker that are drawn of more; "
        "0 takes all (default: %(default)s, as ZeroSpeech)",
    )
    add(
        "--max_x_across",
        type=int,
        default=AbxSettings.max_x_across,
        metavar="N",
        help="other speakers that are drawn for each A; 0 takes all "
        "(default: %(default)s, as ZeroSpeech)",
    )
    add(
        "--codes",
        action="store_true",
        help="also compare the codes of the quantiser with the phones",
    )
    add("--device", default=None, help="default: a GPU where there is one")
    add("--precision", choices=PRECISIONS, default="fp32")
    add(
        "--memory",
        type=float,
        default=4.0,
        metavar="GB",
        help="for hidden states that wait (default: %(default)s)",
    )
    add("--out", type=Path, metavar="FILE.json", help="write the numbers")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    run(make_parser().parse_args(argv))


def run(options: Any) -> int:
    """Score an encoder, print a table, and return the exit status.

    Arguments
    ---------
    options : object
        Has what `make_parser` declares as attributes.
    """
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    layers = _read_layers(options.layers)
    items = ItemSet.read(options.items, options.audio)
    encoder = load_frozen_encoder(
        {
            "encoder": options.encoder,
            "mixer": None,
            "random_encoder": options.random,
            "seed": options.seed,
            "precision": options.precision,
            "encoder_train_mode": False,
        }
    ).to(device)
    speakers = {item.speaker for item in items.items}
    print(
        f"{len(items.items):,} items of {len(speakers)} speakers in "
        f"{len(items.recordings):,} recordings"
    )
    if items.left_out:
        print(f"{items.left_out:,} shorter than a frame are left out")
    settings = AbxSettings(
        options.pooled,
        options.max_size_group or None,
        options.max_x_across or None,
        options.seed,
    )
    # Before what takes long: it may refuse the items.
    codes = _score_codes(options, encoder, items, device)
    errors = evaluate(
        encoder,
        items,
        layers,
        settings,
        device=device,
        memory_gb=options.memory,
    )
    print(as_table(errors))
    if codes is not None:
        print(describe_codes(codes))
    if options.out is not None:
        about = {
            "encoder": options.encoder,
            "random": options.random,
            "encoder_digest": digest(encoder),
            "items": str(options.items),
            "num_items": len(items.items),
            "left_out": items.left_out,
            **vars(settings),
        }
        try:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.out, {**about, **as_json(errors, codes)})
        except OSError as error:
            raise UserError(describe_os_error(error)) from error
    return 0


def _read_layers(text: str) -> list[int] | None:
    if text == ALL:
        return None
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(
            f"--layers={text}: give numbers, such as 6,12, or all"
        ) from None


def _score_codes(
    options: Any,
    encoder: FrozenEncoder,
    items: ItemSet,
    device: str,
) -> CodeScores | None:
    if not options.codes:
        return None
    # A folder of HuggingFace and a name have none.
    quantiser = load_quantiser(options.encoder)
    inner = encoder.inner
    if (
        quantiser is None
        or options.random
        or not isinstance(inner, Wav2Vec2Encoder)
    ):
        raise UserError(
            f"--codes: {options.encoder} has no codes; they are those of "
            "OUTPUT_FOLDER/encoder of a pre-training run, in "
            "quantiser.safetensors. Start the run again to have it written"
        )
    return score_codes(
        inner, quantiser.to(device), items, device=device, show_progress=True
    )


if __name__ == "__main__":
    exit_on_user_error(main)
