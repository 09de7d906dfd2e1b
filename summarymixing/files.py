"""Files that are whole or not there, and what to say when one cannot be."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


@contextmanager
def open_atomically(path: Path, *, durable: bool = True) -> Iterator[TextIO]:
    """Open a text file that appears under its name only when complete.

    It is written aside in the same folder, flushed to the disk and renamed;
    after an error, or a kill, the previous file is still there.

    Arguments
    ---------
    path : Path
        The file to write; its folder must exist.
    durable : bool
        Wait until it is on the disk. Without, a power cut may tear it; that
        is enough for what can be made again, and faster on busy disks.

    Yields
    ------
    TextIO
        A UTF-8 text file, without translation of line ends.
    """
    aside = path.with_name(f".{path.name}.partial")
    try:
        with open(aside, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON aside and rename it, so that a reader never sees half."""
    with open_atomically(path) as file:
        file.write(json.dumps(content, indent=2) + "\n")


def flush(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_os_error(error: OSError) -> str:
    """Return what the system refused, where, and what may repair it."""
    repair = {
        errno.ENOSPC: "; free some space or choose another --output_folder",
        errno.EDQUOT: "; free some space or choose another --output_folder",
        errno.EACCES: "; choose a folder that you may write to",
        errno.EROFS: "; choose a folder that you may write to",
    }.get(error.errno or 0, "")
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}{repair}"
