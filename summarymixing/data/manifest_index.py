"""Where the rows of a manifest are, kept beside it for the next reader.

To check seven million rows takes seconds, and what is found out would take
memory in every process. So it is written to `NAME.csv.index` once, and all
processes of a machine map that file: they share one copy of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from summarymixing.files import open_atomically

SUFFIX = ".index"

# The format, the digest of the manifest, the digest of the arrays; then the
# arrays, 16 bytes per row.
MAGIC = b"smixidx1"
DIGEST_BYTES = 32
HEADER_BYTES = len(MAGIC) + 2 * DIGEST_BYTES
CHUNK_BYTES = 2**20

logger = logging.getLogger(__name__)


class RowTable(NamedTuple):
    """What must be known of all rows at once."""

    starts: NDArray[np.int64]  # (rows + 1,): where each begins, and the end
    durations: NDArray[np.float64]  # (rows,): seconds


def load_or_build(
    manifest: Path, file: IO[bytes], build: Callable[[], RowTable]
) -> RowTable:
    """Return the table of a manifest from its index; write one if needed.

    An index counts only where it holds the digest of this very content of the
    manifest, and of its own: sizes and times can agree by chance. If several
    processes come at once, one builds. Where no index can be written, each
    process keeps a table of its own.

    Arguments
    ---------
    manifest : Path
        The CSV file; its index lies beside it.
    file : IO[bytes]
        The manifest, opened; its position changes.
    build : Callable
        Makes the table from the rows.

    Returns
    -------
    RowTable
        Mapped from the index, so that it cannot be written to.
    """
    path = manifest.with_name(manifest.name + SUFFIX)
    digest = _digest_file(file)
    table = _load(path, digest)
    if table is not None:
        return table
    with _lock(file, path.parent):
        table = _load(path, digest)  # somebody else may have been first
        if table is not None:
            return table
        table = build()
        try:
            _save(path, digest, table)
        except OSError as error:
            logger.info(f"{path} was not written ({error.strerror})")
            return table
    return _load(path, digest) or table


def _digest_file(file: IO[bytes]) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.digest()


@contextmanager
def _lock(file: IO[bytes], folder: Path) -> Iterator[None]:
    """Wait for others who build the same index.

    The manifest itself is locked, so no file is left behind. Some network
    file systems have no locks; there, each builds.
    """
    if not os.access(folder, os.W_OK):
        yield  # nobody can write an index, so nothing is worth waiting for
        return
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


def _save(path: Path, digest: bytes, table: RowTable) -> None:
    arrays = _to_bytes(table)
    with open_atomically(path, binary=True) as file:
        file.write(MAGIC + digest + _digest(arrays))
        file.write(arrays)  # apart: a sum would be one more copy of them


def _to_bytes(table: RowTable) -> bytes:
    starts = table.starts.astype("<i8", copy=False).tobytes()
    return starts + table.durations.astype("<f8", copy=False).tobytes()


def _load(path: Path, digest: bytes) -> RowTable | None:
    """Map an index; None where there is none for this content."""
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # ValueError: an empty file
        return None
    arrays = memoryview(mapped)[HEADER_BYTES:]
    if mapped[:HEADER_BYTES] != MAGIC + digest + _digest(arrays):
        return None
    num_rows = len(arrays) // 16  # and 8 bytes for the last end
    return RowTable(
        np.frombuffer(arrays, "<i8", count=num_rows + 1),
        np.frombuffer(arrays, "<f8", offset=8 * (num_rows + 1)),
    )


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
