"""A run on hundreds of processes: all is measured, and the sums are right."""

import json
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "benchmark" / "at_scale.py"
MODEL = (
    "{d_model: 16, d_ffn: 32, num_heads: 2, num_layers: 1, "
    "front_end_channels: 8, num_codes: 4, target_dim: 8}"
)


def test_everything_is_measured_and_reported(script, type_command, tmp_path):
    status, printed, _ = type_command(
        "--hours=60",
        "--machines=2",
        f"--override={MODEL}",
        f"--output={tmp_path / 'out'}",
    )
    assert status == 0
    data = json.loads((tmp_path / "out.json").read_text())
    assert (tmp_path / "out.md").read_text() in printed
    assert data["processes"] == 16
    assert data["hours"] == pytest.approx(60, rel=0.02)
    assert data["shares"]["twice"] == 0
    model = data["model"]
    assert model["gradient_numbers"] == model["parameters"]
    # Code usage of a micro-batch; frames and the wish to stop of an update.
    assert model["collectives"] == {"allreduce": 2}


def test_shares_of_a_plan_are_what_they_are_called(script):
    plan = script.measure_plan(np.array([4.0, 4.0, 2.0, 2.0]), 4, world_size=2)
    # Two batches of one utterance of 4 s, and one of two of 2 s.
    assert (plan["batches"], plan["padding"], plan["filled"]) == (3, 0, 1)
    assert (plan["waiting"], plan["epoch"]) == (0, 0)
    plan = script.measure_plan(np.array([4.0, 1.0]), 4, world_size=2)
    assert (plan["waiting"], plan["epoch"]) == (0.375, pytest.approx(1.2))
