"""Kill real runs a hundred times, break their audio, and compare the ends.

python -m tests.soak FOLDER [--audio=RECORDINGS] [--kills=100] \
    [--save_kills=50] [--minutes=60]

- `kills`: a pre-training on two processes is killed by SIGKILL at random
  moments (as it starts, after an update, while it saves) and started again
  until it is through: all of its processes at once, or one rank alone.
- `save_kills`: the same to a pre-training that saves after every update, on
  one process, in or near the writing.
- audio: every kind of damage, verified, left out, and trained on.
- ranks: the tests of tests/distributed, where a process fails or hangs.

The straight run and the killed one must end with the same bits: encoder,
optimiser, log but for clock times. FOLDER takes report.md and report.json;
the status is 1 where anything failed. `make soak` runs it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from summarymixing.data.prepare import CORPORA
from summarymixing.errors import UserError, exit_on_user_error
from summarymixing.files import write_report
from summarymixing.miniature import build_librilight
from tests.soak.bad_audio import break_audio
from tests.soak.kills import ROOT, SMALL, soak

# Of each round: long enough for some dozens of kills.
TRAINING = {
    **SMALL,
    "accumulation": 2,
    "max_updates": 60,
    "checkpoint_every_updates": 6,
    "log_every_updates": 2,
}
SAVING = {
    **SMALL,
    "d_model": 144,
    "d_ffn": 576,
    "accumulation": 1,
    "max_updates": 40,
    "checkpoint_every_updates": 1,
    "log_every_updates": 1,
}


# What is killed: processes, settings, moments, and the share of the minutes
# after which no run is killed any more.
PARTS: dict[str, tuple[int, dict[str, Any], tuple[str, ...], float]] = {
    "two processes": (2, TRAINING, ("clock", "update", "saving"), 0.6),
    "saving": (1, SAVING, ("saving", "saving", "update"), 0.85),
}


def run_rank_faults() -> dict[str, Any]:
    """Run the tests in which one of two processes fails, dies or hangs."""
    command = [sys.executable, "-m", "pytest", "tests/distributed"]
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    return {
        "passed": done.returncode == 0,
        "summary": lines[-1] if lines else done.stderr[-500:],
        "failures": [line for line in lines if line.startswith("FAILED")],
        "seconds": time.monotonic() - start,
    }


def prepare_audio(
    folder: Path, audio: Path | None, *, hours: float = 0.2
) -> Path:
    """Make manifests of recordings, or of a miniature Libri-Light of hours."""
    manifests = folder / "manifests"
    longest = SMALL["max_batch_seconds"] / 2
    if audio is None:
        corpus = build_librilight(folder / "corpus", hours=hours, seed=1)
        plan = CORPORA["librilight"].plan(
            corpus,
            manifests,
            max_joined_seconds=longest,
            max_clip_seconds=2 * longest,
        )
    else:
        plan = CORPORA["folder"].plan(
            audio.resolve(),
            manifests,
            min_seconds=0.3,
            max_seconds=longest,
            valid_fraction=0.02,
        )
    plan.run()
    return manifests


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [
        f"# Soak of {report['minutes']:.0f} minutes",
        "",
        f"Audio: {report['audio']}",
        "",
        "| runs | kills | rounds | starts | differences | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for name, part in report["runs"].items():
        rounds = part["rounds"]
        lines.append(
            f"| {name} | {len(part['kills'])} | {len(rounds)} | "
            f"{sum(done['starts'] for done in rounds)} | "
            f"{sum(len(done['differences']) for done in rounds)} | "
            f"{part['minutes']:.1f} |"
        )
    for name, part in report["runs"].items():
        kills, rounds = part["kills"], part["rounds"]
        slowest = max((k["seconds_to_the_end"] for k in kills), default=0)
        most: Counter[str] = Counter()
        for kill in kills:
            most |= Counter(kill["half_written"])
        lines += [
            "",
            f"## {name}",
            "",
            f"- hit: {_list_counts(Counter(k['phase'] for k in kills))}",
            f"- killed: {_list_counts(Counter(k['victims'] for k in kills))}",
            f"- the last process had ended {slowest:.1f} s later, at most; "
            f"{sum(k['orphans'] for k in kills)} had to be killed",
            f"- the straight run took {part['straight_s']:.0f} s",
            f"- left by a kill, at most: {_list_counts(most)}",
            "- left when a run was through: "
            + "; ".join(_list_counts(Counter(r["left"])) for r in rounds),
            f"- shared memory left: {len(part['shared_memory'])}",
            *(f"- FAILED: {d}" for r in rounds for d in r["differences"]),
            *([f"- FAILED: {part['failure']}"] if part["failure"] else []),
        ]
    lines += ["", "## Audio", "", "| what | expected | found |"]
    lines += ["|---|---|---|"]
    lines += [
        f"| {c['what']} | {_shorten(c['expected'])} | {_shorten(c['found'])} |"
        for c in report.get("audio_checks", ())
    ]
    if "ranks" in report:
        lines += ["", "## Processes that fail", "", report["ranks"]["summary"]]
        lines += [f"- {line}" for line in report["ranks"]["failures"]]
    verdict = "passed" if report["passed"] else "FAILED, or not at its end"
    return "\n".join([*lines, "", f"**{verdict}**", ""])


def _shorten(values: Sequence[Any]) -> str:
    text = ", ".join(map(str, values))
    return text if len(text) < 60 else f"all {len(values)} of them"


def _list_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{k} {n}" for k, n in counts.most_common()) or "nothing"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Do all parts; the report is renewed after each."""
    folder, start = options.folder.resolve(), time.monotonic()
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    manifests = prepare_audio(folder, options.audio)
    report: dict[str, Any] = {
        "audio": str(options.audio or "a miniature Libri-Light"),
        "runs": {},
        "passed": False,
    }

    def write() -> None:
        report["minutes"] = (time.monotonic() - start) / 60
        write_report(folder / "report", report, as_markdown(report))

    passed = []
    number_of = {"two processes": options.kills, "saving": options.save_kills}
    for name, (processes, settings, aims, share) in PARTS.items():
        print(f"{name}: {number_of[name]} kills", flush=True)
        begin = time.monotonic()
        part = soak(
            name.replace(" ", "-"),
            folder,
            manifests,
            settings,
            processes=processes,
            kills=number_of[name],
            aims=aims,
            deadline=start + 60 * options.minutes * share,
            seed=options.seed,
        )
        passed.append(part.passed)
        minutes = (time.monotonic() - begin) / 60
        report["runs"][name] = {**asdict(part), "minutes": minutes}
        write()
    print("audio with every kind of damage", flush=True)
    report["audio_checks"] = break_audio(
        folder / "damaged", manifests, one_by_one=True
    )
    passed += [check["passed"] for check in report["audio_checks"]]
    write()
    if options.ranks:
        print("processes that fail", flush=True)
        report["ranks"] = run_rank_faults()
        passed.append(report["ranks"]["passed"])
    report["passed"] = all(passed)
    write()
    return report


def main() -> None:
    """Do all parts, print the report."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add = parser.add_argument
    add("folder", type=Path, help="where everything goes; empty")
    add("--audio", type=Path, help="your recordings (default: synthetic)")
    add("--kills", type=int, default=100)
    add("--save_kills", type=int, default=50)
    add("--minutes", type=float, default=60.0, help="kills end after 85 %%")
    add("--seed", type=int, default=0, help="of the moments of the kills")
    add("--no_ranks", dest="ranks", action="store_false")
    report = measure(parser.parse_args())
    print(as_markdown(report))
    sys.exit(not report["passed"])


if __name__ == "__main__":
    exit_on_user_error(main)
