"""Curves of runs of pre-training, a panel for each number."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullLocator,
    StrMethodFormatter,
)
from numpy.typing import NDArray

from summarymixing.html_page import COLOURS, GREY
from summarymixing.run.history import CLOCK, Curve, RunHistory, Series, thin
from summarymixing.run.records import Entry
from summarymixing.training.health import band_of, judge

# A panel, in inches, and its axes as shares: names of runs stand at the right.
PANEL_SIZE = (4.4, 2.7)
PANEL_AXES = {"left": 0.13, "right": 0.78, "bottom": 0.16, "top": 0.88}
FONT_SIZE = 8.5
NUMBER = StrMethodFormatter("{x:,.6g}")
LABEL_LENGTH = 13  # characters
LABEL_HEIGHT = 0.08  # of the axes: names come no nearer to each other
MOST_LABELS = 8  # of more runs the legend alone has the names
LANE_HEIGHT = 0.4  # inches, of a verdict

MOST_PLACES, PLACES_OF_ALL = 200, 360  # of a curve; of all curves in a panel
REFERENCE_PLACES = 40
MANY_VALIDATIONS = 40  # beyond these they have no dots of their own
UNHEALTHY = COLOURS[1]
DASHES = ((), (6, 2), (2, 2))  # colours come again with other dashes

# A few extremes may lie outside of a panel, rather than flatten the rest.
CORE = (2.0, 98.0)  # percentiles
MOST_OF_CORE = 5.0  # times their distance
MARGIN = 0.05  # of the height, above and below
WIDE = 30.0  # high over low of a logarithmic axis with ticks at 1, 10, ...


class Panel(NamedTuple):
    """One number over the course of runs."""

    title: str
    key: str  # in the log; "layer_*_rank": the last one of these by name
    of: str = ""  # the number of the same entry that it is a share of
    percent: bool = False
    is_log: bool = False
    of_machine: bool = False  # hence not of a reference
    healthy: str = ""  # the name that `band_of` has for it, if another one
    caption: str = ""


GRADIENT_PARTS = ("front_end", "input", "conformer", "quantiser", "head")
PANELS = (
    Panel("loss", "loss"),
    Panel(
        "contrastive accuracy (%)",
        "accuracy",
        percent=True,
        caption="It means little where few codes are in use.",
    ),
    Panel(
        "ABX errors across speakers (%)",
        "abx_across",
        percent=True,
        caption="Of runs with valid_items; a collapse shows here.",
    ),
    Panel("codes in use (% of all)", "code_perplexity", "codes", percent=True),
    Panel("norm of the gradient", "gradient_norm", is_log=True),
    Panel(
        "variance of the latents (share of their square)",
        "latent_variance_share",
        caption="0 where all latents are the same.",
    ),
    Panel("effective rank of the latents", "latents_rank"),
    Panel("effective rank of the output", "layer_*_rank"),
    Panel("learning rate", "learning_rate"),
    Panel(
        "audio (hours per hour)",
        "audio_hours_per_hour",
        of_machine=True,
        caption="All processes together, while they train.",
    ),
    Panel(
        "time spent waiting for audio (%)",
        "seconds_waited_for_data",
        "seconds_training",
        percent=True,
        of_machine=True,
        healthy="waited_share",
        caption="Of the process that waited longest.",
    ),
    Panel(
        "slowest process (times the median)",
        "slowest_rank_ratio",
        of_machine=True,
    ),
    Panel("masked frames (%)", "masked_share", percent=True),
    *(
        Panel(
            f"norm of the gradient: {part.replace('_', ' ')}",
            f"gradient_norm_{part}",
            is_log=True,
        )
        for part in GRADIENT_PARTS
    ),
)


class Episode(NamedTuple):
    """A verdict, from where its condition began to where it was cleared."""

    verdict: str
    since: float  # update
    until: float | None  # update; None while it lasts
    text: str


class Shown(NamedTuple):
    """A run, and how it is drawn."""

    name: str
    run: RunHistory
    colour: str
    dashes: tuple[int, ...]
    episodes: Sequence[Episode]

    @property
    def lasting(self) -> list[Episode]:
        """The verdicts that hold."""
        return [e for e in self.episodes if e.until is None]

    @property
    def label(self) -> str:
        """As much of the name as stands beside a curve."""
        if len(self.name) <= LABEL_LENGTH:
            return self.name
        return f"{self.name[: LABEL_LENGTH - 1]}…"

    @property
    def line(self) -> dict[str, Any]:
        """The keywords of matplotlib for its lines."""
        style = (0, self.dashes) if self.dashes else "solid"
        return {"color": self.colour, "linestyle": style}


def prepare(runs: Mapping[str, RunHistory]) -> list[Shown]:
    """Give each run, by name, its colour and dashes, and find its verdicts."""
    return [
        Shown(
            name,
            run,
            COLOURS[number % len(COLOURS)],
            DASHES[number // len(COLOURS) % len(DASHES)],
            episodes_of(run),
        )
        for number, (name, run) in enumerate(runs.items())
    ]


def episodes_of(run: RunHistory) -> list[Episode]:
    """Return the verdicts that a run has logged, in the order of updates.

    Those of an earlier version, which logged none, are made from its numbers.
    """
    lines: Iterable[Entry] = run.of_stage("verdict")
    if not any("masked_share" in entry for entry in run.entries):
        lines = judge(run.entries)
    found: list[Episode] = []
    for line in lines:
        name = str(line["name"]).replace("_", " ")
        update = float(line["update"])
        if line["event"] == "cleared":
            found = [
                e._replace(until=update)
                if e.verdict == name and e.until is None
                else e
                for e in found
            ]
            continue
        told = (str(line.get(key, "")) for key in ("message", "advice"))
        text = " ".join(
            f"{part[0].upper()}{part[1:].rstrip('.')}." for part in told if part
        )
        if line["event"] == "raised":
            since = line.get("since", update)
            found.append(Episode(name, since, None, text))
        else:
            found.append(Episode(f"{name}: went back", update, update, text))
    return found


def draw_panels(
    runs: Sequence[Shown], reference: RunHistory | None, axis: str
) -> Iterator[tuple[Figure, str]]:
    """Draw every number that a run has.

    Arguments
    ---------
    runs : sequence of Shown
        At least one.
    reference : RunHistory, optional
        A run to draw in grey, as far as the others have come.
    axis : str
        What they are drawn over, a key of `RunHistory.places`.

    Yields
    ------
    (Figure, str)
        A panel and its caption.
    """
    # Names with dollar signs are no formulae.
    with rc_context({"font.size": FONT_SIZE, "text.parse_math": False}):
        if any(shown.episodes for shown in runs):
            caption = "Verdicts, from where the condition began."
            yield _draw_verdicts(runs, axis), caption
        for panel in PANELS:
            drawing = PanelDrawing(panel, runs, axis)
            if not drawing.is_empty:
                if not (reference is None or panel.of_machine or axis == CLOCK):
                    drawing.add_reference(reference)
                yield drawing.finish(), drawing.caption


def _make_axes(
    title: str, axis: str, end: float, height: float
) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(PANEL_SIZE[0], height))
    axes = figure.subplots()
    share = PANEL_SIZE[1] / height
    figure.subplots_adjust(
        left=PANEL_AXES["left"],
        right=PANEL_AXES["right"],
        bottom=PANEL_AXES["bottom"] * share,
        top=1 - (1 - PANEL_AXES["top"]) * share,
    )
    axes.set_title(title, loc="left", fontsize=FONT_SIZE + 1, weight="bold")
    axes.set_xlabel(axis)
    axes.set_xlim(0, end)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(NUMBER)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _end_of(runs: Sequence[Shown], axis: str) -> float:
    """Return how far the runs have come."""
    ends = [s.run.places[axis][-1] for s in runs if s.run.entries]
    return float(max(ends, default=0)) or 1.0


def _draw_verdicts(runs: Sequence[Shown], axis: str) -> Figure:
    """Draw when each verdict held, one lane a verdict of a run."""
    lanes = [
        (shown, verdict)
        for shown in runs
        for verdict in dict.fromkeys(e.verdict for e in shown.episodes)
    ]
    height = max(PANEL_SIZE[1], 0.9 + LANE_HEIGHT * len(lanes))
    figure, axes = _make_axes("verdicts", axis, _end_of(runs, axis), height)
    for number, (shown, verdict) in enumerate(lanes):
        for episode in shown.episodes:
            if episode.verdict == verdict:
                since, until = episode.since, episode.until
                if until is None:
                    until = shown.run.update
                ends = [shown.run.place_of(u, axis) for u in (since, until)]
                axes.plot(ends, [number] * 2, color=shown.colour, lw=5)
        axes.annotate(
            f"{shown.label}: {verdict}",
            (0, number),
            (3, 5),
            textcoords="offset points",
        )
    axes.set_ylim(len(lanes) - 0.5, -0.8)
    axes.set_yticks([])
    return figure


class PanelDrawing:
    """A panel that is drawn piece by piece.

    Arguments
    ---------
    panel : Panel
        What is drawn.
    runs : sequence of Shown
        At least one.
    axis : str
        What it is drawn over, a key of `RunHistory.places`.
    """

    def __init__(self, panel: Panel, runs: Sequence[Shown], axis: str) -> None:
        self.panel, self.runs, self.axis = panel, runs, axis
        self.end = _end_of(runs, axis)
        self.figure, self.axes = _make_axes(
            panel.title, axis, self.end, PANEL_SIZE[1]
        )
        if panel.is_log:
            self.axes.set_yscale("log")
        self.axes.yaxis.set_major_formatter(NUMBER)
        self.core: list[float] = []  # what must be seen
        self.curves: list[tuple[Curve, str]] = []  # and their colours
        self.labels: list[tuple[float, Shown]] = []  # at these values
        self.is_finite = True
        for shown in runs:
            self._add_run(shown)

    @property
    def is_empty(self) -> bool:
        """Whether no run has logged this."""
        return not self.curves and self.is_finite

    @property
    def caption(self) -> str:
        """What is written below it."""
        added = "" if self.is_finite else "x: not finite."
        return f"{self.panel.caption} {added}".strip()

    def _series(self, run: RunHistory, stage: str) -> Series:
        key = self.panel.key
        if "*" in key:
            names = {name for e in run.of_stage(stage) for name in e}
            key = max(fnmatch.filter(names, key), default=key)
        series = run.series(stage, key, self.panel.of, self.axis)
        if self.panel.percent:
            series = series._replace(values=100 * series.values)
        return series

    def _add_run(self, shown: Shown) -> None:
        """Draw training thin and validation strong, and where verdicts are."""
        found = {}
        for stage in ("train", "valid"):
            series = self._series(shown.run, stage)
            self._mark_not_finite(series, shown.colour)
            if len(series.finite().values):
                found[stage] = series.finite()
        most = min(MOST_PLACES, PLACES_OF_ALL // len(self.runs))
        for stage, series in found.items():
            curve = thin(series, most)
            self._add_range(curve, shown.colour)
            look: dict[str, Any] = {"lw": 0.9, "alpha": 0.7}
            if stage == "valid":
                is_short = len(curve.places) <= MANY_VALIDATIONS
                look = {"lw": 1.7, "marker": "o" if is_short else "", "ms": 3}
            self.axes.plot(curve.places, curve.means, **shown.line, **look)
            # Where it ends; of one entry there is no line.
            end = curve.places[-1:], curve.means[-1:]
            self.axes.plot(*end, "o", color=shown.colour, ms=3, clip_on=False)
        if not found:
            return
        self.labels.append((list(found.values())[-1].values[-1], shown))
        starts = [
            shown.run.place_of(episode.since, self.axis)
            for episode in shown.episodes
        ]
        self._mark_edge(starts, 1.0, "v", shown.colour)

    def _add_range(self, curve: Curve, colour: str) -> None:
        """Draw the extremes of a curve, and remember them."""
        if curve.is_thinned:
            self._fill(curve, color=colour, alpha=0.2)
        self._see(curve)
        self.curves.append((curve, colour))

    def _fill(self, curve: Curve, **look: Any) -> None:
        """Fill a curve from its smallest to its largest values."""
        bounds = curve.lows, curve.highs
        self.axes.fill_between(curve.places, *bounds, lw=0, **look)

    def _see(self, curve: Curve) -> None:
        """Keep nearly all of a curve within the limits."""
        low, high = CORE
        self.core.append(float(np.percentile(curve.lows, low)))
        self.core.append(float(np.percentile(curve.highs, high)))

    def _mark_not_finite(self, series: Series, colour: str) -> None:
        places = series.places[~np.isfinite(series.values)]
        self._mark_edge(places, 0.03, "x", colour)
        self.is_finite &= not len(places)

    def _mark_edge(
        self,
        places: Sequence[float] | NDArray[np.float64],
        height: float,
        marker: str,
        colour: str,
        **look: Any,
    ) -> None:
        """Mark places at a height of the axes."""
        if len(places):
            self.axes.plot(
                places,
                np.full(len(places), height),
                marker,
                ms=5,
                color=colour,
                clip_on=False,
                transform=self.axes.get_xaxis_transform(),
                **look,
            )

    def add_reference(self, reference: RunHistory) -> None:
        """Draw a run in grey, as far as the others have come."""
        for stage in ("train", "valid"):
            series = self._series(reference, stage).finite()
            kept = series.places <= self.end
            series = Series(series.places[kept], series.values[kept])
            if len(series.places) < 2:
                continue
            curve = thin(series, REFERENCE_PLACES)
            self._see(curve)
            self._fill(curve, color=GREY, alpha=0.35, zorder=0.5)
            if not curve.is_thinned:
                self.axes.plot(
                    curve.places,
                    curve.means,
                    color=GREY,
                    lw=3.5,
                    alpha=0.5,
                    zorder=0.5,
                )

    def finish(self) -> Figure:
        """Set the limits, and add what depends on them."""
        if self.curves:
            self._set_limits()
        self._shade_unhealthy()
        self._add_labels()
        return self.figure

    def _set_limits(self) -> None:
        """Show everything, unless a few extremes would flatten the rest."""
        low = min(self.core + [c.lows.min() for c, _ in self.curves])
        high = max(self.core + [c.highs.max() for c, _ in self.curves])
        if self.panel.is_log:
            digits = (1.0,) if high > WIDE * low else (1.0, 2.0, 5.0)
            self.axes.yaxis.set_major_locator(
                LogLocator(subs=digits, numticks=7)
            )
            self.axes.yaxis.set_minor_locator(NullLocator())
            return
        spread = max(self.core) - min(self.core) or abs(max(self.core))
        if room := MOST_OF_CORE * spread:
            low = max(low, min(self.core) - room)
            high = min(high, max(self.core) + room)
        margin = MARGIN * ((high - low) or abs(high) or 1.0)
        self.axes.set_ylim(low - margin, high + margin)
        for curve, colour in self.curves:
            above, below = curve.highs > high, curve.lows < low
            self._mark_edge(curve.places[above], 0.96, "^", colour, mfc="none")
            self._mark_edge(curve.places[below], 0.04, "v", colour, mfc="none")

    def _shade_unhealthy(self) -> None:
        """Shade what is beyond the bounds that the runs should keep."""
        name = self.panel.healthy or self.panel.key
        bounds: dict[str, tuple[list[float | None], str]] = {}
        for shown in self.runs:
            for entry in shown.run.of_stage("train")[-1:]:
                found = [self._scale(b, entry) for b in band_of(name, entry)]
                # That of chance differs from batch to batch: no two bounds.
                alike = str([b if b is None else f"{b:.1g}" for b in found])
                bounds.setdefault(alike, (found, shown.colour))
        bottom, top = self.axes.get_ylim()
        for (low, high), colour in bounds.values():
            # Bounds of their own, such as of other codebooks, have the
            # colours of their runs.
            colour = colour if len(bounds) > 1 else UNHEALTHY
            # Not the margin beyond all values.
            if low is not None and low > bottom + MARGIN * (top - bottom):
                self.axes.axhspan(bottom, low, color=colour, alpha=0.12, lw=0)
            if high is not None and high < top - MARGIN * (top - bottom):
                self.axes.axhspan(high, top, color=colour, alpha=0.12, lw=0)
        self.axes.set_ylim(bottom, top)

    def _scale(self, bound: float | None, entry: Entry) -> float | None:
        """Turn a bound of the log into the unit of the panel."""
        if bound is None:
            return None
        if self.panel.of and not self.panel.healthy:
            bound /= entry[self.panel.of]
        return 100 * bound if self.panel.percent else bound

    def _add_labels(self) -> None:
        """Write the name of each run beside the end of its curve."""
        if len(self.labels) > MOST_LABELS:
            return
        to_axes = self.axes.transData + self.axes.transAxes.inverted()
        ends = [
            (float(to_axes.transform((0, value))[1]), shown)
            for value, shown in self.labels
        ]
        ends.sort(key=lambda end: end[0])
        last, heights = -math.inf, []
        for height, _ in ends:
            last = max(min(height, 1.0), 0.0, last + LABEL_HEIGHT)
            heights.append(last)
        too_high = max(last - 1.0, 0.0)
        for height, (_, shown) in zip(heights, ends, strict=True):
            self.axes.text(
                1.02,
                height - too_high,
                shown.label,
                color=shown.colour,
                va="center",
                transform=self.axes.transAxes,
            )
