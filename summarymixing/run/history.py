"""What the folder of a run tells, also while the run goes on.

Nothing is executed and nothing is written: settings are read as text, and the
lock of the folder is looked at, not taken.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml.error import YAMLError

from summarymixing.errors import STOPPED_NAME, UserError
from summarymixing.run.hparams_file import HparamsFile
from summarymixing.run.output_folder import LOCK_NAME, LOG_NAME
from summarymixing.run.records import Entry, read_log
from summarymixing.run.yaml_trees import OUTPUT_FOLDER, flatten

Floats = NDArray[np.float64]

SETTINGS_NAME = "hyperparams.yaml"
HEADER = re.compile(r"# Written on (\S+) by:\n# (.*)")
ABSENT = "-"  # in place of a value, in a comparison of settings

# A run whose log has not grown for so long is called silent.
SILENT_S = 600.0  # at least
SILENT_INTERVALS = 5  # or so many times the time between its latest entries
# What counts as the present speed of a run.
LATEST_SHARE = 0.1  # of its updates
LATEST_ENTRIES = 5  # at least

# What entries of the log are drawn over.
UPDATES, AUDIO, CLOCK = "updates", "hours of audio", "hours of the clock"
# Of an entry: together they are the time since the one before it.
SECONDS = (
    "seconds_training",
    "seconds_validating",
    "seconds_saving",
    "seconds_compiling",
)

# Where a run stands.
EMPTY, DONE, STOPPED = "nothing logged yet", "done", "stopped"
GOING_ON, SILENT, ENDED = "going on", "silent", "ended early"


class Start(NamedTuple):
    """What a run was started with, once or again with other settings."""

    date: str  # "" where the file does not say it
    command: str
    settings: HparamsFile


def settings_of(start: Start) -> dict[str, str]:
    """Return settings by dotted names, as a user would type them."""
    return dict(flatten(start.settings.tree))


class Series(NamedTuple):
    """One metric of one stage, in the order of updates."""

    places: Floats  # (N,), on the axis that was asked for
    values: Floats  # (N,), NaN where the log has NaN or null

    def finite(self) -> Series:
        """Return it without NaN and infinite values."""
        kept = np.isfinite(self.values)
        return Series(self.places[kept], self.values[kept])


@dataclass(frozen=True)
class RunHistory:
    """A run as its folder tells it.

    Arguments
    ---------
    folder : Path
        The output folder.
    entries : sequence of dict
        The log, by update.
    starts : sequence of Start
        Earliest first; without those whose files are gone or torn.
    modified : float
        When the log was written last, as `time.time` counts; 0 where there is
        none.
    stopped : str
        What the file `stopped` says; "" where there is none.
    is_locked : bool
        Whether the folder belongs to a run that goes on, or was killed.
    """

    folder: Path
    entries: Sequence[Entry]
    starts: Sequence[Start] = ()
    modified: float = 0.0
    stopped: str = ""
    is_locked: bool = False

    @cached_property
    def settings(self) -> dict[str, str]:
        """The latest settings, see `settings_of`; empty where none are left."""
        return settings_of(self.starts[-1]) if self.starts else {}

    @property
    def update(self) -> int:
        """The last update that the log speaks of."""
        return int(self.entries[-1]["update"]) if self.entries else 0

    @property
    def max_updates(self) -> int | None:
        """The number of updates that the run is to make, where it is known."""
        value = self.settings.get("max_updates", "")
        return int(value) if value.isdigit() else None

    def of_stage(self, *stages: str) -> list[Entry]:
        """Return the entries of stages, in the order of updates."""
        return [entry for entry in self.entries if entry["stage"] in stages]

    def series(
        self, stage: str, key: str, of: str = "", axis: str = UPDATES
    ) -> Series:
        """Return a metric of a stage, or its share of another one.

        Arguments
        ---------
        stage : str
            "train", "valid".
        key : str
            The metric's name in the log.
        of : str
            The metric that it is divided by, if any.
        axis : str
            A key of `places`.
        """
        found, values = [], []
        for number, entry in enumerate(self.entries):
            if entry["stage"] == stage and key in entry:
                value = _to_float(entry[key])
                if of:
                    whole = _to_float(entry.get(of))
                    value = value / whole if whole else np.nan
                found.append(number)
                values.append(value)
        return Series(self.places[axis][found], np.array(values, float))

    def latest(self, stage: str, key: str) -> float | None:
        """Return the last value of a metric, perhaps NaN; None without any."""
        values = self.series(stage, key).values
        return float(values[-1]) if len(values) else None

    @cached_property
    def places(self) -> dict[str, Floats]:
        """Where each entry stands: on each axis (entries,).

        The clock counts training, validation and saving, and not the time
        between the end of a run and its next start. Version 0.1.0 logged no
        seconds of validation and saving.
        """
        updates, audio, clock = [], [], []
        hours = elapsed = 0.0
        for entry in self.entries:
            hours = max(_to_float(entry.get("audio_hours"), hours), hours)
            for key in SECONDS:
                elapsed += max(_to_float(entry.get(key), 0.0), 0.0) / 3600
            updates.append(entry["update"])
            audio.append(hours)
            clock.append(elapsed)
        places = {UPDATES: updates, AUDIO: audio, CLOCK: clock}
        return {
            axis: np.array(values, float) for axis, values in places.items()
        }

    def place_of(self, update: float, axis: str) -> float:
        """Return where an update stands on an axis."""
        updates, places = (
            np.concatenate([[0.0], self.places[name]])
            for name in (UPDATES, axis)
        )
        return float(np.interp(update, updates, places))

    def state(self, now: float) -> str:
        """Say where the run stands at a time, as `time.time` counts."""
        if self.max_updates is not None and self.update >= self.max_updates:
            return DONE
        if self.stopped:
            return STOPPED
        if not self.is_locked:
            return ENDED if self.entries else EMPTY
        gaps = np.diff(self.places[CLOCK][-LATEST_ENTRIES:]) * 3600
        patience = max(SILENT_S, SILENT_INTERVALS * max(gaps, default=0))
        if self.modified and now - self.modified > patience:
            return SILENT
        return GOING_ON if self.entries else EMPTY

    def hours_left(self) -> float | None:
        """Return hours of the clock up to the last update, at this speed."""
        if self.max_updates is None:
            return None
        updates, clock = self.places[UPDATES], self.places[CLOCK]
        recent = updates >= (1 - LATEST_SHARE) * self.update
        recent[-LATEST_ENTRIES:] = True
        if not len(updates) or np.ptp(updates[recent]) == 0:
            return None
        pace = np.ptp(clock[recent]) / np.ptp(updates[recent])
        return float(max(self.max_updates - self.update, 0) * pace)


def read_run(folder: Path) -> RunHistory:
    """Read the folder of a run.

    Arguments
    ---------
    folder : Path
        Its output folder. UserError where it is not there, or is none.

    Returns
    -------
    RunHistory
        What is there so far.
    """
    log, lock = folder / LOG_NAME, folder / LOCK_NAME
    if not (log.exists() or lock.exists() or list(_settings_files(folder))):
        raise UserError(_what_is_wrong(folder))
    starts = list(_read_starts(folder))
    settings = settings_of(starts[-1]) if starts else {}
    entries = sorted(read_log(folder), key=lambda entry: entry["update"])
    return RunHistory(
        folder,
        list(_complete(entries, settings)),
        starts,
        modified=log.stat().st_mtime if log.exists() else 0.0,
        stopped=_read(folder / STOPPED_NAME).strip(),
        is_locked=bool(_read(lock)),
    )


def fingerprint(folder: Path) -> list[tuple[str, int, int]]:
    """Return what changes when `read_run` would find something new."""
    found = []
    files = LOG_NAME, LOCK_NAME, STOPPED_NAME
    for path in (*map(folder.joinpath, files), *_settings_files(folder)):
        if path.exists():
            status = path.stat()
            found.append((path.name, status.st_mtime_ns, status.st_size))
    return found


def name_runs(folders: Sequence[Path]) -> list[str]:
    """Return short names of folders: no more of the path than tells them apart.

    Example
    -------
    >>> name_runs([Path("results/base"), Path("results/large")])
    ['base', 'large']
    >>> name_runs([Path("day1/base"), Path("day2/base")])
    ['day1/base', 'day2/base']
    """
    paths = [folder.resolve() for folder in folders]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        common = os.path.commonpath(paths)
        names = [os.path.relpath(path, common) for path in paths]
    return names


def compare_settings(
    settings: Sequence[Mapping[str, str]],
) -> list[tuple[str, list[str]]]:
    """Return the settings that differ between runs.

    Arguments
    ---------
    settings : sequence of mappings
        Of each run, name -> value.

    Returns
    -------
    list of (str, list of str)
        Name, and the value of each run. Output folders differ always, and
        are left out.

    Example
    -------
    >>> compare_settings([{"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {}])
    [('a', ['1', '1', '-']), ('b', ['2', '3', '-'])]
    """
    names = dict.fromkeys(name for one in settings for name in one)
    rows = [(n, [one.get(n, ABSENT) for one in settings]) for n in names]
    return [
        (name, values)
        for name, values in rows
        if len(set(values)) > 1 and name != OUTPUT_FOLDER
    ]


class Curve(NamedTuple):
    """A series that is thin enough to be drawn, with all its extremes."""

    places: Floats  # (N,)
    means: Floats  # (N,)
    lows: Floats  # (N,), smallest value at each place
    highs: Floats  # (N,), largest value

    @property
    def is_thinned(self) -> bool:
        """Whether a place stands for several values."""
        return bool(np.any(self.lows < self.highs))


def thin(series: Series, most: int) -> Curve:
    """Return a curve of no more than so many places, without NaN.

    Places that are equally wide hold the mean, the smallest and the largest
    of their values, so that no spike is lost.

    Example
    -------
    >>> series = Series(np.arange(4.0), np.array([1.0, 3.0, 2.0, 9.0]))
    >>> curve = thin(series, most=2)
    >>> curve.means.tolist(), curve.highs.tolist()
    ([2.0, 5.5], [3.0, 9.0])
    """
    places, values = series.finite()
    if len(values) <= most:
        return Curve(places, values, values, values)
    edges = np.linspace(places[0], places[-1], most + 1)[1:-1]
    numbers = np.searchsorted(edges, places, side="right")
    first = np.flatnonzero(np.diff(numbers, prepend=-1))
    counts = np.diff(first, append=len(values))
    return Curve(
        np.add.reduceat(places, first) / counts,
        np.add.reduceat(values, first) / counts,
        np.minimum.reduceat(values, first),
        np.maximum.reduceat(values, first),
    )


def _to_float(value: Any, otherwise: float = np.nan) -> float:
    """Return a number of the log; where there is none, what stands for it."""
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else otherwise


def _complete(
    entries: Iterable[Entry], settings: Mapping[str, str]
) -> Iterator[Entry]:
    """Add what earlier versions did not log and the rest of the log tells."""
    names = ("num_groups", "num_codes", "num_negatives")
    sizes = [settings.get(name, "") for name in names]
    known: Entry = {}
    if all(map(str.isdigit, sizes)):
        groups, codes, negatives = map(int, sizes)
        known = {
            "codes": groups * codes,
            "code_groups": groups,
            "negatives": negatives,
        }
    hours = 0.0
    for entry in entries:
        added = dict(known) if "code_perplexity" in entry else {}
        if entry["stage"] == "train":
            before, hours = hours, _to_float(entry.get("audio_hours"), hours)
            speed = _to_float(entry.get("audio_hours_per_hour"), 0.0)
            if speed > 0:
                added["seconds_training"] = (hours - before) / speed * 3600
        yield {**added, **entry}


def _settings_files(folder: Path) -> Iterator[Path]:
    """Yield hyperparams.1.yaml and so on, and hyperparams.yaml last."""
    kept = folder.glob("hyperparams.*.yaml")
    numbered = {path.suffixes[0][1:]: path for path in kept}
    yield from (
        numbered[n] for n in sorted(filter(str.isdigit, numbered), key=int)
    )
    if (latest := folder / SETTINGS_NAME).is_file():
        yield latest


def _read_starts(folder: Path) -> Iterator[Start]:
    for path in _settings_files(folder):
        try:
            header = HEADER.match(_read(path))
            date, command = header.groups() if header else ("", "")
            yield Start(date, command, HparamsFile.read(path.resolve()))
        except (UserError, ValueError, YAMLError):  # torn by a crash
            continue


def _read(path: Path) -> str:
    """Return the text of a file; "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _what_is_wrong(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no folder {folder}; give the --output_folder of a run"
    runs = sorted(str(log.parent) for log in folder.glob(f"*/{LOG_NAME}"))
    inside = f"; these in it are: {', '.join(runs)}" if runs else ""
    return f"{folder} is not the --output_folder of a run{inside}"
