"""A run that is killed at random moments, beside one that is not."""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from summarymixing.run.checkpoint_files import checkpoint_folders
from summarymixing.run.checkpoints import STAGING_NAME, TRASH_NAME
from summarymixing.run.records import read_metrics
from summarymixing.suite.command_runner import TORCHRUN

ROOT = Path(__file__).resolve().parents[2]
TRAIN = (
    str(ROOT / "recipes" / "pretraining" / "train.py"),
    str(ROOT / "hparams" / "pretraining" / "tiny.yaml"),
)
SMALL = {
    "d_model": 48,
    "d_ffn": 96,
    "num_heads": 2,
    "front_end_channels": 32,
    "max_batch_seconds": 10,
    "num_workers": 1,
    "warmup_updates": 10,
    # Draws that a run must repeat after it was killed.
    "dropout": 0.1,
    "layer_drop": 0.2,
}
# What a log tells of the clock or of the machine. All else must be repeated.
CLOCK = re.compile(
    r"seconds|minutes|hours_per_hour|gpu_hours|peak|tflops|waited|disk|slowest"
)
LOGGED_UPDATE = re.compile(r"train, update (\d+)")
HALF_WRITTEN = (STAGING_NAME, TRASH_NAME, ".trial", ".exporting")
# Of torchrun and of Python's workers; and settings torn by a kill.
NOT_OURS = {"temporary", "kept aside"}
MARK = "SUMMARYMIXING_SOAK"  # in the environment of what is started here
ENDS_WITHIN_S = 60.0  # the others, where one rank was killed
START_LIMIT_S = 600.0


@dataclass
class Kill:
    """A SIGKILL, and what it met."""

    aim: str  # which moment was waited for
    victims: str  # "all", or "rank R"
    seconds: float  # since the start of the run
    phase: str  # what the run was at, by the files and the log it left
    seconds_to_the_end: float  # of the last process
    orphans: int = 0  # that had to be killed afterwards
    half_written: dict[str, int] = field(default_factory=dict)


@dataclass
class Run:
    """Starts of the same command in one folder."""

    folder: Path
    manifests: Path
    settings: dict[str, Any]
    processes: int
    starts: int = 0

    def __post_init__(self) -> None:
        self.temporary = self.folder.with_suffix(".tmp")
        self.screen = self.folder.with_suffix(".screen")

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command; its processes are known by their environment."""
        self.starts += 1
        torchrun = [*TORCHRUN, f"--nproc_per_node={self.processes}"]
        is_alone = self.processes == 1
        given = {"manifests": self.manifests, "output_folder": self.folder}
        self.temporary.mkdir(parents=True, exist_ok=True)
        with open(self.screen, "ab") as screen:
            return subprocess.Popen(
                [
                    *([sys.executable] if is_alone else torchrun),
                    *TRAIN,
                    *(f"--{k}={v}" for k, v in (given | self.settings).items()),
                    "--device=cpu",
                ],
                cwd=ROOT,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "TMPDIR": str(self.temporary),
                    MARK: str(self.folder),
                },
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=screen,
                start_new_session=True,
            )

    def finish(self) -> int:
        """Run to the end, whatever comes; return the status."""
        try:
            return self.start().wait()
        finally:
            self.kill()

    def living(self) -> list[int]:
        """Return the processes of this run, whoever their parent is now."""
        mark = f"{MARK}={self.folder}\0".encode()
        return [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/environ")
            if mark in _read(path) + b"\0" and not _is_zombie(path.parent)
        ]

    def ranks(self) -> dict[int, int]:
        """Return the training processes by rank, without their workers."""
        found = {}
        for pid in sorted(self.living(), reverse=True):
            match = re.search(rb"\0RANK=(\d+)\0", _read_environment(pid))
            parent = _parent_of(pid)
            if match and not re.search(
                rb"\0RANK=\d+\0", _read_environment(parent)
            ):
                found[int(match[1])] = pid
        return found

    def kill(self) -> None:
        """Kill all processes, also those that are just being forked."""
        while pids := self.living():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def wait_until_gone(self, seconds: float) -> float:
        """Wait for the last process; return the seconds it took."""
        start = time.monotonic()
        while self.living() and time.monotonic() - start < seconds:
            time.sleep(0.05)
        return time.monotonic() - start

    def half_written(self) -> dict[str, int]:
        """Count what a kill may leave, by its kind."""
        names = [p.name for p in self.folder.rglob("*")]
        counts = Counter(n for n in names if n in HALF_WRITTEN)
        counts[".partial"] = sum(n.endswith(".partial") for n in names)
        counts["+previous"] = sum(n.endswith("+previous") for n in names)
        counts["kept aside"] = sum(
            bool(re.fullmatch(r"(hyperparams|env)\.\d+\.\w+", n)) for n in names
        )
        counts["temporary"] = len(os.listdir(self.temporary))
        return {name: count for name, count in counts.items() if count}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _read_environment(pid: int) -> bytes:
    return b"\0" + _read(Path(f"/proc/{pid}/environ")) + b"\0"


def _stat_of(process: Path) -> list[bytes]:
    """Return the fields behind the name, which may hold anything."""
    return _read(process / "stat").rpartition(b")")[2].split()


def _is_zombie(process: Path) -> bool:
    return _stat_of(process)[:1] in ([b"Z"], [])


def _parent_of(pid: int) -> int:
    return int((_stat_of(Path(f"/proc/{pid}")) + [b"0", b"0"])[1])


class Log:
    """What a run has written into log.txt since it was started."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.txt"
        self._begin = len(_read(self.path))

    def text(self) -> str:
        """Return the new part."""
        content = _read(self.path)
        begin = self._begin if len(content) >= self._begin else 0
        return content[begin:].decode("utf-8", "replace")

    def update(self) -> int:
        """Return the last update that was logged; 0 before the first."""
        found = LOGGED_UPDATE.findall(self.text())
        return int(found[-1]) if found else 0


def phase_of(run: Run, log: Log) -> str:
    """Say what a killed run was at, by what it left."""
    checkpoints = run.folder / "checkpoints"
    if (checkpoints / STAGING_NAME).exists():
        is_trial = (checkpoints / STAGING_NAME / "trial").exists()
        return "starting" if is_trial else "saving"
    if (checkpoints / TRASH_NAME).exists():
        return "deleting a checkpoint"
    encoder = run.folder / "encoder"
    if encoder.exists() and any(encoder.glob(".*")):
        return "exporting"
    lines = log.text().splitlines()
    if not any("train, update" in line or "valid, " in line for line in lines):
        resumed = any("going on from update" in line for line in lines)
        return "before its first entry" if resumed else "starting"
    last = next(
        line
        for line in reversed(lines)
        if ", update" in line or "heckpoint" in line
    )
    return "validating" if "heckpoint in" in last else "training"


def wait_for(
    aim: str,
    run: Run,
    process: subprocess.Popen[bytes],
    log: Log,
    rng: random.Random,
    straight_s: float,
) -> bool:
    """Wait for a random moment of a kind; False where the run has ended.

    "clock" is a time up to half of that of the straight run, most of which is
    spent on starting; "update" is some updates after the first of this start;
    "saving" is the writing of a checkpoint, from the first on.
    """
    deadline = time.monotonic() + START_LIMIT_S
    if aim == "clock":
        deadline = time.monotonic() + rng.uniform(0, straight_s / 2)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        return process.poll() is None
    every = run.settings["checkpoint_every_updates"]
    ahead, saves = rng.randint(1, max(2, 2 * every)), rng.randint(1, 3)
    first, was_saving = 0, False
    while process.poll() is None and time.monotonic() < deadline:
        if aim == "update":
            update = log.update()
            first = first or update
            if first and update >= first + ahead - 1:
                time.sleep(rng.uniform(0, 0.5))
                return True
        else:
            staging = run.folder / "checkpoints" / STAGING_NAME
            is_saving = staging.exists() and not (staging / "trial").exists()
            saves -= is_saving and not was_saving and bool(log.text())
            was_saving = is_saving
            if not saves:
                # A checkpoint of these sizes takes some tens of ms.
                time.sleep(rng.choice([0, rng.uniform(0, 0.1)]))
                return True
        time.sleep(0.001 if aim == "saving" else 0.02)
    return False


def strike(run: Run, log: Log, aim: str, started: float, victim: str) -> Kill:
    """Kill all processes of a run, or one rank; wait for the others."""
    struck = time.monotonic()
    ranks = run.ranks() if victim != "all" else {}
    orphans = 0
    if ranks:
        rank = sorted(ranks)[int(victim) % len(ranks)]
        victim = f"rank {rank}"
        with contextlib.suppress(ProcessLookupError):
            os.kill(ranks[rank], signal.SIGKILL)
        seconds = run.wait_until_gone(ENDS_WITHIN_S)
        orphans = len(run.living())
        run.kill()
    else:
        victim = "all"
        run.kill()
        seconds = time.monotonic() - struck
    return Kill(
        aim=aim,
        victims=victim,
        seconds=struck - started,
        phase=phase_of(run, log),
        seconds_to_the_end=seconds,
        orphans=orphans,
        half_written=run.half_written(),
    )


@dataclass
class Comparison:
    """Killed runs beside the straight one of the same settings.

    A round is a run that was killed until it was through: its `starts`, its
    `differences` from the straight run, and what is `left` in its folders
    beyond what that one left.
    """

    straight_s: float
    kills: list[Kill] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    shared_memory: list[str] = field(default_factory=list)  # left behind
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Whether every killed run came to the same end, and left nothing."""
        return bool(self.rounds) and not (
            self.failure
            or any(kill.orphans for kill in self.kills)
            or any(done["differences"] for done in self.rounds)
            or any(done["left"].keys() - NOT_OURS for done in self.rounds)
        )


def soak(
    name: str,
    folder: Path,
    manifests: Path,
    settings: dict[str, Any],
    *,
    processes: int,
    kills: int,
    aims: Sequence[str],
    deadline: float = math.inf,
    seed: int = 0,
) -> Comparison:
    """Run straight; then kill and start again, in round after round.

    Arguments
    ---------
    name : str
        For the report, and the folders.
    folder, manifests : Path
        Takes the runs; has the audio.
    settings : dict
        Of the pre-training.
    processes : int
        How many train together.
    kills : int
        A round ends when the run is through; another begins until there were
        so many kills.
    aims : sequence of str
        Kinds of moments to draw from: "clock", "update", "saving".
    deadline : float
        After it (`time.monotonic`) no further run is killed.
    seed : int
        Of the moments.

    Returns
    -------
    Comparison
        Of all rounds with the straight run.
    """
    rng, shared = random.Random(seed), set(os.listdir("/dev/shm"))

    def make(which: str) -> Run:
        return Run(folder / f"{name}-{which}", manifests, settings, processes)

    straight, started = make("straight"), time.monotonic()
    status = straight.finish()
    result = Comparison(straight_s=time.monotonic() - started)
    if status:
        result.failure = f"the straight run failed: see {straight.screen}"
    before = Counter(straight.half_written())
    while not result.failure and len(result.kills) < kills:
        run = make(f"killed-{len(result.rounds) + 1}")
        try:
            result.failure = _kill_until_through(
                run, result, kills, aims, rng, deadline
            )
        finally:
            run.kill()
        if not result.failure:
            result.rounds.append(
                {
                    "starts": run.starts,
                    "differences": differences(straight.folder, run.folder),
                    "left": dict(Counter(run.half_written()) - before),
                }
            )
        if time.monotonic() > deadline:
            break
    result.shared_memory = sorted(set(os.listdir("/dev/shm")) - shared)
    return result


def _kill_until_through(
    run: Run,
    result: Comparison,
    kills: int,
    aims: Sequence[str],
    rng: random.Random,
    deadline: float,
) -> str:
    """Start a run and kill it, until it is through; return what failed."""
    while True:
        log, started = Log(run.folder), time.monotonic()
        process = run.start()
        is_last = len(result.kills) >= kills or time.monotonic() > deadline
        aim = rng.choice(aims)
        if not is_last and wait_for(
            aim, run, process, log, rng, result.straight_s
        ):
            # Mostly as a machine that goes; else as one rank out of memory.
            one = run.processes > 1 and rng.random() < 0.25
            victim = str(rng.randrange(run.processes)) if one else "all"
            result.kills.append(strike(run, log, aim, started, victim))
            process.wait()
            show(result.kills[-1], len(result.kills))
            continue
        status = process.wait()
        if status:
            return (
                f"start {run.starts} ended with {status}, and nobody had "
                f"killed it: see {run.screen}"
            )
        return ""


def show(kill: Kill, number: int) -> None:
    """Print a line for a kill."""
    print(
        f"  kill {number}: {kill.victims}, {kill.phase}, after "
        f"{kill.seconds:.1f} s; gone in {kill.seconds_to_the_end:.1f} s",
        flush=True,
    )


def differences(straight: Path, killed: Path) -> list[str]:
    """Return in what a killed run differs from the straight one.

    Compared to the last bit: weights of the encoder, everything in the last
    checkpoint but clock times, entries of the log but clock times.
    """
    found = unequal(
        "encoder",
        *(
            load_file(f / "encoder/encoder.safetensors")
            for f in (straight, killed)
        ),
    )
    states = []
    for folder in (straight, killed):
        last = checkpoint_folders(folder / "checkpoints")[-1]
        states.append(
            {
                name: torch.load(last / f"{name}.ckpt", weights_only=True)
                for name in ("model", "optimizer")
            }
        )
    found += unequal("checkpoint", *states)
    logs = [
        [
            {k: v for k, v in entry.items() if not CLOCK.search(k)}
            for entry in read_metrics(folder)
        ]
        for folder in (straight, killed)
    ]
    return found + unequal("log", *logs)


def unequal(place: str, ours: Any, theirs: Any) -> list[str]:
    """Return the places of nested values that are not equal to the bit."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if ours.keys() != theirs.keys():
            return [f"{place}: {sorted(map(str, ours.keys() ^ theirs.keys()))}"]
        pairs = [(f"{place}.{k}", ours[k], theirs[k]) for k in ours]
    elif isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        if len(ours) != len(theirs):
            return [f"{place}: {len(ours)} and {len(theirs)} of them"]
        both = zip(ours, theirs, strict=True)
        pairs = [(f"{place}[{i}]", a, b) for i, (a, b) in enumerate(both)]
    elif isinstance(ours, torch.Tensor):
        # By bytes: NaN equals itself, and -0 is not 0.
        same = ours.dtype == theirs.dtype and (
            ours.contiguous()
            .view(torch.uint8)
            .equal(theirs.contiguous().view(torch.uint8))
            if ours.dim()
            else ours.equal(theirs)
        )
        return [] if same else [place]
    else:
        return [] if ours == theirs else [f"{place}: {ours} and {theirs}"]
    return [text for pair in pairs for text in unequal(*pair)]
