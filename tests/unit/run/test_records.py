"""The log of a run, also after kills and on full disks."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

from summarymixing.errors import UserError
from summarymixing.run.records import RunLog, read_log


def test_what_was_done_after_the_last_checkpoint_is_forgotten(tmp_path):
    log = RunLog(tmp_path)
    for update in (1, 2, 3):
        log.write("train", update, {"loss": 1.0})
    RunLog(tmp_path, resumed_at=2)
    assert [entry["update"] for entry in read_log(tmp_path)] == [1, 2]


def test_a_stage_done_twice_counts_once(tmp_path):
    RunLog(tmp_path).write("train", 1, {"loss": 3.0})
    for loss in (2.0, 1.0):
        RunLog(tmp_path, resumed_at=1).write("valid", 1, {"loss": loss})
    assert read_log(tmp_path) == [
        {"stage": "train", "update": 1, "loss": 3.0},
        {"stage": "valid", "update": 1, "loss": 1.0},
    ]


def test_a_torn_line_is_left_out(tmp_path):
    RunLog(tmp_path).write("train", 1, {"loss": 3.0})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"stage": "val')
    assert len(read_log(tmp_path)) == 1


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Let no file of this process grow beyond a number of bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def board_steps(folder: Path) -> set[int]:
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return {event.step for event in board.Scalars("loss/train")}


# Torn in the middle of a line, or nothing of it written.
@pytest.mark.parametrize("limit", [60, 8])
def test_a_full_disk_ends_no_run_and_costs_no_entry(tmp_path, caplog, limit):
    log = RunLog(tmp_path)
    log.write("train", 1, {"loss": 1.0})
    with full_disk(limit):
        for update in range(2, 30):
            log.write("train", update, {"loss": 1.0})
        log.write_metrics({"note": "x" * 300})
    assert caplog.text.count("metrics cannot be written") == 1
    seen = [entry["update"] for entry in read_log(tmp_path)]
    assert seen == list(range(1, len(seen) + 1))
    for update in (30, 31):
        log.write("train", update, {"loss": 1.0})
    assert [entry["update"] for entry in read_log(tmp_path)] == [*range(1, 32)]
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert len(lines) == 31
    assert board_steps(tmp_path) == {*range(1, 32)}


# TensorBoard's thread prints what has ended it.
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)
def test_tensorboard_goes_on_after_an_error(tmp_path):
    log = RunLog(tmp_path)
    log.write("train", 1, {"loss": 1.0})
    log.write("train", 2, {"loss": 1.0})
    with full_disk(140):  # room for the line, and not for the event
        log.write("train", 3, {"loss": 1.0})
    assert [entry["update"] for entry in read_log(tmp_path)] == [1, 2, 3]
    assert board_steps(tmp_path) <= {1, 2}
    log.write("train", 4, {"loss": 1.0})
    assert board_steps(tmp_path) == {1, 2, 3, 4}


def test_a_log_that_cannot_be_begun_is_a_message(tmp_path):
    RunLog(tmp_path).write("train", 1, {"loss": 1.0})
    with full_disk(8), pytest.raises(UserError, match="log.jsonl"):
        RunLog(tmp_path, resumed_at=1)
    assert len(read_log(tmp_path)) == 1
