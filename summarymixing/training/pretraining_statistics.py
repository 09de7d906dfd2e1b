"""Metrics of pre-training, from sums over the masked frames of batches."""

from __future__ import annotations

import time
from functools import partial

import torch
import torch.distributed as dist

from summarymixing.lobes.pretraining import (
    PretrainingOutput,
    Wav2Vec2Pretraining,
)
from summarymixing.nnet.losses import diversity_loss
from summarymixing.nnet.quantiser import perplexity
from summarymixing.run.processes import gather_objects
from summarymixing.training.pretraining_data import PretrainingBatch

# Fields of `PretrainingOutput` that are (G, V); all others are single numbers.
PER_CODE = ("probability_sums", "code_counts")


class MetricSums:
    """Sums of `PretrainingOutput` over batches, on the device until asked.

    Arguments
    ---------
    model : Wav2Vec2Pretraining
        Its quantiser says how many codes there are.
    device : torch.device or str
        Where the outputs of the model are.
    """

    def __init__(
        self, model: Wav2Vec2Pretraining, device: torch.device | str
    ) -> None:
        codes = model.quantiser.num_groups, model.quantiser.num_codes
        # float64: counts of a long validation are exact.
        zeros = partial(torch.zeros, device=device, dtype=torch.float64)
        self.values = {
            name: zeros(codes if name in PER_CODE else ())
            for name in PretrainingOutput._fields
        }
        self.seconds = 0.0  # of audio
        self.multiply_adds = 0.0
        self.utterances = self.unreadable = 0  # the first include the second

    def add(
        self,
        output: PretrainingOutput,
        batch: PretrainingBatch,
        multiply_adds: float = 0.0,
    ) -> None:
        """Add a batch and what came of it."""
        self.seconds += batch.seconds
        self.multiply_adds += multiply_adds
        self.utterances += batch.utterances
        self.unreadable += len(batch.unreadable)
        for name, value in output._asdict().items():
            self.values[name] += value.detach()

    def reduce(self) -> None:
        """Sum over all processes; every process must call it."""
        parts = list(self.values.values())
        numbers = [
            self.seconds,
            self.multiply_adds,
            self.utterances,
            self.unreadable,
        ]
        packed = torch.cat(
            [*(part.flatten() for part in parts), parts[0].new_tensor(numbers)]
        )
        if dist.is_initialized():
            dist.all_reduce(packed)
        packed = packed.cpu()
        *split, rest = packed.split(
            [*(part.numel() for part in parts), len(numbers)]
        )
        for name, part, values in zip(self.values, parts, split, strict=True):
            self.values[name] = values.view(part.shape)
        self.seconds, self.multiply_adds, *counts = rest.tolist()
        self.utterances, self.unreadable = map(int, counts)

    def metrics(self) -> dict[str, float]:
        """Return means over the masked frames, after `reduce`.

        `loss` is the one that is trained. The codebook's numbers are those
        of all frames together, which no mean over batches would give.
        """
        sums = self.values
        frames = max(sums["frames"].item(), 1.0)
        means = {
            name: (value / frames).item()
            for name, value in sums.items()
            if name not in (*PER_CODE, "frames")
        }
        return means | {
            "diversity_loss": diversity_loss(sums["probability_sums"]).item(),
            "code_perplexity": perplexity(sums["code_counts"]).item(),
            "prob_perplexity": perplexity(sums["probability_sums"]).item(),
            "utterances": self.utterances,
            "unreadable_utterances": self.unreadable,
        }


class LoggingWindow:
    """What has happened since the last entry of the log, at an update."""

    def __init__(self, sums: MetricSums, update: int) -> None:
        self.sums, self.update = sums, update
        # On the clock of `time.perf_counter`; idle since the last batch.
        self.start = self.idle_since = time.perf_counter()
        self.seconds_waited = 0.0  # for data
        self.seconds_saving = self.seconds_compiling = 0.0


def most_of_all(
    values: dict[str, float], device: torch.device | str
) -> dict[str, float]:
    """Return the largest of each value; every process must call it."""
    packed = torch.tensor(list(values.values()), device=device)
    if dist.is_initialized():
        dist.all_reduce(packed, dist.ReduceOp.MAX)
    return dict(zip(values, packed.tolist(), strict=True))


def first_of_all(message: str | None) -> str | None:
    """Return the message of the first process that has one.

    Every process must call it.
    """
    messages = gather_objects(message)
    return next((m for m in messages if m is not None), None)


def peak_memory(device_type: str) -> dict[str, float]:
    """Return GiB in use at most so far: of the GPU, or of this process.

    Of a GPU also what torch held, which is nearer to what nvidia-smi shows.
    """
    if device_type == "cuda":
        return {
            "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30,
            "peak_reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        }
    # Not on Windows, hence not at the top of the file.
    import resource

    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_memory_gib": peak_kib / 2**20}
