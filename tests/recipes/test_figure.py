"""The README's figure: numbers of runs kept, and drawn again without them."""

import json
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "recipes" / "benchmark" / "figure.py"
VALID = {"stage": "valid", "accuracy": 0.41234, "code_perplexity": 115.0}


def make_run(folder, *entries):
    folder.mkdir()
    (folder / "hyperparams.yaml").write_text("num_groups: 2\nnum_codes: 64")
    lines = [json.dumps(entry) + "\n" for entry in entries]
    (folder / "log.jsonl").write_text("".join(lines))
    return folder


def test_the_figure_is_drawn_again_without_the_runs(
    script, type_command, tmp_path, monkeypatch
):
    monkeypatch.setattr(script, "STORED", tmp_path / "figure.json")
    monkeypatch.setattr(script, "LENGTHS_SECONDS", (1, 2))
    monkeypatch.setattr(script, "WIDTH", 16)
    train = {"stage": "train", "update": 50, "accuracy": 0.1}
    run = make_run(tmp_path / "run", train, {**VALID, "update": 250})
    assert type_command(f"--summarymixing={run}")[0] == 0
    data = json.loads((tmp_path / "figure.json").read_text())
    assert data["curves"]["SummaryMixing"] == {
        "updates": [250],
        "accuracy": [0.4123],
        "codes": [115.0],
        "codebook": 128,
    }
    assert set(data["timing"]["seconds"]) == {"SummaryMixing", "attention"}
    drawn = (tmp_path / "figure.svg").read_bytes()
    other = make_run(tmp_path / "other", {**VALID, "update": 500})
    assert type_command(f"--attention={other}")[0] == 0
    assert (tmp_path / "figure.svg").read_bytes() != drawn
    renewed = json.loads((tmp_path / "figure.json").read_text())
    assert renewed["timing"] == data["timing"]
    drawn = (tmp_path / "figure.svg").read_bytes()
    assert type_command()[0] == 0
    assert (tmp_path / "figure.svg").read_bytes() == drawn


def test_a_run_without_validation_is_refused(script, type_command, tmp_path):
    status, _, errors = type_command(f"--attention={make_run(tmp_path / 'r')}")
    assert status == 2
    assert "log.jsonl has no validation" in errors
