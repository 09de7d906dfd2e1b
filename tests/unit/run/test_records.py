"""The log of a run, also after kills."""

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
