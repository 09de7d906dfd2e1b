"""Item files of ABX: which stretch of a recording is which phone.

    #file onset offset #phone prev-phone next-phone speaker
    1272-128104-0000 0.2325 0.3425 IH M S 1272

This is the format of ZeroSpeech and Libri-Light: columns by name, separated by
spaces, times in seconds. A file is named without its suffix.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NamedTuple

from summarymixing.errors import UserError
from summarymixing.files import open_atomically

COLUMNS = (
    "#file", "onset", "offset", "#phone", "prev-phone", "next-phone", "speaker",
)  # fmt: skip
HALF = Decimal("0.5")
SHOWN = 5


class Item(NamedTuple):
    """One line of an item file."""

    file: str  # name of the recording, without its suffix
    onset_s: Decimal  # seconds, as written: floats would move frames
    offset_s: Decimal
    phone: str
    previous: str  # the phones beside it, which A, B and X have in common
    next: str
    speaker: str

    def frames(self, frames_per_second: int) -> tuple[int, int]:
        """Return the first frame, and the one after the last.

        Those are an item's whose middle, (t + 0.5) / frames_per_second, is in
        it, as in ZeroSpeech 2021 and fastabx; there may be none.

        Example
        -------
        >>> times = Decimal("0.25"), Decimal("0.33")
        >>> Item("a", *times, "IH", "M", "S", "1").frames(50)
        (12, 17)
        """
        first = math.ceil(self.onset_s * frames_per_second - HALF)
        last = math.floor(self.offset_s * frames_per_second - HALF)
        return first, last + 1


def read_items(path: Path) -> list[Item]:
    """Read an item file; UserError names the line that is wrong.

    Arguments
    ---------
    path : Path
        A file with a header; further columns are ignored.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as an item file ({error})"
        ) from error
    header = lines[0].split() if lines else []
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise UserError(
            f"{path}: the first line of an item file is '{' '.join(COLUMNS)}'; "
            f"this one lacks {', '.join(missing)}"
        )
    places = [header.index(column) for column in COLUMNS]
    items = []
    for number, line in enumerate(lines[1:], start=2):
        words = line.split()
        if not words:
            continue
        try:
            file, onset, offset, *names = (words[place] for place in places)
            item = Item(file, Decimal(onset), Decimal(offset), *names)
            is_right = 0 <= item.onset_s < item.offset_s
        except (IndexError, InvalidOperation):
            is_right = False
        if not is_right:
            raise UserError(
                f"{path}, line {number}: not an item of {len(header)} columns "
                f"with 0 <= onset < offset: {line!r}"
            )
        items.append(item)
    if not items:
        raise UserError(f"{path} has no items below its first line")
    return items


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Write an item file."""
    with open_atomically(path) as file:
        for line in (COLUMNS, *items):
            file.write(" ".join(map(str, line)) + "\n")


def find_recordings(
    names: Collection[str], among: Iterable[Path], root: Path
) -> dict[str, Path]:
    """Find the recordings that items name; UserError unless each is there.

    Arguments
    ---------
    names : collection of str
        Names of recordings, or their paths below the root, without suffix.
    among : iterable of Path
        The audio files.
    root : Path
        The folder that they are in, or the manifest that lists them.

    Example
    -------
    >>> root = Path("/corpus")
    >>> find_recordings(["a"], [root / "x" / "a.flac"], root)["a"].as_posix()
    '/corpus/x/a.flac'
    """
    found: dict[str, Path] = {}
    several: dict[str, Path] = {}
    wanted = set(names)
    for path in among:
        keys = {path.stem}
        if path.is_relative_to(root):
            keys.add(path.relative_to(root).with_suffix("").as_posix())
        for key in keys & wanted:
            if found.setdefault(key, path) != path:
                several[key] = path
    _refuse(several, found, root)
    if missing := sorted(wanted - found.keys()):
        raise UserError(
            f"{len(missing)} of {len(wanted)} recordings that the items name "
            f"are not in {root}: {', '.join(missing[:SHOWN])}"
            f"{' ...' if missing[SHOWN:] else ''}. Give the folder of the "
            "audio of these items"
        )
    return found


def _refuse(
    several: Mapping[str, Path], found: Mapping[str, Path], root: Path
) -> None:
    for name, path in several.items():
        raise UserError(
            f"{root} has more than one recording '{name}': {found[name]} and "
            f"{path}. Name them in the item file by their paths below "
            f"{root}, without suffix"
        )
