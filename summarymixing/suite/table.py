"""Table 2 of the paper for your own encoders: means, deviations, intervals.

The paper's own rows stand below: Zhang, Parcollet, van Dalen, Bhattacharya:
Linear-Complexity Self-Supervised Learning for Speech Processing. Interspeech
2024.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from summarymixing.files import write_csv
from summarymixing.suite.results import (
    Interval,
    RunResult,
    tasks_of,
)
from summarymixing.suite.tasks import PAPER_COLUMNS, BenchmarkTask

DECIMALS = 1  # as the paper prints
LEAD = ("encoder", "M", "seeds")
NO_VALUE = "-"
PAPER_MARK = "[paper]"
PAPER_NOTE = (
    f"Rows marked {PAPER_MARK} are quoted from table 2 of Zhang et al., "
    "Interspeech 2024; nothing in them was measured here. The last four are "
    "from the literature and were pre-trained on other data. Their one "
    "LibriSpeech number is listed under ContextNet, which is how we read that "
    "table."
)
# Name, million parameters (the table names those of its own models and of the
# first two large ones; the text has that of w2v2 base) and PAPER_COLUMNS.
PAPER_ROWS = (
    ("MHSA", "165", "21.4 21.3 48.8 50.8 43.6 44.0 78.1 64.8 2.6"),
    ("SummaryMixing", "155", "17.3 17.2 45.7 48.3 41.4 42.1 80.5 64.3 2.4"),
    ("w2v2 base", "95", "- 14.9 - 54.5 - 51.3 77.7 73.2 2.8"),
    ("w2v2 large", "317", "- 9.3 - 45.4 - 38.0 79.0 68.4 3.2"),
    ("HuBERT large", "317", "- 8.1 - 51.2 - 46.2 80.1 71.6 3.8"),
    ("data2vec large", "-", "- 6.5 - 44.3 - 38.2 79.9 71.3 2.7"),
)
# Words of every command; other ones change what is compared.
USUAL_WORDS = (
    "--encoder=",
    "--random_encoder=",
    "--manifests=",
    "--items=",
    "--audio=",
    "--output_folder=",
    "--seed=",
    "--fold=all",
    "--standalone",
    "--noprogressbar",
)


@dataclass(frozen=True)
class TableCell:
    """The runs of an encoder on a column."""

    values: tuple[float, ...]  # the metric, for each seed that has it
    intervals: tuple[Interval, ...] = ()  # 95 %, for each seed that has one
    num_runs: int = 1  # how many seeds should have it
    any_failed: bool = False  # whether one of them failed

    @property
    def mean(self) -> float | None:
        """The mean over seeds."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The sample deviation over seeds; None for less than two."""
        return statistics.stdev(self.values) if self.values[1:] else None

    @property
    def interval(self) -> Interval | None:
        """The interval of a run, as a mean over seeds.

        All seeds share one test set, so more of them do not narrow it.
        """
        if not self.intervals:
            return None
        low, high = map(statistics.fmean, zip(*self.intervals, strict=True))
        return low, high

    @property
    def problem(self) -> str:
        """The reason why there is no value."""
        return "failed" if self.any_failed else "missing"

    def text(self) -> str:
        r"""Return what the table shows.

        Example
        -------
        >>> TableCell((17.0, 18.0), ((16.0, 18.0), (17.0, 19.0)), 3).text()
        '17.5 ± 0.7 (2 of 3)\n[16.5, 18.5]'
        >>> TableCell((), any_failed=True).text()
        'failed'
        """
        if self.mean is None:
            return self.problem
        text = f"{self.mean:.{DECIMALS}f}"
        if self.deviation is not None:
            text += f" ± {self.deviation:.{DECIMALS}f}"
        if len(self.values) < self.num_runs:
            text += f" ({len(self.values)} of {self.num_runs})"
        if self.interval is not None:
            low, high = self.interval
            text += f"\n[{low:.{DECIMALS}f}, {high:.{DECIMALS}f}]"
        return text


@dataclass(frozen=True)
class TableRow:
    """A line of the table."""

    lead: tuple[str, ...]  # what stands below `LEAD`
    cells: tuple[str, ...]  # what stands in the other columns
    best: frozenset[int] = frozenset()  # those no other measured row beats


class Table:
    """The results of all encoders, with the paper's rows below.

    Arguments
    ---------
    results : sequence of RunResult
        What `read_results` returns; the rows keep its order.
    """

    def __init__(self, results: Sequence[RunResult]) -> None:
        self.results = results
        self.columns = [
            (task, split) for task in tasks_of(results) for split in task.splits
        ]
        self.encoders = list(dict.fromkeys(r.encoder for r in results))

    def header(self) -> list[str]:
        """Return the head of each column, in lines."""
        return [*LEAD, *(self._head(*column) for column in self.columns)]

    def _head(self, task: BenchmarkTask, split: str) -> str:
        name = f"{split} " if len(task.test_splits) > 1 else ""
        lines = [task.title, f"{name}{task.metric_title}"]
        for unit in ("trials", "utterances"):
            runs = [
                r.value(split, unit) for r in self.results if r.task == task
            ]
            counts = sorted({int(count) for count in runs if count})
            if counts:
                lines.append(f"{' or '.join(f'{n:,}' for n in counts)} {unit}")
                break
        return "\n".join(lines)

    def cell(self, encoder: str, task: BenchmarkTask, split: str) -> TableCell:
        """Return what one encoder has in one column."""
        runs = [
            r for r in self.results if (r.encoder, r.task) == (encoder, task)
        ]
        values = (run.value(split, task.metric) for run in runs)
        intervals = (run.interval(split, task.metric) for run in runs)
        return TableCell(
            tuple(value for value in values if value is not None),
            tuple(filter(None, intervals)),
            len(runs),
            any(run.state == "failed" for run in runs),
        )

    def rows(self) -> list[TableRow]:
        """Return the measured rows, then the paper's."""
        cells = {
            encoder: [self.cell(encoder, *column) for column in self.columns]
            for encoder in self.encoders
        }
        columns = zip(*cells.values(), strict=True)
        best = [
            _best(task, column)
            for (task, _), column in zip(self.columns, columns, strict=True)
        ]
        rows = []
        for encoder, row in cells.items():
            seeds = max((len(cell.values) for cell in row), default=0)
            lead = (encoder, self._size(encoder), str(seeds))
            is_best = (i for i, cell in enumerate(row) if cell in best[i])
            texts = tuple(cell.text() for cell in row)
            rows.append(TableRow(lead, texts, frozenset(is_best)))
        return [*rows, *self._quoted_rows()]

    def _quoted_rows(self) -> list[TableRow]:
        """Return the rows of the paper that have a number in this table."""
        rows = []
        for name, size, numbers in PAPER_ROWS:
            quoted = dict(zip(PAPER_COLUMNS, numbers.split(), strict=True))
            cells = tuple(
                NO_VALUE
                if t.is_miniature
                else quoted.get((t.name, s), NO_VALUE)
                for t, s in self.columns
            )
            if any(cell != NO_VALUE for cell in cells):
                lead = (f"{name} {PAPER_MARK}", size, NO_VALUE)
                rows.append(TableRow(lead, cells))
        return rows

    def _size(self, encoder: str) -> str:
        for result in self.results:
            if result.encoder == encoder and result.metrics:
                sizes = result.metrics.get("parameters", {})
                if "encoder" in sizes:
                    return f"{sizes['encoder'] / 1e6:.1f}"
        return NO_VALUE

    def notes(self) -> list[str]:
        """Return what one has to know to read it."""
        tasks = [task for task, _ in self.columns]
        notes = [
            "In percent: mean ± sample deviation over seeds. Below it, the 95 "
            "% interval by bootstrap over the utterances of the test (for EER "
            "over its speakers where they are 10 or more): how far another "
            "test set of this size could move the number. Bold: no other "
            "encoder measured here is better. M: million parameters of the "
            "encoder."
        ]
        if any(task.is_miniature for task in tasks):
            notes.append(
                "A miniature is synthetic speech in the layout of the corpus "
                "it is named after: its numbers compare encoders on this page "
                "and nothing else."
            )
        if self._quoted_rows():
            notes.append(PAPER_NOTE)
        return [*notes, *self._changes()]

    def _changes(self) -> list[str]:
        """Name what differs from the YAML files."""
        commands = [r.record.get("command", []) for r in self.results]
        counts = Counter(
            word
            for command in commands
            for word in dict.fromkeys(command)
            if word.startswith("--") and not word.startswith(USUAL_WORDS)
        )
        shown = ", ".join(f"{word} ({count})" for word, count in counts.items())
        if not shown:
            return []
        return [f"Not as in the YAML files, with the number of runs: {shown}."]

    def markdown(self) -> str:
        """Return the table for a Markdown page."""
        lines = [self.header(), ["---"] + ["---:"] * (len(self.header()) - 1)]
        for row in self.rows():
            cells = [
                f"**{cell}**" if index in row.best else cell
                for index, cell in enumerate(row.cells)
            ]
            lines.append([*row.lead, *cells])
        table = "\n".join(
            f"| {' | '.join(line)} |".replace("\n", "<br>") for line in lines
        )
        return "\n\n".join([table, *self.notes()]) + "\n"

    def write_csv(self, path: Path) -> None:
        """Write it for spreadsheets, with every split.

        Columns are TASK/SPLIT/METRIC, and the same with /std, /low and
        /high for the deviation and the interval. A cell without a number
        says "failed" or "missing".

        Arguments
        ---------
        path : Path
            The file to write.
        """
        further = (
            (result.task, split)
            for result in self.results
            for split, metric, _ in result.values()
            if metric == result.task.metric
        )
        columns = dict.fromkeys([*self.columns, *further])
        header = ["encoder", "source", "parameters_m"]
        for task, split in columns:
            kind = "miniature " if task.is_miniature else ""
            name = f"{kind}{task.name}/{split}/{task.metric}"
            header += [name, f"{name}/std", f"{name}/low", f"{name}/high"]
        lines = [header]
        for encoder in self.encoders:
            line = [encoder, "measured", self._size(encoder)]
            for task, split in columns:
                cell = self.cell(encoder, task, split)
                interval = cell.interval or (None, None)
                numbers = (cell.mean, cell.deviation, *interval)
                texts = [NO_VALUE if n is None else f"{n:.6g}" for n in numbers]
                line += texts if cell.values else [cell.problem, *texts[1:]]
            lines.append(line)
        for row in self._quoted_rows():
            name = row.lead[0].removesuffix(f" {PAPER_MARK}")
            line = [name, "paper", row.lead[1]]
            for value in row.cells:
                line += [value, NO_VALUE, NO_VALUE, NO_VALUE]
            lines.append(line + [NO_VALUE] * (len(header) - len(line)))
        write_csv(path, lines)


def _best(task: BenchmarkTask, cells: Sequence[TableCell]) -> list[TableCell]:
    """Return the cells that are best as printed; none where one is alone."""
    printed = {
        index: round(cell.mean, DECIMALS)
        for index, cell in enumerate(cells)
        if cell.mean is not None
    }
    if len(printed) < 2:
        return []
    best = (max if task.higher_is_better else min)(printed.values())
    return [cells[index] for index, mean in printed.items() if mean == best]
