"""What README says of a new task, done in a folder outside the package."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from summarymixing.data.manifest import Row, write_manifest
from summarymixing.run.hparams_file import HPARAMS_FOLDER

ROOT = Path(__file__).resolve().parents[2]
# A class of a known kind of task needs a YAML file alone.
TONES = f"""
base: {HPARAMS_FOLDER}/mp3s/slurp_linear.yaml

valid_split: valid
label: tone

table:
  corpus: tones
  title: Tones
"""
# Another kind needs a ProbeTask, and names it with its head.
LOUDNESS = f"""
base: {HPARAMS_FOLDER}/shared/probe.yaml

task: !new:my_tasks.LoudnessTask
  label: loudness
head: !name:summarymixing.lobes.heads.PoolingHead

table:
  corpus: tones
  title: Loudness
  metric: close
  metric_label: within 9 dB
"""
MY_TASKS = '''
from summarymixing.nnet.bootstrap import ratio_interval
from summarymixing.training.probe_task import ProbeTask


class LoudnessTask(ProbeTask):
    """Tell the loudness of an utterance in dB."""

    name = "loudness"
    metrics = ("far",)

    def fit(self, train, folder):
        self.outputs = [self.label]

    def _errors(self, predicted, rows):
        wanted = [float(row.labels[self.label]) for row in rows]
        found = predicted.logits.squeeze(1)
        return found - found.new_tensor(wanted)

    def loss(self, predicted, padding_mask, rows):
        return self._errors(predicted, rows).square()

    def score(self, predicted, padding_mask, rows):
        return self._errors(predicted, rows).abs().tolist()

    def summarise(self, scores):
        far = 100 * sum(error > 9 for error in scores) / len(scores)
        return {"far": far, "close": 100 - far}

    def intervals(self, scores):
        close = [error <= 9 for error in scores]
        return {"close_interval": ratio_interval(close, [1] * len(close))}
'''


@pytest.fixture
def folder(tmp_path):
    """Return a folder with manifests, two YAML files and a module."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("valid", 4), ("test", 4)):
        rows = []
        for number in range(count):
            path = tmp_path / f"{split}{number}.wav"
            level = 10 ** rng.uniform(-2, -0.5)
            seconds = np.arange(16_000) / 16_000
            pitch = 200 * (1 + number % 2)
            tone = level * np.sin(2 * np.pi * pitch * seconds)
            soundfile.write(path, tone, 16_000)
            labels = {
                "tone": f"{pitch} Hz",
                "loudness": str(20 * np.log10(level)),
            }
            rows.append(Row(path.stem, str(path), (), 1.0, labels))
        (tmp_path / "manifests").mkdir(exist_ok=True)
        write_manifest(tmp_path / "manifests" / f"{split}.csv", rows)
    (tmp_path / "my_tasks.py").write_text(MY_TASKS)
    (tmp_path / "tones.yaml").write_text(TONES)
    (tmp_path / "loudness.yaml").write_text(LOUDNESS)
    (tmp_path / "corpora.yaml").write_text("tones: {manifests: manifests}\n")
    return tmp_path


def test_tasks_that_the_package_has_never_heard_of(folder):
    assert importlib.util.find_spec("my_tasks") is None
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    command = [
        sys.executable,
        str(ROOT / "recipes/mp3s/run_all.py"),
        "--encoder=log_mel",
        "--corpora=corpora.yaml",
        "--tasks=tones.yaml,loudness.yaml",
        "--output_folder=out",
        "--seeds=1",
        "--override=number_of_epochs=1",
        "--override=loudness:learning_rate=1e-2",
        "--override=num_workers=0",
        "--override=device=cpu",
    ]

    def run(*words):
        return subprocess.run(
            [*command[:2], *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
        )

    done = run(*command[2:])
    assert done.returncode == 0, done.stdout + done.stderr
    table = (folder / "out" / "table.md").read_text("utf-8")
    assert "| Tones<br>Acc. ↑<br>4 utterances |" in table
    assert "| Loudness<br>within 9 dB ↑<br>4 utterances |" in table
    assert "paper" not in table and "missing" not in table
    page = (folder / "out" / "report.html").read_text("utf-8")
    assert "Validation: Tones" in page and "Validation: Loudness" in page
    again = run("--report_only", "--output_folder=out")
    assert again.returncode == 0, again.stderr
    assert (folder / "out" / "table.md").read_text("utf-8") == table
