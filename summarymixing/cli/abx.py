"""ABX errors of an encoder, by layer: how well features tell phones apart.

summarymixing abx results/base/encoder dev-clean.item LibriSpeech/dev-clean
summarymixing abx log_mel dev-clean.item LibriSpeech/dev-clean --out=abx.json

Nothing is trained: the numbers need an item file, which says where each phone
is, and the recordings. An error of 50 % is a blind guess. ITEMS has the format
of ZeroSpeech and Libri-Light (`dev-clean.item`); AUDIO is a folder that holds
the recordings at any depth, or a manifest of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from summarymixing.errors import UserError
from summarymixing.options import argument, option

if TYPE_CHECKING:
    from summarymixing.evaluation.items import CodeScores, ItemSet
    from summarymixing.lobes.encoders import FrozenEncoder


@dataclass(frozen=True)
class Options:
    """The options of `summarymixing abx`."""

    encoder: str = argument(
        "OUTPUT_FOLDER/encoder of a run, a folder or name for HuggingFace, or "
        "log_mel",
        metavar="ENCODER",
    )
    items: Path = argument("item file", metavar="ITEMS")
    audio: Path = argument(
        "folder or manifest of the recordings", metavar="AUDIO"
    )
    layers: str = option(
        "all", "hidden states to compare: all; or some, as in 6,12, from 0"
    )
    random: bool = option(False, "draw the weights of the encoder anew")
    seed: int = option(0, "of what is drawn")
    pooled: bool = option(
        False, "compare the mean frame of items, without time warping"
    )
    max_size_group: int = option(
        10,
        "items of one phone, context and speaker that are drawn of more; 0 "
        "takes all",
    )
    max_x_across: int = option(
        5, "other speakers that are drawn for each A; 0 takes all"
    )
    codes: bool = option(
        False, "also compare the codes of the quantiser with the phones"
    )
    device: str | None = option(
        None, "cpu, cuda or cuda:INDEX (default: a GPU where there is one)"
    )
    precision: str = option(
        "fp32", "of the encoder", choices=("fp32", "bf16", "fp16")
    )
    memory: str = option(
        "4GB", "for hidden states that wait, as in 500MB or 2GB"
    )
    out: Path | None = option(None, "write the numbers", metavar="FILE.json")


def run(options: Options) -> int:
    """Score the encoder, print a table; returns the exit status."""
    from summarymixing.cli.values import (
        choose_device,
        read_layers,
        read_memory,
    )
    from summarymixing.evaluation.abx import (
        as_json,
        as_table,
        describe_codes,
        evaluate,
    )
    from summarymixing.evaluation.items import AbxSettings, ItemSet
    from summarymixing.files import write_json
    from summarymixing.lobes.encoders import digest, load_frozen_encoder

    memory = read_memory(options.memory)
    device = choose_device(options.device, options.precision)
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
    layers = read_layers(options.layers, encoder.inner.num_layers)
    if layers is None:
        raise UserError("--layers=mean has no ABX error; give all or numbers")
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
        encoder, items, layers, settings, device=device, memory=memory
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
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, {**about, **as_json(errors, codes)})
    return 0


def _score_codes(
    options: Options, encoder: FrozenEncoder, items: ItemSet, device: Any
) -> CodeScores | None:
    from summarymixing.evaluation.items import score_codes
    from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
    from summarymixing.pretrained import load_quantiser

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
