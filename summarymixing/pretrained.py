"""An encoder on disk: weights in safetensors and a config that explains them.

The folder holds `encoder.safetensors`, `encoder.json` (architecture and facts
about the training) and a `README.md` that shows the same to people. Where a
pre-training run wrote it, `quantiser.safetensors` has the codebook: it makes
codes of the encoder's latents. Loading executes nothing from the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from summarymixing.errors import UserError
from summarymixing.files import open_atomically, sha256_of, write_json
from summarymixing.hub import download, is_hub_name
from summarymixing.model_card import HERE, model_card
from summarymixing.nnet.mixer import MixerFactory, mixer_from_description
from summarymixing.nnet.quantiser import GumbelQuantiser

Encoder = TypeVar("Encoder", bound=nn.Module)

FORMAT = "summarymixing.wav2vec2_encoder"
FORMAT_VERSION = 2  # 1: the Conformer's weights were named `encoder.*`
CARD_NAME = "README.md"
CONFIG_NAME = "encoder.json"
WEIGHTS_NAME = "encoder.safetensors"
FILES = [CARD_NAME, CONFIG_NAME, WEIGHTS_NAME]
QUANTISER_NAME = "quantiser.safetensors"


def save_encoder(
    encoder: nn.Module,
    folder: str | Path,
    trained_on: dict[str, Any] | None = None,
    quantiser: GumbelQuantiser | None = None,
) -> Path:
    """Write an encoder into a folder, and return the folder.

    Each file appears only when it is complete.

    Arguments
    ---------
    encoder : Wav2Vec2Encoder
        The encoder to write.
    folder : str or Path
        The folder, which is created if it does not exist.
    trained_on : dict, optional
        Facts about the training that can be written as JSON: updates, hours,
        losses, `licence` of the weights. The model card shows them.
    quantiser : GumbelQuantiser, optional
        What made the targets of its training.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "architecture": encoder.config,
        "sample_rate_hz": encoder.sample_rate_hz,
        "frames_per_second": encoder.frames_per_second,
        "trained_on": trained_on or {},
    }
    save_weights(encoder, folder / WEIGHTS_NAME)
    if quantiser is not None:
        save_weights(quantiser, folder / QUANTISER_NAME)
    write_json(folder / CONFIG_NAME, config)
    with open_atomically(folder / CARD_NAME) as file:
        file.write(model_card(config))
    return folder


def save_weights(module: nn.Module, path: Path) -> None:
    """Write the weights of a module in safetensors, whole or not at all."""
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in module.state_dict().items()
    }
    # Not `save_file`: only the owner may read its files, and when it is
    # killed, it leaves half of one.
    with open_atomically(path, binary=True) as file:
        file.write(save(weights))


def load_encoder(
    build: Callable[..., Encoder],
    source: str | Path,
    *,
    mixer: MixerFactory | None = None,
    revision: str | None = None,
    digest: str | None = None,
    cache_dir: str | Path | None = None,
) -> Encoder:
    """Load an encoder on the CPU, in train mode, for `from_pretrained`.

    Arguments
    ---------
    build : callable
        The class of the encoder, called with its architecture.
    source, mixer, revision, digest, cache_dir
        As in `Wav2Vec2Encoder.from_pretrained`, with the same errors.
    """
    folder = Path(source)
    if not folder.exists() and is_hub_name(str(source)):
        folder = download(
            str(source), FILES, revision=revision, cache_dir=cache_dir
        )
    elif revision is not None:
        raise UserError(
            f"{source} is a folder, and revision={revision!r} is for names on "
            "the hub; leave it out, and give `digest` to pin a folder"
        )
    config = read_config(folder)
    if digest is not None and digest_of_folder(folder) != digest.lower():
        raise UserError(
            f"{source} is not the encoder that was asked for: its digest is "
            f"{digest_of_folder(folder)}, not {digest}. Fetch the version that "
            "was meant, or give the other digest if this one is"
        )
    architecture = config["architecture"]
    try:
        factory = mixer_from_description(architecture["mixer"], mixer)
        encoder = build(**{**architecture, "mixer": factory})
    except UserError as error:
        raise UserError(f"{folder / CONFIG_NAME}: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{folder / CONFIG_NAME} describes an encoder that this version "
            f"cannot build ({error}). Export it again from its checkpoint, or "
            f"install the version that wrote it."
        ) from error
    weights = _load_weights(folder / WEIGHTS_NAME)
    rename_old_weights(encoder, weights)
    _compare(folder, encoder, weights)
    encoder.load_state_dict(weights)
    return encoder


def load_quantiser(folder: str | Path) -> GumbelQuantiser | None:
    """Load the quantiser beside an encoder, on the CPU, in eval mode.

    Arguments
    ---------
    folder : str or Path
        The folder of the encoder.

    Returns
    -------
    GumbelQuantiser or None
        None where there is none, as version 0.1.0 exported. UserError where
        the file is damaged.
    """
    path = Path(folder) / QUANTISER_NAME
    if not path.is_file():
        return None
    weights = _load_weights(path)
    try:
        # The shapes say all that the constructor asks for.
        num_groups, num_codes, _ = weights["codebook"].shape
        quantiser = GumbelQuantiser(
            weights["to_logits.weight"].shape[1],
            num_groups,
            num_codes,
            len(weights["project.weight"]),
        )
        quantiser.load_state_dict(weights)
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} holds no quantiser of this version ({error}). Export it "
            "again from its run, or remove the file"
        ) from error
    return quantiser.eval()


def _load_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read ({error}). The copy is not complete: "
            f"copy the folder again, or export it again from its run."
        ) from error


def digest_of_folder(folder: Path) -> str:
    """Return the SHA-256 of what makes an encoder: its config and weights.

    `cat encoder.json encoder.safetensors | sha256sum` prints it, too.
    """
    try:
        return sha256_of(folder / CONFIG_NAME, folder / WEIGHTS_NAME)
    except OSError as error:
        raise UserError(f"{folder} is not complete ({error})") from error


def read_card(folder: Path, name: str) -> str:
    """Return the model card of a folder for its place, USER/NAME, on a hub."""
    path = folder / CARD_NAME
    if path.is_file():
        return path.read_text(encoding="utf-8").replace(HERE, name)
    return model_card(read_config(folder)).replace(HERE, name)


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check `encoder.json` of a folder (UserError if unusable)."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        nested = folder / "encoder"
        hint = "Point --encoder to the folder `encoder` of a pre-training run."
        if (nested / CONFIG_NAME).is_file():
            hint = f"Did you mean {nested}?"
        raise UserError(f"{folder} holds no encoder ({CONFIG_NAME}). {hint}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}). Copy the folder again, or "
            f"export the encoder again from its run."
        ) from error
    config = config if isinstance(config, dict) else {}
    version = config.get("version")
    if config.get("format") != FORMAT or not (
        isinstance(config.get("architecture"), dict)
        and isinstance(version, int)
    ):
        raise UserError(
            f"{path} does not describe an encoder of this project (format: "
            f"{config.get('format')!r}, expected {FORMAT!r})."
        )
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path} was written by a newer version (format version "
            f"{version}, known: {FORMAT_VERSION}). Upgrade with: "
            f"pip install --upgrade summarymixing"
        )
    return config


def _compare(
    folder: Path, encoder: nn.Module, weights: dict[str, Tensor]
) -> None:
    """Name every difference between what is described and what is stored."""
    wanted = {k: tuple(v.shape) for k, v in encoder.state_dict().items()}
    stored = {k: tuple(v.shape) for k, v in weights.items()}
    different = [
        f"{name}: described {wanted.get(name)}, stored {stored.get(name)}"
        for name in sorted(wanted.keys() | stored.keys())
        if wanted.get(name) != stored.get(name)
    ]
    if different:
        shown = "; ".join(different[:5])
        more = f"; and {len(different) - 5} more" if len(different) > 5 else ""
        raise UserError(
            f"{folder} holds the weights of another architecture than its "
            f"{CONFIG_NAME} describes: {shown}{more}. Were the files of two "
            f"encoders mixed? Copy the whole folder again."
        )


def rename_old_weights(
    _encoder: nn.Module, weights: dict[str, Tensor], prefix: str = "", *_: Any
) -> None:
    """Rename, in place, weights of version 0.1.0 as they are named now.

    It is a hook of `load_state_dict`; `prefix` is the encoder's place in a
    module around it.
    """
    old = f"{prefix}encoder."
    for name in [name for name in weights if name.startswith(old)]:
        new = f"{prefix}conformer.{name.removeprefix(old)}"
        if new not in weights:  # with both, the old one is one too many
            weights[new] = weights.pop(name)
