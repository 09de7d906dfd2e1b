"""What the runs of an output folder have found."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from summarymixing.files import write_csv
from summarymixing.suite.commands import (
    LOG_NAME,
    RECORD_NAME,
    ProbeRun,
    read_metrics,
    read_record,
)
from summarymixing.suite.tasks import BenchmarkTask, benchmark_tasks, read_task

NOT_METRICS = ("epoch", "update")  # of the checkpoint that was tested
Interval = tuple[float, float]


@dataclass(frozen=True)
class RunResult:
    """One run: what it found, or that it has not."""

    encoder: str  # its name
    task: BenchmarkTask  # `as_miniature` where the corpus was one
    seed: int
    folder: Path  # the output folder of the run
    record: Mapping[str, Any]  # what `read_record` returns
    metrics: Mapping[str, Any] | None  # what `read_metrics` returns

    @property
    def state(self) -> str:
        """Return "done", "failed" or "missing"."""
        if self.metrics is not None:
            return "done"
        return "failed" if self.record.get("state") == "failed" else "missing"

    @property
    def is_miniature(self) -> bool:
        """Whether it was measured on synthetic speech."""
        return bool((self.metrics or {}).get("miniature"))

    @property
    def log(self) -> Path:
        """The log that tells why it failed."""
        return Path(self.record.get("log", self.folder / LOG_NAME))

    def splits(self) -> dict[str, Mapping[str, Any]]:
        """Return the metrics of the validation and of all tests, by split."""
        metrics = self.metrics or {}
        valid = {self.task.valid_split: metrics.get("valid", {})}
        return {**valid, **metrics.get("splits", {})}

    def value(self, split: str, metric: str) -> float | None:
        """Return one metric; None where it is not there."""
        return {(s, m): v for s, m, v in self.values()}.get((split, metric))

    def interval(self, split: str, metric: str) -> Interval | None:
        """Return the 95 % interval of a metric; None where it is not there."""
        value = self.splits().get(split, {}).get(f"{metric}_interval")
        return (value[0], value[1]) if value else None

    def values(self) -> Iterator[tuple[str, str, float]]:
        """Yield split, metric and value of all that was measured."""
        for split, metrics in self.splits().items():
            for metric, value in metrics.items():
                if metric not in NOT_METRICS and _is_number(value):
                    yield split, metric, float(value)

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
    output_folder: Path, planned: Sequence[ProbeRun] = ()
) -> list[RunResult]:
    """Read all runs: those planned, then what earlier commands have left.

    Arguments
    ---------
    output_folder : Path
        The folder of run_all.
    planned : sequence of ProbeRun
        The runs of this command; their encoders come first.

    Returns
    -------
    list of RunResult
        Encoders in the order of the plan, then of their first run; tasks in
        the order of the table; seeds ascending.
    """
    tasks = {**benchmark_tasks(), **{r.task.name: r.task for r in planned}}
    found = {r.folder: (r.encoder.name, r.task, r.seed) for r in planned}
    for path in sorted(output_folder.glob(f"*/*/seed_*/{RECORD_NAME}")):
        record = read_record(path.parent)
        name, file = str(record.get("task")), Path(record.get("file", ""))
        if name not in tasks and file.is_file():
            tasks[name] = read_task(file)  # the user's own
        if name in tasks:
            key = record["encoder"], tasks[name], record["seed"]
            found.setdefault(path.parent, key)
    results = _name_miniatures(
        [
            RunResult(*key, folder, read_record(folder), read_metrics(folder))
            for folder, key in found.items()
        ]
    )
    encoders = list(dict.fromkeys(run.encoder.name for run in planned))
    first_start: dict[str, str] = {}
    for result in results:
        start = result.record.get("started", "9")  # none: after all others
        earliest = first_start.get(result.encoder, start)
        first_start[result.encoder] = min(start, earliest)

    def place(result: RunResult) -> tuple[Any, ...]:
        name = result.encoder
        known = encoders.index(name) if name in encoders else len(encoders)
        task = _place(result.task)
        return known, first_start[name], name, task, result.seed

    return sorted(results, key=place)


def _name_miniatures(results: Sequence[RunResult]) -> list[RunResult]:
    """Call every task a miniature that was measured on one.

    A run that measured nothing goes with the others of its task.
    """
    names = {r.task.name for r in results if r.is_miniature}
    return [
        replace(r, task=r.task.as_miniature())
        if r.is_miniature or (r.metrics is None and r.task.name in names)
        else r
        for r in results
    ]


def tasks_of(results: Sequence[RunResult]) -> list[BenchmarkTask]:
    """Return the tasks of results, in the order of the table."""
    return sorted({result.task for result in results}, key=_place)


def _place(task: BenchmarkTask) -> tuple[int, str]:
    """Return where a task stands: the user's own come last, by title."""
    names = list(benchmark_tasks())
    known = task.name in names
    return names.index(task.name) if known else len(names), task.title


def write_long_csv(path: Path, results: Sequence[RunResult]) -> None:
    """Write every number, one in a line, as pandas likes it.

    A run without results has one line, without split, metric and value.

    Arguments
    ---------
    path : Path
        The file to write.
    results : sequence of RunResult
        The runs, in the order of the lines.
    """
    lead = ("encoder", "corpus", "task", "seed", "state")
    rows: list[tuple[Any, ...]] = [
        (*lead, "split", "metric", "value", "low", "high")
    ]
    for r in results:
        about = (r.encoder, r.task.corpus, r.task.name, r.seed, r.state)
        for split, metric, value in r.values():
            interval = r.interval(split, metric) or ("", "")
            rows.append((*about, split, metric, value, *interval))
        if r.metrics is None:
            rows.append((*about, "", "", "", "", ""))
    write_csv(path, rows)


def write_layer_csv(path: Path, results: Sequence[RunResult]) -> None:
    """Write the layer weights, one in a line; arguments as above."""
    header = ("encoder", "corpus", "task", "seed", "layer", "weight")
    rows = (
        (r.encoder, r.task.corpus, r.task.name, r.seed, layer, weight)
        for r in results
        for layer, weight in enumerate(r.layer_weights())
    )
    write_csv(path, [header, *rows])


def mean_layer_weights(
    results: Sequence[RunResult],
) -> dict[str, dict[str, list[float]]]:
    """Average the layer weights over seeds.

    Returns
    -------
    dict
        Encoder -> short title of the task -> L + 1 weights; only what is
        there, and no features that have no layers to choose from.
    """
    groups: dict[str, dict[str, list[list[float]]]] = {}
    for result in results:
        weights = result.layer_weights()
        if len(weights) > 1:
            tasks = groups.setdefault(result.encoder, {})
            tasks.setdefault(result.task.short_title, []).append(weights)
    return {
        encoder: {
            task: [sum(layer) / len(runs) for layer in zip(*runs, strict=True)]
            for task, runs in tasks.items()
        }
        for encoder, tasks in groups.items()
    }
