"""The measurement of the feed: every part runs, and the sums are right."""

import json
from pathlib import Path

import pytest

from summarymixing.data.audio import read_audio
from summarymixing.data.manifest import Manifest

SCRIPT = Path(__file__).parents[2] / "recipes" / "benchmark" / "feed.py"


def test_everything_is_measured_and_reported(script, type_command, tmp_path):
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    script.write_recordings(manifests, count=2, seconds=240)
    status, printed, _ = type_command(
        manifests,
        "--rows=300",
        "--workers=0,1",
        "--batches=3",
        "--touched=100",
        "--speed=1234",
        f"--output={tmp_path / 'out'}",
    )
    assert status == 0
    data = json.loads((tmp_path / "out.json").read_text())
    assert (tmp_path / "out.md").read_text() in printed
    assert [entry["workers"] for entry in data["loader"]] == [0, 1]
    per_core = data["loader"][1]["hours_per_core_hour"]
    assert per_core > 0
    for entry in data["needed"].values():
        hours = entry["cores"] * per_core
        assert hours == pytest.approx(entry["hours_per_hour"])
        assert 0 <= entry["workers"] - entry["cores"] < 1
    assert data["needed"]["--speed"]["hours_per_hour"] == 1234
    manifest = data["manifest"]
    assert manifest["rows"] == 300 and len(manifest["warm"]) == 2
    assert all(rank["batches"] > 0 for rank in manifest["warm"])


def test_synthetic_recordings_are_what_their_manifest_says(script, tmp_path):
    script.write_recordings(tmp_path, count=2, seconds=70)
    rows = list(Manifest.read(tmp_path / "train.csv"))
    assert len(rows) == 4
    assert {len(read_audio(row)) for row in rows} == {30 * 16_000}
