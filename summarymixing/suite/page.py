"""The files that are made of the results: tables, figure 2 and a page."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from summarymixing.files import open_atomically
from summarymixing.html_page import (
    Page,
    draw_curves,
    draw_layer_weights,
    save_figure,
)
from summarymixing.run.records import read_metrics
from summarymixing.suite.commands import (
    LOG_NAME,
    RECORD_NAME,
    ProbeRun,
    read_record,
    read_tail,
)
from summarymixing.suite.results import (
    RunResult,
    mean_layer_weights,
    read_results,
    tasks_of,
    write_layer_csv,
    write_long_csv,
)
from summarymixing.suite.runner import duration
from summarymixing.suite.table import LEAD, Table
from summarymixing.suite.tasks import BenchmarkTask

FIGURE = "layer_weights"


def write_outputs(
    output_folder: Path,
    planned: Sequence[ProbeRun] = (),
    notes: Sequence[str] = (),
) -> list[Path]:
    """Write the tables, the figure and the page from what is there.

    Arguments
    ---------
    output_folder : Path
        The folder of run_all.
    planned : sequence of ProbeRun
        Runs that belong to the table even before they have begun.
    notes : sequence of str
        What else a reader of the page has to know.

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
    page = Page("MP3S: probes of frozen encoders")
    _add_table(page, table, [*notes, _count(results)])
    if weights := mean_layer_weights(results):
        figure = _add_layers(page, weights, tasks_of(results))
        files += save_figure(figure, output_folder / FIGURE)
    for task in tasks_of(results):
        _add_curves(page, task, [r for r in results if r.task == task])
    _add_failures(page, output_folder, results)
    _add_commands(page, output_folder, results)
    return [*files, page.write(output_folder / "report.html")]


def _count(results: Sequence[RunResult]) -> str:
    """Say how much of the table is there."""
    count = Counter(result.state for result in results)
    states = [s for s in ("done", "failed", "missing") if count[s]]
    return f"Runs: {', '.join(f'{count[s]} {s}' for s in states)}."


def _add_table(page: Page, table: Table, notes: Sequence[str]) -> None:
    rows = table.rows()
    bold = [
        (number, len(LEAD) + column)
        for number, row in enumerate(rows)
        for column in row.best
    ]
    page.table(table.header(), [[*r.lead, *r.cells] for r in rows], bold)
    for note in (*table.notes(), *notes):
        page.paragraph(note)


def _add_layers(
    page: Page,
    weights: Mapping[str, Mapping[str, Sequence[float]]],
    tasks: Sequence[BenchmarkTask],
) -> Figure:
    shown = {title for columns in weights.values() for title in columns}
    titles = [t.short_title for t in tasks if t.short_title in shown]
    figure = draw_layer_weights(weights, titles)
    page.heading("Which layers does each task use?")
    page.figure(
        figure,
        "Softmax weights of the hidden states, one column a task, averaged "
        "over seeds; layer 0 is the input of the first layer.",
    )
    return figure


def _add_curves(
    page: Page, task: BenchmarkTask, results: Sequence[RunResult]
) -> None:
    """Add a figure with the validation of every run of a task."""
    logs: dict[str, list[list[dict[str, Any]]]] = {}
    for result in results:
        # A run of all folds has its logs one folder below.
        folds = sorted(p.parent for p in result.folder.glob("*/log.jsonl"))
        for folder in (result.folder, *folds):
            if log := read_metrics(folder):
                logs.setdefault(result.encoder, []).append(log)
    panels = _find_panels(task, [log for runs in logs.values() for log in runs])
    if panels:
        page.heading(f"Validation: {task.title}")
        figure = draw_curves(logs, panels)
        page.figure(figure, "After each epoch; a line for each run.")


def _find_panels(
    task: BenchmarkTask, logs: Sequence[Sequence[Mapping[str, Any]]]
) -> dict[str, str]:
    """Return the loss, and the metric or what else selects the epoch."""
    entries = [e for log in logs for e in log if e["stage"] == "valid"]
    found = {key for entry in entries for key in entry}
    key = str(task.hparams.tree["select_by"])
    title = key.replace("_", " ")
    if task.metric in found:
        key, title = task.metric, f"{task.metric_label} (%)"
    panels = {"loss": "loss", key: title}
    return {key: title for key, title in panels.items() if key in found}


def _add_failures(
    page: Page, output_folder: Path, results: Sequence[RunResult]
) -> None:
    failed = [result for result in results if result.state == "failed"]
    if failed:
        page.heading("What failed")
    for result in failed:
        log = result.log
        if log.is_relative_to(output_folder):
            log = log.relative_to(output_folder)
        page.paragraph(
            f"{result.encoder}, {result.task.name}, seed {result.seed}; the "
            f"end of {log}:"
        )
        page.commands([read_tail(result.log)])


def _add_commands(
    page: Page, output_folder: Path, results: Sequence[RunResult]
) -> None:
    """Add what was run, as it can be run again from the repository."""
    page.heading("What was run")
    page.paragraph(
        "In the folder of the repository. Each run has the output of its "
        f"command beside its results, in {LOG_NAME}."
    )
    preparations = sorted(output_folder.glob(f"preparation/*/{RECORD_NAME}"))
    records = [read_record(path.parent) for path in preparations]
    records += [dict(r.record) for r in results if "seconds" in r.record]
    lines = []
    for record in records:
        spent = duration(record.get("seconds", 0))
        lines.append(f"# {record.get('state')}, {spent}")
        lines.append(shlex.join(record.get("command", [])))
    page.commands(lines)
