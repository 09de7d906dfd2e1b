"""What the folder of a run tells, whatever state it is in."""

import json
import math

import numpy as np
import pytest

from summarymixing.errors import UserError
from summarymixing.run.history import (
    AUDIO,
    CLOCK,
    DONE,
    EMPTY,
    ENDED,
    GOING_ON,
    SILENT,
    STOPPED,
    UPDATES,
    Series,
    fingerprint,
    name_runs,
    read_run,
    thin,
)

SETTINGS = """# Written on 2026-11-0{day} by:
# recipes/pretraining/train.py tiny.yaml --seed={seed}
# Repeats that run when given to the same script.
# yamllint disable
seed: {seed}
max_updates: 1_000
num_groups: 2
num_codes: 64
num_negatives: 100
output_folder: results/{seed}
optimizer: !name:torch.optim.AdamW
  lr: !ref <seed>
"""
LATEST = SETTINGS.format(day=3, seed=12)


def train(update, **metrics):
    """Return an entry of version 0.1.0: 2 h of audio an update, 4 h an h."""
    hours = {"audio_hours": 2.0 * update, "audio_hours_per_hour": 4.0}
    return {"stage": "train", "update": update, **hours, **metrics}


@pytest.fixture
def write(tmp_path):
    """Write the folder of a run that goes on."""

    def write_run(*entries, settings=LATEST):
        (tmp_path / ".lock").write_text("process 1 on a_machine\n")
        lines = [json.dumps(entry) + "\n" for entry in entries]
        (tmp_path / "log.jsonl").write_text("".join(lines))
        if settings:
            (tmp_path / "hyperparams.yaml").write_text(settings)
        return tmp_path

    return write_run


def test_a_run_that_has_just_begun(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on a_machine\n")
    run = read_run(tmp_path)
    assert run.state(now=0.0) == EMPTY
    assert run.update == 0 and run.max_updates is None
    assert run.hours_left() is None
    assert run.latest("train", "loss") is None
    assert run.series("train", "loss").values.shape == (0,)
    assert run.settings == {} and run.place_of(5, CLOCK) == 0.0


def test_the_log_is_read_while_its_last_line_is_written(write):
    folder = write(train(1), train(2, loss=3.0))
    with (folder / "log.jsonl").open("ab") as file:
        file.write(b'\x00\xff\n{"stage": "tra')
    run = read_run(folder)
    assert run.update == 2 and run.latest("train", "loss") == 3.0


def test_entries_stand_in_the_order_of_updates(write):
    # A validation that a resumed run made up for, and lines of a lost past.
    valid = {"stage": "valid", "update": 1, "loss": 5.0}
    run = read_run(write(train(1), train(3), valid, train(2)))
    assert [e["update"] for e in run.entries] == [1, 1, 2, 3]
    assert run.series("valid", "loss").places.tolist() == [1.0]


def test_nan_null_and_infinity_are_no_values(write):
    losses = [1.0, math.nan, None, math.inf, 2.0]
    entries = [train(n, loss=loss) for n, loss in enumerate(losses)]
    series = read_run(write(*entries)).series("train", "loss")
    np.testing.assert_equal(series.values, [1.0] + 3 * [math.nan] + [2.0])
    assert series.finite().places.tolist() == [0.0, 4.0]


def test_a_share_of_another_number(write):
    run = read_run(
        write(
            train(1, code_perplexity=32.0),  # of 2 x 64, by the settings
            train(2, code_perplexity=32.0, codes=64),
            train(3, code_perplexity=32.0, codes=0),
        )
    )
    shares = run.series("train", "code_perplexity", "codes").values
    np.testing.assert_equal(shares, [0.25, 0.5, math.nan])


def test_places_on_all_axes(write):
    run = read_run(
        write(
            train(1, seconds_training=1800.0, seconds_compiling=900.0),
            {"stage": "valid", "update": 1, "seconds_validating": 360.0},
            train(2, seconds_training=1800.0, seconds_saving=36.0),
        )
    )
    assert run.places[UPDATES].tolist() == [1.0, 1.0, 2.0]
    assert run.places[AUDIO].tolist() == [2.0, 2.0, 4.0]
    np.testing.assert_allclose(run.places[CLOCK], [0.75, 0.85, 1.36])
    assert run.place_of(1.5, AUDIO) == 3.0
    assert run.place_of(0.5, AUDIO) == 1.0
    clock = run.series("valid", "seconds_validating", axis=CLOCK)
    np.testing.assert_allclose(clock.places, [0.85])


def test_the_clock_of_version_0_1_0_follows_from_audio_and_speed(write):
    lost = [train(n) for n in (1, 2, 5, 6)]  # others are lost
    run = read_run(write(*lost))
    assert run.places[CLOCK].tolist() == [0.5, 1.0, 2.5, 3.0]
    first = run.entries[0]
    assert "code_perplexity" not in first and "codes" not in first


def test_hours_left_are_those_at_the_present_speed(write):
    """By the last tenth of 1,000 updates: 4 times as slow as the rest."""
    fast = [train(n, seconds_training=90.0) for n in range(10, 810, 10)]
    slow = [train(n, seconds_training=360.0) for n in range(810, 910, 10)]
    run = read_run(write(*fast, *slow))
    assert run.hours_left() == pytest.approx(10 * 0.1)


def test_hours_left_of_a_run_with_one_entry(write):
    assert read_run(write(train(10))).hours_left() is None


def test_where_a_run_stands(write):
    # Half an hour between entries: no line for an hour is nothing special.
    folder = write(train(10), train(11), train(12))
    written = read_run(folder).modified
    assert read_run(folder).state(written + 3600) == GOING_ON
    assert read_run(folder).state(written + 3 * 3600) == SILENT
    (folder / ".lock").write_text("")
    assert read_run(folder).state(written) == ENDED
    (folder / "stopped").write_text("stopped by SIGTERM\n")
    run = read_run(folder)
    assert run.state(written) == STOPPED
    assert run.stopped == "stopped by SIGTERM"
    write(train(1000))
    assert read_run(folder).state(written) == DONE


def test_all_starts_are_known_earliest_first(write):
    folder = write(train(1))
    for number, day in ((2, 1), (10, 2)):
        text = SETTINGS.format(day=day, seed=number)
        (folder / f"hyperparams.{number}.yaml").write_text(text)
    (folder / "hyperparams.3.yaml").write_bytes(bytes(100))  # of a crash
    (folder / "hyperparams.4.yaml").write_text("seed: [1")
    (folder / "hyperparams.mine.yaml").write_text("seed: 5")
    run = read_run(folder)
    assert [start.date[-2:] for start in run.starts] == ["01", "02", "03"]
    assert run.starts[0].command.endswith("tiny.yaml --seed=2")
    assert run.settings["seed"] == "12"
    assert run.settings["optimizer"] == "!name:torch.optim.AdamW"
    assert run.max_updates == 1000


def test_settings_are_read_without_being_executed(write, tmp_path):
    mark = tmp_path / "executed"
    text = f"max_updates: 5\nbad: !apply:os.mkdir\n  path: {mark}\n"
    assert read_run(write(settings=text)).max_updates == 5
    assert not mark.exists()


def test_reading_takes_no_lock_and_writes_nothing(write):
    folder = write(train(1))
    before = {
        p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()
    }
    read_run(folder)
    after = {
        p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()
    }
    assert before == after


def test_the_fingerprint_tells_of_every_change(write):
    folder = write(train(1))
    found = [fingerprint(folder)]
    with (folder / "log.jsonl").open("a") as file:
        file.write("{}")
    found.append(fingerprint(folder))
    (folder / "stopped").touch()
    found.append(fingerprint(folder))
    assert found[0] != found[1] != found[2]
    assert fingerprint(folder) == found[2]


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(UserError, match="there is no folder .*gone"):
        read_run(tmp_path / "gone")
    with pytest.raises(UserError, match="is not the --output_folder of a run$"):
        read_run(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "log.jsonl").touch()
    with pytest.raises(UserError, match="these in it are: .*/base$"):
        read_run(tmp_path)


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c"]
    assert name_runs(folders) == ["a/run", "b/run", "c"]
    assert name_runs(folders[1:]) == ["run", "c"]


def test_no_spike_is_lost_where_a_curve_is_thinned():
    rng = np.random.default_rng(0)
    values = rng.normal(size=10_000)
    values[[17, 5_000, 9_999]] = 80.0, -90.0, np.nan
    places = np.sort(rng.uniform(0, 1e5, size=10_000))
    curve = thin(Series(places, values), most=150)
    assert len(curve.places) <= 150 and curve.is_thinned
    assert curve.highs.max() == 80.0 and curve.lows.min() == -90.0
    assert np.all(np.diff(curve.places) > 0)
    assert np.all((curve.lows <= curve.means) & (curve.means <= curve.highs))
    assert abs(curve.means.mean()) < 1


def test_thinning_leaves_gaps_and_single_places_alone():
    gap = Series(np.array([0.0, 1.0, 2.0, 100.0]), np.arange(4.0))
    assert thin(gap, most=3).places.tolist() == [1.0, 100.0]
    at_once = Series(np.full(9, 7.0), np.arange(9.0))
    curve = thin(at_once, most=3)
    assert curve.places.tolist() == [7.0] and curve.highs.tolist() == [8.0]
