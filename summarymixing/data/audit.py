"""Bad audio, found before a run meets it, and left out of manifests.

All rows are read as training reads them. What was found out is appended to a
report, which a second call goes on from; at the end the bad rows make a list
(`quarantine.csv`) that pre-training takes as `--exclude`.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    wait,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from summarymixing.data.audio import (
    END_TOLERANCE_S,
    SAMPLE_RATE_HZ,
    AudioError,
    audio_info,
    read_audio,
)
from summarymixing.data.manifest import Manifest, Row
from summarymixing.data.prepare.pipeline import start_pool_worker
from summarymixing.errors import UserError
from summarymixing.files import open_atomically, sha256_of, write_csv

REPORT_NAME = "verify.jsonl"
QUARANTINE_NAME = "quarantine.csv"
COLUMNS = ("manifest", "id", "path", "reason", "detail", "row")

# Part of the report's first line: raise it when a rule below changes.
RULES_VERSION = 1
ROWS_PER_CHUNK = 64
DIGEST_BYTES = 16  # of the samples of a row; equal by chance once in 2**64

# One mask span of wav2vec 2.0, 10 frames of 20 ms: of a shorter row, nothing
# stays in sight to predict the masked frames from.
MIN_SECONDS = 0.2

# 33 steps of 16 bits, 60 dB below full scale. The peaks of quiet speech lie
# 20 dB above it, and the noise of converters below.
SILENT_PEAK = 0.001

# Gates write zeros into pauses, of which speech has half at most; copies with
# holes, and channels that were not connected, are zeros almost throughout.
MAX_ZERO_SHARE = 0.9

# Clean speech reaches within a percent of full scale once a second if at all;
# at one sample in a hundred, whole half-waves are flat.
CLIPPED_LEVEL = 0.99
MAX_CLIPPED_SHARE = 0.01


class Finding(NamedTuple):
    """What is wrong with a row."""

    row: int  # from 0
    id: str
    path: str
    reason: str  # in a word or two: for counts of many
    detail: str


@dataclass
class ChunkReport:
    """What was found out of some rows that follow each other.

    manifest : its number; start : of the first row; digests : of the samples,
    hexadecimal, "" for rows that cannot be read; rates : recordings by sample
    rate, without those of 16 kHz.
    """

    manifest: int
    start: int
    digests: list[str] = field(default_factory=list)
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    rates: Counter[str] = field(default_factory=Counter)

    @classmethod
    def from_json(cls, line: str) -> ChunkReport:
        """Read a line of the report; ValueError if it is torn."""
        saved = json.loads(line)
        saved["findings"] = [Finding(*found) for found in saved["findings"]]
        return cls(**{**saved, "rates": Counter(saved["rates"])})


@dataclass(frozen=True)
class Audit:
    """What was found out of all rows."""

    manifests: Sequence[Path]
    num_rows: int
    num_known: int  # rows that an earlier call had verified
    seconds: float
    findings: Sequence[tuple[Path, Finding]]
    rates: Counter[str]

    def summary(self) -> str:
        """Return the account, some lines of text."""
        names = ", ".join(path.name for path in self.manifests)
        lines = [
            f"{self.num_rows:,} rows, {self.seconds / 3600:,.2f} h, of {names}:"
            f" {self.num_rows - len(self.findings):,} are sound"
        ]
        reasons = Counter(found.reason for _, found in self.findings)
        for reason, count in reasons.most_common():
            path, found = next(
                pair for pair in self.findings if pair[1].reason == reason
            )
            lines.append(
                f"  {reason}: {count:,}, for example {found.id} of "
                f"{path.name} ({found.detail})"
            )
        for rate, count in sorted(self.rates.items()):
            lines.append(
                f"  for information: {count:,} recordings have {rate} Hz and "
                "are resampled while training reads them"
            )
        return "\n".join(lines)


def find_manifests(places: Sequence[Path]) -> list[Path]:
    """Return the manifests among files and in folders.

    Arguments
    ---------
    places : sequence of Path
        A folder stands for the manifests in it, not for its other CSV files.

    Returns
    -------
    list of Path
        Absolute paths; UserError for a folder without a manifest.
    """
    found: dict[Path, None] = {}
    for place in places:
        inside = [place]
        if place.is_dir():
            inside = [
                path for path in sorted(place.glob("*.csv")) if _has_rows(path)
            ]
        if not inside:
            raise UserError(
                f"{place} holds no manifest. Give the MANIFESTS folder of "
                "recipes/prepare.py, or CSV files."
            )
        found.update(dict.fromkeys(path.absolute() for path in inside))
    return list(found)


def _has_rows(path: Path) -> bool:
    begin = b"id,path,segments,"
    with open(path, "rb") as file:
        return file.read(len(begin)) == begin


def verify(
    manifests: Sequence[Path], report: Path, *, num_workers: int = 1
) -> Audit:
    """Read all audio of some manifests, or what is left of it to read.

    Arguments
    ---------
    manifests : sequence of Path
        The CSV files.
    report : Path
        The file of what is known so far; a report about other manifests, or
        other content of these, is begun anew.
    num_workers : int
        The number of processes; the result does not depend on it.

    Returns
    -------
    Audit
        What is wrong with which row. Of rows with the same samples one is
        sound, in the smallest manifest: validation keeps what training must
        not see.
    """
    opened = [Manifest.read(path) for path in manifests]
    header = {
        "rules": RULES_VERSION,
        "manifests": {str(m.path): sha256_of(m.path) for m in opened},
    }
    known = _open_report(report, header)
    num_known = sum(len(chunk.digests) for chunk in known)
    done = {(chunk.manifest, chunk.start) for chunk in known}
    todo = (
        (number, start)
        for number, manifest in enumerate(opened)
        for start in range(0, len(manifest), ROWS_PER_CHUNK)
        if (number, start) not in done
    )
    num_rows = sum(map(len, opened))
    with (
        report.open("a", encoding="utf-8") as file,
        tqdm(
            total=num_rows, initial=num_known, unit=" rows", disable=None
        ) as bar,
    ):
        for chunk in _examine_all(opened, todo, num_workers):
            file.write(json.dumps(vars(chunk)) + "\n")
            file.flush()
            bar.update(len(chunk.digests))
    chunks = _open_report(report, header)
    found = {
        (chunk.manifest, found.row): found
        for chunk in chunks
        for found in chunk.findings
    }
    for number, row in _duplicates(opened, chunks):
        found.setdefault((number, row.row), row)
    return Audit(
        manifests=manifests,
        num_rows=num_rows,
        num_known=num_known,
        seconds=sum(chunk.seconds for chunk in chunks),
        findings=[(manifests[key[0]], found[key]) for key in sorted(found)],
        rates=sum((chunk.rates for chunk in chunks), Counter()),
    )


def write_quarantine(audit: Audit, path: Path) -> None:
    """Write the bad rows as a list that `leave_out` takes."""
    rows = (
        (manifest, f.id, f.path, f.reason, f.detail, f.row + 1)
        for manifest, f in audit.findings
    )
    write_csv(path, [COLUMNS, *rows])


def leave_out(manifest: Manifest, quarantine: Path | str | None) -> Manifest:
    """Return a manifest without the rows of a quarantine list.

    Arguments
    ---------
    manifest : Manifest
        Its file name, such as train.csv, is what the list names.
    quarantine : Path, str or None
        A CSV file with the columns `manifest` and `id`; where there is a
        column `row`, which counts from 1, not all rows need be looked at.
        None leaves out nothing.

    Returns
    -------
    Manifest
        UserError if the list cannot be read, or none of the rows is left.
    """
    if quarantine is None:
        return manifest
    try:
        with open(quarantine, encoding="utf-8", newline="") as file:
            listed = [
                (entry["id"], int(entry.get("row") or 0) - 1)
                for entry in csv.DictReader(file)
                if Path(entry["manifest"]).name == manifest.path.name
            ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(
            f"--exclude={quarantine} cannot be read ({error!r}). Give the "
            f"{QUARANTINE_NAME} that `recipes/prepare.py verify` has written: "
            f"CSV with the columns {', '.join(COLUMNS)}."
        ) from error
    if all(
        0 <= row < len(manifest) and manifest[row].id == row_id
        for row_id, row in listed
    ):
        return manifest.without([row for _, row in listed])
    # Written by hand, or the corpus was prepared again.
    ids = {row_id for row_id, _ in listed}
    return manifest.where(lambda row: row.id not in ids)


def _examine_all(
    manifests: Sequence[Manifest],
    todo: Iterator[tuple[int, int]],
    num_workers: int,
) -> Iterator[ChunkReport]:
    """Yield the reports of chunks as they are finished."""
    jobs = (
        (number, start, _rows(manifests[number], start))
        for number, start in todo
    )
    if num_workers <= 1:
        yield from (_examine_chunk(*job) for job in jobs)
        return
    with ProcessPoolExecutor(
        num_workers, initializer=start_pool_worker
    ) as pool:
        # A few for each process: millions of rows would not fit.
        running: set[Future[ChunkReport]] = set()
        try:
            for job in jobs:
                running.add(pool.submit(_examine_chunk, *job))
                if len(running) >= 4 * num_workers:
                    finished, running = wait(
                        running, return_when=FIRST_COMPLETED
                    )
                    yield from (future.result() for future in finished)
            yield from (future.result() for future in running)
        finally:
            pool.shutdown(cancel_futures=True)


def _rows(manifest: Manifest, start: int) -> list[Row]:
    stop = min(start + ROWS_PER_CHUNK, len(manifest))
    return [manifest[index] for index in range(start, stop)]


def _examine_chunk(number: int, start: int, rows: Sequence[Row]) -> ChunkReport:
    torch.set_num_threads(1)  # processes share the cores already
    report = ChunkReport(number, start)
    path_before = ""
    for index, row in enumerate(rows, start):
        report.seconds += row.duration
        found: tuple[str, str] | None
        try:
            if row.path != path_before:
                rate = audio_info(Path(row.path)).sample_rate_hz
                if rate != SAMPLE_RATE_HZ:
                    report.rates[str(rate)] += 1
                path_before = row.path
            wav = read_audio(row)
        except AudioError as error:
            found = error.reason, str(error)
            report.digests.append("")
        else:
            found = examine(wav, row)
            samples = wav.numpy().tobytes()
            digest = hashlib.blake2b(samples, digest_size=DIGEST_BYTES)
            report.digests.append(digest.hexdigest())
        if found:
            report.findings.append(Finding(index, row.id, row.path, *found))
    return report


def examine(wav: Tensor, row: Row) -> tuple[str, str] | None:
    """Return what is wrong with audio that can be read, if anything is.

    Arguments
    ---------
    wav : Tensor, float32, (S,)
        What `read_audio` returns for the row.
    row : Row
        Says how long it should be.

    Returns
    -------
    tuple of (str, str) or None
        Reason and detail.

    Example
    -------
    >>> examine(torch.zeros(16_000), Row("a", "/a.flac", (), 1.0))
    ('silent', 'no sample above 0 of 1')
    """
    seconds = len(wav) / SAMPLE_RATE_HZ
    peak = wav.abs().max().item()
    zeros = (wav == 0).float().mean().item()
    clipped = (wav.abs() >= CLIPPED_LEVEL).float().mean().item()
    if abs(seconds - row.duration) > END_TOLERANCE_S:
        said = f"{seconds:g} s, and {row.duration:g} s in the manifest"
        return "wrong length", said
    if seconds < MIN_SECONDS:
        return "too short", f"{seconds:g} s"
    if peak < SILENT_PEAK:
        return "silent", f"no sample above {peak:.2g} of 1"
    if zeros > MAX_ZERO_SHARE:
        return "silent", f"{zeros:.0%} of the samples are 0"
    if clipped > MAX_CLIPPED_SHARE:
        return "clipped", f"{clipped:.1%} of the samples at full scale"
    return None


def _duplicates(
    manifests: Sequence[Manifest], chunks: Sequence[ChunkReport]
) -> Iterator[tuple[int, Finding]]:
    """Yield rows whose samples a row before has, smallest manifest first."""
    first: dict[str, tuple[int, int]] = {}
    bad = {(c.manifest, found.row) for c in chunks for found in c.findings}
    by_size = sorted(
        chunks, key=lambda c: (len(manifests[c.manifest]), c.manifest, c.start)
    )
    for chunk in by_size:
        for index, digest in enumerate(chunk.digests, chunk.start):
            place = chunk.manifest, index
            if not digest or place in bad:
                continue
            number, kept = first.setdefault(digest, place)
            if (number, kept) != place:
                row, other = manifests[chunk.manifest][index], manifests[number]
                said = f"as {other[kept].id} of {other.path.name}"
                yield (
                    chunk.manifest,
                    Finding(index, row.id, row.path, "duplicate", said),
                )


def _open_report(path: Path, header: dict[str, Any]) -> list[ChunkReport]:
    """Return what an earlier call found out; begin anew where it is no use.

    What a kill has torn at the end is cut off.
    """
    lines: list[str] = []
    if path.is_file():
        lines = path.read_text("utf-8").splitlines(keepends=True)
    chunks = []
    first = json.dumps(header) + "\n"
    if lines[:1] == [first]:
        for line in lines[1:]:
            if not line.endswith("\n"):
                break
            try:
                chunks.append(ChunkReport.from_json(line))
            except (ValueError, TypeError, KeyError):
                break
    whole = [first, *lines[1 : 1 + len(chunks)]]
    if whole != lines:
        with open_atomically(path) as file:
            file.writelines(whole)
    return chunks
