"""Files that are complete or absent, and messages for those that fail."""

from __future__ import annotations

import csv
import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# What systems answer that have no locks, or cannot flush a folder's names.
UNSUPPORTED_ERRNOS = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EBADF}
)

# Where there are no locks: a writer that has added nothing for as long is
# dead. The clocks of two machines may differ by minutes.
DEAD_WRITER_S = 3600.0


@contextmanager
def open_atomically(
    path: Path, *, binary: bool = False, durable: bool = True
) -> Iterator[IO[Any]]:
    """Open a file that appears under its name only when it is complete.

    The content is written to a hidden file in the same folder, which is then
    renamed; after an error, or a kill, the previous file is still there. A
    symbolic link stays and its target is replaced. A device or a pipe is
    written to directly, since a rename would put a file in its place.

    Arguments
    ---------
    path : Path
        The file to write, in a folder that exists. A file that the user may
        not write to is not replaced.
    binary : bool
        Whether the file takes bytes instead of text.
    durable : bool
        Whether to wait until the content is on the disk. If not, a power cut
        may leave half a file; that is faster on busy disks, and enough for
        what can be made again.

    Yields
    ------
    IO
        A binary file, or a UTF-8 text file without translation of line ends.

    Raises
    ------
    OSError
        If the system refuses to write; the error names the file.
    """
    text = {"mode": "w", "encoding": "utf-8", "newline": ""}
    options: Any = {"mode": "wb"} if binary else text
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            with open(target, **options) as file:
                yield file
            return
        if target.exists():
            os.close(os.open(target, os.O_WRONLY))  # a rename needs no right
        if durable:  # what can be made again may lie among a million files
            _remove_leftovers(target)
        aside, descriptor = _create_aside(target)
        try:
            with open(descriptor, **options) as file:
                yield file
                file.flush()
                if durable:
                    os.fsync(descriptor)
                os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        # The system names no file when a write fails, as on a full disk.
        if str(error.filename or ".partial").endswith(".partial"):
            error.filename = str(path)
        raise


def _create_aside(target: Path) -> tuple[Path, int]:
    """Create and lock a file beside the target: its path and descriptor."""
    while True:
        name = f".{target.name}.{secrets.token_hex(4)}.partial"
        aside = target.with_name(name)
        descriptor = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        # The lock says that the writer lives. Some network file systems have
        # none; there, the age of a file decides.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if aside.exists():
            return aside, descriptor
        os.close(descriptor)  # taken for a leftover, just before the lock


def _remove_leftovers(target: Path) -> None:
    """Remove what killed writers of the target left: nobody locks it."""
    pattern = f".{glob.escape(target.name)}.*.partial"
    for aside in target.parent.glob(pattern):
        with suppress(OSError), open(aside, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                age_s = time.time() - os.fstat(file.fileno()).st_mtime
                if error.errno not in UNSUPPORTED_ERRNOS:
                    continue  # somebody holds it
                if age_s < DEAD_WRITER_S:
                    continue
            aside.unlink()


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as CSV so that a reader never sees half of it."""
    with open_atomically(path) as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader never sees half of it."""
    with open_atomically(path) as file:
        file.write(json.dumps(content, indent=2) + "\n")


def write_report(name: Path, data: Any, text: str) -> None:
    """Write what was measured: NAME.json for programs, NAME.md for people."""
    write_json(name.with_suffix(".json"), data)
    with open_atomically(name.with_suffix(".md")) as file:
        file.write(text)


def flush(path: Path) -> None:
    """Wait until a file, or the list of names of a folder, is on the disk.

    Some network and FUSE file systems refuse to flush folders; their names
    are as safe as such a system makes them.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if not (is_folder and error.errno in UNSUPPORTED_ERRNOS):
            raise
    finally:
        os.close(descriptor)


def describe_os_error(error: OSError) -> str:
    """Say what the system refused, where, and what may repair it."""
    repair = {
        errno.ENOSPC: "; free some space or choose another output folder",
        errno.EDQUOT: "; free some space or choose another output folder",
        errno.EACCES: "; choose a folder that you may write to",
        errno.EROFS: "; choose a folder that you may write to",
    }.get(error.errno or 0, "")
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}{repair}"


def sha256_of(*paths: Path) -> str:
    """Return the SHA-256 of files one after another, hexadecimal.

    They may be large; `cat FILES | sha256sum` prints the same.
    """
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()
