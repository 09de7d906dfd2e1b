"""Each verdict on a run is provoked by what causes it; a healthy run has none.

On a tune that all utterances hum, so that a small model learns it in some tens
of updates, and on a clock that no other job of the machine disturbs.
"""

import json
import runpy
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from summarymixing.data.manifest import Manifest, Row, write_manifest
from summarymixing.lobes.features import FbankFrontEnd
from summarymixing.run.launch import run
from summarymixing.run.records import read_log
from summarymixing.training import (
    pretraining,
    pretraining_data,
    pretraining_statistics,
)
from summarymixing.training.health import Judge, judge

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "hparams" / "pretraining" / "tiny.yaml"
SCRIPT = ROOT / "recipes" / "pretraining" / "train.py"
pretrain = runpy.run_path(str(SCRIPT))["pretrain"]
UPDATES = 48
SETTINGS = (
    "--d_model=32",
    "--d_ffn=64",
    "--num_heads=2",
    "--num_layers=1",
    "--front_end_channels=32",
    "--num_codes=16",
    "--target_dim=16",
    "--num_negatives=20",
    "--max_batch_seconds=8",
    "--num_workers=0",
    f"--max_updates={UPDATES}",
    "--checkpoint_every_updates=6",
    "--log_every_updates=3",
    "--learning_rate=1e-2",
    "--schedule=!name:tests.recipes.test_health.constant",
    "--front_end_gradient=0",
    "--health_patience_updates=30",
)
# What collapses the codebook, as the stock settings do in a longer run.
COLLAPSE = (
    "--diversity_weight=0",
    "--front_end_gradient=1.0",
    "--learning_rate=0.1",
)


# Far too high a rate after 30 updates: what was learned is lost.
SPIKE = ("--schedule=!name:tests.recipes.test_health.spike",)


def constant(*, peak, warmup, total):
    return lambda update: peak


def spike(*, peak, warmup, total):
    return lambda update: 0.3 if update > 30 else peak


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(1)
    rows = []
    tones = rng.permutation(np.arange(2, 27)) * 200.0  # Hz, 0.08 s each
    phase = 2 * np.pi * np.cumsum(np.repeat(tones, 1_280)) / 16_000
    for number in range(20):
        wav = np.sin(phase) + 0.01 * rng.standard_normal(len(phase))
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.3 * wav, 16_000)
        rows.append(Row(str(number), str(path), (), 2.0))
    write_manifest(folder / "train.csv", rows[:-2])
    write_manifest(folder / "valid.csv", rows[-2:])
    return folder


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Let time pass for what a test says, and else 1 s a forward pass."""
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = clock.monotonic = lambda: clock.now
    for module in (pretraining, pretraining_statistics):
        monkeypatch.setattr(module, "time", clock)
    forward = FbankFrontEnd.forward

    def forward_and_wait(front_end, *inputs):
        clock.now += 1.0
        return forward(front_end, *inputs)

    monkeypatch.setattr(FbankFrontEnd, "forward", forward_and_wait)
    return clock


def train(manifests, output, *extra):
    """Run the recipe; return its exit status."""
    words = [str(FILE), f"--manifests={manifests}", f"--output_folder={output}"]
    try:
        run(pretrain, [*words, *SETTINGS, *extra])
    except SystemExit as end:
        return end.code
    return 0


def verdicts(output, event="raised"):
    return [
        entry["name"]
        for entry in read_log(output)
        if entry["stage"] == "verdict" and entry["event"] == event
    ]


def test_a_healthy_run_has_no_verdict(manifests, tmp_path):
    assert train(manifests, tmp_path) == 0
    assert verdicts(tmp_path) == []
    assert len(list((tmp_path / "checkpoints").glob("CKPT*"))) == 2
    train_log = [e for e in read_log(tmp_path) if e["stage"] == "train"]
    last = train_log[-1]
    assert last["accuracy"] > 2 * last["chance"]
    assert 0.5 < last["masked_share"] < 0.8
    assert 0 < last["latent_variance"] < 10
    # The parts of the gradient are those of a right-angled triangle.
    parts = [v for k, v in last.items() if k.startswith("gradient_norm_")]
    assert len(parts) == 5
    total = sum(part**2 for part in parts) ** 0.5
    assert total == pytest.approx(last["gradient_norm"], rel=1e-4)
    valid = [e for e in read_log(tmp_path) if e["stage"] == "valid"][-1]
    assert 1 < valid["latents_rank"] <= 32
    assert 1 < valid["layer_00_rank"] <= 32
    assert 1 < valid["layer_01_rank"] <= 32
    assert valid["layer_01_variance"] > 0


def test_collapse_of_the_codebook(manifests, tmp_path):
    assert train(manifests, tmp_path, *COLLAPSE) == 0
    assert "codebook_collapse" in verdicts(tmp_path)
    warned = (tmp_path / "log.txt").read_text().count("codebook_collapse, upd")
    assert warned == verdicts(tmp_path).count("codebook_collapse")


def test_constant_latents(manifests, tmp_path, monkeypatch):
    class Brain(pretraining.PretrainingBrain):
        def init_optimizers(self):
            super().init_optimizers()
            convolutions = self.model.encoder.front_end.convolutions
            for weight in convolutions.parameters():
                torch.nn.init.zeros_(weight)

    monkeypatch.setitem(pretrain.__globals__, "PretrainingBrain", Brain)
    train(manifests, tmp_path, "--front_end_gradient=0", "--max_updates=12")
    assert "constant_latents" in verdicts(tmp_path)


def test_stuck_at_chance(manifests, tmp_path):
    train(manifests, tmp_path, "--learning_rate=0.3")
    assert "stuck_at_chance" in verdicts(tmp_path)


def test_divergence(manifests, tmp_path):
    train(manifests, tmp_path, *SPIKE)
    assert "divergence" in verdicts(tmp_path)


def test_updates_that_are_not_finite_are_a_divergence(manifests, tmp_path):
    huge = "--learning_rate=1e38", "--patience_nonfinite=100"
    train(manifests, tmp_path, *huge, "--max_updates=15")
    assert "divergence" in verdicts(tmp_path)


def test_starved_loader(manifests, tmp_path, monkeypatch, clock):
    collate = pretraining_data.MaskingCollate.__call__

    def collate_slowly(self, utterances):
        clock.now += 0.5
        return collate(self, utterances)

    kind = pretraining_data.MaskingCollate
    monkeypatch.setattr(kind, "__call__", collate_slowly)
    train(manifests, tmp_path, "--max_updates=15")
    assert verdicts(tmp_path) == ["starved_loader"]


def test_throughput_falling(manifests, tmp_path, monkeypatch, clock):
    step = pretraining.PretrainingBrain.optimizers_step

    def step_slowly(brain):
        if brain.optimizer_step >= UPDATES // 2:
            clock.now += 2.0
        step(brain)

    kind = pretraining.PretrainingBrain
    monkeypatch.setattr(kind, "optimizers_step", step_slowly)
    train(manifests, tmp_path)
    assert verdicts(tmp_path) == ["throughput_falling"]


def test_a_speed_far_below_the_expected_one(manifests, tmp_path):
    train(
        manifests,
        tmp_path,
        "--max_updates=24",
        "--expected_hours_per_hour=100",  # 8 s of audio a second are 8
    )
    assert verdicts(tmp_path) == ["throughput_falling"]


def test_disk_nearly_full(manifests, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    free = iter([2**20] * 3 + [2**40] * 20)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: usage(2**41, 0, next(free))
    )
    train(manifests, tmp_path, "--max_updates=24")
    assert verdicts(tmp_path) == ["disk_nearly_full"]
    assert verdicts(tmp_path, "cleared") == ["disk_nearly_full"]


def test_a_stop_is_not_for_a_scheduler_to_repeat(manifests, tmp_path, capsys):
    stop = *SPIKE, "--on_bad_health=stop"
    assert train(manifests, tmp_path, *stop) == 2
    assert "error: stuck_at_chance, update 42" in capsys.readouterr().err
    assert not (tmp_path / "stopped").exists()
    update = json.loads((tmp_path / "metrics.json").read_text())["update"]
    assert update == 43  # saved after the update that tells all processes
    # The same command again, as a loop would start it:
    assert train(manifests, tmp_path, *stop) == 2
    assert "go on in this one with" in capsys.readouterr().err
    assert read_log(tmp_path)[-1]["update"] == update
    assert train(manifests, tmp_path, *SPIKE, "--on_bad_health=warn") == 0
    assert not (tmp_path / "unhealthy").exists()


def test_a_return_goes_on_from_good_health_at_a_lower_rate(
    manifests, tmp_path, monkeypatch
):
    """Also where the run is killed after it, at any point."""
    settings = "--on_bad_health=go_back", "--max_returns=1", *SPIKE
    assert train(manifests, tmp_path / "straight", *settings) == 2
    (line,) = [
        entry
        for entry in read_log(tmp_path / "straight")
        if entry.get("event") == "returned"
    ]
    assert line["update"] <= 30 < line["from_update"]
    assert line["learning_rate_factor"] == 0.5

    class Killed(BaseException):
        pass

    write = pretraining.PretrainingBrain._log_train

    def write_and_die(brain):
        write(brain)
        if brain.progress.returns and brain.optimizer_step == 36:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        kind = pretraining.PretrainingBrain
        patch.setattr(kind, "_log_train", write_and_die)
        train(manifests, tmp_path / "killed", *settings)
    assert train(manifests, tmp_path / "killed", *settings) == 2
    straight, killed = (
        [
            (e["stage"], e["update"], e.get("event"), e.get("loss"))
            for e in read_log(tmp_path / name)
        ]
        for name in ("straight", "killed")
    )
    assert straight == killed
    kept = list((tmp_path / "straight" / "checkpoints").glob("CKPT*"))
    assert 2 <= len(kept) <= 4


def test_one_slow_rank_of_many():
    """What the sum over processes gives, and what is made of it."""
    ranks = pretraining_statistics.slowest_rank([1.0, 1.1, 2.1, 0.9])
    entries = [
        {"stage": "train", "update": n, **ranks} for n in range(50, 201, 50)
    ]
    (line,) = judge(entries)
    assert (line["name"], line["update"]) == ("slow_rank", 150)
    assert "rank 2 takes 2.1 times" in line["message"]
    even = pretraining_statistics.slowest_rank([1.0, 1.1, 1.2, 0.9])
    assert judge({**entry, **even} for entry in entries) == []


def test_an_update_that_is_not_finite_names_its_utterance(manifests, tmp_path):
    loud = tmp_path / "loud.wav"  # finite samples, whose energy is not
    soundfile.write(loud, np.full(32_000, 1e30, np.float32), 16_000, "FLOAT")
    rows = [
        Row(r.id, r.path, r.segments, r.duration)
        for r in Manifest.read(manifests / "train.csv")
    ]
    rows[7] = Row("loud", str(loud), (), 2.0)
    write_manifest(tmp_path / "train.csv", rows)
    shutil.copy(manifests / "valid.csv", tmp_path)
    output = tmp_path / "out"
    assert train(tmp_path, output, "--max_updates=9", "--accumulation=2") == 0
    first, *_ = (output / "nonfinite_updates.0.txt").read_text().splitlines()
    place = "the input of encoder.front_end.convolutions.0; utterances: loud"
    assert first.endswith(f": {place}")
    assert f"{first} (rank 0, " in (output / "log.txt").read_text()
    weights = load_file(output / "encoder" / "encoder.safetensors").values()
    assert all(weight.isfinite().all() for weight in weights)


def test_entries_of_an_earlier_version_have_no_verdict():
    reader = Judge()
    for update in range(10):
        assert reader.read({"stage": "train", "update": update}) == []
