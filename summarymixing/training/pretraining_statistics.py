"""Numbers of pre-training: sums over batches, and what a run has used."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from torch import Tensor

from summarymixing.lobes.pretraining import (
    PretrainingOutput,
    Wav2Vec2Pretraining,
)
from summarymixing.nnet.quantiser import perplexity


class Sums:
    """Sums over batches, on the device until somebody asks.

    Each entry of `PretrainingOutput` is summed, with the seconds of audio;
    one collective makes them global.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.seconds = 0.0

    def add(self, output: PretrainingOutput, seconds: float) -> None:
        """Add a batch."""
        self.seconds += seconds
        for name, value in output._asdict().items():
            # float64: counts of a long validation are exact.
            value = value.detach().double()
            old = self.values.get(name)
            self.values[name] = value if old is None else old + value

    def reduce(
        self, model: Wav2Vec2Pretraining, device: torch.device | str
    ) -> None:
        """Sum over all processes; every process must call it."""
        quantiser = model.quantiser
        codes = quantiser.num_groups, quantiser.num_codes
        shapes: dict[str, tuple[int, ...]]
        shapes = dict.fromkeys(PretrainingOutput._fields, ())
        shapes["probability_sums"] = shapes["code_counts"] = codes
        parts = [
            # A process may have had no batch at all.
            self.values.get(name, torch.zeros(shape)).flatten().to(device)
            for name, shape in shapes.items()
        ]
        parts.append(torch.tensor([self.seconds]).to(device))
        packed = torch.cat([part.double() for part in parts])
        if dist.is_initialized():
            dist.all_reduce(packed)
        split = packed.cpu().split([part.numel() for part in parts])
        self.values = {
            name: part.view(shape)
            for (name, shape), part in zip(
                shapes.items(), split[:-1], strict=True
            )
        }
        self.seconds = split[-1].item()

    def numbers(self, diversity_weight: float) -> dict[str, float]:
        """Means over the masked frames, after `reduce`."""
        v = self.values
        frames = max(v["frames"].item(), 1.0)
        codes = v["code_counts"].numel()
        prob_perplexity = perplexity(v["probability_sums"]).item()
        contrastive = v["contrastive"].item() / frames
        diversity = (codes - prob_perplexity) / codes
        return {
            "loss": contrastive + diversity_weight * diversity,
            "contrastive_loss": contrastive,
            "accuracy": v["correct"].item() / frames,
            "chance": v["chance"].item() / frames,
            "negatives_excluded": v["excluded"].item() / frames,
            "code_perplexity": perplexity(v["code_counts"]).item(),
            "prob_perplexity": prob_perplexity,
        }


@register_checkpoint_hooks
class Progress:
    """What a run has used so far; goes into its checkpoints."""

    def __init__(self) -> None:
        self.gpu_seconds = 0.0
        self.audio_seconds = 0.0
        self.skipped_updates = 0

    @mark_as_saver
    def save(self, path: Path) -> None:
        """Write as YAML."""
        Path(path).write_text(yaml.safe_dump(vars(self)), encoding="utf-8")

    @mark_as_loader
    def load(self, path: Path, end_of_epoch: bool) -> None:
        """Read what `save` wrote."""
        del end_of_epoch
        vars(self).update(yaml.safe_load(Path(path).read_text("utf-8")))
