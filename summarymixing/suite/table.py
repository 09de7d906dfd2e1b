"""Table 2 for one's own encoders: means and deviations over seeds."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from summarymixing.files import open_atomically
from summarymixing.suite import paper
from summarymixing.suite.cells import DECIMALS, Cell, Column, best_rows
from summarymixing.suite.results import Result
from summarymixing.suite.tasks import TASKS

NOTHING = "-"
# Words of every command; further ones change what is compared.
USUAL = (
    "--encoder=",
    "--random_encoder=",
    "--manifests=",
    "--output_folder=",
    "--seed=",
    "--fold=all",
    "--standalone",
    "--noprogressbar",
)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Arguments
    ---------
    name, size, seeds : str
    cells : tuple of str
    best : frozenset of int
        Cells that no other measured row beats.
    """

    name: str
    size: str
    seeds: str
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()


class Table:
    """The results of all encoders, with the paper's rows below.

    Arguments
    ---------
    results : sequence of Result
        Of `read_results`; their order is that of the rows.
    """

    LEAD = ("encoder", "M", "seeds")

    def __init__(self, results: Sequence[Result]) -> None:
        self.results = results
        present = {result.task for result in results}
        self.columns = [
            Column(task, split, task.metric.key)
            for task in TASKS.values()
            if task in present
            for split in task.splits
        ]
        self.encoders = list(dict.fromkeys(r.encoder for r in results))

    def cell(self, encoder: str, column: Column) -> Cell:
        """Return the numbers of one encoder in one column."""
        runs = [
            r
            for r in self.results
            if r.encoder == encoder and r.task == column.task
        ]
        values = [run.value(column.split, column.metric) for run in runs]
        return Cell(
            tuple(value for value in values if value is not None),
            len(runs),
            any(run.state == "failed" for run in runs),
        )

    def rows(self) -> list[Row]:
        """Return the measured rows, then the paper's."""
        cells = {
            encoder: [self.cell(encoder, column) for column in self.columns]
            for encoder in self.encoders
        }
        best = {
            index: best_rows(
                [row[index].mean for row in cells.values()], column
            )
            for index, column in enumerate(self.columns)
        }
        measured = [
            Row(
                encoder,
                self._size(encoder),
                str(max((len(c.values) for c in row), default=0)),
                tuple(cell.text() for cell in row),
                frozenset(i for i in best if number in best[i]),
            )
            for number, (encoder, row) in enumerate(cells.items())
        ]
        return [*measured, *self._quoted_rows()]

    def _quoted(self) -> list[paper.Quoted]:
        """Return the rows of the paper that share a column with this table."""
        keys = {(column.task.name, column.split) for column in self.columns}
        return [row for row in paper.ROWS if keys & row.percent.keys()]

    def _quoted_rows(self) -> Iterator[Row]:
        for row in self._quoted():
            numbers = [
                row.percent.get((column.task.name, column.split))
                for column in self.columns
            ]
            yield Row(
                f"{row.name} {paper.MARK}",
                NOTHING if row.size_m is None else str(row.size_m),
                NOTHING,
                tuple(
                    NOTHING if n is None else f"{n:.{DECIMALS}f}"
                    for n in numbers
                ),
            )

    def _size(self, encoder: str) -> str:
        for result in self.results:
            if result.encoder == encoder and result.metrics:
                sizes = result.metrics.get("parameters", {})
                if "encoder" in sizes:
                    return f"{sizes['encoder'] / 1e6:.1f}"
        return NOTHING

    def notes(self) -> list[str]:
        """Return what one has to know to read it."""
        return [
            "In percent: mean ± sample deviation over seeds. Bold: no other "
            "encoder measured here is better. M: million parameters of the "
            "encoder.",
            *([paper.NOTE] if self._quoted() else []),
            *self._changes(),
        ]

    def _changes(self) -> list[str]:
        """Name what differs from the recipe files."""
        commands = [r.record.get("command", []) for r in self.results]
        words = dict.fromkeys(
            word
            for command in commands
            for word in command
            if word.startswith("--") and not word.startswith(USUAL)
        )
        if not words:
            return []
        shown = [
            f"{word} ({sum(word in command for command in commands)})"
            for word in words
        ]
        return [
            "Not as in the recipe files, with the number of runs: "
            f"{', '.join(shown)}."
        ]

    def markdown(self) -> str:
        """Return the table for a Markdown page."""
        header = [*self.LEAD, *("<br>".join(c.header) for c in self.columns)]
        lines = [header, ["---", *["---:"] * (len(header) - 1)]]
        for row in self.rows():
            cells = [
                f"**{cell}**" if index in row.best else cell
                for index, cell in enumerate(row.cells)
            ]
            lines.append([row.name, row.size, row.seeds, *cells])
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([table, *self.notes()]) + "\n"

    def write_csv(self, path: Path) -> None:
        """Write it for spreadsheets, with every split.

        Columns are TASK/SPLIT/METRIC and, for the deviation, the same with
        /std. A cell without a number says "failed" or "missing".

        Arguments
        ---------
        path : Path
        """
        columns = self._all_columns()
        names = [f"{c.task.name}/{c.split}/{c.metric}" for c in columns]
        header = ["encoder", "source", "parameters_m"]
        header += [column for n in names for column in (n, f"{n}/std")]
        with open_atomically(path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            for encoder in self.encoders:
                line = [encoder, "measured", self._size(encoder)]
                for column in columns:
                    line += _csv_cells(self.cell(encoder, column))
                writer.writerow(line)
            for row in self._quoted():
                line = [row.name, "paper", str(row.size_m or NOTHING)]
                for column in columns:
                    key = (column.task.name, column.split)
                    line += [str(row.percent.get(key, NOTHING)), NOTHING]
                writer.writerow(line)

    def _all_columns(self) -> list[Column]:
        """Return those of the table, then further splits that runs have."""
        found = dict.fromkeys(self.columns)
        for result in self.results:
            for (split, metric), _ in result.numbers():
                if metric == result.task.metric.key:
                    found.setdefault(Column(result.task, split, metric))
        return list(found)


def _csv_cells(cell: Cell) -> list[str]:
    if cell.mean is None:
        return [cell.problem, NOTHING]
    deviation = cell.deviation
    return [
        f"{cell.mean:.6g}",
        NOTHING if deviation is None else f"{deviation:.6g}",
    ]
