"""Time and memory by length, a process for each point."""

import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "benchmark" / "scaling.py"


@pytest.mark.slow
def test_points_end_for_themselves(type_command, tmp_path):
    status, *_ = type_command(
        "--mixers=SummaryMixing,attention with weights",
        "--seconds=1,400",
        "--stages=inference",
        "--memory_gib=3",
        "--point_seconds=20",
        f"--out={tmp_path}/scaling",
    )
    assert status == 0
    report = json.loads((tmp_path / "scaling.json").read_text())
    ours, weights = report["curves"]
    assert [point["seconds"] for point in ours["points"]] == [1, 400]
    assert ours["ended_by"] == ""
    # (T, T) weights of 20,000 frames are 12 GiB.
    assert [point["seconds"] for point in weights["points"]] == [1]
    assert weights["ended_by"] == "memory"
    assert (tmp_path / "scaling.png").stat().st_size > 1000


def test_exponent_is_that_of_the_curve(script):
    points = [{"seconds": n, "time": 3 * n**1.5} for n in (1, 2, 8)]
    assert script.fit(points) == {"exponent": 1.5, "last_exponent": 1.5}
    assert script.fit(points[:1]) == {}


def test_equal_parameters(script, monkeypatch):
    options = ["--equal_parameters", "--mixers=SummaryMixing,fused attention"]
    monkeypatch.setattr(script.sys, "argv", ["scaling.py", *options])
    given = script.read_options()
    sizes = [
        script.count_parameters(script.make_layers(name, given))
        for name in given.mixers
    ]
    assert abs(sizes[0] - sizes[1]) <= 2 * (2 * given.width + 1) / 2
