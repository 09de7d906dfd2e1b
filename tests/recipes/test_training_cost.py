"""One command reports the cost of a step beside the baselines."""

import json
from pathlib import Path

import pytest

SCRIPT = (
    Path(__file__).parents[2] / "recipes" / "benchmark" / "training_cost.py"
)
TINY = "{num_layers: 1, d_model: 16, d_ffn: 16, num_heads: 2, num_codes: 4}"


def test_report_has_contestants_and_lengths(
    script, type_command, tmp_path, monkeypatch
):
    monkeypatch.setattr(script, "check_parity", lambda: None)
    status, *_ = type_command(
        f"--override={TINY}",
        "--contestants=SummaryMixing,fused attention,rotary attention,"
        "stock SpeechBrain",
        "--lengths=1,2",
        "--batch_seconds=2",
        "--repeats=1",
        f"--out={tmp_path}/cost",
    )
    assert status == 0
    report = json.loads((tmp_path / "cost.json").read_text())
    rows = {(r["contestant"], r["seconds"]): r for r in report["rows"]}
    assert len(rows) == 8
    ours, attention = (
        rows[name, 2.0] for name in ("SummaryMixing", "fused attention")
    )
    assert ours["frames"] == 101
    assert (
        ours["multiply_adds_per_frame"] < attention["multiply_adds_per_frame"]
    )
    assert ours["projected_hours"] * ours["audio_hours_per_hour"] == (
        pytest.approx(480_000)
    )
    assert all(row["median"] > 0 for row in rows.values())
    assert "656" in (tmp_path / "cost.md").read_text()
    assert (tmp_path / "cost.png").stat().st_size > 1000


def test_nothing_is_reported_while_parity_is_red(
    script, type_command, tmp_path, monkeypatch
):
    red = tmp_path / "test_red.py"
    red.write_text("def test_parity():\n    assert 1 == 2\n")
    monkeypatch.setattr(script, "PARITY_TESTS", [str(red)])
    status, _, printed = type_command(f"--out={tmp_path}/cost")
    assert status != 0
    assert "slow references do not pass" in printed
    assert not (tmp_path / "cost.json").exists()


def test_wrong_options_are_named(type_command):
    assert "hyena" in type_command("--contestants=hyena")[2]
    assert "must fit" in type_command("--lengths=40")[2]
