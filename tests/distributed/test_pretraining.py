"""The whole recipe on two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from summarymixing.data.manifest import Row, write_manifest
from summarymixing.run.records import read_log

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    """Return manifests of half a minute of noise in pieces of 1 to 2 s."""
    import numpy as np
    import soundfile

    rng = np.random.default_rng(0)
    rows = []
    for number in range(20):
        path = tmp_path / f"{number}.flac"
        seconds = 1 + number / 20
        wav = 0.1 * rng.standard_normal(int(seconds * 16_000))
        soundfile.write(path, wav, 16_000)
        rows.append(Row(str(number), str(path), (), seconds))
    write_manifest(tmp_path / "train.csv", rows[3:])
    write_manifest(tmp_path / "valid.csv", rows[:3])
    return tmp_path


def test_accumulation_layer_drop_and_validation_do_not_hang(
    manifests, tmp_path
):
    """The stock recipe hangs here: collectives that one rank skips."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "torch.distributed.run", "--standalone"),
            "--nproc_per_node=2",
            str(ROOT / "recipes/pretraining/train.py"),
            str(ROOT / "hparams/pretraining/tiny.yaml"),
            f"--manifests={manifests}",
            f"--output_folder={tmp_path / 'out'}",
            *("--d_model=16", "--d_ffn=32", "--num_heads=2"),
            *("--front_end_channels=8", "--num_codes=4", "--target_dim=8"),
            *("--layer_drop=0.5", "--accumulation=2", "--num_workers=0"),
            *("--max_batch_seconds=4", "--max_updates=10"),
            *("--checkpoint_every_updates=5", "--log_every_updates=5"),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    entries = [(e["stage"], e["update"]) for e in read_log(tmp_path / "out")]
    assert entries == [("train", 5), ("valid", 5), ("train", 10), ("valid", 10)]
