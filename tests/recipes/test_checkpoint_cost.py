"""What a checkpoint costs is measured on a small model."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "recipes" / "benchmark" / "checkpoint_cost.py"


def test_each_checkpoint_is_a_line(type_command, tmp_path):
    tiny = ROOT / "hparams/pretraining/tiny.yaml"
    status, output, _ = type_command(tmp_path, tiny, "--rounds=2")
    assert status == 0
    lines = re.findall(r"checkpoint \d of (\S+) GB, .* took .* longer", output)
    assert len(lines) == 2
    assert 0.01 < float(lines[0]) < 0.03  # weights and two moments, float32
    assert list(tmp_path.iterdir()) == []
