"""One number of the table: over seeds, as text, and against the others."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from summarymixing.suite.tasks import Task

DECIMALS = 1  # as the paper prints


@dataclass(frozen=True)
class Column:
    """A number of a task.

    Arguments
    ---------
    task : Task
    split : str
    metric : str
        Key of the number.
    """

    task: Task
    split: str
    metric: str

    @property
    def header(self) -> list[str]:
        """Return the lines of its header."""
        says_more = self.task.splits not in (("test",), ("utterances",))
        split = f"{self.split} " if says_more else ""
        return [self.task.title, f"{split}{self.task.metric.title}"]


@dataclass(frozen=True)
class Cell:
    """The runs of an encoder on a column.

    Arguments
    ---------
    values : tuple of float
        One for each seed that has it.
    num_runs : int
        Seeds that should have it.
    any_failed : bool
    """

    values: tuple[float, ...]
    num_runs: int
    any_failed: bool

    @property
    def mean(self) -> float | None:
        """Return the mean over seeds."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Return the sample deviation; None for less than two seeds."""
        return statistics.stdev(self.values) if self.values[1:] else None

    @property
    def problem(self) -> str:
        """Return why there is no number."""
        return "failed" if self.any_failed else "missing"

    def text(self) -> str:
        """Return what the table shows.

        Example
        -------
        >>> Cell((17.0, 18.0), 3, True).text()
        '17.5 ± 0.7 (2 of 3)'
        >>> Cell((), 3, True).text()
        'failed'
        """
        if self.mean is None:
            return self.problem
        text = f"{self.mean:.{DECIMALS}f}"
        if self.deviation is not None:
            text += f" ± {self.deviation:.{DECIMALS}f}"
        if len(self.values) < self.num_runs:
            text += f" ({len(self.values)} of {self.num_runs})"
        return text


def best_rows(means: Sequence[float | None], column: Column) -> set[int]:
    """Return the rows that are best as printed; none where one is alone.

    Arguments
    ---------
    means : sequence of float or None
        One for each row.
    column : Column

    Returns
    -------
    set of int
    """
    printed = {
        row: round(mean, DECIMALS)
        for row, mean in enumerate(means)
        if mean is not None
    }
    if len(printed) < 2:
        return set()
    metric = column.task.metric
    best = (min if metric.lower_is_better else max)(printed.values())
    return {row for row, mean in printed.items() if mean == best}
