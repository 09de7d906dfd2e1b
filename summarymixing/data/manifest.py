"""Manifests: CSV files of utterances, each a part of a recording or all of it.

Columns: `id,path,segments,duration`, then label columns. `segments` holds
`start-stop` pairs in seconds ("12.34-20.5;21-30.25"; empty: the whole file),
`duration` their sum in seconds, `path` is absolute.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from summarymixing.data.manifest_reader import (
    COLUMNS,
    ManifestReader,
    ManifestText,
    Segments,
    parse_record,
    parse_segments,
)
from summarymixing.errors import UserError
from summarymixing.files import write_csv

# Times are written with 6 decimals: a sixteenth of a sample at 16 kHz.
TIME_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class Row:
    """One item of a manifest.

    Arguments
    ---------
    id : str
        Unique in its manifest.
    path : str
        Absolute path of the recording.
    segments : tuple of (float, float)
        (start, stop) in seconds, in the order of reading; empty: whole file.
    duration : float
        Seconds of audio: the sum of the segments, or the whole file.
    labels : dict[str, str]
        Label columns; the same names in every row of a manifest.
    """

    id: str
    path: str
    segments: Segments
    duration: float
    labels: Mapping[str, str] = field(default_factory=dict)


def format_segments(segments: Segments) -> str:
    """Write segments as the text of their manifest column.

    Arguments
    ---------
    segments : tuple of (float, float)
        (start, stop) in seconds.

    Returns
    -------
    str
        For example "12.34-20.5;21-30.25".

    Example
    -------
    >>> format_segments(((0.00001, 20.5), (21.0, 30.25)))
    '0.00001-20.5;21-30.25'
    """
    return ";".join(
        f"{_format_time(start)}-{_format_time(stop)}"
        for start, stop in segments
    )


def write_manifest(path: Path, rows: Iterable[Row]) -> Path:
    """Write a manifest: all of it, or nothing.

    Arguments
    ---------
    path : Path
        The CSV file; its folder must exist.
    rows : Iterable[Row]
        At least one row, taken one at a time; the label columns are those of
        the first.

    Returns
    -------
    Path
        `path`.
    """
    row_iterator = iter(rows)
    first = next(row_iterator, None)
    if first is None:
        raise ValueError(f"No rows to write into {path}.")
    label_names = tuple(first.labels)
    fields = (
        _row_to_fields(row, label_names) for row in chain([first], row_iterator)
    )
    write_csv(path, chain([COLUMNS + label_names], fields))
    return path


def relocate_manifest(path: Path, old_prefix: str, new_prefix: str) -> int:
    """Replace the leading folder of the audio paths of a manifest, in place.

    Arguments
    ---------
    path : Path
        The manifest; rewritten atomically.
    old_prefix : str
        Folder at the start of the paths, as it stands in the manifest.
    new_prefix : str
        Folder that takes its place.

    Returns
    -------
    int
        Number of rows that were changed.
    """
    manifest = Manifest.read(path)
    old = old_prefix.rstrip("/") + "/"
    new = os.path.abspath(new_prefix).rstrip("/") + "/"
    num_changed = sum(row.path.startswith(old) for row in manifest)
    if not num_changed:
        raise UserError(
            f"No path in {path} begins with {old_prefix!r}; the first is "
            f"{manifest[0].path}. Give the leading folder of that path as "
            "OLD_PREFIX."
        )

    def relocate(row: Row) -> Row:
        if not row.path.startswith(old):
            return row
        return replace(row, path=new + row.path.removeprefix(old))

    write_manifest(path, map(relocate, manifest))
    return num_changed


class Manifest:
    """The rows of a manifest, packed.

    A row is read from the file and parsed when it is asked for. In memory
    are only two arrays, which all processes of a machine share where the
    manifest is large: there is no Python object per row, so millions of rows
    fit, and the workers of a data loader do not copy them page by page as
    reference counts change.

    Arguments
    ---------
    text : ManifestText
        The CSV file, open.
    label_names : tuple of str
        Names of the label columns.
    starts, stops : np.ndarray, int64, (rows,)
        Where each row begins and ends in the file.
    durations : np.ndarray, float64, (rows,)
        Seconds.

    Example
    -------
    >>> import tempfile
    >>> rows = [Row("a", "/corpus/a.flac", ((0.5, 2.0),), 1.5, {"text": "HI"})]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     manifest = Manifest.read(
    ...         write_manifest(Path(folder) / "train.csv", rows),
    ...         required_labels=["text"],
    ...     )
    >>> manifest.durations
    array([1.5])
    >>> manifest[0].segments
    ((0.5, 2.0),)
    """

    def __init__(
        self,
        text: ManifestText,
        label_names: tuple[str, ...],
        *,
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        durations: NDArray[np.float64],
    ) -> None:
        self.path = text.path
        self.label_names = label_names
        self.durations = durations
        self._text = text
        self._starts, self._stops = starts, stops

    @classmethod
    def read(cls, path: Path, required_labels: Sequence[str] = ()) -> Manifest:
        """Read and check a manifest.

        Arguments
        ---------
        path : Path
            The CSV file.
        required_labels : Sequence[str]
            Label columns that must be present.

        Returns
        -------
        Manifest
            At least one row.

        Raises
        ------
        UserError
            Missing or empty file, missing column, duplicate id, malformed
            number or line; names the file and the line.
        """
        reader = ManifestReader(Path(path))
        text, (starts, durations) = reader.read(required_labels)
        return Manifest(
            text,
            reader.label_names,
            starts=starts[:-1],
            stops=starts[1:],
            durations=durations,
        )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.durations)

    def __iter__(self) -> Iterator[Row]:
        """Parse one row after the other."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Row:
        """Parse one row."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} in {self.path}")
        index %= len(self)
        duration = float(self.durations[index])
        try:
            record = self._text.read(
                int(self._starts[index]), int(self._stops[index])
            )
            row_id, path, segments, seconds, *labels = parse_record(record)
            if float(seconds) != duration:
                raise ValueError("another row")
            return Row(
                id=row_id,
                path=path,
                segments=parse_segments(segments),
                duration=duration,
                labels=dict(zip(self.label_names, labels, strict=True)),
            )
        except (ValueError, csv.Error, OSError) as error:
            raise UserError(
                f"The manifest {self.path} changed while it was in use (row "
                f"{index + 1}: {error}). Start again with the new one."
            ) from error

    def where(self, keep: Callable[[Row], bool]) -> Manifest:
        """Return the manifest of some rows; UserError if none is left.

        Arguments
        ---------
        keep : Callable
            Called with each row.

        Returns
        -------
        Manifest
            With the same path; itself where all rows are kept.
        """
        return self.without([i for i, row in enumerate(self) if not keep(row)])

    def without(self, rows: Sequence[int]) -> Manifest:
        """Return the manifest of all rows but some; UserError if none is left.

        Arguments
        ---------
        rows : sequence of int
            The numbers of the rows to leave out, from 0.

        Returns
        -------
        Manifest
            With the same path; itself where all rows are kept.
        """
        if not rows:
            return self
        kept = np.ones(len(self), dtype=bool)
        kept[rows] = False
        if not kept.any():
            raise UserError(
                f"None of the {len(self)} utterances of {self.path} can be "
                "used here. Prepare the whole corpus, or loosen the limits of "
                "the task."
            )
        return Manifest(
            self._text,
            self.label_names,
            starts=self._starts[kept],
            stops=self._stops[kept],
            durations=self.durations[kept],
        )

    def check_audio(self, sample: int = 50) -> None:
        """Check that the audio is where the manifest says.

        Arguments
        ---------
        sample : int
            How many rows to look at, evenly spread.

        Raises
        ------
        UserError
            Where audio is missing, as after a move to another machine.
        """
        step = max(1, len(self) // sample)
        rows = [self[i] for i in range(0, len(self), step)]
        missing = [row for row in rows if not os.path.isfile(row.path)]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(rows)} recordings looked up for "
                f"{self.path} do not exist, for example {missing[0].path} "
                f"(id {missing[0].id}). If the corpus was moved, or the "
                "manifest comes from another machine, prepare it again, or "
                f"run: python recipes/prepare.py relocate {self.path} "
                "OLD_PREFIX NEW_PREFIX"
            )


def _format_time(seconds: float) -> str:
    # Never an exponent: its minus sign would read as a separator.
    return f"{seconds:.{TIME_DECIMALS}f}".rstrip("0").rstrip(".")


def _row_to_fields(row: Row, label_names: tuple[str, ...]) -> list[str]:
    if tuple(row.labels) != label_names:
        raise ValueError(
            f"Row {row.id} has labels {tuple(row.labels)}; "
            f"the first row has {label_names}."
        )
    return [
        row.id,
        row.path,
        format_segments(row.segments),
        _format_time(row.duration),
        *row.labels.values(),
    ]
