"""What a run writes down about itself, on the main process alone.

`log.jsonl` has one JSON object a line and is what reports are drawn from;
TensorBoard has the same numbers; `metrics.json` holds the latest ones.
Without further loggers no method here is a collective, and none that fails
ends a run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from speechbrain.utils.logger import get_logger
from speechbrain.utils.train_logger import TrainLogger
from torch.utils.tensorboard import SummaryWriter

from summarymixing.errors import UserError
from summarymixing.files import describe_os_error, open_atomically, write_json
from summarymixing.run.output_folder import LOG_NAME
from summarymixing.run.processes import on_main_process, rank

logger = get_logger(__name__)

Entry = dict[str, Any]  # of the log: stage, update, and the metrics

SPEECHBRAIN_STAGES = ("train", "valid", "test")


def read_log(output_folder: Path) -> list[dict[str, Any]]:
    """Read `log.jsonl` of a run, without lines torn by a kill.

    Of a stage that was done twice, since the run was killed before it could
    save, the second one counts. Verdicts are as many as there are names.
    """
    path = output_folder / LOG_NAME
    if not path.exists():
        return []
    entries = {}
    # A crash of the machine may leave bytes that are no text.
    text = path.read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            logger.warning("%s: left out a torn line", path)
            continue
        entries[_key(entry)] = entry
    return list(entries.values())


def read_metrics(output_folder: Path) -> list[dict[str, Any]]:
    """Read `log.jsonl` of a run, but for events such as verdicts."""
    return [e for e in read_log(output_folder) if "event" not in e]


def _key(entry: Entry) -> tuple[Any, ...]:
    names = "stage", "update", "name", "event", "from_update"
    return tuple(entry.get(name) for name in names)


class RunLog:
    """Metrics of a run, by update.

    Arguments
    ---------
    output_folder : Path
        The folder of the run.
    resumed_at : int
        Last update that counts: entries beyond it were made by a run that
        stopped after its last checkpoint, and are made again.
    loggers : TrainLogger or sequence of TrainLogger, optional
        Further loggers of SpeechBrain, for example
        `speechbrain.utils.train_logger.WandBLogger`; the update is their
        `epoch`, which WandBLogger takes as its step.

    Example
    -------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> log = RunLog(folder)
    >>> log.write("train", 1, {"loss": 4.6})
    >>> read_log(folder)
    [{'stage': 'train', 'update': 1, 'loss': 4.6}]
    """

    def __init__(
        self,
        output_folder: Path,
        resumed_at: int = 0,
        loggers: TrainLogger | Sequence[TrainLogger] | None = None,
    ) -> None:
        self.folder = output_folder
        self._loggers = (
            [loggers] if isinstance(loggers, TrainLogger) else (loggers or ())
        )
        self._outputs: dict[_LogFile | _Board, list[Entry]] = {}
        self._is_failing = False
        if rank() != 0:
            return
        kept = [e for e in read_log(output_folder) if e["update"] <= resumed_at]
        try:
            log_file = _LogFile(output_folder / LOG_NAME, kept)
        except OSError as error:
            raise UserError(describe_os_error(error)) from error
        board = _Board(output_folder / "tensorboard", resumed_at + 1)
        self._outputs = {log_file: [], board: []}

    def write(self, stage: str, update: int, metrics: dict[str, float]) -> None:
        """Add the metrics of a stage ("train", "valid", ...) at an update.

        Every process calls it: SpeechBrain's loggers wait for each other.
        No failure here ends a run: what could not be written is kept and
        written later. A further logger that fails misses an entry.
        """
        if self._outputs:
            self._write_down({"stage": stage, "update": update, **metrics})
            shown = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
            logger.info("%s, update %d: %s", stage, update, shown)
        if stage in SPEECHBRAIN_STAGES:
            for further in self._loggers:
                log = partial(
                    further.log_stats,
                    {"epoch": update},
                    **{f"{stage}_stats": metrics},
                )
                on_main_process(partial(self._try, log))

    def write_event(self, entry: Entry) -> None:
        """Add a line that holds more than numbers: stage, update, the rest.

        TensorBoard takes a verdict as 1 when it is raised, else 0.
        """
        if self._outputs:
            self._write_down(entry)

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Replace `metrics.json`; where that fails, the log says so."""
        if self._outputs:
            try:
                write_json(self.folder / "metrics.json", metrics)
            except Exception as error:
                self._report(error)

    def _try(self, log: Callable[[], None]) -> None:
        """Call a further logger, which may be anything."""
        try:
            log()
        except Exception as error:
            logger.warning("a logger failed, training goes on: %r", error)

    def _write_down(self, entry: Entry) -> None:
        """Add an entry, and those that wait, to the file and the board."""
        for waiting in self._outputs.values():
            waiting.append(entry)
        try:
            for output, waiting in self._outputs.items():
                output.write(waiting)
                waiting.clear()
        except Exception as error:
            self._report(error)
        else:
            if self._is_failing:
                logger.info("the metrics are written again, with none missing")
            self._is_failing = False

    def _report(self, error: Exception) -> None:
        """Warn when writing begins to fail, not each time."""
        cause = repr(error)
        if isinstance(error, OSError):
            cause = describe_os_error(error)
        if not self._is_failing:
            self._is_failing = True
            logger.warning(
                "metrics cannot be written; training goes on, and they are "
                "kept until they can be: %s",
                cause,
            )


class _LogFile:
    """`log.jsonl`, without what a failed write may leave at its end."""

    def __init__(self, path: Path, entries: Iterable[Entry]) -> None:
        self.path = path
        with open_atomically(path, binary=True) as file:
            file.write(_to_lines(entries))
        self._num_bytes = path.stat().st_size  # that are known to be whole

    def write(self, entries: Iterable[Entry]) -> None:
        """Append entries; OSError if they are not all written."""
        with open(self.path, "ab") as file:
            size = file.seek(0, os.SEEK_END)
            if size > self._num_bytes:
                file.truncate(self._num_bytes)
            whole = min(size, self._num_bytes)
            lines = _to_lines(entries)
            file.write(lines)
        # Network file systems may refuse a write as late as at the close.
        self._num_bytes = whole + len(lines)


class _Board:
    """TensorBoard, whose writer does not survive an error."""

    def __init__(self, folder: Path, first_update: int) -> None:
        self.folder = folder
        self._purge_step: int | None = first_update
        self._writer: SummaryWriter | None = None

    def write(self, entries: Iterable[Entry]) -> None:
        """Add entries; OSError if they are not all written."""
        try:
            if self._writer is None:
                self._writer = SummaryWriter(
                    str(self.folder), purge_step=self._purge_step
                )
                self._purge_step = None
            for entry in entries:
                metrics = dict(entry)
                stage, update = metrics.pop("stage"), metrics.pop("update")
                if stage == "verdict":
                    is_raised = float(entry["event"] == "raised")
                    metrics = {entry["name"]: is_raised}
                for name, value in metrics.items():
                    self._writer.add_scalar(f"{name}/{stage}", value, update)
            self._writer.flush()
        except Exception:
            self._writer = None
            raise


def _to_lines(entries: Iterable[Entry]) -> bytes:
    return "".join(f"{json.dumps(entry)}\n" for entry in entries).encode()
