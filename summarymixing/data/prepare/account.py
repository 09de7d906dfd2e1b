"""What a preparation found, kept and dropped, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from summarymixing.data.manifest import Row
from summarymixing.errors import UserError
from summarymixing.files import open_atomically

REPORT_NAME = "report.json"
MINIATURE_MARKER = "MINIATURE.TXT"  # in the folder of a miniature corpus
NUM_EXAMPLES = 3  # names shown for each problem; report.json has them all


@dataclass
class Outcome:
    """What became of one work item: a recording, or a folder of them.

    Arguments
    ---------
    group : str
        What must stay together in one manifest: recording, speaker, split.
    num_recordings : int
        The number of recordings looked at.
    found_s : float
        Seconds of audio in the readable ones.
    rows : list of Row
        The rows that are kept.
    dropped : list of (str, float)
        Reason and seconds of each stretch of audio that is not kept.
    problems : list of (str, str)
        Reason and name of each file that cannot be used as it should.
    """

    group: str = ""
    num_recordings: int = 1
    found_s: float = 0.0
    rows: list[Row] = field(default_factory=list)
    dropped: list[tuple[str, float]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        rows = [
            (row.id, row.path, row.segments, row.duration, dict(row.labels))
            for row in self.rows
        ]
        return {**vars(self), "rows": rows}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Outcome:
        """Return the outcome that `to_json` described."""
        rows = [
            Row(row_id, path, tuple(map(tuple, segments)), duration, labels)
            for row_id, path, segments, duration, labels in saved["rows"]
        ]
        return cls(**{**saved, "rows": rows})


@dataclass
class Total:
    """A count of rows, or of dropped stretches, and their hours of audio."""

    count: int = 0
    hours: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one more, of that many seconds."""
        self.count += 1
        self.hours += seconds / 3600


@dataclass
class Account:
    """The account of a preparation: found = kept + dropped.

    Arguments
    ---------
    corpus : str
        The name of the corpus.
    source, manifests_folder : str
        The absolute folders of the corpus and of the manifests.
    options : dict
        The options of the preparation, by name.
    fingerprint : str
        A hash of the files of the corpus and the options.
    miniature : bool
        Whether the audio is synthetic speech of `summarymixing.miniature`,
        whose results say nothing about the real corpus.
    found : Total
        The recordings looked at, and the audio in the readable ones.
    manifests : dict[str, Total]
        The rows of each manifest, by its file name.
    dropped : dict[str, Total]
        The stretches of audio that are not kept, by reason.
    problems : dict[str, list of str]
        The names of unusable files, by reason.
    other_files : dict[str, int]
        The number of lines of each file beside the manifests, such as a list
        of trials, by its name.
    reused : bool
        Whether nothing was done, since this preparation was already finished.
    """

    corpus: str
    source: str
    manifests_folder: str
    options: dict[str, Any]
    fingerprint: str
    miniature: bool = False
    found: Total = field(default_factory=Total)
    manifests: dict[str, Total] = field(default_factory=dict)
    dropped: dict[str, Total] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    other_files: dict[str, int] = field(default_factory=dict)
    reused: bool = False

    @property
    def kept(self) -> Total:
        """All rows of all manifests."""
        return _sum(self.manifests.values())

    def add(self, outcome: Outcome) -> None:
        """Count the outcome of one work item, except for its rows."""
        self.found.count += outcome.num_recordings
        self.found.hours += outcome.found_s / 3600
        for reason, seconds in outcome.dropped:
            self.dropped.setdefault(reason, Total()).add(seconds)
        for reason, name in outcome.problems:
            self.problems.setdefault(reason, []).append(name)

    def save(self) -> None:
        """Write report.json beside the manifests, atomically."""
        path = Path(self.manifests_folder) / REPORT_NAME
        content = asdict(self)
        del content["reused"]
        with open_atomically(path) as file:
            json.dump(content, file, indent=2, ensure_ascii=False)
            file.write("\n")

    @classmethod
    def load(cls, manifests_folder: Path) -> Account | None:
        """Read the account of an earlier preparation.

        Arguments
        ---------
        manifests_folder : Path
            Folder of the manifests.

        Returns
        -------
        Account or None
            None where there is none that this version can read.
        """
        try:
            saved = _read_report(manifests_folder)
            account = cls(**saved)
            account.found = Total(**saved["found"])
            account.manifests = _load_totals(saved["manifests"])
            account.dropped = _load_totals(saved["dropped"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return account

    def summary(self) -> str:
        """Return the account as a few lines for people."""
        lines = [
            f"{'miniature ' if self.miniature else ''}{self.corpus}: "
            f"{self.found.count:,} recordings, "
            f"{self.found.hours:,.2f} h in {self.source}",
            *self._kept_lines(),
            *self._dropped_lines(),
            *self._problem_lines(),
        ]
        return "\n".join(lines)

    def nothing_usable(self, layout: str) -> UserError:
        """Return the error for a corpus that should have this layout."""
        return UserError(
            f"Nothing in {self.source} is usable. Expected: {layout}.\n"
            f"{self.summary()}\n"
            "Repair the corpus, or loosen the limits (--help lists them)."
        )

    def _kept_lines(self) -> list[str]:
        lines = [f"  kept     {_describe(self.kept, self.found, 'rows')}"]
        for name, total in sorted(self.manifests.items()):
            lines.append(f"    {_describe(total, None, 'rows')}: {name}")
        for name, count in sorted(self.other_files.items()):
            lines.append(f"    {count:,} lines: {name}")
        return lines

    def _dropped_lines(self) -> list[str]:
        if not self.dropped:
            return []
        total = _sum(self.dropped.values())
        lines = [f"  dropped  {_describe(total, self.found, 'stretches')}"]
        for reason, part in sorted(self.dropped.items()):
            lines.append(f"    {_describe(part, None, 'stretches')}: {reason}")
        return lines

    def _problem_lines(self) -> list[str]:
        if not self.problems:
            return []
        count = sum(map(len, self.problems.values()))
        lines = [
            f"  problems {count:,} (all names in "
            f"{Path(self.manifests_folder) / REPORT_NAME})"
        ]
        for reason, names in sorted(self.problems.items()):
            shown = ", ".join(names[:NUM_EXAMPLES])
            rest = ", ..." if len(names) > NUM_EXAMPLES else ""
            lines.append(f"    {len(names):,}: {reason}: {shown}{rest}")
        return lines


def holds_miniature(corpus_folder: Path) -> bool:
    """Look for the marker of a miniature corpus.

    Arguments
    ---------
    corpus_folder : Path
        Absolute path of the folder of a corpus.

    Returns
    -------
    bool
        True where the marker stands in the folder, up to two levels above it
        (as for one language of Common Voice) or up to two levels below it.
    """
    above = (corpus_folder, *corpus_folder.parents[:2])
    if any((folder / MINIATURE_MARKER).is_file() for folder in above):
        return True
    below = (f"*/{MINIATURE_MARKER}", f"*/*/{MINIATURE_MARKER}")
    return any(next(corpus_folder.glob(place), None) for place in below)


def is_miniature(manifests_folder: Path) -> bool:
    """Tell whether manifests stand for a miniature corpus.

    Arguments
    ---------
    manifests_folder : Path
        The folder that holds the manifests and their report.json.

    Returns
    -------
    bool
        False where there is no report.json, or where an earlier version
        wrote it, which did not know the difference.
    """
    try:
        saved = _read_report(manifests_folder)
    except (OSError, ValueError):
        return False
    return isinstance(saved, dict) and saved.get("miniature") is True


def _read_report(manifests_folder: Path) -> Any:
    return json.loads((manifests_folder / REPORT_NAME).read_text("utf-8"))


def _sum(totals: Iterable[Total]) -> Total:
    parts = list(totals)
    return Total(sum(p.count for p in parts), sum(p.hours for p in parts))


def _describe(total: Total, whole: Total | None, unit: str) -> str:
    text = f"{total.hours:,.2f} h in {total.count:,} {unit}"
    if whole is None or not whole.hours:
        return text
    return f"{text} ({100 * total.hours / whole.hours:.1f} %)"


def _load_totals(saved: Mapping[str, Mapping[str, Any]]) -> dict[str, Total]:
    return {name: Total(**total) for name, total in saved.items()}
