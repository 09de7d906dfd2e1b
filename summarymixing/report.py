"""One self-contained HTML page: text, tables, curves and commands.

Figures are SVG inside the page; nothing is loaded from elsewhere, so the
file can be mailed or opened years later.
"""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .35rem .9rem; border-bottom: 1px solid #ddd;
         text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #555; }
figure { margin: 1.5rem 0; } figure svg { width: 100%; height: auto; }
figcaption { color: #555; font-size: .9rem; }
pre { background: #f5f5f5; padding: .8rem 1rem; overflow-x: auto;
      border-radius: 4px; font-size: .85rem; }
"""

Cell = str | float | int

DARK = 0.6  # weight above which text on the cell is white


class Report:
    """An HTML page that is written piece by piece.

    Arguments
    ---------
    title : str

    Example
    -------
    >>> report = Report("A run")
    >>> report.table(["encoder", "WER"], [["pre-trained", 12.3]])
    >>> "12.3" in report.html()
    True
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        """Start a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[Cell]]
    ) -> None:
        """Add a table; numbers are shown with four digits."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join(
            "<tr>" + "".join(f"<td>{_cell(c)}</td>" for c in row) + "</tr>"
            for row in rows
        )
        self._parts.append(
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
            f"</table>"
        )

    def figure(self, figure: Figure, caption: str) -> None:
        """Add a matplotlib figure as SVG."""
        buffer = io.StringIO()
        # Text as paths needs no fonts; no date makes equal pages equal.
        figure.savefig(
            buffer, format="svg", bbox_inches="tight", metadata={"Date": None}
        )
        svg = buffer.getvalue()
        svg = svg[svg.index("<svg") :]
        self._parts.append(
            f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption>"
            f"</figure>"
        )

    def commands(self, commands: Sequence[str]) -> None:
        """Add commands as they were run, or can be."""
        text = html.escape("\n".join(commands))
        self._parts.append(f"<pre>{text}</pre>")

    def html(self) -> str:
        """Return the page."""
        title = html.escape(self.title)
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width">'
            f"<title>{title}</title><style>{STYLE}</style></head>"
            f"<body><h1>{title}</h1>{''.join(self._parts)}</body></html>\n"
        )

    def write(self, path: Path) -> Path:
        """Write the page."""
        path.write_text(self.html(), encoding="utf-8")
        return path


def _cell(value: Cell) -> str:
    if isinstance(value, float):
        value = f"{value:.4g}"
    return html.escape(str(value))


def draw_curves(
    logs: Mapping[str, Sequence[Mapping[str, Any]]],
    panels: Mapping[str, str],
    stage: str = "valid",
) -> Figure:
    """Draw numbers of one or more runs over updates, one panel a number.

    Arguments
    ---------
    logs : mapping
        Name of a run -> entries of its `log.jsonl` (`records.read_log`).
    panels : mapping
        Key in the log -> title of its panel.
    stage : str
        "train" or "valid".

    Returns
    -------
    Figure
    """
    figure = Figure(figsize=(3.6 * len(panels), 3.0), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (key, title) in zip(axes, panels.items(), strict=True):
        for name, entries in logs.items():
            points = [
                (entry["update"], entry[key])
                for entry in entries
                if entry["stage"] == stage and key in entry
            ]
            if points:
                axis.plot(*zip(*points, strict=True), label=name)
        axis.set(title=title, xlabel="update")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if len(logs) > 1:
        axes[0].legend(frameon=False)
    return figure


def draw_layer_columns(columns: Mapping[str, Sequence[float]]) -> Figure:
    """Draw layer weights as figure 2 of the paper: darker is larger.

    Arguments
    ---------
    columns : mapping
        Name of a task or encoder -> L + 1 weights that sum to one; layer 0,
        the input of the first layer, is at the bottom.

    Returns
    -------
    Figure

    Example
    -------
    >>> figure = draw_layer_columns({"ASR": [0.1, 0.2, 0.7]})
    >>> len(figure.axes[0].texts)
    3
    """
    table = np.array(list(columns.values())).T  # (L + 1, columns)
    layers, width = table.shape
    figure = Figure(
        figsize=(1.2 * width + 1.5, 0.32 * layers + 1.0), layout="constrained"
    )
    axes = figure.subplots()
    axes.imshow(
        table, cmap="Blues", origin="lower", aspect="auto", vmin=0, vmax=1
    )
    for (layer, column), weight in np.ndenumerate(table):
        colour = "white" if weight > DARK else "black"
        axes.text(
            column,
            layer,
            f"{weight:.2f}",
            ha="center",
            va="center",
            color=colour,
            fontsize=9,
        )
    axes.set_xticks(range(width), list(columns))
    axes.set_yticks(range(layers))
    axes.set_ylabel("layer")
    return figure
