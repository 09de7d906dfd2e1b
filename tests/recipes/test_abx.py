"""ABX in run_all: a column of two numbers, from an item file and audio."""

import json
from pathlib import Path

import pytest
import yaml

from summarymixing import Wav2Vec2Encoder
from summarymixing.miniature import build_librispeech
from summarymixing.pretrained import save_encoder

SCRIPT = Path(__file__).resolve().parents[2] / "recipes/mp3s/run_all.py"


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Return a corpora file with one line, for the items of a miniature."""
    folder = tmp_path_factory.mktemp("abx")
    build_librispeech(folder / "mini", utterances={"train-clean-100": 26})
    split = "train-clean-100"
    entry = {"items": f"mini/abx/{split}.item", "audio": "mini/LibriSpeech"}
    path = folder / "corpora.yaml"
    path.write_text(yaml.dump({"abx": entry}))
    return path


def test_run_all_has_a_column_for_abx(corpora, tmp_path, type_command):
    encoder = Wav2Vec2Encoder(
        num_layers=1, d_model=8, d_ffn=8, kernel_size=3, front_end_channels=6
    )
    save_encoder(encoder, tmp_path / "mine")
    status, shown, errors = type_command(
        f"--encoder={tmp_path / 'mine'}",
        "--encoder=log_mel",
        f"--corpora={corpora}",
        f"--output_folder={tmp_path / 'out'}",
        "--seeds=1",
    )
    assert status == 0, shown + errors
    (header,) = (row for row in shown.splitlines() if row.startswith("| enc"))
    assert "miniature ABX<br>within Error ↓" in header
    assert "miniature ABX<br>across Error ↓" in header
    for name in ("mine", "log_mel"):
        (path,) = (tmp_path / "out" / name).rglob("metrics.json")
        metrics = json.loads(path.read_text())
        assert metrics["miniature"]
        across = metrics["splits"]["across"]
        lowest = min(row["across"] for row in metrics["layers"])
        assert across["error"] == pytest.approx(lowest, abs=1e-5)
        (row,) = (r for r in shown.splitlines() if r.startswith(f"| {name}"))
        assert f"{across['error']:.1f}" in row


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"items": "mini/abx/dev.item"}, "go together"),
        ({"items": "none.item", "audio": "mini"}, "no item file"),
        (
            {"items": "mini/abx/train-clean-100.item", "audio": "gone"},
            "no folder",
        ),
    ],
)
def test_a_wrong_line_is_explained(
    entry, message, corpora, tmp_path, type_command
):
    path = corpora.parent / "wrong.yaml"
    path.write_text(yaml.dump({"abx": entry}))
    status, _, errors = type_command("--encoder=log_mel", f"--corpora={path}")
    assert status == 2 and "abx: " in errors and message in errors
