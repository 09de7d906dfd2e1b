"""From manifests to batches of labelled utterances for a probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.logger import get_logger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from summarymixing.data.batching import (
    BatchPlan,
    EpochBatchSampler,
    EpochIndex,
    UpdateBatchSampler,
    Utterance,
    UtteranceDataset,
    pad_wavs,
    start_worker,
)
from summarymixing.data.manifest import Manifest, Row
from summarymixing.data.state_store import StateStore
from summarymixing.errors import UserError
from summarymixing.lobes.encoders import StackedOutput
from summarymixing.run.processes import rank, world_size
from summarymixing.training.probe_task import ProbeTask, Role

logger = get_logger(__name__)


@dataclass
class ProbeBatch:
    """Utterances with their labels.

    rows : B manifest rows; wavs : (B, S); wav_lens : (B,), relative;
    unreadable : a message for each utterance without audio; encoded : the
    states of all utterances, where they are stored, in place of audio.
    """

    rows: list[Row]
    wavs: Tensor
    wav_lens: Tensor
    unreadable: list[str]
    encoded: StackedOutput | None = None

    def to(self, device: torch.device | str) -> ProbeBatch:
        """Copy to a device; UserError if audio could not be read.

        Raised here, since an exception in a data worker would reach the user
        with a traceback. An utterance that were only left out would change
        the test set.
        """
        if self.unreadable:
            raise UserError(self.unreadable[0])
        wavs = self.wavs.to(device, non_blocking=True)
        wav_lens = self.wav_lens.to(device, non_blocking=True)
        encoded = self.encoded and self.encoded.to(device)
        return replace(self, wavs=wavs, wav_lens=wav_lens, encoded=encoded)

    def pin_memory(self) -> ProbeBatch:
        """Pin what is copied, for the data loader."""
        wavs, wav_lens = self.wavs.pin_memory(), self.wav_lens.pin_memory()
        encoded = self.encoded and self.encoded.pin_memory()
        return replace(self, wavs=wavs, wav_lens=wav_lens, encoded=encoded)


def collate(utterances: Sequence[Utterance]) -> ProbeBatch:
    """Pad utterances to a batch."""
    wavs, wav_lens = pad_wavs([u.wav for u in utterances])
    return ProbeBatch(
        [u.row for u in utterances],
        wavs,
        wav_lens,
        unreadable=[u.error for u in utterances if u.error],
    )


class StoredUtterances(Dataset[tuple[Row, Tensor]]):
    """Utterances of a manifest with their stored states, (L + 1, T, D).

    Arguments
    ---------
    manifest : Manifest
        The utterances, as they are; none is adapted.
    keys : sequence of str
        What each is filed under.
    store : StateStore
        It holds all of them.
    """

    def __init__(
        self, manifest: Manifest, keys: Sequence[str], store: StateStore
    ) -> None:
        self.manifest, self.keys, self.store = manifest, keys, store

    def __len__(self) -> int:
        """Return the number of utterances."""
        return len(self.manifest)

    def __getitem__(self, item: int | EpochIndex) -> tuple[Row, Tensor]:
        """Return a row and its states, which are not read yet."""
        index = item.utterance if isinstance(item, EpochIndex) else item
        return self.manifest[index], self.store[self.keys[index]]


def collate_stored(items: Sequence[tuple[Row, Tensor]]) -> ProbeBatch:
    """Read the states of utterances into a batch."""
    rows, states = zip(*items, strict=True)
    none = torch.empty(0)
    return ProbeBatch(list(rows), none, none, [], StackedOutput.pad(states))


@dataclass
class ProbeData:
    """Loaders of a probe: one process's share of each split.

    train : the updates that `sampler` was told; valid; tests : by name of the
    split; problems : what the task found wrong with each test split.
    """

    train: DataLoader[ProbeBatch]
    valid: DataLoader[ProbeBatch]
    tests: dict[str, DataLoader[ProbeBatch]]
    sampler: UpdateBatchSampler
    problems: dict[str, dict[str, int]]

    @property
    def batches_per_update(self) -> int:
        """Batches in an update, over all processes."""
        return self.sampler.world_size * self.sampler.accumulation

    def first_update(self, epoch: int) -> int:
        """Return the first update of an epoch, both counted from 0.

        Epochs follow each other without a gap: where the batches of one are
        no multiple of what an update takes, its last update takes the first
        ones of the next epoch, so none is repeated or left out.
        """
        return -(-epoch * len(self.sampler.plan) // self.batches_per_update)


def load_probe_data(hparams: Mapping[str, Any], task: ProbeTask) -> ProbeData:
    """Read the manifests of a probe, fit its task, and make loaders.

    Arguments
    ---------
    hparams : mapping
        The keys of hparams/shared/probe.yaml.
    task : ProbeTask
        Chooses and adapts utterances; takes its outputs from the training
        manifest.

    Returns
    -------
    ProbeData
        The share of this process. UserError for a missing file, a missing
        column, moved audio or too few batches.
    """

    def read(split: str) -> Manifest:
        path = Path(hparams["manifests"]) / f"{split}.csv"
        manifest = Manifest.read(path, [task.label])
        manifest.check_audio()
        return manifest

    whole_train = read(hparams["train_split"])
    task.fit(whole_train, Path(hparams["output_folder"]))
    train = _kept(whole_train, task, "train")
    valid = _kept(read(hparams["valid_split"]), task, "valid")
    task.inspect(hparams["valid_split"], valid)
    tests = {
        split: _kept(read(split), task, "test")
        for split in hparams["test_splits"]
    }
    seconds = hparams["max_batch_seconds"]
    sampler = UpdateBatchSampler(
        BatchPlan(
            train.durations,
            seed=hparams["seed"],
            max_batch_seconds=seconds,
            batch_size=None if seconds else hparams["batch_size"],
            order=hparams["order"],
            smallest_batch=hparams.get("smallest_batch", 1),
        ),
        rank=rank(),
        world_size=world_size(),
        accumulation=hparams["accumulation"],
    )
    if len(sampler.plan) < sampler.world_size * sampler.accumulation:
        raise UserError(
            f"{train.path} makes {len(sampler.plan)} batches, but one update "
            f"takes {sampler.world_size * sampler.accumulation} (processes x "
            "accumulation). Lower --accumulation, --batch_size or "
            "--max_batch_seconds, or use fewer processes."
        )

    def evaluation_loader(
        manifest: Manifest, **limit: Any
    ) -> DataLoader[ProbeBatch]:
        plan = BatchPlan(manifest.durations, seed=0, order="ascending", **limit)
        # Each utterance counts once, so processes may get unequal numbers.
        share = EpochBatchSampler(
            plan,
            rank=rank(),
            world_size=world_size(),
            pad_to_equal_length=False,
        )
        return _loader(
            UtteranceDataset(manifest, tolerate_errors=True), share, hparams
        )

    train_set = UtteranceDataset(train, tolerate_errors=True, adapt=task.adapt)
    valid_limit = (
        {"max_batch_seconds": max(seconds, valid.durations.max())}
        if seconds
        else {"batch_size": hparams["valid_batch_size"]}
    )
    # Now, so that a bad test split fails before training, not a day later.
    problems = {
        split: task.for_test().inspect(split, manifest)
        for split, manifest in tests.items()
    }
    return ProbeData(
        _loader(train_set, sampler, hparams),
        evaluation_loader(valid, **valid_limit),
        {
            split: evaluation_loader(
                manifest, batch_size=hparams["test_batch_size"]
            )
            for split, manifest in tests.items()
        },
        sampler,
        problems,
    )


def _kept(manifest: Manifest, task: ProbeTask, role: Role) -> Manifest:
    """Return what the task keeps of a manifest; say what it leaves out."""
    kept = manifest.where(lambda row: task.keeps(row, role))
    if len(kept) < len(manifest):
        shares = f"{len(kept)} of {len(manifest)}"
        logger.info(
            "%s: %s utterances are used for %s", manifest.path, shares, role
        )
    return kept


def from_store(
    loader: DataLoader[ProbeBatch], keys: Sequence[str], store: StateStore
) -> DataLoader[ProbeBatch]:
    """Return a loader of the same batches whose states are stored.

    It has no workers. They would hand over batches in /dev/shm, which is
    small in containers, and states are thirty times larger than audio; to
    read them is one copy.
    """
    utterances: Any = loader.dataset
    return DataLoader[Any](
        StoredUtterances(utterances.manifest, keys, store),
        batch_sampler=loader.batch_sampler,
        collate_fn=collate_stored,
        pin_memory=loader.pin_memory,
    )


def _loader(
    utterances: UtteranceDataset,
    sampler: Sampler[Any],
    hparams: Mapping[str, Any],
) -> DataLoader[ProbeBatch]:
    return DataLoader[Any](
        utterances,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=hparams["num_workers"],
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=start_worker,
    )
