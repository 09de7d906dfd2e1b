"""The files that are made of the results: tables, figure 2 and a page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from summarymixing.files import open_atomically
from summarymixing.suite.jobs import (
    LOG_NAME,
    RECORD_NAME,
    Run,
    read_record,
    read_tail,
)
from summarymixing.suite.results import (
    Result,
    mean_layer_weights,
    read_results,
    write_layer_csv,
    write_long_csv,
)
from summarymixing.suite.runner import duration
from summarymixing.suite.table import Table
from summarymixing.suite.tasks import TASKS, Task

FIGURE = "layer_weights"
PAGE = "report.html"
CURVES = {"loss": "loss", "wer": "WER (%)", "accuracy": "accuracy (%)"}
CURVES["error_rate"] = "error rate (%)"


def write_all(
    output_folder: Path,
    planned: Sequence[Run] = (),
    notes: Sequence[str] = (),
) -> list[Path]:
    """Write the tables, the figure and the page from what is there.

    Arguments
    ---------
    output_folder : Path
    planned : sequence of Run
        Runs that belong to the table even before they have begun.
    notes : sequence of str
        For the page: what else a reader has to know.

    Returns
    -------
    list of Path
        The files; none where there is nothing to show.
    """
    results = read_results(output_folder, planned)
    if not results:
        return []
    table = Table(results)
    files = [
        output_folder / name
        for name in ("table.md", "table.csv", "results.csv", f"{FIGURE}.csv")
    ]
    with open_atomically(files[0]) as file:
        file.write(table.markdown())
    table.write_csv(files[1])
    write_long_csv(files[2], results)
    write_layer_csv(files[3], results)
    # Imported late: matplotlib is for those who have something to draw.
    from summarymixing.html_page import Report, save_figure

    report = Report("MP3S: probes of frozen encoders")
    weights = mean_layer_weights(results)
    _add_table(report, table, [*notes, *_count(results)])
    if weights:
        figure = _draw_layers(report, weights)
        files += save_figure(figure, output_folder / FIGURE)
    _add_curves(report, results)
    _add_failures(report, output_folder, results)
    _add_commands(report, output_folder, results)
    return [*files, report.write(output_folder / PAGE)]


def _count(results: Sequence[Result]) -> list[str]:
    """Say how much of the table is there."""
    states = [result.state for result in results]
    counts = {s: states.count(s) for s in ("done", "failed", "missing")}
    shown = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    return [f"Runs: {shown}."]


def _add_table(report: Any, table: Table, notes: Sequence[str]) -> None:
    from summarymixing.html_page import Strong

    report.table(
        [*table.LEAD, *("\n".join(c.header) for c in table.columns)],
        [
            [
                row.name,
                row.size,
                row.seeds,
                *(
                    Strong(cell) if index in row.best else cell
                    for index, cell in enumerate(row.cells)
                ),
            ]
            for row in table.rows()
        ],
    )
    for note in (*table.notes(), *notes):
        report.paragraph(note)


def _draw_layers(
    report: Any, weights: Mapping[str, Mapping[str, Sequence[float]]]
) -> Any:
    from summarymixing.html_page import draw_layer_panels

    shown = {task for columns in weights.values() for task in columns}
    tasks = [t.short for t in TASKS.values() if t.short in shown]
    figure = draw_layer_panels(weights, tasks)
    report.heading("Which layers does each task listen to?")
    report.figure(
        figure,
        "Softmax weights of the hidden states, one column a task, averaged "
        "over seeds; layer 0 is the input of the first layer.",
    )
    return figure


def _add_curves(report: Any, results: Sequence[Result]) -> None:
    """Add the validation of every run, a figure a task."""
    from summarymixing.html_page import draw_curves

    for task in dict.fromkeys(result.task for result in results):
        of_task = {
            f"{r.encoder}, seed {r.seed}{name}": (r.encoder, log)
            for r in results
            if r.task == task
            for name, log in _read_logs(r.folder).items()
        }
        panels = _find_panels(task, [log for _, log in of_task.values()])
        if panels:
            report.heading(f"Validation: {task.title}")
            figure = draw_curves(
                {name: log for name, (_, log) in of_task.items()},
                panels,
                groups={name: group for name, (group, _) in of_task.items()},
            )
            report.figure(figure, "After each epoch; a line for each seed.")


def _read_logs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the log of a run, or those of its folds."""
    # Imported late: it imports torch.
    from summarymixing.run.records import read_log

    if own := read_log(folder):
        return {"": own}
    paths = sorted(folder.glob("*/log.jsonl"))
    return {f", {p.parent.name}": read_log(p.parent) for p in paths}


def _find_panels(
    task: Task, logs: Sequence[Sequence[Mapping[str, Any]]]
) -> dict[str, str]:
    """Return the numbers of a task that any validation has."""
    entries = [e for log in logs for e in log if e["stage"] == "valid"]
    return {
        key: CURVES[key]
        for key in task.curves
        if any(key in entry for entry in entries)
    }


def _add_failures(
    report: Any, output_folder: Path, results: Sequence[Result]
) -> None:
    failed = [result for result in results if result.state == "failed"]
    if not failed:
        return
    report.heading("What failed")
    for result in failed:
        name = f"{result.encoder}, {result.task.name}, seed {result.seed}"
        log = result.log
        if log.is_relative_to(output_folder):
            log = log.relative_to(output_folder)
        report.paragraph(f"{name}; the end of {log}:")
        report.commands([read_tail(result.log)])


def _add_commands(
    report: Any, output_folder: Path, results: Sequence[Result]
) -> None:
    """Add what was run, as it can be run again from the repository."""
    report.heading("What was run")
    report.paragraph(
        "In the folder of the repository. Each run has the output of its "
        f"command beside its results, in {LOG_NAME}."
    )
    pattern = f"preparation/*/{RECORD_NAME}"
    records = [
        read_record(path.parent) for path in sorted(output_folder.glob(pattern))
    ]
    records += [dict(r.record) for r in results if "seconds" in r.record]
    lines = []
    for record in records:
        spent = duration(record.get("seconds", 0))
        lines.append(f"# {record.get('state')}, {spent}")
        lines.append(shlex.join(record.get("command", [])))
    report.commands(lines)
