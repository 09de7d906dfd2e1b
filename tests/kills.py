"""Kill a training while it saves, again and again; then let it finish.

Used by tests/recipes/test_pretraining.py with a few kills, and for hundreds:
`train_with_kills(train, kills=100, seed=1)` with any `train` that runs a recipe
in this process, for example ``lambda: run(pretrain, [...])``.
"""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from summarymixing.run.checkpoints import AtomicCheckpointer
from summarymixing.run.records import read_metrics

# What a log says of the clock and the machine, not of the training.
CLOCK = (
    "seconds_",
    "minutes_",
    "peak_",
    "audio_hours_per_hour",
    "gpu_hours",
    "disk_",
    "slowest_",
)


def train_with_kills(
    train: Callable[[], None],
    kills: int,
    seed: int,
    most_saves: int = 3,
    most_seconds: float = 0.1,
) -> Iterator[float]:
    """Run a training to its end, with kills in between.

    Arguments
    ---------
    train : Callable
        Goes on from the last checkpoint. It runs in a fork of this process,
        whose threads torch must not have spread its work over.
    kills : int
        How many times SIGKILL comes.
    seed : int
        Of the moments.
    most_saves : int
        A kill comes behind the beginning of one of so many saves,
    most_seconds : float
        and at most so much later.

    Yields
    ------
    float
        After each kill, how long after the beginning of a save it came. The
        run has ended when the last one is taken.
    """
    chance = random.Random(seed)
    for _ in range(kills):
        pid, saves = _start(train)
        begun = [saves.read(1) for _ in range(chance.randint(1, most_saves))]
        seconds = chance.uniform(0.0, most_seconds)
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        saves.close()
        assert begun[0], "it ended before it saved"
        assert status in (0, -signal.SIGKILL), "it failed; see its output"
        yield seconds
    pid, saves = _start(train)
    while saves.read(1):
        pass
    saves.close()
    assert os.waitpid(pid, 0)[1] == 0, "it failed; see its output"


def _start(train: Callable[[], None]):
    """Train in a child; return its number, and a file with a byte a save."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, open(reading, "rb", buffering=0)
    save_once = AtomicCheckpointer._save_once

    def announce(*args, **options):
        os.write(writing, b"s")
        return save_once(*args, **options)

    AtomicCheckpointer._save_once = announce
    try:
        train()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def without_clock(output: Path) -> list[dict[str, float]]:
    """Return the log of a run, without what no two runs have in common."""
    return [
        {k: v for k, v in entry.items() if not k.startswith(CLOCK)}
        for entry in read_metrics(output)
    ]


def states(output: Path) -> dict[str, dict]:
    """Return what the last checkpoint holds of the model and its optimiser."""
    last = AtomicCheckpointer(output / "checkpoints").find_checkpoint()
    return {
        name: torch.load(path)
        for name, path in last.paramfiles.items()
        if name in ("model", "optimizer")
    }
