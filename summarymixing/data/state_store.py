"""Hidden states of utterances on disk, for encoders that never change.

One folder for each encoder holds safetensors files of some hundred utterances
each. An utterance is known by its audio, not by its split or its corpus, so
what one run has encoded serves every other. Files are written whole, and may
be deleted at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from speechbrain.utils.logger import get_logger
from torch import Tensor

from summarymixing.data.manifest import Row, format_segments
from summarymixing.files import open_atomically, write_json

logger = get_logger(__name__)

IDENTITY_NAME = "encoder.json"
SUFFIX = ".safetensors"


def fingerprint(*parts: str) -> str:
    """Return 32 hexadecimal digits that stand for some texts.

    Example
    -------
    >>> len(fingerprint("a")), fingerprint("ab") == fingerprint("a", "b")
    (32, False)
    """
    text = json.dumps(parts).encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def utterance_key(row: Row) -> str:
    """Return what the states of an utterance are filed under.

    The path, the segments, and the size and time of the file: its content
    would have to be read in every run, which is what is to be saved. The id
    and the labels are left out, since no sample depends on them.

    Arguments
    ---------
    row : Row
        An item of a manifest; its file may be missing.
    """
    version = "missing"
    with suppress(OSError):
        status = os.stat(row.path)
        version = f"{status.st_size} {status.st_mtime_ns}"
    return fingerprint(row.path, format_segments(row.segments), version)


class StateStore:
    """The states that one encoder has given, by `utterance_key`.

    Files are mapped into memory, not read; one that is deleted serves on for
    those who have it open.

    Arguments
    ---------
    folder : Path
        The folder of all encoders.
    identity : mapping
        What the states depend on, as JSON; other values, another folder.

    Example
    -------
    >>> import torch
    >>> folder = getfixture("tmp_path")
    >>> store = StateStore(folder, {"encoder": "a"})
    >>> store.prepare()
    >>> _ = store.write({"key": torch.ones(3, 5, 4)})
    >>> again = StateStore(folder, {"encoder": "a"})
    >>> again.refresh()
    >>> again["key"].shape
    torch.Size([3, 5, 4])
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.identity = identity
        text = json.dumps(identity, sort_keys=True)
        self.folder = folder / fingerprint(text)[:16]
        self._seen: set[str] = set()  # files that are open
        self._file_of: dict[str, Any] = {}

    def __contains__(self, key: str) -> bool:
        """Return whether an utterance is there, as of the last `refresh`."""
        return key in self._file_of

    def __getitem__(self, key: str) -> Tensor:
        """Return states (L + 1, T, D) without reading them from the disk."""
        states: Tensor = self._file_of[key].get_tensor(key)
        return states

    def prepare(self) -> None:
        """Make the folder, with a file that tells whose states it holds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / IDENTITY_NAME
        if not path.exists():
            write_json(path, self.identity)
        self.refresh()

    def refresh(self) -> None:
        """Open the files that are new; a damaged one is left out."""
        names: list[str] = []
        with suppress(FileNotFoundError):
            names = os.listdir(self.folder)
        for name in sorted(set(names) - self._seen):
            if name.endswith(SUFFIX) and not name.startswith("."):
                self._open(self.folder / name)

    def _open(self, path: Path) -> None:
        try:
            file = safe_open(path, "pt")
        except FileNotFoundError:  # deleted since it was listed
            return
        except (OSError, SafetensorError) as error:
            logger.warning("%s is damaged and is made again: %s", path, error)
            with suppress(OSError):
                path.unlink()
            return
        self._seen.add(path.name)
        self._file_of.update(dict.fromkeys(file.keys(), file))

    def write(self, states: Mapping[str, Tensor]) -> Path:
        """Add utterances as one file, which is there whole or not at all.

        Arguments
        ---------
        states : mapping of str to Tensor, (L + 1, T, D)
            Key of each utterance and its states, on the CPU.

        Returns
        -------
        Path
            The file. OSError where it cannot be written.
        """
        path = self.folder / f"{fingerprint(*states)}{SUFFIX}"
        with open_atomically(path, binary=True) as file:
            file.write(save(dict(states)))
        self._open(path)
        return path

    @contextmanager
    def claim(self, keys: Iterable[str]) -> Iterator[bool]:
        """Own some utterances while they are encoded.

        A writer that dies gives them up. Where the file system has no locks,
        everybody gets them, and the work is done twice at worst.

        Arguments
        ---------
        keys : iterable of str
            A group of utterances that all writers form alike.

        Yields
        ------
        bool
            Whether they are ours; False while another process has them.
        """
        path = self.folder / f"{fingerprint(*keys)}.lock"
        with open(path, "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError:
                pass  # there are no locks
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)


def groups(
    sizes: Mapping[str, int], max_bytes: int, max_utterances: int
) -> list[list[str]]:
    """Divide utterances into groups that make one file each.

    Arguments
    ---------
    sizes : mapping of str to int
        Key of each utterance and its bytes.
    max_bytes, max_utterances : int
        A group ends before it exceeds one of them.

    Returns
    -------
    list of lists of str
        The same groups for the same keys, in whatever order they come.

    Example
    -------
    >>> groups({"b": 2, "a": 2, "c": 9}, max_bytes=4, max_utterances=9)
    [['a', 'b'], ['c']]
    """
    found: list[list[str]] = []
    room = 0
    for key in sorted(sizes):
        room -= sizes[key]
        if not found or room < 0 or len(found[-1]) == max_utterances:
            found.append([])
            room = max_bytes - sizes[key]
        found[-1].append(key)
    return found


def free_bytes(folder: Path) -> int:
    """Return the room on the disk of a folder that need not exist yet."""
    existing: Sequence[Path] = [folder, *folder.absolute().parents]
    nearest = next(path for path in existing if path.exists())
    status = os.statvfs(nearest)
    return status.f_bavail * status.f_frsize
