"""Recipes under torchrun: two CPU processes start, fail and stop together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = '''
"""A recipe that does what its YAML says."""

import atexit
import json
import time
from pathlib import Path

import torch

from summarymixing.errors import UserError
from summarymixing.run.launch import run
from summarymixing.run.stopping import (
    Stopped,
    stop_requested,
    stop_requested_anywhere,
)


def describe(rank, folder, hparams):
    state = {
        "sum": torch.tensor(rank + 1),
        "seed": hparams["seed"],
        "threads": torch.get_num_threads(),
    }
    torch.distributed.all_reduce(state["sum"])
    state["sum"] = state["sum"].item()
    (folder / f"{rank}.json").write_text(json.dumps(state))
    for _ in range(2000):  # outlives no test that was itself killed
        if stop_requested_anywhere():
            break
        time.sleep(0.05)
    (folder / f"{rank}.saved").write_text(str(stop_requested()))
    atexit.register((folder / f"{rank}.ended").touch)
    raise Stopped


def refuse_on_rank_1(rank, folder, hparams):
    if rank == 1:
        raise UserError("bad audio")
    torch.distributed.barrier()


def train(hparams, run_opts):
    rank = torch.distributed.get_rank()
    globals()[hparams["task"]](rank, Path(hparams["output_folder"]), hparams)


run(train)
Path("python.ended").touch()
'''
RECIPE = "seed: 1\ntask: describe\noutput_folder: results\n"
START_SECONDS = 240


def start(folder: Path, *words: str) -> subprocess.Popen:
    """Start two ranks, without a choice of threads."""
    (folder / "train.py").write_text(SCRIPT)
    (folder / "recipe.yaml").write_text(RECIPE)
    environment = {
        key: value
        for key, value in os.environ.items()
        if key != "OMP_NUM_THREADS"
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*torchrun, "--nproc_per_node=2", "train.py", "recipe.yaml", *words],
        cwd=folder,
        env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    try:
        _, messages = process.communicate(timeout=START_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, messages


def test_two_processes_share_a_run_and_stop_together(tmp_path):
    process = start(tmp_path, "--seed=5")
    results = tmp_path / "results"
    states = [results / f"{rank}.json" for rank in range(2)]
    while not all(path.exists() for path in states):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    finish(process)
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    for rank, path in enumerate(states):
        expected = {"sum": 3, "seed": 5, "threads": threads}
        assert json.loads(path.read_text()) == expected
        assert (results / f"{rank}.saved").exists()
        assert (results / f"{rank}.ended").exists()
    # Python's own end would meet the threads of the process group.
    assert not (tmp_path / "python.ended").exists()
    assert "seed: 5" in (results / "hyperparams.yaml").read_text()
    assert (results / "stopped").read_text() == "stopped by SIGTERM\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task=refuse_on_rank_1"], "error: rank 1: bad audio\n"),
        (["--output_folder=recipe.yaml"], "error: recipe.yaml: File exists\n"),
    ],
)
def test_failure_is_one_message_and_no_hang(tmp_path, words, message):
    status, messages = finish(start(tmp_path, *words))
    assert status != 0
    assert messages.count(message) == 1
    assert messages.count("error: ") == 1
    assert "UserError" not in messages
    assert "barrier()" not in messages
