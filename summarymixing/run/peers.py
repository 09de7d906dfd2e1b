"""What the processes of a run learn of each other outside collectives.

A process that waits in a collective for one that is gone, or sleeps, learns
nothing by it, and may not return to Python. So a thread of each process gives
signs of life in the store through which they met, watches the next process,
and ends its own where one has failed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

BEAT_SECONDS = 1.0  # between two signs of life
# Without one for so long a process of another machine is gone. One that holds
# the interpreter, in a long call of C, gives none; on the same machine it can
# be seen to live, and only the limit of progress holds for it.
GONE_SECONDS = 30.0
# The same for one that can be seen to have ended.
ENDED_SECONDS = 3.0
# The same where a collective has failed, so that one of them is suspect.
SUSPECT_SECONDS = 10.0
# From a failure until the others are ended, should they not end by themselves.
GRACE_SECONDS = 10.0
# For another one that fails alike to say so first: rank 0, or the cause.
PEER_SECONDS = 2.0

STATUS = 1  # of processes that another one takes along
PREFIX = "summarymixing"
FAILURE = f"{PREFIX}/failure"
PROCESS = f"{PREFIX}/process"
STALLED = f"{PREFIX}/stalled"
LEFT = 2**40
STORE_GONE = (
    "the process is gone through which the others met: torchrun's on the "
    "machine of rank 0. The same command goes on from the last checkpoint"
)


class Unchanged:
    """How long a number has stayed the same."""

    def __init__(self) -> None:
        self.value, self.seconds = 0, 0.0

    def look(self, value: int, seconds: float) -> None:
        """Compare the number with that of so many seconds ago."""
        self.seconds = self.seconds + seconds if value == self.value else 0.0
        self.value = value


class Peers:
    """A process among the others of its run.

    Arguments
    ---------
    rank, size : int
        Which one, of how many.
    store : torch.distributed.Store
        Shared by them. Two connections of its own are made: the one of
        torch may be waiting.
    """

    def __init__(self, rank: int, size: int, store: Any) -> None:
        self.rank, self.size = rank, size
        self._store, self._own = store.clone(), store.clone()
        self._main = threading.main_thread().ident or 0
        self._done = threading.Event()
        self._marks = self._looks = 0
        self._limit = math.inf
        self._ends_at: float | None = None
        self._identities: dict[int, list[str]] = {}
        self._own.set(f"{PROCESS}/{rank}", json.dumps(identify(os.getpid())))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Give signs of life, and end with the others where one fails."""
        thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        thread.start()
        threading.Thread(target=self._watch_store, daemon=True).start()
        try:
            yield
        except BaseException:
            # Still watched: what follows may hang as well.
            self.rest()
            raise
        self._done.set()
        thread.join(GONE_SECONDS)

    def mark(self, limit: float) -> None:
        """Note progress, the next of which is due within so many seconds."""
        self._marks += 1
        self._limit = limit

    def rest(self) -> None:
        """Do what may take any time."""
        self._limit = math.inf

    def announce(self, message: str) -> bool:
        """Say why this process fails; return whether it is the first to.

        All others then end, and say nothing.
        """
        try:
            if self.rank:
                self._wait_for_failure()
            return self._announce(self._own, message)
        except RuntimeError:  # the store is gone, with its process
            return True

    def find_lost(self) -> str | None:
        """Return what became of the others, after a failed collective.

        None if all of them live and none has announced a failure.
        """
        try:
            if self._wait_for_failure():
                return "another process has failed"
            others = {r for r in range(self.size) if r != self.rank}
            first = {r: self._beat(self._own, r) for r in others}
            lost, begin = set(), time.monotonic()
            while others:
                time.sleep(BEAT_SECONDS / 4)
                silent = time.monotonic() - begin
                for r in list(others):
                    has_ended = self._has_ended(self._own, r)
                    limit = ENDED_SECONDS if has_ended else SUSPECT_SECONDS
                    if self._beat(self._own, r) != first[r]:
                        others.remove(r)
                    elif silent > limit:
                        others.remove(r)
                        lost |= set() if has_ended is False else {r}
        except RuntimeError:
            return STORE_GONE
        return describe_gone(lost) if lost else None

    def _wait_for_failure(self) -> bool:
        deadline = time.monotonic() + PEER_SECONDS
        while not self._own.check([FAILURE]):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def _announce(self, store: Any, message: str) -> bool:
        mine = json.dumps([self.rank, message])
        return bool(store.compare_set(FAILURE, "", mine) == mine.encode())

    @staticmethod
    def _beat(store: Any, rank: int, amount: int = 0) -> int:
        return int(store.add(f"{PREFIX}/beats/{rank}", amount))

    def _has_ended(self, store: Any, rank: int) -> bool | None:
        """Return whether a process has ended; None if that cannot be seen."""
        if rank not in self._identities:
            key = f"{PROCESS}/{rank}"
            if not store.check([key]):
                return None
            self._identities[rank] = json.loads(store.get(key))
        identity = self._identities[rank]
        machine, number, _ = identity
        if not machine or machine != identify(os.getpid())[0]:
            return None
        return identify(int(number)) != identity

    def _ticks(self) -> Iterator[float]:
        """Give the seconds since the last tick, until the run is done.

        For how long this process was suspended or starved, it blames nobody
        for: the others were so, too, or it has not looked.
        """
        before = time.monotonic()
        while not self._done.wait(BEAT_SECONDS):
            now = time.monotonic()
            awake, before = min(now - before, 2 * BEAT_SECONDS), now
            yield awake

    def _watch_store(self) -> None:
        """End where the store answers no more: its machine may be cut off."""
        looks = Unchanged()
        for awake in self._ticks():
            looks.look(self._looks, awake)
            if looks.seconds > GONE_SECONDS:
                print(f"error: {STORE_GONE}", file=sys.stderr, flush=True)
                os._exit(STATUS)

    def _watch(self) -> None:
        next_rank = (self.rank + 1) % self.size
        beats, marks = Unchanged(), Unchanged()
        for awake in self._ticks():
            try:
                self._beat(self._store, self.rank, 1)
                # In this order: one that ends in order leaves before.
                has_ended = self._has_ended(self._store, next_rank)
                beats.look(self._beat(self._store, next_rank), awake)
                marks.look(self._marks, awake)
                has_failed = self._store.check([FAILURE])
                if not has_failed:
                    self._look_for_gone(next_rank, beats, has_ended)
                    self._look_for_stall(marks)
            except RuntimeError:
                has_failed = True
            self._looks += 1
            now = time.monotonic()
            if has_failed:
                self._ends_at = self._ends_at or now + GRACE_SECONDS
            if self._ends_at is not None and now > self._ends_at:
                os._exit(STATUS)
        with contextlib.suppress(RuntimeError):
            self._beat(self._store, self.rank, -LEFT)

    def _blame(self, message: str) -> None:
        if self._announce(self._store, message):
            print(f"error: {message}", file=sys.stderr, flush=True)

    def _look_for_gone(
        self, rank: int, beats: Unchanged, has_ended: bool | None
    ) -> None:
        has_left = beats.value < 0
        if rank == self.rank or has_left or has_ended is False:
            return
        if beats.seconds > (ENDED_SECONDS if has_ended else GONE_SECONDS):
            self._blame(describe_gone({rank}))

    def _look_for_stall(self, marks: Unchanged) -> None:
        """Ask the others where they are, when one waits for too long."""
        late = marks.seconds - self._limit
        if late > 0:
            self._store.set(STALLED, "1")
        if self._store.check([STALLED]):
            where, waits = self._look_at_main_thread()
            report = json.dumps([self._marks, waits, where, marks.seconds])
            self._store.set(f"{STALLED}/{self.rank}", report)
        if late > 3 * BEAT_SECONDS:
            self._blame(self._describe_stall())

    def _describe_stall(self) -> str:
        """Name who is behind, of those that wait for nobody if need be."""
        reports = {}
        for rank in range(self.size):
            key = f"{STALLED}/{rank}"
            if not self._store.check([key]):
                return (
                    f"rank {rank} answers no more: it is stopped, or in a long "
                    "call that holds Python's interpreter"
                )
            reports[rank] = json.loads(self._store.get(key))
        rank = min(reports, key=lambda r: reports[r][:2])
        _, _, where, seconds = reports[rank]
        return (
            f"rank {rank} has made no progress for {seconds:.0f} s and is "
            f"in {where}; if that may take longer, raise "
            "--stalled_after_seconds"
        )

    def _look_at_main_thread(self) -> tuple[str, bool]:
        """Return where it is, and whether that is a collective."""
        frame = sys._current_frames().get(self._main)
        if frame is None:
            return "no function", False
        code = frame.f_code
        where = f"{code.co_name} ({code.co_filename}:{frame.f_lineno})"
        waits = False
        while frame is not None:
            # Where gradients are exchanged the backward pass waits.
            waits |= "torch/distributed/" in frame.f_code.co_filename
            waits |= frame.f_code.co_name == "_engine_run_backward"
            frame = frame.f_back
        return where, waits


# This process, while it is one of several.
_current: Peers | None = None


def current() -> Peers | None:
    """Return this process among the others; None if it is alone."""
    return _current


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Watch the others for the duration of a run; after its failure, too."""
    global _current
    if not dist.is_initialized():
        yield
        return
    store = dist.distributed_c10d._get_default_store()
    _current = Peers(dist.get_rank(), dist.get_world_size(), store)
    with _current.watching():
        yield
    _current = None


def announce(message: str) -> bool:
    """Return whether this process is the one to say why it fails.

    Those that failed before say it for all; see `Peers.announce`.
    """
    if _current is None:  # not joined yet, or alone
        return os.environ.get("LOCAL_RANK", "0") == "0"
    return _current.announce(message)


def mark(limit: float) -> None:
    """Note progress of this process; see `Peers.mark`."""
    if _current is not None:
        _current.mark(limit)


def rest() -> None:
    """Do what may take any time."""
    if _current is not None:
        _current.rest()


def is_of_collective(error: Exception) -> bool:
    """Return whether a collective has failed, not the code around it."""
    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in text or "NCCL" in text)
    )


def describe_gone(ranks: set[int]) -> str:
    """Say which processes are gone."""
    names = ", ".join(map(str, sorted(ranks)))
    noun, verb = ("rank", "is") if len(ranks) == 1 else ("ranks", "are")
    return (
        f"{noun} {names} {verb} gone without a word: killed, out of memory, "
        "or cut off. The same command goes on from the last checkpoint"
    )


def identify(number: int) -> list[str]:
    """Return machine, number and start of a process of this machine.

    The machine is empty where there is no /proc; the start is where the
    process has ended.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Containers count processes for themselves.
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ["", str(number), ""]
    start = ""
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{number}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        if fields[0] not in "ZX":  # killed, and not yet waited for
            start = fields[19]
    return [f"{platform.node()} {boot} {space}", str(number), start]
