"""What the runs of an output folder have found."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from summarymixing.files import open_atomically
from summarymixing.suite.jobs import (
    LOG_NAME,
    RECORD_NAME,
    Run,
    read_metrics,
    read_record,
)
from summarymixing.suite.tasks import TASKS, Task

NOT_METRICS = ("epoch", "update")  # of the checkpoint that was tested
COLUMNS = ("encoder", "task", "split", "metric", "seed", "value", "state")
LAYER_COLUMNS = ("encoder", "task", "seed", "layer", "weight")


@dataclass(frozen=True)
class Result:
    """One run: what it found, or that it has not.

    Arguments
    ---------
    encoder : str
        Name.
    task : Task
    seed : int
    folder : Path
    record : mapping
        As `read_record` returns it.
    metrics : mapping, optional
        As `read_metrics` returns it.
    """

    encoder: str
    task: Task
    seed: int
    folder: Path
    record: Mapping[str, Any]
    metrics: Mapping[str, Any] | None

    @property
    def state(self) -> str:
        """Return "done", "failed" or "missing"."""
        if self.metrics is not None:
            return "done"
        return "failed" if self.record.get("state") == "failed" else "missing"

    @property
    def log(self) -> Path:
        """Return the log that tells why it failed."""
        return Path(self.record.get("log", self.folder / LOG_NAME))

    def value(self, split: str, metric: str) -> float | None:
        """Return a number of a test; None where it is not there."""
        return dict(self._numbers()).get((split, metric))

    def numbers(self) -> list[tuple[tuple[str, str], float]]:
        """Return ((split, metric), value) of all tests and the validation."""
        return list(self._numbers())

    def _numbers(self) -> Iterator[tuple[tuple[str, str], float]]:
        metrics = self.metrics or {}
        groups = {
            self.task.valid_split: metrics.get("valid", {}),
            **metrics.get("splits", {}),
        }
        for split, numbers in groups.items():
            for metric, value in numbers.items():
                if metric not in NOT_METRICS and _is_number(value):
                    yield (split, metric), float(value)

    def layer_weights(self) -> list[float]:
        """Return the L + 1 weights; empty where the run is not done."""
        weights = (self.metrics or {}).get("layer_weights") or []
        return [float(weight) for weight in weights]


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def read_results(
    output_folder: Path, planned: Sequence[Run] = ()
) -> list[Result]:
    """Read all runs: those planned, then what earlier commands have left.

    Arguments
    ---------
    output_folder : Path
    planned : sequence of Run
        Their encoders come first.

    Returns
    -------
    list of Result
        Encoders in the order of the plan, then of their first run; tasks in
        the order of the table; seeds ascending.
    """
    found = {
        run.folder: (run.encoder.name, run.task, run.seed) for run in planned
    }
    for path in output_folder.glob(f"*/*/seed_*/{RECORD_NAME}"):
        record = read_record(path.parent)
        if record.get("task") in TASKS:
            key = record["encoder"], TASKS[record["task"]], record["seed"]
            found.setdefault(path.parent, key)
    results = [
        Result(*key, folder, read_record(folder), read_metrics(folder))
        for folder, key in found.items()
    ]
    first_start: dict[str, str] = {}
    for result in results:
        start = result.record.get("started", "9")  # none: after all others
        earliest = first_start.get(result.encoder, start)
        first_start[result.encoder] = min(start, earliest)
    encoders = list(dict.fromkeys(run.encoder.name for run in planned))
    encoders += sorted(
        set(first_start) - set(encoders),
        key=lambda name: (first_start[name], name),
    )
    tasks = list(TASKS.values())
    return sorted(
        results,
        key=lambda r: (
            encoders.index(r.encoder),
            tasks.index(r.task),
            r.seed,
        ),
    )


def write_long_csv(path: Path, results: Sequence[Result]) -> None:
    """Write every number, one in a line, as pandas likes it.

    A run without results has one line, without split, metric and value.

    Arguments
    ---------
    path : Path
    results : sequence of Result
    """
    with open_atomically(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for r in results:
            head = r.encoder, r.task.name
            for (split, metric), value in r.numbers():
                writer.writerow([*head, split, metric, r.seed, value, r.state])
            if r.metrics is None:
                writer.writerow([*head, "", "", r.seed, "", r.state])


def write_layer_csv(path: Path, results: Sequence[Result]) -> None:
    """Write the layer weights, one in a line.

    Arguments
    ---------
    path : Path
    results : sequence of Result
    """
    with open_atomically(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(LAYER_COLUMNS)
        for r in results:
            for layer, weight in enumerate(r.layer_weights()):
                writer.writerow([r.encoder, r.task.name, r.seed, layer, weight])


def mean_layer_weights(
    results: Sequence[Result],
) -> dict[str, dict[str, list[float]]]:
    """Average the layer weights over seeds.

    Returns
    -------
    dict
        Encoder -> short name of the task -> L + 1 weights; only what is
        there, and no features that have no layers to choose from.
    """
    groups: dict[str, dict[str, list[list[float]]]] = {}
    for result in results:
        weights = result.layer_weights()
        if len(weights) > 1:
            tasks = groups.setdefault(result.encoder, {})
            tasks.setdefault(result.task.short, []).append(weights)
    return {
        encoder: {
            task: [sum(layer) / len(runs) for layer in zip(*runs, strict=True)]
            for task, runs in tasks.items()
        }
        for encoder, tasks in groups.items()
    }
