"""Batches as a pure function of (seed, epoch), for any number of processes.

SpeechBrain's DynamicBatchSampler keeps Python objects for each utterance
(5 GB for seven million), leaves one small batch in each of its buckets, and
in a single process never hears of a new epoch; hence this one.
"""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

from summarymixing.data.audio import AudioError, read_audio
from summarymixing.data.manifest import Manifest, Row
from summarymixing.errors import UserError
from summarymixing.nnet.randomness import derive_seed

# What asks a run to save and stop; see `run.stopping.StopRequests`.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

PR_SET_PDEATHSIG = 1  # of Linux: the signal that the end of a parent brings

# Utterances may be batched together if their durations differ by this ratio at
# most. Where they are many, the nearest of this many batches suffice.
BUCKET_RATIO = 1.04
BUCKET_BATCHES = 100


class Batches:
    """The batches of an epoch, held as two arrays.

    Arguments
    ---------
    utterances : array of int, (N,)
        Indices of utterances; those of a batch follow each other.
    starts, stops : arrays of int, (number of batches,)
        Where each batch begins and ends in `utterances`.
    """

    def __init__(
        self,
        utterances: NDArray[np.int32],
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
    ) -> None:
        self._utterances, self._starts, self._stops = utterances, starts, stops

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._starts)

    def __getitem__(self, number: int) -> list[int]:
        """Return a batch, as indices of utterances."""
        # Beyond the end numpy raises the IndexError that ends an iteration.
        start, stop = self._starts[number], self._stops[number]
        batch: list[int] = self._utterances[start:stop].tolist()
        return batch


class BatchPlan:
    """Group utterances of similar length into batches.

    A batch of n utterances is full where they last max_batch_seconds / n. So
    buckets of similar duration end there, as far as their width allows; what
    does not fill a batch of one bucket goes on to the next longer one, and an
    epoch has one batch, at most, that lacks an utterance. The number of
    batches is the same for every epoch.

    Arguments
    ---------
    durations : sequence of float
        Seconds of each utterance.
    seed : int
        The seed of the order of the batches.
    max_batch_seconds : float, optional
        The most seconds of a batch, padding included. UserError where one
        utterance alone is longer.
    batch_size : int, optional
        The number of utterances of a batch, instead of max_batch_seconds.
    order : str
        "random", or "ascending" in duration and the same in every epoch.
    smallest_batch : int
        Fewer utterances than this, left over at the end of an epoch, join
        the batch before them.
    world_size : int
        Number of processes. They wait for each other in every step, so the
        batches of one step last equally long, as far as there are such; which
        utterances are together does not depend on it.

    Example
    -------
    >>> plan = BatchPlan([1.0, 2.0, 1.0, 2.0], seed=0, max_batch_seconds=4)
    >>> len(plan), sorted(len(batch) for batch in plan.batches(epoch=0))
    (2, [2, 2])
    """

    # Counts up where the same settings make other batches by seconds.
    VERSION = 2

    def __init__(
        self,
        durations: Sequence[float] | NDArray[np.float64],
        *,
        seed: int,
        max_batch_seconds: float | None = None,
        batch_size: int | None = None,
        order: str = "random",
        smallest_batch: int = 1,
        world_size: int = 1,
    ) -> None:
        if (max_batch_seconds is None) == (batch_size is None):
            raise ValueError("Give either max_batch_seconds or batch_size.")
        if order not in ("random", "ascending"):
            raise ValueError(f"order is 'random' or 'ascending', not {order}.")
        self.seed, self.order, self.world_size = seed, order, world_size
        # Those of a manifest are mapped once for all processes of a machine.
        self._durations = np.asarray(durations, dtype=np.float64)
        if max_batch_seconds is not None:
            _check_longest(self._durations, max_batch_seconds)
            ordered = np.sort(self._durations)
            self._buckets = list(_make_buckets(ordered, max_batch_seconds))
        else:
            # One bucket: only the order decides who is with whom.
            self._buckets = [(0, len(self._durations), int(batch_size or 1))]
        self._bounds = self._cut(smallest_batch)

    def _cut(self, smallest_batch: int) -> NDArray[np.int64]:
        """Return where each batch begins in an order, and the last one ends."""
        bounds, total = [0], len(self._durations)
        for _, stop, size in self._buckets:
            bounds.extend(range(bounds[-1] + size, stop + 1, size))
        if len(bounds) > 1 and total - bounds[-1] < smallest_batch:
            bounds[-1] = total
        elif total > bounds[-1]:
            bounds.append(total)
        return np.array(bounds)

    def __len__(self) -> int:
        """Return the number of batches in every epoch."""
        return len(self._bounds) - 1

    def batches(self, epoch: int) -> Batches:
        """Return the batches of an epoch, as indices into `durations`."""
        starts, stops = self._bounds[:-1], self._bounds[1:]
        # A second for ten million: less than its memory in every process.
        order = np.argsort(self._durations, kind="stable").astype(np.int32)
        if self.order == "ascending":
            return Batches(order, starts, stops)
        rng = np.random.default_rng(derive_seed(self.seed, "batches", epoch))
        for start, stop, _ in self._buckets:
            rng.shuffle(order[start:stop])
        numbers = np.arange(len(self))
        if self.world_size == 1:
            rng.shuffle(numbers)
        else:
            longest = np.maximum.reduceat(self._durations[order], starts)
            seconds = (stops - starts) * longest.astype(np.float32)
            numbers = np.argsort(seconds, kind="stable")
            numbers = self._shuffle_steps(numbers, epoch, rng)
        return Batches(order, starts[numbers], stops[numbers])

    def _shuffle_steps(
        self,
        batches: NDArray[np.int64],
        epoch: int,
        rng: np.random.Generator,
    ) -> NDArray[np.int64]:
        """Shuffle steps of neighbouring batches, and the batches of each."""
        # Steps are counted over all epochs: an epoch may begin within one.
        first = epoch * len(self) % self.world_size
        step = (first + np.arange(len(self))) // self.world_size
        turn = rng.permutation(step[-1] + 1)
        positions = np.lexsort((rng.random(len(self)), turn[step]))
        shuffled = np.empty_like(batches)
        shuffled[positions] = batches
        return shuffled


def _check_longest(
    durations: NDArray[np.float64], max_batch_seconds: float
) -> None:
    longest = int(np.argmax(durations))
    if durations[longest] > max_batch_seconds:
        raise UserError(
            f"utterance {longest + 1} of the manifest lasts "
            f"{durations[longest]:.1f} s, longer than a whole batch "
            f"(max_batch_seconds: {max_batch_seconds:g}). Raise "
            f"--max_batch_seconds to at least "
            f"{np.ceil(durations[longest]):.0f}, or prepare the "
            f"corpus with a smaller maximum length."
        )


def _make_buckets(
    ordered: NDArray[np.float64], max_batch_seconds: float
) -> Iterator[tuple[int, int, int]]:
    """Yield (start, stop, batch size) over durations in ascending order."""
    start, total = 0, len(ordered)
    while start < total:
        shortest = max(ordered[start], 0.1)
        limit = min(shortest * BUCKET_RATIO, max_batch_seconds)
        # The longest duration within the limit that fills a batch exactly.
        full = max_batch_seconds / np.ceil(max_batch_seconds / limit)
        if full >= shortest:
            limit = full
        stop = int(np.searchsorted(ordered, limit, side="right"))
        most = BUCKET_BATCHES * int(max_batch_seconds / limit)
        stop = min(stop, start + most)
        yield start, stop, int(max_batch_seconds / ordered[stop - 1])
        start = stop


class EpochBatchSampler(Sampler[list[int]]):
    """The batches of one epoch that belong to one process.

    Arguments
    ---------
    plan : BatchPlan
        The batches of all processes.
    rank, world_size : int
        The number of this process, and how many there are.
    pad_to_equal_length : bool
        Whether to repeat the first batches where processes would get unequal
        numbers: needed in training, where each takes part in every update;
        wrong in evaluation, where it would count utterances twice.

    Example
    -------
    >>> plan = BatchPlan([1.0] * 6, seed=0, batch_size=2)
    >>> sampler = EpochBatchSampler(
    ...     plan, rank=1, world_size=2, pad_to_equal_length=True
    ... )
    >>> len(sampler), len(list(sampler))
    (2, 2)
    """

    def __init__(
        self,
        plan: BatchPlan,
        *,
        rank: int = 0,
        world_size: int = 1,
        pad_to_equal_length: bool,
    ) -> None:
        self.plan, self.rank, self.world_size = plan, rank, world_size
        self.pad_to_equal_length = pad_to_equal_length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of this process."""
        total = len(self.plan)
        if self.pad_to_equal_length:
            return -(-total // self.world_size)
        return len(range(self.rank, total, self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        """Iterate over lists of utterance indices."""
        batches = self.plan.batches(self.epoch)
        for step in range(len(self)):
            yield batches[(step * self.world_size + self.rank) % len(batches)]


class EpochIndex(NamedTuple):
    """An utterance in an epoch: its mask depends on both."""

    epoch: int
    utterance: int


class UpdateBatchSampler(Sampler[list[EpochIndex]]):
    """The micro-batches of a range of updates.

    Epochs follow each other without end; micro-batch k of update u on
    process r is number (u * accumulation + k) * world_size + r of that
    sequence. Only the update counter is needed to go on after a stop; with
    other numbers of processes or micro-batches also `go_on`.

    Arguments
    ---------
    plan : BatchPlan
        The batches of each epoch.
    rank, world_size : int
        The number of this process, and how many there are.
    accumulation : int
        The number of micro-batches of one process in an update.

    Example
    -------
    >>> sampler = UpdateBatchSampler(BatchPlan([1.0], seed=0, batch_size=1))
    >>> sampler.set_range(start=3, stop=5)
    >>> list(sampler)
    [[EpochIndex(epoch=3, utterance=0)], [EpochIndex(epoch=4, utterance=0)]]
    """

    def __init__(
        self,
        plan: BatchPlan,
        *,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
    ) -> None:
        self.plan, self.rank, self.world_size = plan, rank, world_size
        self.accumulation = accumulation
        self.batches_per_update = world_size * accumulation
        self._offset = 0  # in the sequence
        self._range = range(0)
        self._cached: tuple[int, Batches] | None = None

    def go_on(self, update: int, batch: int) -> None:
        """Let an update begin with this batch of the sequence."""
        self._offset = batch - update * self.batches_per_update

    def number(self, step: int) -> int:
        """Return where this process's micro-batch is in the sequence.

        `step` counts its micro-batches: update * accumulation + k.
        """
        return step * self.world_size + self.rank + self._offset

    def first_batch(self, update: int) -> int:
        """Return the number of batches that all processes took before."""
        return update * self.batches_per_update + self._offset

    def set_range(self, start: int, stop: int) -> None:
        """Choose the updates [start, stop) that come next."""
        self._range = range(start * self.accumulation, stop * self.accumulation)

    def __len__(self) -> int:
        """Return the number of micro-batches of this process."""
        return len(self._range)

    def __iter__(self) -> Iterator[list[EpochIndex]]:
        """Iterate over lists of (epoch, utterance index)."""
        for step in self._range:
            epoch, position = divmod(self.number(step), len(self.plan))
            if self._cached is None or self._cached[0] != epoch:
                self._cached = epoch, self.plan.batches(epoch)
            batch = self._cached[1][position]
            yield [EpochIndex(epoch, index) for index in batch]


class Utterance(NamedTuple):
    """An utterance that was read, or why it could not be."""

    row: Row
    wav: Tensor  # float, (S,), 16 kHz
    epoch: int
    error: str  # why wav is empty, or ""


class UtteranceDataset(Dataset[Utterance]):
    """Audio of a manifest, read on demand.

    Arguments
    ---------
    manifest : Manifest
        The utterances.
    tolerate_errors : bool
        Return an unreadable utterance with its `error` instead of raising
        AudioError, so that one bad file in a million does not end a run.
    adapt : Callable, optional
        Called with a row and its epoch before the audio is read, for example
        to move its segment; the row that it returns is read.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        tolerate_errors: bool = False,
        adapt: Callable[[Row, int], Row] | None = None,
    ) -> None:
        self.manifest, self.tolerate_errors = manifest, tolerate_errors
        self.adapt = adapt

    def __len__(self) -> int:
        """Return the number of utterances."""
        return len(self.manifest)

    def __getitem__(self, item: int | EpochIndex) -> Utterance:
        """Read the audio of an utterance."""
        epoch, index = item if isinstance(item, tuple) else (0, item)
        row = self.manifest[index]
        if self.adapt is not None:
            row = self.adapt(row, epoch)
        try:
            return Utterance(row, read_audio(row), epoch, "")
        except AudioError as error:
            if not self.tolerate_errors:
                raise
            return Utterance(row, torch.zeros(0), epoch, str(error))


def pad_wavs(wavs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad to the longest on the right.

    Arguments
    ---------
    wavs : sequence of B Tensors, (S_b,)
        The utterances, of any lengths.

    Returns
    -------
    wavs : Tensor, (B, S)
        The utterances with zeros after them.
    wav_lens : Tensor, float, (B,)
        Their relative lengths.

    Example
    -------
    >>> pad_wavs([torch.ones(2), torch.ones(1)])[1]
    tensor([1.0000, 0.5000])
    """
    lengths = torch.tensor([len(wav) for wav in wavs])
    padded = pad_sequence(list(wavs), batch_first=True)
    return padded, lengths / padded.shape[1]


def start_worker(_: Any) -> None:
    """Set up a data-loading process.

    One thread each, for they are many already. Requests to stop are left to
    the training process: a scheduler sends them to the whole job, and a
    worker that obeyed would break the run before it could save.
    """
    torch.set_num_threads(1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _end_with_parent()


def _end_with_parent() -> None:
    """End where the process that started this one ends, at once.

    A fork has a copy of every connection to the other ranks, which wait while
    one is open. PyTorch lets a worker look after its parent, but not while
    that waits for a disk; and where the parent has ended before the first
    look, it takes whoever has adopted the orphan for it.
    """
    process = multiprocessing.current_process()
    parent = multiprocessing.parent_process()
    method = getattr(process, "_start_method", None)
    if (method or multiprocessing.get_start_method()) == "forkserver":
        return  # which stands in between
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and parent.pid != os.getppid():
        os._exit(1)


@atexit.register
def _kill_workers() -> None:
    """End those that are left when Python ends.

    It would send them SIGTERM, which they ignore, and wait for ever.
    """
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
