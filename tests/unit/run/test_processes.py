"""What a process leaves behind when it leaves the others."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from summarymixing.run import processes


def threads_of_the_group() -> int:
    tasks = Path("/proc/self/task").iterdir()
    return sum(
        (task / "comm").read_text() == "pt_gloo_runloop\n" for task in tasks
    )


def test_a_group_leaves_no_threads(monkeypatch: pytest.MonkeyPatch):
    """One that outlived Python aborted the process, now and then."""
    for name, value in {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }.items():
        monkeypatch.setenv(name, value)
    holder = "torch.distributed.nn.functional"
    monkeypatch.delitem(sys.modules, holder, raising=False)
    with processes.process_group("cpu"):
        torch.distributed.all_reduce(torch.ones(1))
        importlib.import_module(holder)
        assert threads_of_the_group() > 0
    assert threads_of_the_group() == 0
