"""Manifests: CSV files of utterances, each a part of a recording or all of it.

Columns: `id,path,segments,duration`, then label columns. `segments` holds
`start-stop` pairs in seconds ("12.34-20.5;21-30.25"; empty: the whole file),
`duration` their sum in seconds, `path` is absolute.
"""

from __future__ import annotations

import csv
import io
import math
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from summarymixing.errors import UserError
from summarymixing.files import write_csv

COLUMNS = ("id", "path", "segments", "duration")

# Times are written with 6 decimals: a sixteenth of a sample at 16 kHz.
TIME_DECIMALS = 6

# `duration` may have been rounded by hand, but not belong to other segments.
DURATION_TOLERANCE_S = 0.05

Segments = tuple[tuple[float, float], ...]


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


def parse_segments(text: str) -> Segments:
    """Read the text of a `segments` column.

    Arguments
    ---------
    text : str
        For example "12.34-20.5;21-30.25", or nothing.

    Returns
    -------
    tuple of (float, float)
        (start, stop) in seconds.

    Raises
    ------
    ValueError
        Where the text is not a list of `start-stop` with 0 <= start < stop.

    Example
    -------
    >>> parse_segments("12.34-20.5;21-30.25")
    ((12.34, 20.5), (21.0, 30.25))
    """
    if not text:
        return ()
    segments = []
    for pair in text.split(";"):
        start_text, _, stop_text = pair.partition("-")
        start, stop = float(start_text), float(stop_text)
        if not 0 <= start < stop < math.inf:
            raise ValueError(f"{pair!r} is not 0 <= start < stop")
        segments.append((start, stop))
    return tuple(segments)


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

    The text of the file is kept as one `bytes` with an array of offsets, and
    a row is parsed when it is asked for: there is no Python object per row,
    so millions of rows fit, and the worker processes of a data loader share
    them instead of copying them page by page as reference counts change.

    Arguments
    ---------
    path : Path
        Where the manifest was read from.
    label_names : tuple of str
        Names of the label columns.
    text : bytes
        The CSV file.
    starts : np.ndarray, int64, (rows + 1,)
        Offset of each row in `text`, and the end.
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
        path: Path,
        label_names: tuple[str, ...],
        *,
        text: bytes,
        starts: NDArray[np.int64],
        durations: NDArray[np.float64],
    ) -> None:
        self.path = path
        self.label_names = label_names
        self.durations = durations
        self._text = text
        self._starts = starts

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
        return _ManifestReader(Path(path)).read(required_labels)

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
        start, stop = self._starts[index], self._starts[index + 1]
        record = self._text[start:stop].decode()
        fields = next(csv.reader(io.StringIO(record, newline="")))
        return Row(
            id=fields[0],
            path=fields[1],
            segments=parse_segments(fields[2]),
            duration=float(self.durations[index]),
            labels=dict(
                zip(self.label_names, fields[len(COLUMNS) :], strict=True)
            ),
        )

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
        kept = [i for i, row in enumerate(self) if keep(row)]
        if len(kept) == len(self):
            return self
        if not kept:
            raise UserError(
                f"None of the {len(self)} utterances of {self.path} can be "
                "used here. Prepare the whole corpus, or loosen the limits of "
                "the task."
            )
        starts = self._starts
        records = [self._text[starts[i] : starts[i + 1]] for i in kept]
        return Manifest(
            self.path,
            self.label_names,
            text=b"".join(records),
            starts=np.cumsum([0, *map(len, records)]),
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


class _ManifestReader:
    """Checks a manifest line by line and packs it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.line = 0  # of the line read last, from 1
        self.position = 0  # bytes read so far

    def read(self, required_labels: Sequence[str]) -> Manifest:
        """Return the manifest, or raise `UserError`."""
        text = self._read_bytes()
        records = csv.reader(self._lines(text), strict=True)
        try:
            label_names = self._check_header(next(records, []), required_labels)
            starts, durations, hashes = self._read_rows(records)
        except csv.Error as error:
            raise self._error(f"malformed CSV ({error})") from error
        if not durations:
            raise UserError(
                f"{self.path} has a header but no rows. Prepare the corpus "
                "again; its report.json says what was dropped."
            )
        manifest = Manifest(
            self.path,
            label_names,
            text=text,
            starts=np.frombuffer(starts, dtype=np.int64),
            durations=np.frombuffer(durations, dtype=np.float64),
        )
        self._check_ids(manifest, text, np.frombuffer(hashes, dtype=np.int64))
        return manifest

    def _read_bytes(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError as error:
            raise UserError(
                f"There is no manifest {self.path}. Make it with "
                "`python recipes/prepare.py CORPUS SOURCE MANIFESTS` "
                "(--help lists the corpora)."
            ) from error
        except OSError as error:
            raise UserError(
                f"Cannot read the manifest {self.path}: {error.strerror}. "
                "Give the path of a readable CSV file."
            ) from error

    def _lines(self, text: bytes) -> Iterator[str]:
        """Yield lines, keeping count of lines and bytes."""
        for raw in io.BytesIO(text):
            self.line += 1
            self.position += len(raw)
            try:
                # Spreadsheets put a byte-order mark before the first line.
                yield raw.decode("utf-8-sig" if self.line == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise self._error("not UTF-8 text") from error

    def _check_header(
        self, header: Sequence[str], required_labels: Sequence[str]
    ) -> tuple[str, ...]:
        """Return the names of the label columns."""
        if not header:
            raise UserError(
                f"The manifest {self.path} is empty. Prepare the corpus again."
            )
        if tuple(header[: len(COLUMNS)]) != COLUMNS:
            raise self._error(
                f"the first columns are {','.join(header[: len(COLUMNS)])}; "
                f"expected {','.join(COLUMNS)}"
            )
        label_names = tuple(header[len(COLUMNS) :])
        if len(set(header)) < len(header):
            raise self._error("a column name occurs twice")
        missing = [name for name in required_labels if name not in label_names]
        if missing:
            raise UserError(
                f"{self.path} lacks the column {', '.join(missing)}; it has "
                f"{','.join(header)}. Give the manifest of a corpus with "
                "these labels, or prepare it again."
            )
        self.num_columns = len(header)
        return label_names

    def _read_rows(
        self, records: Iterator[list[str]]
    ) -> tuple[array[int], array[float], array[int]]:
        """Return the offsets, durations and id hashes of all rows."""
        starts, durations, hashes = array("q"), array("d"), array("q")
        start = self.position
        for fields in records:
            if fields:  # [] is an empty line
                durations.append(self._check_row(fields))
                hashes.append(hash(fields[0]))
                starts.append(start)
            start = self.position
        starts.append(self.position)
        return starts, durations, hashes

    def _check_row(self, fields: Sequence[str]) -> float:
        """Return the duration of a row in seconds."""
        if len(fields) != self.num_columns:
            raise self._error(
                f"{len(fields)} fields; the header has {self.num_columns}"
            )
        row_id, path, segments_text, duration_text = fields[:4]
        if not row_id or not path.startswith("/"):
            raise self._error(
                f"id {row_id!r}, path {path!r}: the id must not be empty, "
                "and the path must be absolute"
            )
        try:
            duration = float(duration_text)
            segments = parse_segments(segments_text)
        except ValueError as error:
            raise self._error(f"malformed number: {error}") from error
        if not 0 < duration < math.inf:
            raise self._error(f"duration {duration_text!r} is not positive")
        if segments:
            total = sum(stop - start for start, stop in segments)
            if abs(total - duration) > DURATION_TOLERANCE_S:
                raise self._error(
                    f"duration is {duration:g} s, but the segments sum to "
                    f"{total:g} s"
                )
        return duration

    def _check_ids(
        self, manifest: Manifest, text: bytes, hashes: NDArray[np.int64]
    ) -> None:
        """Compare ids by hash first: a set of them all would not fit."""
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(np.diff(hashes[order]) == 0)
        for first, second in zip(order[same], order[same + 1], strict=True):
            row_id = manifest[int(first)].id
            if row_id == manifest[int(second)].id:
                lines = [
                    text.count(b"\n", 0, int(manifest._starts[i])) + 1
                    for i in (first, second)
                ]
                self.line = lines[1]
                raise self._error(
                    f"id {row_id!r} is already used in line {lines[0]}"
                )

    def _error(self, what: str) -> UserError:
        return UserError(
            f"{self.path}, line {self.line}: {what}. Correct the line or "
            "prepare the corpus again."
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
