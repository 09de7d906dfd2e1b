"""Output folders of run_all, made by hand."""

import json
from pathlib import Path

import pytest

from summarymixing.suite.commands import RECORD_NAME


@pytest.fixture
def write_run(tmp_path):
    """Write what a run leaves behind: a record and, if done, metrics."""

    def write(
        encoder,
        task,
        seed,
        splits=None,
        *,
        weights=(0.25, 0.75),
        miniature=False,
        **more,
    ):
        folder = Path(tmp_path, encoder, task, f"seed_{seed}")
        folder.mkdir(parents=True)
        record = {
            "encoder": encoder,
            "task": task,
            "seed": seed,
            "state": "failed" if splits is None else "done",
            "command": ["python", "a recipe.py", f"--seed={seed}"],
            "started": f"2024-01-01T00:00:0{seed % 10}",
            "seconds": 65.0,
            **more,
        }
        (folder / RECORD_NAME).write_text(json.dumps(record))
        if splits is not None:
            metrics = {
                "splits": splits,
                "valid": {"wer": 9.0, "loss": 0.5, "epoch": 2, "update": 7},
                "layer_weights": list(weights),
                "miniature": miniature,
                "parameters": {"encoder": 154_700_000},
            }
            (folder / "metrics.json").write_text(json.dumps(metrics))
        return folder

    return write
