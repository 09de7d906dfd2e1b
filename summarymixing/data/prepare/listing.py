"""From the tables of a corpus to rows: one recording, one row."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import soundfile

from summarymixing.data.audio import END_TOLERANCE_S, AudioError, audio_info
from summarymixing.data.manifest import Row
from summarymixing.data.prepare.account import Account, Outcome
from summarymixing.data.prepare.common import FoundFile
from summarymixing.data.prepare.pipeline import Assign, Plan
from summarymixing.errors import UserError

# In what libsndfile notes about a wav: bytes stated, and bytes there.
WAV_SIZES = re.compile(r"^ *data : (\d+) \(should be (\d+)\)", re.MULTILINE)
UNKNOWN_SIZE = 2**31 - 2**16  # from here on, stated by programs that stream


class Recording(NamedTuple):
    """A recording as the tables of a corpus name it.

    Arguments
    ---------
    group : str
        What must stay together in one manifest, for example the split.
    id : str
        The id of its row.
    path : str
        The path below the folder of the corpus.
    labels : dict[str, str]
        The labels of its row, by the name of their column.
    """

    group: str
    id: str
    path: str
    labels: dict[str, str]


class Listing:
    """Collects the recordings that the tables of a corpus name.

    `plan` hands them over, and what was noted and dropped on the way.
    """

    def __init__(self) -> None:
        self.work_items: list[str] = []
        self.outcome = Outcome(num_recordings=0)
        self._ids: set[str] = set()

    def add(self, recording: Recording, place: str) -> None:
        """Add a recording, or note that it cannot be used.

        Arguments
        ---------
        recording : Recording
            What a line of a table, or the name of a file, says.
        place : str
            Where that line is, for the account.
        """
        empty = [name for name, text in recording.labels.items() if not text]
        if empty:
            self.note(f"no {', '.join(empty)}", place)
        elif recording.id in self._ids:
            self.note("listed twice (the first counts)", place)
        else:
            self._ids.add(recording.id)
            self.work_items.append(json.dumps(recording))

    def note(self, reason: str, place: str) -> None:
        """Note what is wrong (`reason`) with a file or a line (`place`)."""
        self.outcome.problems.append((reason, place))

    def drop(self, reason: str, seconds: float) -> None:
        """Count a recording that is sound but not wanted, and say why."""
        self.outcome.num_recordings += 1
        self.outcome.found_s += seconds
        self.outcome.dropped.append((reason, seconds))

    def plan(
        self,
        source: Path,
        files: Sequence[FoundFile],
        *,
        assign: Assign,
        replaces: Sequence[str],
        finish: Callable[[Account], None] | None = None,
    ) -> Plan:
        """Return the plan that makes one row of each recording.

        The arguments are the fields of `Plan` of these names; the paths of
        the recordings start at `source`.
        """
        return Plan(
            source=source,
            files=files,
            work_items=self.work_items,
            work=partial(process_recording, root=source),
            assign=assign,
            replaces=replaces,
            listing_outcome=self.outcome,
            finish=finish,
        )

    def read_lines(self, root: Path, name: str) -> Iterator[tuple[str, str]]:
        """Yield the lines of a table; note those that are not UTF-8.

        Arguments
        ---------
        root : Path
            The folder of the corpus.
        name : str
            Path of the table below it.

        Yields
        ------
        place : str
            "NAME:LINE", for `add` and `note`.
        line : str
            Without its end; lines of white space are left out.
        """
        # Split at "\n" alone: str.splitlines also does at rarer characters,
        # and these occur in sentences.
        for number, raw in enumerate(_read_table(root / name).split(b"\n"), 1):
            place = f"{name}:{number}"
            try:
                # Spreadsheets put a byte-order mark before the first line.
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                self.note("line is not UTF-8 text", place)
                continue
            if line.strip():
                yield place, line.rstrip("\r")


def process_recording(item: str, *, root: Path) -> Outcome:
    """Make the row of one recording of a `Listing`.

    Arguments
    ---------
    item : str
        An element of `Listing.work_items`.
    root : Path
        The folder of the corpus.

    Returns
    -------
    Outcome
        The row, or the problem.
    """
    recording = Recording(*json.loads(item))
    outcome = Outcome(group=recording.group)
    add_row(outcome, recording, root)
    return outcome


def add_row(outcome: Outcome, recording: Recording, root: Path) -> None:
    """Add the row of a whole recording, or the problem with its audio.

    Arguments
    ---------
    outcome : Outcome
        Where to add it.
    recording : Recording
        What its row will say.
    root : Path
        The folder of the corpus.
    """
    duration_s = measure(outcome, root, recording.path)
    if duration_s:
        path = str(root / recording.path)
        outcome.rows.append(
            Row(recording.id, path, (), duration_s, recording.labels)
        )


def measure(outcome: Outcome, root: Path, name: str) -> float:
    """Read the length of a recording from its header.

    Arguments
    ---------
    outcome : Outcome
        Where its seconds, or the problem, are added.
    root, name : Path, str
        The folder of the corpus, and the path of the recording below it.

    Returns
    -------
    float
        Seconds; 0 where it cannot be used.
    """
    try:
        duration_s = audio_info(root / name).duration_s
    except AudioError as error:
        outcome.problems.append((f"recording: {error.reason}", name))
        return 0.0
    if not _has_its_end(root / name):
        outcome.problems.append(("recording: truncated", name))
        return 0.0
    outcome.found_s += duration_s
    return duration_s


def _has_its_end(path: Path) -> bool:
    """Look whether a recording is as long as its header says.

    This costs less than a millisecond: nothing is decoded but the end.
    """
    try:
        with soundfile.SoundFile(path) as file:
            tolerance = int(END_TOLERANCE_S * file.samplerate)
            file.seek(max(0, file.frames - tolerance))
            has_end = len(file.read(1)) > 0
            # Of a wav, libsndfile takes what is there without complaint.
            sizes = WAV_SIZES.search(file.extra_info)
    except soundfile.SoundFileError:
        return False
    if sizes and int(sizes[2]) < int(sizes[1]) < UNKNOWN_SIZE:
        return False
    return has_end


def _read_table(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"Cannot read {path}: {error.strerror}. Copy it again from its "
            "source, or repair its permissions."
        ) from error
