"""From manifests to batches of labelled utterances for a probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from summarymixing.data.batching import (
    BatchPlan,
    EpochBatchSampler,
    UpdateBatchSampler,
    Utterance,
    UtteranceDataset,
    pad_wavs,
    start_worker,
)
from summarymixing.data.manifest import Manifest, Row
from summarymixing.errors import UserError
from summarymixing.training.probe_task import ProbeTask

Adapt = Callable[[Utterance], Utterance]


@dataclass
class ProbeBatch:
    """Utterances with their labels.

    rows : B manifest rows; wavs : (B, S); wav_lens : (B,), relative;
    unreadable : a message for each utterance without audio.
    """

    rows: list[Row]
    wavs: Tensor
    wav_lens: Tensor
    unreadable: list[str]

    def to(self, device: torch.device | str) -> ProbeBatch:
        """Copy to a device; UserError if audio could not be read.

        Raised here, since an exception in a data worker would reach the user
        with a traceback. An utterance that were only left out would change
        the test set.
        """
        if self.unreadable:
            raise UserError(self.unreadable[0])
        return replace(
            self,
            wavs=self.wavs.to(device, non_blocking=True),
            wav_lens=self.wav_lens.to(device, non_blocking=True),
        )

    def pin_memory(self) -> ProbeBatch:
        """Pin what is copied, for the data loader."""
        return replace(
            self,
            wavs=self.wavs.pin_memory(),
            wav_lens=self.wav_lens.pin_memory(),
        )


def collate(
    utterances: Sequence[Utterance], adapt: Adapt | None = None
) -> ProbeBatch:
    """Pad utterances to a batch, each one changed by `adapt` before."""
    if adapt is not None:
        utterances = [u if u.error else adapt(u) for u in utterances]
    wavs, wav_lens = pad_wavs([u.wav for u in utterances])
    return ProbeBatch(
        [u.row for u in utterances],
        wavs,
        wav_lens,
        unreadable=[u.error for u in utterances if u.error],
    )


@dataclass
class ProbeData:
    """Loaders of a probe: one process's share of each split.

    manifests : by name of the split; train : the updates that `sampler` was
    told; valid; tests : by name of the split.
    """

    manifests: dict[str, Manifest]
    train: DataLoader[ProbeBatch]
    valid: DataLoader[ProbeBatch]
    tests: dict[str, DataLoader[ProbeBatch]]
    sampler: UpdateBatchSampler

    @property
    def batches_per_update(self) -> int:
        """Batches in an update, over all processes."""
        return self.sampler.world_size * self.sampler.accumulation

    @property
    def units(self) -> dict[str, int]:
        """What a number of updates means."""
        return {
            "batches_per_epoch": len(self.sampler.plan),
            "batches_per_update": self.batches_per_update,
        }

    def first_update(self, epoch: int) -> int:
        """Return the first update of an epoch, both counted from 0.

        Epochs follow each other without a gap: where the batches of one are
        no multiple of what an update takes, its last update takes the first
        ones of the next epoch, so none is repeated or left out.
        """
        return -(-epoch * len(self.sampler.plan) // self.batches_per_update)


def read_manifests(
    folder: str | Path, splits: Sequence[str], label: str
) -> dict[str, Manifest]:
    """Read the manifest of each split.

    Arguments
    ---------
    folder : str or Path
        Holds `SPLIT.csv`.
    splits : sequence of str
    label : str
        A column that all must have.

    Returns
    -------
    dict of str to Manifest
        UserError for a missing file, a missing column or moved audio.
    """
    manifests = {}
    for split in splits:
        manifest = Manifest.read(Path(folder) / f"{split}.csv", [label])
        manifest.check_audio()
        manifests[split] = manifest
    return manifests


def load_probe_data(
    hparams: dict[str, Any],
    task: ProbeTask,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> ProbeData:
    """Read the manifests of a probe and make loaders of them.

    Arguments
    ---------
    hparams : dict
        The keys of hparams/shared/probe.yaml.
    task : ProbeTask
        Names the label column and adapts the training utterances.
    rank, world_size : int

    Returns
    -------
    ProbeData
        UserError as in `read_manifests`, and for too few batches.
    """
    train, valid = hparams["train_split"], hparams["valid_split"]
    tests = hparams["test_splits"]
    manifests = read_manifests(
        hparams["manifests"], [train, valid, *tests], task.label
    )
    sampler = UpdateBatchSampler(
        _train_plan(manifests[train], hparams),
        rank=rank,
        world_size=world_size,
        accumulation=hparams["accumulation"],
    )
    _check_enough_batches(sampler, manifests[train])

    def evaluation_loader(split: str, **limit: Any) -> DataLoader[ProbeBatch]:
        plan = BatchPlan(
            manifests[split].durations, seed=0, order="ascending", **limit
        )
        # Each utterance counts once, so processes may get unequal numbers.
        share = EpochBatchSampler(
            plan, rank=rank, world_size=world_size, pad_to_equal_length=False
        )
        return _loader(manifests[split], share, hparams)

    return ProbeData(
        manifests,
        _loader(manifests[train], sampler, hparams, adapt=task.adapt),
        evaluation_loader(valid, **_valid_limit(manifests[valid], hparams)),
        {
            split: evaluation_loader(
                split, batch_size=hparams["test_batch_size"]
            )
            for split in tests
        },
        sampler,
    )


def _train_plan(manifest: Manifest, hparams: dict[str, Any]) -> BatchPlan:
    seconds = hparams["max_batch_seconds"]
    return BatchPlan(
        manifest.durations,
        seed=hparams["seed"],
        max_batch_seconds=seconds,
        batch_size=None if seconds else hparams["batch_size"],
        order=hparams["order"],
    )


def _valid_limit(
    manifest: Manifest, hparams: dict[str, Any]
) -> dict[str, float]:
    seconds = hparams["max_batch_seconds"]
    if seconds is None:
        return {"batch_size": hparams["valid_batch_size"]}
    return {"max_batch_seconds": max(seconds, manifest.durations.max())}


def _loader(
    manifest: Manifest,
    sampler: Sampler[Any],
    hparams: dict[str, Any],
    adapt: Adapt | None = None,
) -> DataLoader[ProbeBatch]:
    return DataLoader[Any](
        UtteranceDataset(manifest, tolerate_errors=True),
        batch_sampler=sampler,
        collate_fn=partial(collate, adapt=adapt),
        num_workers=hparams["num_workers"],
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=start_worker,
    )


def _check_enough_batches(
    sampler: UpdateBatchSampler, manifest: Manifest
) -> None:
    per_update = sampler.world_size * sampler.accumulation
    if len(sampler.plan) < per_update:
        raise UserError(
            f"{manifest.path} makes {len(sampler.plan)} batches, but one "
            f"update takes {per_update} (processes x accumulation). Lower "
            "--accumulation, --batch_size or --max_batch_seconds, or use "
            "fewer processes."
        )
