"""A loss term and a logged number, added as summarymixing/README.md says.

In a copy of the checkout, which is changed like a fork and then trained.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from summarymixing.data.manifest import Row, write_manifest
from summarymixing.run.records import read_metrics

ROOT = Path(__file__).resolve().parents[2]

LOSS = """

def feature_penalty(latents: Tensor) -> Tensor:
    return latents.float().square().mean(dim=-1).sum()
"""
WEIGHT = "diversity_weight"
# File -> (text, what takes its place), in the order of the guide.
CHANGES = {
    "summarymixing/lobes/pretraining.py": [
        (
            "    diversity_loss,\n",
            "    diversity_loss,\n    feature_penalty,\n",
        ),
        (
            f"        {WEIGHT}: float = 0.1,\n",
            f"        {WEIGHT}: float = 0.1,\n        penalty_weight=0.0,\n",
        ),
        (
            f"        self.{WEIGHT} = {WEIGHT}\n",
            f"        self.{WEIGHT} = {WEIGHT}\n"
            "        self.penalty_weight = penalty_weight\n",
        ),
        (
            "    frames: Tensor  # (), int64",
            "    feature_penalty: Tensor\n    frames: Tensor  # (), int64",
        ),
        (
            "        return PretrainingOutput(\n",
            "        penalty = feature_penalty(latents)\n"
            "        return PretrainingOutput(\n"
            "            feature_penalty=penalty.detach(),\n",
        ),
        (
            f"loss=contrast.loss + self.{WEIGHT} * diversity,",
            f"loss=contrast.loss + self.{WEIGHT} * diversity"
            " + self.penalty_weight * penalty,",
        ),
    ],
    "hparams/shared/pretraining.yaml": [
        (f"\n{WEIGHT}: 0.1\n", f"\n{WEIGHT}: 0.1\npenalty_weight: 0.5\n"),
        (
            f"  {WEIGHT}: !ref <{WEIGHT}>\n",
            f"  {WEIGHT}: !ref <{WEIGHT}>\n"
            "  penalty_weight: !ref <penalty_weight>\n",
        ),
    ],
    "summarymixing/training/pretraining.py": [
        ("metrics |= {\n", 'metrics |= {\n            "answer": 42,\n'),
    ],
}


@pytest.fixture
def fork(tmp_path):
    """Return a copy of the checkout with the changes of the guide."""
    copy = tmp_path / "fork"
    for folder in ("summarymixing", "hparams", "recipes/pretraining"):
        shutil.copytree(ROOT / folder, copy / folder)
    with (copy / "summarymixing/nnet/losses.py").open("a") as file:
        file.write(LOSS)
    for name, changes in CHANGES.items():
        text = (copy / name).read_text("utf-8")
        for old, new in changes:
            assert text.count(old) == 1, (name, old)
            text = text.replace(old, new)
        (copy / name).write_text(text, "utf-8")
    return copy


def write_manifests(folder):
    for split in ("train", "valid"):
        path = folder / f"{split}.wav"
        rng = np.random.default_rng(len(split))
        soundfile.write(path, 0.1 * rng.standard_normal(32_000), 16_000)
        write_manifest(
            folder / f"{split}.csv", [Row(split, str(path), (), 2.0)]
        )


def test_a_new_term_is_trained_and_logged(fork, tmp_path):
    write_manifests(tmp_path)
    settings = (
        f"manifests={tmp_path}",
        f"output_folder={tmp_path / 'out'}",
        "max_updates=1",
        "num_workers=0",
        "log_every_updates=1",
        "penalty_weight=3.0",
    )
    subprocess.run(
        [
            sys.executable,
            "recipes/pretraining/train.py",
            "hparams/pretraining/tiny.yaml",
            *(f"--{setting}" for setting in settings),
        ],
        cwd=fork,
        env={**os.environ, "PYTHONPATH": str(fork), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    train, valid = read_metrics(tmp_path / "out")
    assert train["answer"] == 42
    for entry in (train, valid):
        assert entry["feature_penalty"] > 0
        assert entry["loss"] == pytest.approx(
            entry["contrastive_loss"]
            + entry["diversity_loss"]
            + 3 * entry["feature_penalty"],
            rel=1e-5,
        )
