"""Reading a manifest: every row is checked, and none is kept.

Rows are looked at many at a time where their text is plain. What is not plain,
or not right, is read again line by line, by Python's own CSV reader: that
decides, and names the line.
"""

from __future__ import annotations

import csv
import io
import math
import os
import weakref
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from summarymixing.data.manifest_index import RowTable, load_or_build
from summarymixing.errors import UserError

COLUMNS = ("id", "path", "segments", "duration")

# `duration` may have been rounded by hand, but not belong to other segments.
DURATION_TOLERANCE_S = 0.05

# A smaller manifest, of some 150,000 rows, is checked within 0.2 s.
MIN_INDEXED_BYTES = 32 * 2**20

# Small enough for the caches of a processor, large enough for numpy.
BLOCK_BYTES = 2**18

Segments = tuple[tuple[float, float], ...]


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


class ManifestText:
    """The bytes of a manifest, read from its file when they are asked for.

    Many processes share them through the system's page cache, and forked ones
    the descriptor. The file is not mapped: a mapped file that somebody
    shortens ends the process with a bus error, and where a scheduler adds up
    the resident memory of a job, a mapping counts for each process.

    Arguments
    ---------
    path : Path
        The CSV file; OSError where it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def __reduce__(self) -> tuple[type[ManifestText], tuple[Path]]:
        """Open the file again in a process that was not forked."""
        return ManifestText, (self.path,)

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop); fewer at the end of the file."""
        return os.pread(self._descriptor, stop - start, start)

    def open(self) -> IO[bytes]:
        """Return a file object at the beginning, for reading in order."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return open(self._descriptor, "rb", closefd=False)


def parse_record(record: bytes) -> list[str]:
    """Return the fields of one row; ValueError or csv.Error if it has none."""
    text = io.StringIO(record.decode(), newline="")
    return next(csv.reader(text, strict=True), [])


class ManifestReader:
    """Checks a manifest, and finds its rows.

    Arguments
    ---------
    path : Path
        The CSV file.

    Attributes
    ----------
    label_names : tuple of str
        Names of the label columns, once the manifest is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.label_names: tuple[str, ...] = ()
        self._line = 0  # of the line read last, from 1
        self._position = 0  # bytes read so far

    def read(
        self, required_labels: Sequence[str]
    ) -> tuple[ManifestText, RowTable]:
        """Return the open file and where its rows are.

        Arguments
        ---------
        required_labels : Sequence[str]
            Label columns that must be present.

        Returns
        -------
        ManifestText
            The file.
        RowTable
            At least one row. UserError, which names the file and the line,
            for what is missing or malformed.
        """
        try:
            text = ManifestText(self.path)
            with text.open() as file:
                return text, self._read_file(file, required_labels)
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
        except csv.Error as error:
            raise self._error(f"malformed CSV ({error})") from error

    def _read_file(
        self, file: IO[bytes], required_labels: Sequence[str]
    ) -> RowTable:
        header = next(csv.reader(self._lines(file), strict=True), [])
        self.label_names = self._check_header(header, required_labels)
        num_columns = len(header)
        if os.fstat(file.fileno()).st_size < MIN_INDEXED_BYTES:
            return self._check_rows(file, num_columns)
        return load_or_build(
            self.path, file, lambda: self._check_rows(file, num_columns)
        )

    def _lines(self, file: IO[bytes]) -> Iterator[str]:
        """Yield lines, keeping count of lines and bytes."""
        file.seek(self._position)
        for raw in file:
            self._line += 1
            self._position += len(raw)
            try:
                # Spreadsheets put a byte-order mark before the first line.
                yield raw.decode("utf-8-sig" if self._line == 1 else "utf-8")
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
        return label_names

    def _check_rows(self, file: IO[bytes], num_columns: int) -> RowTable:
        """Check the rows, and find where they are and how long."""
        starts, durations, hashes = array("q"), array("d"), array("q")
        file.seek(self._position)
        while block := file.read(BLOCK_BYTES) + file.readline():
            rows = _check_plain_rows(block, num_columns)
            if rows is None:
                break
            starts.frombytes((self._position + rows[0]).tobytes())
            durations.frombytes(rows[1].tobytes())
            hashes.frombytes(rows[2].tobytes())
            self._position += len(block)
            self._line += len(rows[0])
        start = self._position
        for fields in csv.reader(self._lines(file), strict=True):
            if fields:  # [] is an empty line
                durations.append(self._check_row(fields, num_columns))
                hashes.append(hash(fields[0]))
                starts.append(start)
            start = self._position
        if not durations:
            raise UserError(
                f"{self.path} has a header but no rows. Prepare the corpus "
                "again; its report.json says what was dropped."
            )
        starts.append(self._position)
        table = RowTable(
            np.frombuffer(starts, dtype=np.int64),
            np.frombuffer(durations, dtype=np.float64),
        )
        self._check_ids(file, table, np.frombuffer(hashes, dtype=np.int64))
        return table

    def _check_row(self, fields: Sequence[str], num_columns: int) -> float:
        """Return the duration of a row in seconds."""
        if len(fields) != num_columns:
            raise self._error(
                f"{len(fields)} fields; the header has {num_columns}"
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
        self, file: IO[bytes], table: RowTable, hashes: NDArray[np.int64]
    ) -> None:
        """Compare ids by hash first: a set of them all would not fit."""
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(np.diff(hashes[order]) == 0)
        for pair in zip(order[same], order[same + 1], strict=True):
            first, second = (self._id_and_line(file, table, i) for i in pair)
            if first[0] == second[0]:
                self._line = second[1]
                raise self._error(
                    f"id {first[0]!r} is already used in line {first[1]}"
                )

    @staticmethod
    def _id_and_line(
        file: IO[bytes], table: RowTable, index: int
    ) -> tuple[str, int]:
        start, stop = map(int, table.starts[index : index + 2])
        file.seek(0)
        line, left = 1, start
        while left:
            block = file.read(min(left, BLOCK_BYTES))
            line += block.count(b"\n")
            left -= len(block)
        return parse_record(file.read(stop - start))[0], line

    def _error(self, what: str) -> UserError:
        return UserError(
            f"{self.path}, line {self._line}: {what}. Correct the line or "
            "prepare the corpus again."
        )


def _check_plain_rows(
    block: bytes, num_columns: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]] | None:
    """Check whole lines at once, if each is a row without quotes.

    Returns
    -------
    starts : np.ndarray, int64, (rows,)
        Offset of each row in `block`.
    durations : np.ndarray, float64, (rows,)
        Seconds.
    hashes : np.ndarray, int64, (rows,)
        Of the ids. None in place of all if anything is unusual or wrong.
    """
    if not block.endswith(b"\n") or any(
        x in block for x in (b'"', b"\r", b"\0")
    ):
        return None
    codes = np.frombuffer(block, np.uint8)
    separators = np.flatnonzero((codes == ord(",")) | (codes == ord("\n")))
    if (
        len(separators) % num_columns
        or np.diff(separators).max() > csv.field_size_limit()
    ):
        return None
    ends = separators.reshape(-1, num_columns)  # of fields
    starts = np.concatenate([[0], ends[:-1, -1] + 1])  # of lines
    if not (
        (codes[ends[:, -1]] == ord("\n")).all()
        and (codes[ends[:, :-1]] == ord(",")).all()
        and (codes[ends[:, 0] + 1] == ord("/")).all()
        and (starts < ends[:, 0]).all()
    ):
        return None
    try:
        fields = block.decode().replace("\n", ",").split(",")
        del fields[-1]  # behind the last line
        durations = np.array(list(map(float, fields[3::num_columns])))
        sums = _sum_segments(fields[2::num_columns], durations)
    except ValueError:
        return None
    if not (
        (durations > 0).all()
        and np.isfinite(durations).all()
        and (np.abs(sums - durations) <= DURATION_TOLERANCE_S).all()
    ):
        return None
    hashes = np.array(list(map(hash, fields[::num_columns])))
    return starts, durations, hashes


def _sum_segments(
    texts: Sequence[str], durations: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the seconds of the segments of each row; ValueError if unusual.

    A row without segments has its duration.
    """
    listed = [text for text in texts if text]
    sums = durations.copy()
    if not listed:
        return sums
    joined = "|".join(listed)
    # What stands between the numbers: "-" in a segment, ";" or "|" behind it.
    signs = joined.encode().translate(None, b"0123456789.") + b"|"
    ends = np.frombuffer(signs[1::2], np.uint8)
    if (
        signs[::2] != b"-" * len(ends)
        or signs.count(b"|") != len(listed)
        or not np.isin(ends, (ord(";"), ord("|"))).all()
    ):
        raise ValueError("not pairs of plain decimal numbers")
    times = joined.replace("|", ";").replace("-", ";").split(";")
    start, stop = np.array(list(map(float, times))).reshape(-1, 2).T
    if not ((start < stop).all() and np.isfinite(stop).all()):
        raise ValueError("not 0 <= start < stop")
    lasts = np.flatnonzero(ends == ord("|"))
    firsts = np.concatenate([[0], lasts[:-1] + 1])
    has_segments = np.fromiter(map(bool, texts), bool, len(texts))
    sums[has_segments] = np.add.reduceat(stop - start, firsts)
    return sums
