"""The update of a pre-training that takes the most memory, followed."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_map

from summarymixing.cost.memory import (
    UpdateMemory,
    fake_training,
    trace_update,
)
from summarymixing.data.audio import SAMPLE_RATE_HZ
from summarymixing.data.batching import Utterance
from summarymixing.data.manifest import Row
from summarymixing.nnet.span_mask import MASK_SCHEMES
from summarymixing.run.brain import make_optimizer
from summarymixing.run.hparams_file import HparamsFile
from summarymixing.training.pretraining import parameter_groups
from summarymixing.training.pretraining_data import MaskingCollate


class WorstUpdate:
    """The update of a pre-training that takes the most memory.

    Arguments
    ---------
    recipe : HparamsFile
        A file of hparams/pretraining/ with what the user changes.
    longest_seconds : float
        Duration of the longest utterance; the worst batch is full of them.
    gpus : int
        Number of processes.
    """

    def __init__(
        self, recipe: HparamsFile, longest_seconds: float, gpus: int
    ) -> None:
        self.recipe, self.gpus = recipe, gpus
        self.longest_seconds = longest_seconds

    def build(self, memory_budget: float) -> dict[str, Any]:
        """Build the recipe's objects, without layer drop: it may drop none."""
        self.recipe.override({"layer_drop": 0.0})
        hparams = self.recipe.build()
        conformer = hparams["model"].encoder.conformer
        conformer.recompute_share(1 - memory_budget)
        return hparams

    def worst_batch(self, utterances: int) -> Any:
        """Return the arguments of the model for a batch of the longest."""
        scheme = partial(
            MASK_SCHEMES[self.recipe.value("mask_scheme")],
            probability=self.recipe.value("mask_probability"),
            length=self.recipe.value("mask_length"),
        )
        wav = torch.zeros(round(self.longest_seconds * SAMPLE_RATE_HZ))
        collate = MaskingCollate(seed=1, scheme=scheme)
        rows = [
            Row(str(n), "", (), self.longest_seconds) for n in range(utterances)
        ]
        batch = collate([Utterance(row, wav, 0, "") for row in rows])
        return batch.wavs, batch.wav_lens, batch.masked

    def trace(
        self,
        memory_budget: float,
        utterances: int,
        accumulation: int = 2,
        device_type: str = "cuda",
    ) -> UpdateMemory:
        """Follow an update of the worst batches, with the types of a device."""
        batch = self.worst_batch(utterances)
        with fake_training(device_type) as fake:
            hparams = self.build(memory_budget)
            model = hparams["model"]
            optimizer = make_optimizer(
                hparams["optimizer"], parameter_groups(model)
            )
            batch = tree_map(
                lambda x: (
                    fake.from_tensor(x) if isinstance(x, torch.Tensor) else x
                ),
                batch,
            )
            return trace_update(
                model,
                optimizer,
                lambda: model(*batch, temperature=1.0).loss,
                # DistributedDataParallel keeps the gradients.
                accumulation=2 if self.gpus > 1 else accumulation,
                autocast=autocast_of(hparams),
            )


def autocast_of(hparams: dict[str, Any]) -> torch.dtype | None:
    """Return the type of matrix products; fp16 takes what bf16 takes."""
    return None if hparams["precision"] == "fp32" else torch.bfloat16
