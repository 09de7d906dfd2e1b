"""One of two processes fails: both end, in time, and name the first cause.

The processes are forked and started as torchrun does it: one store that
outlives them, SIGTERM for the other when one has failed.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from summarymixing.lobes.pretraining import Wav2Vec2Pretraining
from summarymixing.run import launch, peers
from summarymixing.run.checkpoints import AtomicCheckpointer
from summarymixing.run.records import _Board, read_metrics
from summarymixing.training import pretraining, pretraining_data

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "recipes" / "pretraining" / "train.py"
LIMIT_S = 240.0  # of a test; far above what it takes, also on a busy machine
SETTINGS = (
    *("--d_model=16", "--d_ffn=32", "--num_heads=2", "--num_layers=1"),
    *("--front_end_channels=8", "--num_codes=4", "--target_dim=8"),
    *("--accumulation=2", "--num_workers=0", "--max_batch_seconds=4"),
    *("--max_updates=4", "--checkpoint_every_updates=2"),
    *("--log_every_updates=1", "--compile=False"),
)
Brain = pretraining.PretrainingBrain


class Ended(NamedTuple):
    """What two processes have left."""

    statuses: list[int]
    screen: str
    seconds: float  # from the fault to the end of the last process
    saved: list[int]  # updates that have a checkpoint
    logged: list[tuple[str, int]]


def raise_error(*args: object, **kwargs: object) -> None:
    raise RuntimeError("boom")


def kill(*args: object, **kwargs: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(*args: object, **kwargs: object) -> None:
    time.sleep(10 * LIMIT_S)


def at(
    owner: object, name: str, fault: Callable[..., None], call: int, rank: int
) -> Callable[[Path], None]:
    """Return what lets a call of a function on one rank be a fault."""

    def install(folder: Path) -> None:
        if int(os.environ["RANK"]) != rank:
            return
        function, calls = getattr(owner, name), []

        def harmed(*args: object, **kwargs: object) -> object:
            calls.append(name)
            if len(calls) == call:
                (folder / "fault").touch()
                fault()
            return function(*args, **kwargs)

        setattr(owner, name, harmed)

    return install


@pytest.fixture
def run_with(manifests, tmp_path, monkeypatch):
    """Return a function that runs two processes with a fault.

    With FAULT_TIMES=FILE it notes how long they take, with the real limits.
    """
    if "FAULT_TIMES" not in os.environ:
        monkeypatch.setattr(peers, "BEAT_SECONDS", 0.25)
        monkeypatch.setattr(peers, "ENDED_SECONDS", 1.0)
        monkeypatch.setattr(peers, "GRACE_SECONDS", 1.0)
    main = runpy.run_path(str(TRAIN))["pretrain"]
    store = torch.distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )
    for name, value in {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "CUDA_VISIBLE_DEVICES": "",
    }.items():
        monkeypatch.setenv(name, value)

    def start(rank: int, install: Callable[[Path], None], words) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            file = os.open(
                tmp_path / "screen", os.O_CREAT | os.O_RDWR | os.O_APPEND
            )
            for stream in (1, 2):
                os.dup2(file, stream)
            sys.stdout = os.fdopen(1, "w")
            sys.stderr = os.fdopen(2, "w")
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            install(tmp_path)
            launch.run(
                main,
                [
                    str(ROOT / "hparams/pretraining/tiny.yaml"),
                    f"--manifests={manifests}",
                    f"--output_folder={tmp_path / 'out'}",
                    *SETTINGS,
                    *words,
                ],
            )
        finally:
            os._exit(99)

    def run_with(install: Callable[[Path], None], *words: str) -> Ended:
        pids: dict[int, int] = {}
        run_with.pids = pids  # rank 1 is started last, and sees rank 0
        for rank in range(2):
            pids[start(rank, install, words)] = rank
        statuses, begin = [0, 0], time.monotonic()
        try:
            while pids:
                assert time.monotonic() - begin < LIMIT_S, "they hang"
                time.sleep(0.05)
                for pid in list(pids):
                    done, status = os.waitpid(pid, os.WNOHANG)
                    if not done:
                        continue
                    code = os.waitstatus_to_exitcode(status)
                    statuses[pids.pop(pid)] = code
                    for other in pids if code else ():
                        os.kill(other, signal.SIGTERM)
        finally:
            ended_at = time.time()
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        fault = tmp_path / "fault"
        seconds = ended_at - fault.stat().st_mtime if fault.exists() else 0.0
        metas = (tmp_path / "out/checkpoints").glob("CKPT*/CKPT.yaml")
        saved = sorted(
            int(line.split()[1])
            for meta in metas
            for line in meta.read_text().splitlines()
            if line.startswith("update:")
        )
        logged = [
            (e["stage"], e["update"]) for e in read_metrics(tmp_path / "out")
        ]
        screen = (tmp_path / "screen").read_text()
        with open(os.environ.get("FAULT_TIMES", os.devnull), "a") as file:
            name = os.environ["PYTEST_CURRENT_TEST"].split("[")[-1]
            file.write(json.dumps([name, seconds, statuses, saved]) + "\n")
        return Ended(statuses, screen, seconds, saved, logged)

    yield run_with
    del store


ORDERLY = {
    # The first forward of update 2; 2 micro-batches make an update.
    "forward": at(Brain, "_forward", raise_error, 3, 1),
    # Behind the collective that begins in the forward pass.
    "forward behind its collective": at(
        Wav2Vec2Pretraining,
        "_losses",
        raise_error,
        4,
        1,
    ),
    "backward of a part": at(torch.Tensor, "backward", raise_error, 3, 1),
    "loader": at(
        pretraining_data.MaskingCollate, "__call__", raise_error, 3, 1
    ),
}


@pytest.mark.parametrize("fault", ORDERLY)
def test_the_state_before_a_failed_update_is_saved(run_with, fault):
    ended = run_with(ORDERLY[fault])
    assert ended.statuses == [2, 2], ended.screen[-3000:]
    assert ended.screen.count("boom") == 1, ended.screen[-3000:]
    assert "error: rank 1: RuntimeError: " in ended.screen
    assert ended.saved == [1]
    assert ended.logged == [("train", 1)]


def test_a_queued_update_is_left_out_as_well(run_with, monkeypatch):
    """As on a GPU, where an update is read when the next one is queued."""
    init = Brain.__init__

    def init_as_on_gpu(self, **kwargs):
        init(self, **kwargs)
        self.updates_behind = 1

    monkeypatch.setattr(Brain, "__init__", init_as_on_gpu)
    ended = run_with(ORDERLY["forward"], "--log_every_updates=4")
    assert ended.statuses == [2, 2], ended.screen[-3000:]
    assert ended.saved == [1]


def test_a_failed_validation_costs_no_update(run_with):
    """Its only batch is that of rank 0."""
    ended = run_with(at(Brain, "_list_unreadable", raise_error, 1, 0))
    assert ended.statuses == [2, 2], ended.screen[-3000:]
    assert ended.screen.count("error: rank 0: RuntimeError: boom") == 1
    assert ended.saved == [2]


def test_a_failed_save_is_told_once(run_with):
    ended = run_with(at(AtomicCheckpointer, "_save", raise_error, 1, 0))
    assert 0 not in ended.statuses
    assert ended.screen.count("RuntimeError: boom") == 1, ended.screen[-3000:]
    assert "error: " not in ended.screen
    assert ended.saved == []


def test_a_log_that_fails_ends_no_run(run_with):
    ended = run_with(at(_Board, "write", raise_error, 1, 0))
    assert ended.statuses == [0, 0], ended.screen[-3000:]
    assert "training goes on" in ended.screen
    assert ended.saved == [2, 4]


def test_a_failure_between_collectives_takes_all_along(run_with):
    """The gradients of this backward pass are exchanged on the way."""
    ended = run_with(at(torch.Tensor, "backward", raise_error, 4, 1))
    assert ended.statuses == [2, 1], ended.screen[-3000:]
    assert ended.screen.count("RuntimeError: boom") == 1, ended.screen[-3000:]
    assert ended.screen.count("Traceback") == 1


KILLED = {
    "update": at(Brain, "_forward", kill, 7, 1),
    # The second one: the checkpoint before it is written by then.
    "validation": at(Brain, "_list_unreadable", kill, 2, 0),
    "saving": at(AtomicCheckpointer, "_save", kill, 1, 0),
}


@pytest.mark.parametrize("phase", KILLED)
def test_a_killed_process_takes_the_others_along(run_with, phase):
    ended = run_with(KILLED[phase])
    dead = 1 if phase == "update" else 0
    assert ended.statuses[dead] == -signal.SIGKILL
    assert ended.statuses[1 - dead] == 2, ended.screen[-3000:]
    gone = f"error: rank {dead} is gone without a word"
    assert ended.screen.count("error: ") == ended.screen.count(gone) == 1
    assert "Traceback" not in ended.screen
    # That of update 4 is written beside the validation.
    expected = {"saving": [[]], "update": [[2]], "validation": [[2], [2, 4]]}
    assert ended.saved in expected[phase]


def test_a_process_that_waits_where_python_does_not_return_is_ended(
    run_with,
):
    """As in a kernel of NCCL; here the main thread holds still."""

    def install(folder: Path) -> None:
        at(Brain, "_forward", kill, 3, 1)(folder)
        at(Brain, "_forward", sleep, 3, 0)(folder)

    ended = run_with(install)
    assert ended.statuses == [peers.STATUS, -signal.SIGKILL]
    assert ended.screen.count("error: rank 1 is gone without a word") == 1


def test_a_process_that_sleeps_is_named(run_with):
    install = at(Brain, "_multiply_adds", sleep, 3, 1)
    ended = run_with(install, "--stalled_after_seconds=6")
    # The other one leaves its collective when this one is gone, or is ended.
    assert ended.statuses[0] in (2, peers.STATUS), ended.screen[-3000:]
    assert ended.statuses[1] == peers.STATUS
    assert ended.screen.count("error: rank 1 has made no progress") == 1
    assert "in sleep (" in ended.screen


def test_a_run_that_was_suspended_goes_on(run_with, monkeypatch):
    """For longer than all limits, and all processes, as Slurm suspends."""
    monkeypatch.setattr(peers, "BEAT_SECONDS", 0.25)
    monkeypatch.setattr(peers, "GONE_SECONDS", 4.0)
    # As of another machine.
    monkeypatch.setattr(peers.Peers, "_has_ended", lambda *_: None)
    forward = Brain._forward

    def forward_slowly(*args: object, **kwargs: object) -> object:
        time.sleep(0.25)  # the run must outlast what a false alarm takes
        return forward(*args, **kwargs)

    def suspend() -> None:
        # Rank 0 a second before this one, and back a second after it.
        first, last = next(iter(run_with.pids)), os.getpid()
        script = (
            f"kill -STOP {first}; sleep 1; kill -STOP {last}; sleep 5; "
            f"kill -CONT {last}; sleep 1; kill -CONT {first}"
        )
        subprocess.Popen(["sh", "-c", script], start_new_session=True)
        time.sleep(8)

    monkeypatch.setattr(Brain, "_forward", forward_slowly)
    install = at(Brain, "_multiply_adds", suspend, 5, 1)
    ended = run_with(install, "--stalled_after_seconds=6", "--max_updates=6")
    assert ended.statuses == [0, 0], ended.screen[-3000:]
    assert "error: " not in ended.screen
    assert ended.seconds > 5
