"""What a run writes down about itself, on the main process alone.

`log.jsonl` has one JSON object a line and is what reports are drawn from;
TensorBoard has the same numbers; `metrics.json` holds the latest ones.
Without further loggers no method here is a collective.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechbrain.utils.logger import get_logger
from speechbrain.utils.train_logger import TrainLogger
from torch.utils.tensorboard import SummaryWriter

from summarymixing.files import open_atomically, write_json
from summarymixing.run.output_folder import LOG_NAME
from summarymixing.run.processes import rank

logger = get_logger(__name__)

SPEECHBRAIN_STAGES = ("train", "valid", "test")


def read_log(output_folder: Path) -> list[dict[str, Any]]:
    """Read `log.jsonl` of a run, without lines torn by a kill.

    Of a stage that was done twice, since the run was killed before it could
    save, the second one counts.
    """
    path = output_folder / LOG_NAME
    if not path.exists():
        return []
    entries = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            logger.warning("%s: left out a torn line", path)
            continue
        entries[entry["stage"], entry["update"]] = entry
    return list(entries.values())


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
        self._board: SummaryWriter | None = None
        if rank() != 0:
            return
        kept = [e for e in read_log(output_folder) if e["update"] <= resumed_at]
        with open_atomically(output_folder / LOG_NAME) as file:
            file.writelines(json.dumps(entry) + "\n" for entry in kept)
        self._board = SummaryWriter(
            str(output_folder / "tensorboard"), purge_step=resumed_at + 1
        )

    def write(self, stage: str, update: int, metrics: dict[str, float]) -> None:
        """Add the metrics of a stage ("train", "valid", ...) at an update.

        Every process calls it: SpeechBrain's loggers wait for each other.
        """
        if self._board is not None:
            with (self.folder / LOG_NAME).open("a", encoding="utf-8") as file:
                entry = {"stage": stage, "update": update, **metrics}
                file.write(json.dumps(entry) + "\n")
            for name, value in metrics.items():
                self._board.add_scalar(f"{name}/{stage}", value, update)
            self._board.flush()
            shown = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
            logger.info("%s, update %d: %s", stage, update, shown)
        if stage in SPEECHBRAIN_STAGES:
            for further in self._loggers:
                further.log_stats(
                    {"epoch": update}, **{f"{stage}_stats": metrics}
                )

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Replace `metrics.json`."""
        if self._board is not None:
            write_json(self.folder / "metrics.json", metrics)
