"""What long recordings take: the ways that fit into one process."""

from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes/benchmark/long_audio.py"
SIZES = {
    "num_layers": 2,
    "d_model": 16,
    "d_ffn": 32,
    "num_mels": 20,
    "front_end_channels": 8,
}


@pytest.fixture
def options(script, monkeypatch, tmp_path):
    monkeypatch.setitem(script.MODELS, "tiny", SIZES)
    monkeypatch.setattr(script, "PASS_SECONDS", 6)
    monkeypatch.setattr(script, "ODD_SAMPLES", (399, 100_003))
    script.write_audio(tmp_path / "a.wav", 12)
    return SimpleNamespace(
        model="tiny",
        mode="full",
        layers=None,
        minutes=0.2,
        memory="2GB",
        passes=None,
        audio=tmp_path / "a.wav",
    )


def test_ways_report_time_and_memory(script, options):
    blocks, passes = script.by_blocks(options), script.by_passes(options)
    assert passes["passes"] == 2
    assert blocks.keys() == {"wall_s", "cpu_s", "gib"}
    rows = [{"way": "blocks", "mode": "full", **blocks}]
    rows.append({"way": "attention", "mode": "-", "ended": ["no memory"]})
    report = {"machine": "?", "threads": 1, "model": "tiny", "layers": 2}
    text = script.as_markdown(
        {**report, "minutes": 0.2, "memory": "2GB", "rows": rows}
    )
    assert "| attention | - |  |  |  | ended: ['no memory'] |" in text


def test_differences_are_those_of_rounding(script, options):
    assert 0 < script.differences(options)["difference"] < 1e-4
