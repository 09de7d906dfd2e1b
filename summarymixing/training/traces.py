"""A trace of a few updates, for Perfetto or chrome://tracing."""

from __future__ import annotations

from pathlib import Path

import torch
from speechbrain.utils.logger import get_logger

from summarymixing.errors import UserError
from summarymixing.run.processes import rank

logger = get_logger(__name__)

UPDATES_BEFORE = 5  # in which caches fill and kernels are chosen
MOST_UPDATES = 20  # more make a file that no viewer opens


class TraceOfUpdates:
    """Record some updates of this run, once, on the main process.

    Arguments
    ---------
    path : Path
        The file; its name ends in .json.gz.
    num_updates : int
        How many to record after UPDATES_BEFORE others; 0 for none. Fewer are
        where a validation begins.

    Raises
    ------
    UserError
        If num_updates is no whole number from 0 to MOST_UPDATES.
    """

    def __init__(self, path: Path, num_updates: int) -> None:
        if type(num_updates) is not int or not 0 <= num_updates <= MOST_UPDATES:
            raise UserError(
                "profile_updates must be a whole number from 0 to "
                f"{MOST_UPDATES}, not {num_updates!r}."
            )
        self.path = path
        self.first = UPDATES_BEFORE if num_updates and rank() == 0 else None
        self.num_updates, self.done = num_updates, 0
        self._profiler: torch.profiler.profile | None = None

    def end_update(self) -> None:
        """Begin or end the recording, where it is time."""
        self.done += 1
        if self.done == self.first:
            self._profiler = torch.profiler.profile(acc_events=True)
            self._profiler.start()
        elif self.first and self.done == self.first + self.num_updates:
            self.end_stage()

    def end_stage(self) -> None:
        """Write what is recorded, if anything is."""
        if self._profiler is None:
            return
        self._profiler.stop()
        self._profiler.export_chrome_trace(str(self.path))
        self._profiler = None
        logger.info("%s has a trace of some updates", self.path)
