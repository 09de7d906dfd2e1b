"""Metrics of pre-training, from sums over the masked frames of batches."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from summarymixing.lobes.pretraining import (
    PretrainingOutput,
    Wav2Vec2Pretraining,
)
from summarymixing.nnet.losses import diversity_loss
from summarymixing.nnet.quantiser import perplexity
from summarymixing.run.processes import gather_objects, rank, world_size
from summarymixing.training.pretraining_data import PretrainingBatch

Message = TypeVar("Message")

# Fields of `PretrainingOutput` that are (G, V) or (C,); all others are single
# numbers, whose means are logged.
PER_CODE = ("probability_sums", "code_counts")
PER_CHANNEL = ("latent_sums", "latent_squares")

# What `gradient_norm` is made of: the first prefix of a weight's name counts.
PARTS = {
    "encoder.front_end.": "front_end",
    "encoder.conformer.": "conformer",
    "encoder.": "input",  # projection to the Conformer's width, mask embedding
    "quantiser.": "quantiser",
    "": "head",
}


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
        quantiser = model.quantiser
        shapes: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(
                PER_CODE, (quantiser.num_groups, quantiser.num_codes)
            ),
            **dict.fromkeys(PER_CHANNEL, (quantiser.to_logits.in_features,)),
        }
        # float64: counts of a long validation are exact.
        zeros = partial(torch.zeros, device=device, dtype=torch.float64)
        self.values = {
            name: zeros(shapes.get(name, ()))
            for name in PretrainingOutput._fields
        }
        self.counts = dict.fromkeys(
            (
                "seconds",  # of audio
                "multiply_adds",
                "frames",  # without padding
                "masked_frames",
                "utterances",
                "unreadable",  # of the utterances
            ),
            0.0,
        )

    @property
    def seconds(self) -> float:
        """Audio without padding."""
        return self.counts["seconds"]

    def add(
        self,
        output: PretrainingOutput,
        batch: PretrainingBatch,
        multiply_adds: float = 0.0,
    ) -> None:
        """Add a batch and what came of it."""
        for name, count in (
            ("seconds", batch.seconds),
            ("multiply_adds", multiply_adds),
            ("frames", batch.frames),
            ("masked_frames", len(batch.masked.frames)),
            ("utterances", batch.utterances),
            ("unreadable", len(batch.unreadable)),
        ):
            self.counts[name] += count
        for name, value in output._asdict().items():
            self.values[name] += value.detach()

    def reduce(self) -> None:
        """Sum over all processes; every process must call it."""
        parts = list(self.values.values())
        counts = parts[0].new_tensor(list(self.counts.values()))
        packed = torch.cat([*(part.flatten() for part in parts), counts])
        if dist.is_initialized():
            dist.all_reduce(packed)
        packed = packed.cpu()
        *split, rest = packed.split(
            [*(part.numel() for part in parts), len(counts)]
        )
        for name, part, values in zip(self.values, parts, split, strict=True):
            self.values[name] = values.view(part.shape)
        self.counts = dict(zip(self.counts, rest.tolist(), strict=True))

    def metrics(self) -> dict[str, float]:
        """Return means over the masked frames, after `reduce`.

        `loss` is the one that is trained. The codebook's numbers are those
        of all frames together, which no mean over batches would give.
        """
        sums, counts = self.values, self.counts
        frames = max(sums["frames"].item(), 1.0)
        means = {
            name: (value / frames).item()
            for name, value in sums.items()
            if name not in (*PER_CODE, *PER_CHANNEL, "frames")
        }
        masked_frames = max(counts["masked_frames"], 1)
        squares = sums["latent_squares"] / masked_frames
        variance = squares - (sums["latent_sums"] / masked_frames).square()
        square = squares.mean().item()
        return means | {
            "codes": sums["code_counts"].numel(),
            "code_groups": len(sums["code_counts"]),
            "diversity_loss": diversity_loss(sums["probability_sums"]).item(),
            "code_perplexity": perplexity(sums["code_counts"]).item(),
            "prob_perplexity": perplexity(sums["probability_sums"]).item(),
            "latent_variance": variance.mean().item(),
            # Where all is zero, so is the share.
            "latent_variance_share": variance.mean().item() / (square or 1.0),
            "masked_share": counts["masked_frames"] / max(counts["frames"], 1),
            "utterances": int(counts["utterances"]),
            "unreadable_utterances": int(counts["unreadable"]),
        }


class LoggingWindow:
    """What has happened since the last entry of the log, at an update."""

    def __init__(self, sums: MetricSums, update: int) -> None:
        self.sums, self.update = sums, update
        # On the clock of `time.perf_counter`; idle since the last batch.
        self.start = self.idle_since = time.perf_counter()
        self.seconds_waited = 0.0  # for data
        self.seconds_saving = self.seconds_compiling = 0.0
        self.part_norms: Tensor | None = None  # of the last update

    def part_norms_by_name(self) -> dict[str, float]:
        """Return `norms_by_part` by their names in the log."""
        if self.part_norms is None:
            return {}
        names = (f"gradient_norm_{part}" for part in PARTS.values())
        return dict(zip(names, self.part_norms.tolist(), strict=True))


class OwnWork:
    """Seconds in which a process worked before it waited for another one.

    That is front end and quantiser, up to the sum over processes in the
    forward pass: what follows lasts equally long on all of them, whoever is
    slow. On a GPU by the GPU's clock, and without waiting for it.

    Arguments
    ---------
    model : Wav2Vec2Pretraining
        Gets a hook on its quantiser.
    device_type : str
        "cuda" or another one.
    """

    def __init__(self, model: Wav2Vec2Pretraining, device_type: str) -> None:
        self.on_gpu = device_type == "cuda"
        self._begun: Any = None
        self._spans: list[tuple[Any, Any]] = []
        model.quantiser.register_forward_hook(lambda *_: self._end())

    def begin(self) -> None:
        """Note that a forward pass begins."""
        self._begun = self._now()

    def _end(self) -> None:
        if self._begun is not None:  # else a forward pass of a validation
            self._spans.append((self._begun, self._now()))
            self._begun = None

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def take_seconds(self) -> float:
        """Return the sum since the last call; a GPU must be done by then."""
        spans, self._spans = self._spans, []
        if self.on_gpu:
            return sum(a.elapsed_time(b) for a, b in spans) / 1000
        return float(sum(b - a for a, b in spans))


def norms_by_part(model: nn.Module) -> Tensor:
    """Return the norm of the gradients of each of `PARTS`, on the device."""
    gradients: dict[str, list[Tensor]] = {part: [] for part in PARTS.values()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            prefix = next(p for p in PARTS if name.startswith(p))
            gradients[PARTS[prefix]].append(parameter.grad)
    norms = [nn.utils.get_total_norm(own) for own in gradients.values()]
    return torch.stack([norm.to(parameter.device) for norm in norms])


def of_each_process(
    values: dict[str, float], device: torch.device | str
) -> dict[str, list[float]]:
    """Return each value of all processes, by rank; a collective."""
    packed = torch.zeros(
        world_size(), len(values), dtype=torch.float64, device=device
    )
    packed[rank()] = packed.new_tensor(list(values.values()))
    if dist.is_initialized():
        dist.all_reduce(packed)
    return dict(zip(values, packed.T.tolist(), strict=True))


def slowest_rank(seconds: Sequence[float]) -> dict[str, float]:
    """Return which process works longest, and how it stands to the median.

    Arguments
    ---------
    seconds : sequence of float
        `OwnWork` of each process.

    Example
    -------
    >>> slowest_rank([1.0, 3.0, 1.0])
    {'slowest_rank': 1, 'slowest_rank_ratio': 3.0}
    """
    median = statistics.median_low(seconds)
    if len(seconds) == 1 or not median:
        return {}
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    return {
        "slowest_rank": slowest,
        "slowest_rank_ratio": seconds[slowest] / median,
    }


def disk_space(folder: Path, model: nn.Module) -> dict[str, float]:
    """Return GiB free for the output folder, and of a checkpoint.

    Of the latter weights and two moments of an optimiser; on the main process
    alone, which writes.
    """
    if rank() != 0:
        return {}
    num_bytes = 3 * sum(p.nbytes for p in model.parameters())
    return {
        "disk_free_gib": shutil.disk_usage(folder).free / 2**30,
        "checkpoint_gib": num_bytes / 2**30,
    }


def first_of_all(message: Message | None) -> Message | None:
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
