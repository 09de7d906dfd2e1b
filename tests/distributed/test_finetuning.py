"""Fine-tuning on two processes, while layers begin to learn one by one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from summarymixing import Wav2Vec2Encoder
from summarymixing.data.manifest import Row, write_manifest
from summarymixing.pretrained import save_encoder

ROOT = Path(__file__).resolve().parents[2]
SPLITS = {"train-clean-100": 7, "dev-clean": 3, "test-clean": 1}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Return a folder with manifests of noise and an encoder."""
    folder = tmp_path_factory.mktemp("material")
    rng = np.random.default_rng(0)
    for split, count in SPLITS.items():
        rows = []
        for i in range(count):
            path, seconds = folder / f"{split}-{i}.wav", 1 + i / 10
            wav = 0.1 * rng.standard_normal(round(16_000 * seconds))
            soundfile.write(path, wav, 16_000)
            labels = {"transcript": "AB BA"[: i + 1]}
            rows.append(Row(f"{split}-{i}", str(path), (), seconds, labels))
        write_manifest(folder / f"{split}.csv", rows)
    torch.manual_seed(0)
    encoder = Wav2Vec2Encoder(
        num_layers=2, d_model=16, d_ffn=32, front_end_channels=8, num_mels=20
    )
    save_encoder(encoder, folder / "encoder")
    return folder


def run_recipe(material, folder, processes, **options):
    """Run the recipe; return its metrics and the encoder that it exports."""
    options = {
        "encoder": material / "encoder",
        "manifests": material,
        "output_folder": folder,
        "test_splits": "[test-clean]",
        "max_batch_seconds": 2,
        "max_updates": 4,
        "num_workers": 0,
        # Update 1 changes the head, 2 and 3 the second layer too, 4 both.
        "freeze_encoder_updates": 1,
        "unfreezing_order": "top_down",
        "unfreeze_every_updates": 2,
        "warmup_updates": 1,
        "schedule": "noam",
        "encoder_learning_rate": 1e-2,
        **options,
    }
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "torch.distributed.run", "--standalone"),
            f"--nproc_per_node={processes}",
            str(ROOT / "recipes/finetuning/ctc.py"),
            str(ROOT / "hparams/finetuning/librispeech100.yaml"),
            *(f"--{key}={value}" for key, value in options.items()),
            *("--noprogressbar", "--device=cpu"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((folder / "metrics.json").read_text())
    return metrics, load_file(folder / "encoder/encoder.safetensors")


def test_two_processes_make_the_updates_of_one(material, tmp_path):
    """Every layer that joins is averaged over processes from then on."""
    same = {
        "dropout": 0.0,
        "layer_drop": 0.0,
        "head": "{hidden_size: 8, dropout: 0.0}",
        # Far above rounding, whose sign would else decide the first steps.
        "adam_epsilon": 1e-3,
    }
    metrics, weights = run_recipe(
        material, tmp_path / "one", 1, accumulation=2, **same
    )
    metrics_of_two, weights_of_two = run_recipe(
        material, tmp_path / "two", 2, accumulation=1, **same
    )
    assert metrics["updates"] == metrics_of_two["updates"] == 4
    before = load_file(material / "encoder/encoder.safetensors")
    layers = [name for name in weights if name.startswith("conformer.layers")]
    assert not any(torch.equal(weights[n], before[n]) for n in layers)
    torch.testing.assert_close(weights_of_two, weights, rtol=1e-4, atol=1e-5)
    assert metrics_of_two["splits"]["test-clean"]["loss"] == pytest.approx(
        metrics["splits"]["test-clean"]["loss"], rel=1e-4
    )


def test_layer_drop_and_accumulation_do_not_hang(material, tmp_path):
    metrics, _ = run_recipe(
        material,
        tmp_path,
        2,
        accumulation=2,
        layer_drop=0.5,
        head="{hidden_size: 8}",
    )
    assert metrics["updates"] == 4
