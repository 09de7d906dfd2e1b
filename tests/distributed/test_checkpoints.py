"""Two processes save and recover together, and fail together."""

import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import multiprocessing

from summarymixing.errors import UserError
from summarymixing.run import checkpoints
from summarymixing.run.checkpoints import AtomicCheckpointer

NUM_PROCESSES = 2
Work = Callable[[int, Path], None]


def run_in_two_processes(folder: Path, work: Work) -> None:
    # Forked rather than spawned: importing torch again takes longer than all
    # the rest, and nothing here starts torch's threads.
    multiprocessing.start_processes(
        join_and_work, (folder, work), NUM_PROCESSES, start_method="fork"
    )


def join_and_work(rank: int, folder: Path, work: Work) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=NUM_PROCESSES,
    )
    work(rank, folder / "checkpoints")
    torch.distributed.destroy_process_group()


def fill_the_disk(model, path) -> None:
    with open("/dev/full", "w") as file:
        file.write("x")


def fail(model, path) -> None:
    raise KeyError("a defect")


def save_fail_and_recover(rank: int, folder: Path) -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    checkpointer = AtomicCheckpointer(folder, {"model": model})
    assert checkpointer.recover_if_possible() is None
    for number in (1.0, 2.0):
        torch.nn.init.constant_(model.weight, number)
        checkpointer.save_and_keep_only({"number": number}, num_to_keep=2)

    checkpointer.custom_save_hooks["model"] = fill_the_disk
    with pytest.raises(UserError, match="No space left"):
        checkpointer.save_and_keep_only({"number": 3.0})
    checkpointer.custom_save_hooks["model"] = fail
    with pytest.raises(KeyError if rank == 0 else UserError):
        checkpointer.save_and_keep_only({"number": 4.0})
    assert len(checkpointer.list_checkpoints()) == 2

    checkpointer.custom_save_hooks.clear()
    with mock.patch.object(torch, "save", fill_the_disk):
        checkpointer.begin_saving({"number": 5.0})
        with pytest.raises(UserError, match="No space left"):
            checkpointer.finish_saving()
    torch.nn.init.constant_(model.weight, 6.0)
    checkpointer.begin_saving({"number": 6.0}, num_to_keep=3)
    torch.nn.init.zeros_(model.weight)
    latest = checkpointer.recover_if_possible()
    assert model.weight.item() == 6.0
    torch.distributed.barrier()
    if rank == 0:
        latest.paramfiles["model"].write_bytes(b"torn")
    torch.distributed.barrier()
    checkpointer.recover_if_possible()
    assert model.weight.item() == 2.0


def test_ranks_save_fail_and_recover_together(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SAVE_PAUSES_S", (0.1,))
    run_in_two_processes(tmp_path, save_fail_and_recover)
