"""From a miniature LibriSpeech to word error rates, as users do it."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from summarymixing import Wav2Vec2Encoder
from summarymixing.data.prepare import CORPORA
from summarymixing.miniature import build_librispeech
from summarymixing.pretrained import save_encoder
from summarymixing.run.launch import run
from summarymixing.suite.command_runner import TORCHRUN
from summarymixing.training.probe import probe

ROOT = Path(__file__).resolve().parents[2]
# Odd numbers, so that two processes get unequal shares; one gets nothing of
# test-other.
UTTERANCES = {
    "train-clean-100": 5,
    "dev-clean": 3,
    "test-clean": 3,
    "test-other": 1,
}
# The paper's settings with a head that a CPU can afford.
SMALL = (
    "--head={hidden_size: 8}",
    "--number_of_epochs=2",
    "--batch_size=2",
    "--valid_batch_size=1",
    "--num_workers=0",
    "--noprogressbar",
    "--device=cpu",
)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Return a folder with manifests of a miniature corpus and an encoder."""
    folder = tmp_path_factory.mktemp("librispeech")
    corpus = build_librispeech(folder / "corpus", utterances=UTTERANCES)
    CORPORA["librispeech"].plan(corpus, folder / "manifests").run()
    encoder = Wav2Vec2Encoder(
        num_layers=1, d_model=16, d_ffn=32, front_end_channels=8, num_mels=20
    )
    save_encoder(encoder, folder / "encoder")
    return folder


def command(material, output_folder, *extra):
    return [
        str(ROOT / "hparams/mp3s/librispeech_lstm.yaml"),
        f"--encoder={material / 'encoder'}",
        f"--manifests={material / 'manifests'}",
        f"--output_folder={output_folder}",
        *SMALL,
        *extra,
    ]


def read_outcome(folder):
    """Return the metrics and the reports of the tests."""
    reports = {p.name: p.read_text() for p in folder.glob("wer_*.txt")}
    return json.loads((folder / "metrics.json").read_text()), reports


def test_results_do_not_depend_on_the_number_of_processes(
    material, tmp_path, capsys
):
    subprocess.run(
        [*TORCHRUN, "--nproc_per_node=2", str(ROOT / "recipes/mp3s/asr.py")]
        + command(material, tmp_path),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    metrics, reports = read_outcome(tmp_path)
    # 3 batches in an epoch, 2 in an update: two epochs are 3 updates.
    assert (metrics["epochs"], metrics["updates"]) == (2, 3)
    assert {
        split: numbers["utterances"]
        for split, numbers in metrics["splits"].items()
    } == {"test-clean": 3, "test-other": 1}
    assert len(reports) == 2
    splits = "--test_splits=[test-clean, test-other, dev-clean]"
    run(probe, command(material, tmp_path, "--test_only", splits))
    metrics_of_one, reports_of_one = read_outcome(tmp_path)
    valid = metrics_of_one["splits"].pop("dev-clean")
    assert metrics_of_one == metrics
    assert reports.items() < reports_of_one.items()
    for name in ("loss", "wer", "cer"):
        assert valid[name] == metrics["valid"][name]
    # To go on, the number of updates would have to mean the same.
    with pytest.raises(SystemExit):
        run(probe, command(material, tmp_path))
    assert "batches_per_update was 2 and is 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        "--encoder_train_mode=True",
        "--precision=bf16",
        "--order=random",
        "--max_batch_seconds=8",
        "--accumulation=2",
        "--head={hidden_size: 8, packed: True}",
        "--weights_schedule=null",
        "--test_last_epoch=True",
    ],
)
def test_one_value_changes(change, material, tmp_path):
    run(probe, command(material, tmp_path, change, "--max_updates=1"))
    assert read_outcome(tmp_path)[0]["splits"]["test-clean"]["loss"] < 100


def test_mistakes_end_with_one_message(material, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run(probe, command(material, tmp_path, "--encoder=nowhere"))
    assert end.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: nowhere holds no encoder")
