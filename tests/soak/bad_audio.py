"""Every kind of damaged audio: verified, left out, and trained on."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from summarymixing.data.audit import leave_out
from summarymixing.data.manifest import Manifest, Row, write_manifest
from summarymixing.run.records import read_metrics
from tests.damaged_audio import REASONS, write_corpus
from tests.soak.kills import ROOT, SMALL, Run

# Left out and counted while training. Of so few rows, the first look finds one
# that is missing, and ends the run.
UNREADABLE = ("unreadable", "truncated", "NaN or infinite samples")
AUDIO = {
    **SMALL,
    # All rows in one batch: each is met in each update.
    "max_batch_seconds": 600,
    "max_updates": 2,
    "checkpoint_every_updates": 2,
    "log_every_updates": 1,
    "accumulation": 1,
    "num_workers": 0,
}
SOUND_ROWS = 8


def break_audio(
    folder: Path, manifests: Path, *, one_by_one: bool
) -> list[dict[str, Any]]:
    """Verify, leave out and train on audio with every kind of damage.

    Arguments
    ---------
    folder, manifests : Path
        Takes the damaged audio; has the sound audio.
    one_by_one : bool
        Whether each kind gets a run of its own.

    Returns
    -------
    list of dict
        what was tried, what was expected and found, and whether it passed.
    """
    folder.mkdir(parents=True)
    write_corpus(folder)
    damaged = {row.id: row for row in Manifest.read(folder / "train.csv")}
    sound = [
        Row(row.id, row.path, row.segments, row.duration)
        for row in list(Manifest.read(manifests / "train.csv"))[:SOUND_ROWS]
    ]
    valid = [
        Row(row.id, row.path, row.segments, row.duration)
        for row in list(Manifest.read(manifests / "valid.csv"))[:SOUND_ROWS]
    ]
    in_valid = list(Manifest.read(folder / "valid.csv"))
    checks: list[dict[str, Any]] = []

    def check(what: str, expected: Any, found: Any) -> None:
        checks.append(
            {
                "what": what,
                "expected": expected,
                "found": found,
                "passed": expected == found,
            }
        )

    def place(name: str, train: list[Row], valid: list[Row]) -> Path:
        where = folder / name
        where.mkdir()
        write_manifest(where / "train.csv", train)
        write_manifest(where / "valid.csv", valid)
        return where

    def train(name: str, where: Path, **more: Any) -> tuple[int, Run]:
        run = Run(folder / f"run-{name}", where, AUDIO | more, 1)
        return run.finish(), run

    def messages(run: Run, words: str) -> int:
        screen = run.screen.read_text("utf-8")
        return len(re.findall(f"^error: .*{words}", screen, re.MULTILINE))

    everything = place("all", [*sound, *damaged.values()], [*valid, *in_valid])
    subprocess.run(
        [sys.executable, "recipes/prepare.py", "verify", str(everything)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    quarantine = everything / "quarantine.csv"
    whole = Manifest.read(everything / "train.csv")
    kept = {row.id for row in leave_out(whole, quarantine)}
    listed = sorted(row.id for row in whole if row.id not in kept)
    check("verify lists every kind", sorted(REASONS), listed)
    status, run = train("excluded", everything, exclude=quarantine)
    check(
        "--exclude: status, unreadable utterances",
        [0, 0],
        [status, _count_unreadable(run.folder)],
    )
    present = [name for name in REASONS if name != "missing"]
    groups = {"all kinds": present}
    if one_by_one:
        groups |= {name: [name] for name in present}
    for name, ids in groups.items():
        where = place(name, [*sound, *(damaged[i] for i in ids)], valid)
        status, run = train(name.replace(" ", "-"), where)
        lost = sum(REASONS[i] in UNREADABLE for i in ids)
        finite = all(math.isfinite(e["loss"]) for e in read_metrics(run.folder))
        check(
            f"{name}: status, unreadable in two epochs, loss is finite",
            [0, 2 * lost, True],
            [status, _count_unreadable(run.folder), finite],
        )
    where = place("missing", [*sound, damaged["missing"]], valid)
    status, run = train("missing", where)
    check(
        "missing: status, messages",
        [2, 1],
        [status, messages(run, "recordings looked up .* do not exist")],
    )
    bad = [damaged[i] for i in present if REASONS[i] in UNREADABLE]
    status, run = train("bad-validation", place("validation", sound, bad))
    check(
        "a validation that lost its audio: status, messages",
        [2, 1],
        [status, messages(run, ".*of the validation could not be read")],
    )
    return checks


def _count_unreadable(run: Path) -> int:
    entries = [e for e in read_metrics(run) if e["stage"] == "train"]
    return sum(entry["unreadable_utterances"] for entry in entries)
