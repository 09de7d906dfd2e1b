"""Requests to save and stop: the signals of schedulers and torchrun."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

import torch
import torch.distributed as dist

from summarymixing.data.batching import STOP_SIGNALS


class Stopped(Exception):
    """Leaves SpeechBrain's loop after a stop was asked for and saved.

    A recipe that ends without it is complete, whatever it was asked.
    """


class StopRequests:
    """Remembers a signal that asks the run to save and stop.

    The first SIGTERM or SIGUSR1 is remembered; a later one ends the process
    at once, except one within ECHO_SECONDS: where a scheduler signals every
    process, and the parent passes on its own, each child gets two.
    """

    ECHO_SECONDS = 2.0

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Remember signals instead of dying of them."""
        self.received = None
        owner = os.getpid()

        def remember(number: int, frame: FrameType | None) -> None:
            now = time.monotonic()
            is_worker = os.getpid() != owner
            if self.received is None and not is_worker:
                self.received, self._received_at = signal.Signals(number), now
            elif is_worker or now - self._received_at > self.ECHO_SECONDS:
                # A forked worker must die when its parent ends it.
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)

        before = {n: signal.signal(n, remember) for n in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


# The signals of this process; there is one set of handlers in a process.
STOP = StopRequests()


def stop_requested() -> bool:
    """Return whether this process was asked to save and stop."""
    return STOP.received is not None


def stop_reason() -> str:
    """Return which signal asked; a rank may learn it from another one."""
    return STOP.received.name if STOP.received else "another rank"


def stop_requested_anywhere() -> bool:
    """Return whether any rank was asked to stop.

    A collective: every rank must call it at the same update.
    """
    if not dist.is_initialized():
        return stop_requested()
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    asked = torch.tensor(int(stop_requested()), device=device)
    dist.all_reduce(asked, dist.ReduceOp.MAX)
    return bool(asked.item())
