"""What a run does about its verdicts: it warns, and may stop or go back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechbrain.utils.checkpoints import Checkpoint
from speechbrain.utils.logger import get_logger

from summarymixing.errors import UserError
from summarymixing.run.processes import rank
from summarymixing.run.records import RunLog, read_log
from summarymixing.training.health import Entry, Judge

logger = get_logger(__name__)

ON_BAD_HEALTH = ("warn", "stop", "go_back")
UNHEALTHY_NAME = "unhealthy"  # in the output folder, after such a stop


class WentBack(Exception):
    """Leaves SpeechBrain's loop when an earlier checkpoint was loaded."""


class RunHealth:
    """The verdicts of a run that trains; on the main process, which has a log.

    Arguments
    ---------
    choice : str
        One of `ON_BAD_HEALTH`.
    patience_updates : int
        See `summarymixing.training.health.Judge`.
    """

    def __init__(self, choice: str, patience_updates: int) -> None:
        self.choice, self.patience_updates = choice, patience_updates
        self.judge = Judge(patience_updates)
        # What the run must act on, until it has: "raised", a line of the log.
        self.pending: Entry | None = None
        self._raised: dict[str, Entry] = {}

    def open(self, run_log: RunLog, returns: Sequence[Entry]) -> None:
        """Judge what the log holds already, and complete it.

        Arguments
        ---------
        run_log : RunLog
            The log, without what does not count any more.
        returns : sequence of dict
            Lines of the log about the returns to earlier checkpoints, which a
            kill may have kept from being written.
        """
        self.run_log, self.pending = run_log, None
        self.judge, self._raised = Judge(self.patience_updates), {}
        if rank() != 0:
            return
        entries = read_log(run_log.folder)
        for entry in entries:
            self._follow(entry)
        for line in returns:
            if line not in entries:
                run_log.write_event(line)

    def read(self, entry: Entry) -> None:
        """Judge a new entry of the log; warn once when something begins."""
        if rank() != 0:
            return
        for line in self._follow(entry):
            self.run_log.write_event(line)
            if line["event"] == "raised":
                logger.warning("%s", describe(line))
            else:
                logger.info(
                    "update %d: %s is over", line["update"], line["name"]
                )
        name = self.judge.to_act_on()
        if name and self.choice != "warn" and self.pending is None:
            self.pending = self._raised[name]

    def _follow(self, entry: Entry) -> list[Entry]:
        lines = self.judge.read(entry)
        self._raised |= {
            line["name"]: line for line in lines if line["event"] == "raised"
        }
        return lines

    def checkpoint_facts(self) -> dict[str, Any]:
        """Return what a checkpoint says of the run's health."""
        return {"healthy": not self.judge.is_suspicious()}


def describe(line: Entry) -> str:
    """Return a verdict that was raised in a sentence or two."""
    return (
        f"{line['name']}, update {line['update']} (since {line['since']}): "
        f"{line['message']}. {line['advice']}"
    )


def is_healthy(checkpoint: Checkpoint, until: int) -> bool:
    """Return whether a checkpoint was saved by then, and in good health."""
    meta = checkpoint.meta
    return bool(meta.get("healthy")) and meta["update"] <= until


def by_health(checkpoint: Checkpoint) -> tuple[bool, float]:
    """Order checkpoints: healthy ones last, and of those the latest."""
    meta = checkpoint.meta
    return bool(meta.get("healthy")), meta["unixtime"]


def mark_unhealthy(folder: Path, message: str) -> None:
    """Leave a file that keeps a requeued job from training on."""
    (folder / UNHEALTHY_NAME).write_text(f"{message}\n", encoding="utf-8")


def refuse_unhealthy(folder: Path, choice: str) -> None:
    """Raise UserError where a run was stopped for its health.

    A user who goes on says so with ``on_bad_health: warn``.
    """
    path = folder / UNHEALTHY_NAME
    if not path.exists():
        return
    if choice == "warn":
        path.unlink()
        return
    raise UserError(
        f"this run was stopped for its health: "
        f"{path.read_text(encoding='utf-8').strip()} Give other settings in "
        "another --output_folder, or go on in this one with "
        "--on_bad_health=warn."
    )
