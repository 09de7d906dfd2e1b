"""Files that are whole or not there, and what to say when one cannot be."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def open_atomically(
    path: Path, *, binary: bool = False, durable: bool = True
) -> Iterator[IO[Any]]:
    """Open a file that appears under its name only when complete.

    It is written aside in the same folder, flushed to the disk and renamed;
    after an error, or a kill, the previous file is still there. An OSError
    names the file.

    Arguments
    ---------
    path : Path
        The file to write; its folder must exist.
    binary : bool
        Take bytes instead of text.
    durable : bool
        Wait until it is on the disk. Without, a power cut may tear it; that
        is enough for what can be made again, and faster on busy disks.

    Yields
    ------
    IO
        A binary file, or a UTF-8 text file without translation of line ends.
    """
    # Always the same name: what a kill leaves behind is written over.
    aside = path.with_name(f".{path.name}.partial")
    text = {"encoding": "utf-8", "newline": ""}
    options: Any = {"mode": "wb"} if binary else {"mode": "w", **text}
    try:
        with open(aside, **options) as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        # The system names no file when a write fails, as on a full disk.
        error.filename = error.filename or str(path)
        raise
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
