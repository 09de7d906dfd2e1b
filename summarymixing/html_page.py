"""One self-contained HTML page: text, tables, curves and commands.

Figures are SVG inside the page; nothing is loaded from elsewhere, so the
file can be mailed or opened years later.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

# Of curves, by Okabe and Ito: told apart also by the colour-blind. The second
# ones are for dark screens.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
ON_DARK = ("#5aaeea", "#ff8a47", "#35c79b", "#e6a0c8", "#f2b53a", "#a5dcff")
GREY = "#808080"  # of what is no curve; on paper and on dark screens
# What figures are drawn with -> the property of the page that stands for it.
PROPERTIES = {
    "#ffffff": "paper",
    "#000000": "ink",
    GREY: "grey",
    **{colour: f"colour{number}" for number, colour in enumerate(COLOURS)},
}


def _define(*values: str) -> str:
    """Return CSS that gives the properties their values."""
    names = PROPERTIES.values()
    pairs = zip(names, values, strict=True)
    return "".join(f"--{name}: {value}; " for name, value in pairs)


STYLE = (
    f"""
:root {{ color-scheme: light dark; --faint: #555; --rule: #ddd; --box: #f5f5f5;
        {_define("#fff", "#1a1a1a", "#808080", *COLOURS)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{
        --faint: #aaa; --rule: #444; --box: #262626;
        {_define("#161616", "#e6e6e6", "#9a9a9a", *ON_DARK)} }} }}
"""
    + """
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
       background: var(--paper);
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
body.wide { max-width: 84rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .35rem .9rem; border-bottom: 1px solid var(--rule);
         text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid var(--faint); }
th, td { white-space: pre-line; }
div.wide { overflow-x: auto; font-size: .8rem; }
div.wide th, div.wide td { padding: .3rem .5rem; }
div.wide td { white-space: pre; }
figure { margin: 1.5rem 0; }
figure svg { width: 100%; height: auto; fill: currentColor; }
figcaption { color: var(--faint); font-size: .9rem; }
pre { background: var(--box); padding: .8rem 1rem; border-radius: 4px;
      font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere; }
p.warning { border-left: .3rem solid var(--colour1); padding-left: .7rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.5rem; }
.legend svg { width: 2.2rem; height: .7rem; margin-right: .4rem; }
.choice > input { position: absolute; opacity: 0; }
.choice > label { display: inline-block; padding: .1rem .8rem; cursor: pointer;
                  border: 1px solid var(--faint); border-radius: 1rem; }
.choice > input:checked + label { background: var(--ink);
                                  color: var(--paper); }
.choice > input:focus-visible + label { outline: 3px solid var(--colour0); }
.figures { display: none; gap: 1.2rem; margin: 1rem 0; grid-template-columns:
           repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); }
.figures > figure { margin: 0; break-inside: avoid; }
.choice > input:nth-of-type(1):checked ~ .figures:nth-of-type(1),
.choice > input:nth-of-type(2):checked ~ .figures:nth-of-type(2),
.choice > input:nth-of-type(3):checked ~ .figures:nth-of-type(3)
{ display: grid; }
@media print { .choice > input:not(:checked) + label { display: none; }
               .figures { grid-template-columns: 1fr 1fr; } }
"""
)
MOST_CHOICES = 3  # as many as STYLE knows
# A page made again, or opened again, shows what was chosen before.
REMEMBER_CHOICES = """
for (const input of document.querySelectorAll(".choice > input")) {
  const name = location.pathname + input.name;
  try {
    if (localStorage[name] === input.value) input.checked = true;
    input.addEventListener("change", () => localStorage[name] = input.value);
  } catch (error) {}  // a browser that stores nothing
}
"""

Cell = str | float | int
Log = Sequence[Mapping[str, Any]]
Panels = Mapping[str, Mapping[str, Sequence[float]]]  # encoder, task, weights

# Equal figures make equal files: names inside come from their content, and
# there is no date.
HASH_SALT = "summarymixing"
NO_DATE = {"Date": None}
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))

# A tenth of a point is not seen, and six digits would be half of a page.
COORDINATES = re.compile(r' (?:d|x|y)="[^"]*"')
MANY_DIGITS = re.compile(r"(\d\.\d)\d+")
# A page has one font: the names of matplotlib's come with every text.
FONTS = re.compile(r"('[^']*', )+(?=sans-serif)")
MANY_COLUMNS = 7  # a table with more is set smaller, and may be scrolled

LAYER_COLOURS = "Blues"
NO_WEIGHT = "0.9"  # grey of a column that is not there

# Of a page with two columns of text, in inches: 80 mm and 170 mm.
COLUMN_WIDTH = 3.15
PAGE_WIDTH = 6.7
PANELS_IN_COLUMN = 2
PANELS_ON_PAGE = 4
TASKS_IN_PANEL = 8  # names of more would touch in half a column
FONT_SIZE = 7.0  # points, as set in a paper
LAYER_HEIGHT = 0.12  # inches
MIN_HEIGHT = 0.8  # inches of all layers
SPACE_FOR_TITLE = 0.3  # inches
CHARACTER_WIDTH = 0.06  # inches, of the names below the columns


class Page:
    """An HTML page that is written piece by piece.

    Arguments
    ---------
    title : str
        What stands on top, and in the tab of a browser.
    wide : bool
        Whether it takes more of a wide screen than text is read on.

    Example
    -------
    >>> page = Page("A run")
    >>> page.table(["encoder", "WER"], [["pre-trained", 12.3]])
    >>> "12.3" in page.html()
    True
    """

    def __init__(self, title: str, wide: bool = False) -> None:
        self.title = title
        self._kind = ' class="wide"' if wide else ""
        self._parts: list[str] = []
        self._scripts: list[str] = []

    def heading(self, text: str) -> None:
        """Start a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def paragraph(self, text: str, is_warning: bool = False) -> None:
        """Add a paragraph, which may stand out as a warning."""
        kind = ' class="warning"' if is_warning else ""
        self._parts.append(f"<p{kind}>{html.escape(text)}</p>")

    def table(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        bold: Collection[tuple[int, int]] = (),
    ) -> None:
        """Add a table.

        Arguments
        ---------
        header : sequence of str
            The head of each column, which may have several lines.
        rows : sequence of sequences of str, float or int
            The cells; a float is shown with four digits.
        bold : collection of (int, int)
            Row and column of each cell that stands out.
        """
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = ""
        for number, row in enumerate(rows):
            cells = (
                f"<td>{_format(value, (number, column) in bold)}</td>"
                for column, value in enumerate(row)
            )
            body += f"<tr>{''.join(cells)}</tr>"
        kind = ' class="wide"' if len(header) > MANY_COLUMNS else ""
        self._parts.append(
            f"<div{kind}><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
        )

    def figure(self, figure: Figure, caption: str) -> None:
        """Add a matplotlib figure as SVG."""
        # Text as paths needs no fonts.
        svg = _to_svg(figure, "path", bbox_inches="tight")
        # Twice its size at most: one for a paper has small print.
        self._parts.append(
            f'<figure style="max-width:{2 * figure.get_figwidth():.1f}in">'
            f"{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"
        )

    def choice(
        self, label: str, groups: Mapping[str, Iterable[tuple[Figure, str]]]
    ) -> None:
        """Add groups of figures, of which the reader sees one at a time.

        Arguments
        ---------
        label : str
            What stands before the names of the groups.
        groups : mapping
            Name of each group -> its figures and their captions. The first
            one is seen first, also where no script runs.
        """
        assert len(groups) <= MOST_CHOICES
        name = f"choice{len(self._parts)}"
        buttons, shown = "", ""
        for number, (group, figures) in enumerate(groups.items()):
            text, checked = html.escape(group), "" if number else " checked"
            buttons += (
                f' <input type="radio" name="{name}" id="{name}-{number}" '
                f'value="{text}"{checked}>'
                f'<label for="{name}-{number}">{text}</label>'
            )
            # Text as text: many figures would repeat the paths.
            drawn = (
                f"<figure>{_to_svg(figure, 'none')}"
                f"<figcaption>{html.escape(caption)}</figcaption></figure>"
                for figure, caption in figures
            )
            shown += f'<div class="figures">{"".join(drawn)}</div>'
        self._parts.append(
            f'<div class="choice">{html.escape(label)}{buttons}{shown}</div>'
        )
        self.script(REMEMBER_CHOICES)

    def legend(self, lines: Sequence[tuple[str, str, str]]) -> None:
        """Add names with the lines that stand for them.

        Arguments
        ---------
        lines : sequence of (str, str, str)
            Name, colour (one of `PROPERTIES`) and SVG's pattern of dashes.
        """
        entries = "".join(
            f'<span><svg viewBox="0 0 22 7"><path d="M0 3.5H22" '
            f'stroke-width="3" stroke="var(--{PROPERTIES[colour]})" '
            f'stroke-dasharray="{dashes}"/></svg>{html.escape(name)}</span>'
            for name, colour, dashes in lines
        )
        self._parts.append(f'<div class="legend">{entries}</div>')

    def script(self, script: str) -> None:
        """Add JavaScript, which runs when all of the page is there."""
        if script not in self._scripts:
            self._scripts.append(script)

    def commands(self, commands: Sequence[str]) -> None:
        """Add commands as they were run, or can be."""
        text = html.escape("\n".join(commands))
        self._parts.append(f"<pre>{text}</pre>")

    def html(self) -> str:
        """Return the page."""
        title = html.escape(self.title)
        scripts = "".join(f"<script>{s}</script>" for s in self._scripts)
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width">'
            f"<title>{title}</title><style>{STYLE}</style></head>"
            f"<body{self._kind}><h1>{title}</h1>{''.join(self._parts)}"
            f"{scripts}</body></html>\n"
        )

    def write(self, path: Path) -> Path:
        """Write the page."""
        path.write_text(self.html(), encoding="utf-8")
        return path


def _to_svg(figure: Figure, font: str, **options: Any) -> str:
    """Return a figure as a part of a page, which gives it its colours."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": HASH_SALT, "svg.fonttype": font}):
        figure.savefig(buffer, format="svg", metadata=NO_METADATA, **options)
    svg = buffer.getvalue()
    svg = COORDINATES.sub(
        lambda match: MANY_DIGITS.sub(r"\1", match[0]),
        svg[svg.index("<svg") :],
    )
    svg = FONTS.sub("system-ui, ", svg)
    for colour, name in PROPERTIES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def _format(value: Cell, is_bold: bool) -> str:
    if isinstance(value, float):
        value = f"{value:.4g}"
    text = html.escape(str(value))
    return f"<b>{text}</b>" if is_bold else text


def draw_curves(
    logs: Mapping[str, Sequence[Log]], panels: Mapping[str, str]
) -> Figure:
    """Draw what the validations of runs have found, over updates.

    Arguments
    ---------
    logs : mapping
        Name in the legend -> the logs of its runs (`records.read_log`), which
        have one colour.
    panels : mapping
        Key in the logs -> title of its panel.
    """
    figure = Figure(figsize=(3.6 * len(panels), 3.0), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (key, title) in zip(axes, panels.items(), strict=True):
        for number, (name, runs) in enumerate(logs.items()):
            colour = f"C{number % 10}"
            for log in runs:
                points = [
                    (e["update"], e[key])
                    for e in log
                    if e["stage"] == "valid" and key in e
                ]
                axis.plot(*zip(*points, strict=True), color=colour, lw=1.2)
            axis.plot([], color=colour, label=name)  # once in the legend
        axis.set(title=title, xlabel="update")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if len(logs) > 1:
        axes[0].legend(frameon=False)
    return figure


def draw_layer_weights(panels: Panels, tasks: Sequence[str] = ()) -> Figure:
    """Draw figure 2 of the paper: layer weights by task, a panel an encoder.

    It is as wide as a column of a paper, or as its page where there are more
    than two panels, with text to be set at its own size. All panels have the
    same columns and the same scale; a column that an encoder lacks is grey.

    Arguments
    ---------
    panels : mapping
        Name of an encoder -> name of a task -> L + 1 weights that sum to
        one. Encoders may have unequal numbers of layers.
    tasks : sequence of str
        The columns in their order; by default those of the panels.

    Example
    -------
    >>> figure = draw_layer_weights({"mine": {"ASR": [0.1, 0.2, 0.7]}})
    >>> figure.axes[0].get_title()
    'mine'
    """
    tasks = tasks or list(dict.fromkeys(t for p in panels.values() for t in p))
    weights = [w for panel in panels.values() for w in panel.values()]
    largest, num_layers = max(map(max, weights)), max(map(len, weights))
    with rc_context({"font.size": FONT_SIZE, "axes.linewidth": 0.5}):
        figure, grid = _lay_out(panels, tasks)
        for axes, (name, panel) in zip(grid.flat, panels.items(), strict=False):
            _draw_panel(axes, panel, tasks, largest)
            axes.set_title(name, fontsize=FONT_SIZE + 1)
            if axes not in grid[:, 0]:
                axes.set_ylabel("")
        bar = figure.colorbar(
            grid[0, 0].images[0],
            ax=grid,
            aspect=min(30, 2 * num_layers) * len(grid),
            pad=0.02,
            ticks=[0, largest / 2, largest],
            format="%.2f",
        )
        bar.set_label("weight")
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=2, width=0.5)
    return figure


def _lay_out(
    panels: Panels, tasks: Sequence[str]
) -> tuple[Figure, NDArray[np.object_]]:
    """Return a figure for these panels, and their axes, (rows, columns)."""
    heights = {len(w) for panel in panels.values() for w in panel.values()}
    is_narrow = len(tasks) <= TASKS_IN_PANEL
    fits = is_narrow and len(panels) <= PANELS_IN_COLUMN
    most = PANELS_ON_PAGE if is_narrow else PANELS_IN_COLUMN
    columns = min(len(panels), most)
    rows = -(-len(panels) // columns)
    height = max(MIN_HEIGHT, LAYER_HEIGHT * max(heights)) + SPACE_FOR_TITLE
    height += CHARACTER_WIDTH * max(map(len, tasks))
    size = (COLUMN_WIDTH if fits else PAGE_WIDTH, rows * height)
    figure = Figure(figsize=size, layout="constrained")
    # Panels of one height need to number the layers once.
    once = len(heights) == 1
    grid = figure.subplots(rows, columns, squeeze=False, sharey=once)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    return figure, grid


def _draw_panel(
    axes: Axes,
    panel: Mapping[str, Sequence[float]],
    tasks: Sequence[str],
    largest: float,
) -> None:
    """Draw the weights of one encoder as colours."""
    layers = max(map(len, panel.values()))
    absent = [np.nan] * layers
    axes.imshow(
        np.array([panel.get(task, absent) for task in tasks]).T,
        cmap=colormaps[LAYER_COLOURS].with_extremes(bad=NO_WEIGHT),
        origin="lower",
        aspect="auto",
        vmin=0,
        vmax=largest,
    )
    # Lines between columns: each is a distribution of its own.
    between = np.arange(1, len(tasks)) - 0.5
    axes.vlines(between, -0.5, layers - 0.5, "white", lw=1)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 4, 5]))
    axes.set_ylabel("layer")
    axes.tick_params(axis="x", rotation=90, length=0)
    axes.tick_params(axis="y", length=2, width=0.5)


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure for print (PNG, 300 dpi) and for editing (SVG).

    Arguments
    ---------
    figure : Figure
        What is drawn.
    path : Path
        Where to write it, without a suffix.
    """
    paths = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    # Text stays text: it can be searched, and set in the font of a paper.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": HASH_SALT}):
        figure.savefig(paths[0], dpi=300)
        figure.savefig(paths[1], metadata=NO_DATE)
    return paths
