"""The encoder of a probe: loaded or drawn at random, and recognised again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from summarymixing.errors import UserError
from summarymixing.lobes.encoders import Encoder, FrozenEncoder, LogMelEncoder
from summarymixing.lobes.huggingface import HuggingFaceEncoder, is_huggingface
from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
from summarymixing.nnet.randomness import derive_seed

LOG_MEL = "log_mel"


def load_frozen_encoder(hparams: Mapping[str, Any]) -> FrozenEncoder:
    """Load the encoder of a probe, or draw one of the same architecture.

    Arguments
    ---------
    hparams : mapping
        `encoder`, `random_encoder`, `seed`, `precision` and
        `encoder_train_mode` of hparams/shared/probe.yaml. The encoder is a
        folder of this project, a folder or name for HuggingFace, or log_mel.

    Returns
    -------
    FrozenEncoder
        UserError for a folder that holds no encoder.
    """
    encoder = _load(str(hparams["encoder"]))
    if hparams["random_encoder"]:
        encoder = random_twin(encoder, hparams["seed"])
    return FrozenEncoder(
        encoder,
        precision=hparams["precision"],
        train_mode=hparams["encoder_train_mode"],
    )


def _load(source: str) -> Encoder:
    if source == LOG_MEL:
        return LogMelEncoder()
    if is_huggingface(source):
        return HuggingFaceEncoder(source)
    return Wav2Vec2Encoder.from_pretrained(source)


def random_twin(encoder: Encoder, seed: int) -> Encoder:
    """Return an encoder of the same architecture with random weights."""
    torch.manual_seed(derive_seed(seed, "encoder"))
    if isinstance(encoder, HuggingFaceEncoder):
        encoder.draw_weights()
        return encoder
    if isinstance(encoder, LogMelEncoder):
        raise UserError(
            f"{LOG_MEL} has no weights to draw; omit --random_encoder"
        )
    return encoder.untrained_twin()


def digest(module: nn.Module) -> str:
    """Return a fingerprint of the weights of a module."""
    summary = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(module.state_dict().items()):
        # As 0.1.0 named them, so that probes that it began can be resumed.
        name = name.replace("inner.", "encoder.", 1)
        name = name.replace("encoder.conformer.", "encoder.encoder.", 1)
        summary.update(name.encode())
        summary.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return summary.hexdigest()
