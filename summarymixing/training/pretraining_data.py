"""From manifests to masked batches for pre-training."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from summarymixing.data.audit import leave_out
from summarymixing.data.batching import (
    BatchPlan,
    EpochBatchSampler,
    UpdateBatchSampler,
    Utterance,
    UtteranceDataset,
    pad_wavs,
    start_worker,
)
from summarymixing.data.manifest import Manifest
from summarymixing.errors import UserError
from summarymixing.lobes.features import (
    HOP_SAMPLES,
    SAMPLE_RATE_HZ,
    num_frames,
)
from summarymixing.lobes.pretraining import MaskedFrames, gather_masked_frames
from summarymixing.nnet.randomness import derive_seed
from summarymixing.nnet.span_mask import MASK_SCHEMES, MaskScheme
from summarymixing.run.hparams_file import check_choices
from summarymixing.run.processes import rank, world_size


@dataclass
class PretrainingBatch:
    """Audio and masks of a micro-batch.

    wavs : (B, S); wav_lens : (B,); masked : MaskedFrames; seconds, frames :
    without padding; utterances : how many there should be; unreadable : a
    message for each of them that was left out; error : of the loader, which
    has no further batch.
    """

    wavs: Tensor
    wav_lens: Tensor
    masked: MaskedFrames
    seconds: float
    frames: int
    utterances: int
    unreadable: list[str]
    error: Exception | None = None

    def to(self, device: torch.device | str) -> PretrainingBatch:
        """Copy the tensors to a device without waiting for it."""
        return self._map(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> PretrainingBatch:
        """Pin the tensors; the data loader calls it."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> PretrainingBatch:
        masked = MaskedFrames._make(
            change(x) if isinstance(x, Tensor) else x for x in self.masked
        )
        wavs, wav_lens = change(self.wavs), change(self.wav_lens)
        return replace(self, wavs=wavs, wav_lens=wav_lens, masked=masked)


class MaskingCollate:
    """Pad utterances and mask each one.

    Arguments
    ---------
    seed : int
        The mask of an utterance depends on (seed, stage, epoch, utterance id)
        alone: not on its batch, the process, or anything before it.
    scheme : callable
        `scheme(num_frames, rng)` gives the masked frames of an utterance.
    stage : str
        Validation has masks of its own, the same at every validation.
    """

    def __init__(
        self, *, seed: int, scheme: MaskScheme, stage: str = "train"
    ) -> None:
        self.seed, self.scheme, self.stage = seed, scheme, stage

    def __call__(self, utterances: Sequence[Utterance]) -> PretrainingBatch:
        """Make a batch of the utterances that could be read."""
        unreadable = [u.error for u in utterances if u.error]
        readable = [u for u in utterances if not u.error]
        if not readable:
            return silence(len(utterances), unreadable)
        wavs, wav_lens = pad_wavs([u.wav for u in readable])
        seeds = [
            derive_seed(self.seed, self.stage, u.epoch, u.row.id)
            for u in readable
        ]
        lengths = [num_frames(len(u.wav)) for u in readable]
        masked = [
            self.scheme(length, np.random.default_rng(s))
            for length, s in zip(lengths, seeds, strict=True)
        ]
        return PretrainingBatch(
            wavs,
            wav_lens,
            gather_masked_frames(masked, num_frames(wavs.shape[1]), seeds),
            seconds=sum(len(u.wav) for u in readable) / SAMPLE_RATE_HZ,
            frames=sum(lengths),
            utterances=len(utterances),
            unreadable=unreadable,
        )


def silence(
    utterances: int = 0,
    unreadable: Sequence[str] = (),
    error: Exception | None = None,
) -> PretrainingBatch:
    """Return a batch by which a process without audio takes its part.

    Without a loss, since one masked frame has no negatives. Two utterances of
    two frames: a size of 1 would compile the layers once more.
    """
    return PretrainingBatch(
        torch.zeros(2, HOP_SAMPLES * 2),
        torch.ones(2),
        gather_masked_frames([[0], [0]], 2, [0, 0]),
        seconds=0.0,
        frames=0,
        utterances=utterances,
        unreadable=list(unreadable),
        error=error,
    )


class OrderlyLoader(DataLoader[Any]):
    """A loader that ends in silence where it fails.

    An exception would end this process, and leave the others in a collective.
    """

    def __iter__(self) -> Iterator[PretrainingBatch]:  # type: ignore[override]
        """Yield the batches; after an error, silence that carries it."""
        left = len(self)
        try:
            for batch in super().__iter__():
                left -= 1
                yield batch
        except Exception as error:
            for _ in range(max(left, 1)):
                yield silence(error=error)


@dataclass
class PretrainingData:
    """Loaders of a run; `sampler` chooses the updates that come next."""

    train: DataLoader[Any]
    valid: DataLoader[Any]
    sampler: UpdateBatchSampler
    hours: float

    def remake(self, update: int) -> Iterator[tuple[list[str], Any]]:
        """Make the micro-batches of an update once more, in this process.

        Yields
        ------
        list of str
            The ids of the utterances in the batch.
        PretrainingBatch
            Equal to the first one.
        """
        sampler = copy.copy(self.sampler)
        sampler.set_range(update - 1, update)
        for batch in sampler:
            utterances = [self.train.dataset[index] for index in batch]
            ids = [u.row.id for u in utterances if not u.error]
            yield ids, self.train.collate_fn(utterances)

    def close(self) -> None:
        """End the workers of the training, which live on between updates."""
        iterator = getattr(self.train, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()
            self.train._iterator = None


def load_pretraining_data(hparams: Mapping[str, Any]) -> PretrainingData:
    """Read `train.csv` and `valid.csv` and make loaders of them.

    Arguments
    ---------
    hparams : mapping
        The keys of hparams/shared/pretraining.yaml.

    Returns
    -------
    PretrainingData
        The share of this process. UserError for missing or moved data, an
        utterance longer than a batch, or too few batches.
    """
    check_choices(hparams, {"mask_scheme": tuple(MASK_SCHEMES)})
    scheme = partial(
        MASK_SCHEMES[hparams["mask_scheme"]],
        probability=hparams["mask_probability"],
        length=hparams["mask_length"],
    )
    seed, seconds = hparams["seed"], hparams["max_batch_seconds"]
    folder = Path(hparams["manifests"])
    train, valid = (
        leave_out(Manifest.read(folder / name), hparams.get("exclude"))
        for name in ("train.csv", "valid.csv")
    )
    train.check_audio()
    valid.check_audio()
    hours = float(train.durations.sum()) / 3600
    plan = BatchPlan(
        train.durations,
        seed=seed,
        max_batch_seconds=seconds,
        world_size=world_size(),
    )
    per_update = world_size() * hparams["accumulation"]
    if len(plan) < per_update:
        raise UserError(
            f"{train.path} ({hours:.2f} h) makes {len(plan)} batches, but one "
            f"update takes {per_update} (processes x accumulation): it would "
            f"see the same audio more than once. Lower --accumulation or "
            f"--max_batch_seconds, or prepare more audio."
        )
    sampler = UpdateBatchSampler(
        plan,
        rank=rank(),
        world_size=world_size(),
        accumulation=hparams["accumulation"],
    )
    valid_sampler = EpochBatchSampler(
        BatchPlan(
            valid.durations,
            seed=seed,
            max_batch_seconds=max(seconds, valid.durations.max()),
            order="ascending",
        ),
        rank=rank(),
        world_size=world_size(),
        pad_to_equal_length=False,
    )

    num_workers = hparams["num_workers"]

    def loader(
        manifest: Manifest, batches: Sampler[Any], stage: str
    ) -> DataLoader[Any]:
        # Workers of the training live from one validation to the next, those
        # of a validation end with it. A fork shares the manifest.
        can_fork = num_workers and sys.platform == "linux"
        return OrderlyLoader(
            UtteranceDataset(manifest, tolerate_errors=True),
            batch_sampler=batches,
            collate_fn=MaskingCollate(seed=seed, scheme=scheme, stage=stage),
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=start_worker,
            persistent_workers=stage == "train" and num_workers > 0,
            multiprocessing_context="fork" if can_fork else None,
        )

    return PretrainingData(
        loader(train, sampler, "train"),
        loader(valid, valid_sampler, "valid"),
        sampler,
        hours,
    )
