"""The parts that wait for a GPU, tried on a CPU at tiny sizes."""

import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "benchmark" / "on_gpu.py"


def read(folder):
    return json.loads((folder / "on_gpu.json").read_text())["parts"]


def test_a_failed_part_is_recorded_and_the_next_call_goes_on(
    script, type_command, tmp_path, monkeypatch
):
    here = ["--small", "--device=cpu", f"--out={tmp_path}"]
    monkeypatch.setattr(script, "MINUTES_OF_A_PART", 0)
    assert type_command(*here, "--parts=parity")[0] == 0
    assert "not ready" in read(tmp_path)["parity"]["failure"]
    monkeypatch.undo()
    assert type_command(*here, "--parts=parity,convolution")[0] == 0
    parts = read(tmp_path)
    assert "failure" not in parts["parity"]
    for what, differences in parts["parity"]["result"].items():
        limit = 1e-5 if "float32" in what else 0.1
        assert max(differences.values()) < limit, what
    assert "transposed" in parts["convolution"]["result"]
    # What is there is not measured again.
    monkeypatch.setattr(script, "run_part", None)
    status, printed, _ = type_command(*here, "--parts=parity,convolution")
    assert status == 0
    assert "## convolution" in printed


def test_parts_are_listed_and_checked(type_command):
    status, printed, _ = type_command("--list")
    assert status == 0
    assert printed.startswith("parity: Differences")
    assert "is none of" in type_command("--parts=hyena")[2]
    assert "--small" in type_command("--device=cpu")[2]


@pytest.mark.slow
def test_parts_run(type_command, tmp_path):
    # Without those that compile: minutes of a C++ compiler on a CPU.
    here = ["--small", "--device=cpu", f"--out={tmp_path}"]
    assert type_command(*here, "--parts=eager,real_runs")[0] == 0
    failed = {k: v for k, v in read(tmp_path).items() if "failure" in v}
    assert not failed
