"""ABX errors of the encoder at each validation of pre-training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.logger import get_logger

from summarymixing.errors import UserError
from summarymixing.evaluation.items import ItemSet, score_layers
from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
from summarymixing.run.processes import on_main_process

logger = get_logger(__name__)


class ValidItems:
    """Items of a run, which its validations compare.

    Arguments
    ---------
    hparams : mapping
        The keys `valid_items`, `valid_items_audio`, `valid_items_layer` and
        `manifests` of hparams/shared/pretraining.yaml. UserError where items
        or recordings are not there; without items nothing is done.
    """

    def __init__(self, hparams: Mapping[str, Any]) -> None:
        self.items: ItemSet | None = None
        self.layer = hparams["valid_items_layer"]
        if hparams["valid_items"] is not None:
            manifest = Path(hparams["manifests"]) / "valid.csv"
            audio = Path(hparams["valid_items_audio"] or manifest)
            self.items = ItemSet.read(Path(hparams["valid_items"]), audio)

    def score(
        self,
        encoder: Wav2Vec2Encoder,
        device: torch.device | str,
        precision: AbstractContextManager[Any],
    ) -> dict[str, float]:
        """Return what a validation logs; every process calls it.

        The main process computes, the others wait. What cannot be computed is
        left out: it must not end a run.

        Arguments
        ---------
        encoder : Wav2Vec2Encoder
            In eval mode, on the device.
        device : torch.device or str
            Where to encode; the items are compared on the CPU, since the
            memory of a GPU is that of the training.
        precision : context manager
            Precision of the encoder.
        """
        if self.items is None:
            return {}
        layer = self.layer
        if layer is None:  # where encoders like this know most about phones
            layer = round(2 / 3 * encoder.num_layers)

        def score(items: ItemSet = self.items) -> dict[str, float]:
            with torch.no_grad(), precision:
                scores = score_layers(encoder, items, [layer], device=device)
                ((_, errors),) = scores
            return {f"abx_{k}": v for k, v in errors._asdict().items()}

        try:
            metrics = on_main_process(score)
        except UserError as error:
            logger.warning("ABX is left out: %s", error)
            return {}
        return {k: v for k, v in metrics.items() if not math.isnan(v)}
