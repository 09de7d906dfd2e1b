"""Every pre-training file trains, resumes exactly and survives bad input."""

import contextlib
import datetime
import gzip
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import yaml
from safetensors.torch import load_file

from summarymixing import Wav2Vec2Encoder
from summarymixing.data.batching import UpdateBatchSampler
from summarymixing.data.manifest import Manifest, Row, write_manifest
from summarymixing.errors import UserError
from summarymixing.evaluation import items as evaluation_items
from summarymixing.lobes.conformer import ConformerEncoderLayer
from summarymixing.run import checkpoints
from summarymixing.run.checkpoint_files import MANIFEST_NAME, seal
from summarymixing.run.checkpoints import AtomicCheckpointer
from summarymixing.run.history import read_run
from summarymixing.run.launch import run
from summarymixing.run.records import read_metrics
from summarymixing.training import pretraining, pretraining_data
from summarymixing.training.watch_page import make_page
from tests.soak.kills import differences

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "recipes" / "pretraining" / "train.py"
pretrain = runpy.run_path(str(SCRIPT))["pretrain"]
FILES = sorted((ROOT / "hparams" / "pretraining").glob("*.yaml"))

# The paper's widths are built on the meta device elsewhere; two updates of
# each file are run at widths that a CPU can afford.
SMALL = (
    "--d_model=32",
    "--d_ffn=64",
    "--num_heads=4",
    "--num_layers=2",
    "--front_end_channels=16",
    "--num_codes=8",
    "--target_dim=16",
    "--precision=fp32",
    "--max_batch_seconds=61",
    "--accumulation=1",
    "--num_workers=0",
    "--max_updates=2",
    "--checkpoint_every_updates=2",
    "--log_every_updates=1",
)


def command(
    file: Path, manifests: Path, output: Path, *extra: str
) -> list[str]:
    return [
        str(file),
        f"--manifests={manifests}",
        f"--output_folder={output}",
        *SMALL,
        *extra,
    ]


def train(file: Path, manifests: Path, output: Path, *extra: str) -> None:
    """Run a recipe in this process; only a plain end counts as success."""
    run(pretrain, command(file, manifests, output, *extra))


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "encoder" / "encoder.safetensors")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_two_updates_of_every_file(file, pretraining_manifests, tmp_path):
    train(file, pretraining_manifests, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text("utf-8"))
    assert metrics["update"] == 2
    assert 0 < metrics["valid"]["contrastive_loss"] < 10
    stages = [entry["stage"] for entry in read_metrics(tmp_path)]
    assert stages == ["train", "train", "valid"]
    encoder = Wav2Vec2Encoder.from_pretrained(tmp_path / "encoder")
    out = encoder(torch.randn(1, 8_000), torch.ones(1))
    assert len(out.hidden_states) == 3
    assert out.hidden_states[-1].isfinite().all()


@pytest.mark.parametrize(
    "change",
    [
        "--mask_scheme=fairseq",
        "--schedule=warm_cool",
        "--loss_reduction=sum",
        "--memory_budget=0.5",
        "--precision=bf16",
    ],
)
def test_one_value_changes(change, pretraining_manifests, tmp_path):
    train(
        ROOT / "hparams/pretraining/tiny.yaml",
        pretraining_manifests,
        tmp_path,
        change,
    )
    assert read_metrics(tmp_path)[-1]["loss"] < 10


def test_compiled_run(pretraining_manifests, tmp_path, monkeypatch):
    compile_layer = partialmethod(torch.nn.Module.compile, backend="eager")
    monkeypatch.setattr(ConformerEncoderLayer, "compile", compile_layer)
    change = ("--compile=True", "--memory_budget=0.5")
    file = ROOT / "hparams/pretraining/tiny.yaml"
    train(file, pretraining_manifests, tmp_path, *change)
    first, second, valid = read_metrics(tmp_path)
    assert valid["loss"] < 10
    assert first["seconds_compiling"] > 0 == second["seconds_compiling"]


def test_a_run_tells_what_it_costs(pretraining_manifests, tmp_path):
    train(
        ROOT / "hparams/pretraining/tiny.yaml",
        pretraining_manifests,
        tmp_path,
        "--max_updates=8",
        "--checkpoint_every_updates=6",
        "--profile_updates=1",
    )
    log = {(e["stage"], e["update"]): e for e in read_metrics(tmp_path)}
    saving = [log["train", n]["seconds_saving"] > 0 for n in range(1, 9)]
    assert saving == [False] * 6 + [True, False]
    assert log["valid", 6]["seconds_validating"] > 0
    assert "seconds_validating" not in (tmp_path / "metrics.json").read_text()
    with gzip.open(tmp_path / "trace.json.gz") as file:
        names = [e["name"] for e in json.load(file)["traceEvents"]]
    assert names.count("Optimizer.step#AdamW.step") == 1


def test_optimiser_schedule_and_logger_are_objects(
    pretraining_manifests, tmp_path
):
    train(
        ROOT / "hparams/pretraining/tiny.yaml",
        pretraining_manifests,
        tmp_path,
        "--optimizer=!name:torch.optim.SGD {momentum: 0.9}",
        "--schedule=!name:summarymixing.training.schedules.noam",
        "--train_logger=!new:speechbrain.utils.train_logger.FileTrainLogger "
        f"{{save_file: {tmp_path / 'stats.txt'}}}",
    )
    logged = (tmp_path / "stats.txt").read_text().splitlines()
    assert len(logged) == 3  # two updates and a validation
    assert logged[0].startswith("epoch: 1 - train loss: ")
    assert logged[2].startswith("epoch: 2 - valid loss: ")


def test_logged_loss_is_the_sum_of_its_terms(pretraining_manifests, tmp_path):
    train(
        ROOT / "hparams/pretraining/tiny.yaml",
        pretraining_manifests,
        tmp_path,
        "--diversity_weight=2.0",
    )
    for entry in read_metrics(tmp_path):
        # One batch an entry: the diversity of the window is that of the loss.
        assert entry["loss"] == pytest.approx(
            entry["contrastive_loss"] + 2 * entry["diversity_loss"], rel=1e-5
        )


def test_changed_settings_are_told_on_resume(pretraining_manifests, tmp_path):
    file = ROOT / "hparams/pretraining/tiny.yaml"
    train(file, pretraining_manifests, tmp_path)
    train(
        file,
        pretraining_manifests,
        tmp_path,
        "--max_updates=3",
        "--mask_probability=0.5",
    )
    log = (tmp_path / "log.txt").read_text()
    assert "max_updates: 2 -> 3; mask_probability: 0.65 -> 0.5" in log


def test_hours_count_to_the_last_update(pretraining_manifests, tmp_path):
    hours = []
    for output, stops in (("straight", [3]), ("resumed", [2, 3])):
        for stop in stops:
            train(
                ROOT / "hparams/pretraining/tiny.yaml",
                pretraining_manifests,
                tmp_path / output,
                "--log_every_updates=100",
                f"--max_updates={stop}",
            )
        metrics = json.loads((tmp_path / output / "metrics.json").read_text())
        hours.append(metrics["audio_hours"])
        assert metrics["gpu_hours"] > 0
        assert [e["update"] for e in read_metrics(tmp_path / output)][-1] == 3
    assert hours[0] == pytest.approx(hours[1]) and hours[0] > 0


def test_other_batches_on_resume_are_a_warning(pretraining_manifests, tmp_path):
    file = ROOT / "hparams/pretraining/tiny.yaml"
    train(file, pretraining_manifests, tmp_path)
    train(file, pretraining_manifests, tmp_path, "--max_updates=3")
    log = tmp_path / "log.txt"
    assert "going on from update 2" in log.read_text()
    assert "the batches differ" not in log.read_text()
    train(
        file,
        pretraining_manifests,
        tmp_path,
        "--max_updates=4",
        "--max_batch_seconds=70",
    )
    expected = "from here on: max_batch_seconds was 61 and is 70."
    assert expected in log.read_text()


def test_an_epoch_without_an_update_is_explained(
    pretraining_manifests, tmp_path, capsys
):
    with pytest.raises(SystemExit) as end:
        train(
            ROOT / "hparams/pretraining/tiny.yaml",
            pretraining_manifests,
            tmp_path,
            "--accumulation=2",
            "--debug",
            "--debug_batches=1",
        )
    assert end.value.code == 2
    assert "no update was made after update 0" in capsys.readouterr().err


def test_resumed_run_equals_straight_run(pretraining_manifests, tmp_path):
    file = ROOT / "hparams/pretraining/tiny.yaml"
    noisy = (
        "--dropout=0.1",
        "--layer_drop=0.3",
        "--accumulation=2",
    )
    for output, stops in (("straight", [6]), ("resumed", [4, 6])):
        for stop in stops:
            train(
                file,
                pretraining_manifests,
                tmp_path / output,
                *noisy,
                f"--max_updates={stop}",
            )
    straight, resumed = (
        weights(tmp_path / "straight"),
        weights(tmp_path / "resumed"),
    )
    for name, weight in straight.items():
        torch.testing.assert_close(resumed[name], weight, rtol=0, atol=0)
    assert _losses(tmp_path / "resumed") == _losses(tmp_path / "straight")


def _losses(output: Path) -> list[tuple[str, int, float]]:
    return [(e["stage"], e["update"], e["loss"]) for e in read_metrics(output)]


def test_killed_run_goes_on_from_its_last_checkpoint(
    pretraining_manifests, tmp_path
):
    """SIGTERM saves first; SIGKILL loses what came after a checkpoint."""
    file = ROOT / "hparams/pretraining/tiny.yaml"
    words = command(
        file,
        pretraining_manifests,
        tmp_path,
        "--max_updates=100000",
        "--checkpoint_every_updates=5",
        "--num_workers=1",  # which must not keep the run from ending
    )
    for how, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 75)):
        before = _last_update(tmp_path)
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            for _ in range(600):
                time.sleep(0.1)
                if _last_update(tmp_path) >= before + 7:
                    break
        process.send_signal(how)
        assert process.wait(60) == status
    saved = json.loads((tmp_path / "metrics.json").read_text("utf-8"))["update"]
    # The stop was between two checkpoints, and nothing after it is lost.
    assert saved >= _last_update(tmp_path) - 1
    train(file, pretraining_manifests, tmp_path, f"--max_updates={saved + 1}")
    assert _last_update(tmp_path) == saved + 1


@pytest.mark.parametrize(
    ("behind", "checkpoint_every", "expected"),
    [
        pytest.param(0, 100, 3, id="at once"),
        pytest.param(1, 100, 4, id="an update later, behind a GPU"),
        pytest.param(1, 3, 3, id="before a validation"),
    ],
)
def test_a_stop_is_saved_where_it_is_read(
    pretraining_manifests,
    tmp_path,
    monkeypatch,
    behind,
    checkpoint_every,
    expected,
):
    class Brain(pretraining.PretrainingBrain):
        def init_optimizers(self):
            super().init_optimizers()
            self.updates_behind = behind

    asked = iter([False, False, True, True])
    monkeypatch.setattr(pretraining, "stop_requested", lambda: next(asked))
    monkeypatch.setitem(pretrain.__globals__, "PretrainingBrain", Brain)
    with pytest.raises(SystemExit) as end:
        train(
            ROOT / "hparams/pretraining/tiny.yaml",
            pretraining_manifests,
            tmp_path,
            "--max_updates=9",
            "--log_every_updates=2",
            f"--checkpoint_every_updates={checkpoint_every}",
        )
    assert end.value.code == 75
    saved = json.loads((tmp_path / "metrics.json").read_text("utf-8"))
    assert (saved["update"], saved["valid"]) == (expected, {})
    logged = [(e["stage"], e["update"]) for e in read_metrics(tmp_path)]
    assert logged == [("train", 2), ("train", expected)]


def test_a_stop_keeps_the_last_validation(
    pretraining_manifests, tmp_path, monkeypatch
):
    asked = iter([False, False, True])
    monkeypatch.setattr(pretraining, "stop_requested", lambda: next(asked))
    with pytest.raises(SystemExit) as end:
        train(
            ROOT / "hparams/pretraining/tiny.yaml",
            pretraining_manifests,
            tmp_path,
            "--max_updates=9",
        )
    assert end.value.code == 75
    config = json.loads((tmp_path / "encoder" / "encoder.json").read_text())
    for facts in (
        json.loads((tmp_path / "metrics.json").read_text()),
        config["trained_on"],
    ):
        assert (facts["update"], facts["valid"]["update"]) == (3, 2)
        assert facts["valid"]["loss"] > 0


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def kill(*_args, **_options):
    raise Killed


EVERY_ENTRY = "--checkpoint_every_minutes=1e-9"  # of the log: one checkpoint


def test_a_checkpoint_by_the_clock_changes_nothing_but_what_a_kill_costs(
    pretraining_manifests, tmp_path, monkeypatch
):
    arguments = ROOT / "hparams/pretraining/tiny.yaml", pretraining_manifests
    more = (
        *("--max_updates=7", "--checkpoint_every_updates=7"),
        *("--log_every_updates=2", "--accumulation=2", "--dropout=0.1"),
    )
    saved = record_saves(monkeypatch)
    train(*arguments, tmp_path / "straight", *more)
    assert saved == [7]
    fit_batch, trained = pretraining.PretrainingBrain.fit_batch, []

    def die_in_update_6(brain, batch):
        trained.append(brain.optimizer_step)
        if trained.count(5) == 2:
            raise Killed
        return fit_batch(brain, batch)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(
            pretraining.PretrainingBrain, "fit_batch", die_in_update_6
        )
        train(*arguments, tmp_path / "killed", *more, EVERY_ENTRY)
    assert saved == [7, 2, 4]
    assert not (tmp_path / "killed" / "encoder").exists()
    train(*arguments, tmp_path / "killed", *more, EVERY_ENTRY)
    assert saved == [7, 2, 4, 6, 7]
    assert not differences(tmp_path / "straight", tmp_path / "killed")


def test_the_clock_begins_again_with_each_checkpoint(
    pretraining_manifests, tmp_path, monkeypatch
):
    """Here an update takes a minute."""
    arguments = ROOT / "hparams/pretraining/tiny.yaml", pretraining_manifests
    saved = record_saves(monkeypatch)
    minutes = SimpleNamespace(now=0)
    clock = SimpleNamespace(
        monotonic=lambda: 60 * minutes.now, perf_counter=time.perf_counter
    )
    set_rates = pretraining.PretrainingBrain.set_learning_rates

    def pass_a_minute(brain, update):
        minutes.now += 1
        set_rates(brain, update)

    monkeypatch.setattr(pretraining, "time", clock)
    monkeypatch.setattr(
        pretraining.PretrainingBrain, "set_learning_rates", pass_a_minute
    )
    train(
        *arguments,
        tmp_path,
        "--max_updates=11",
        "--checkpoint_every_updates=5",
        "--checkpoint_every_minutes=3",
    )
    assert saved == [3, 5, 8, 10, 11]
    log = {
        e["update"]: e for e in read_metrics(tmp_path) if e["stage"] == "train"
    }
    assert [round(log[n]["minutes_unsaved"], 3) for n in (3, 4, 8)] == [3, 1, 3]


def record_saves(monkeypatch) -> list[int]:
    """Return a list to which every checkpoint adds its update."""
    saved = []
    write = AtomicCheckpointer._save_once
    monkeypatch.setattr(
        AtomicCheckpointer,
        "_save_once",
        lambda self, meta, *rest: (
            saved.append(meta["update"]) or write(self, meta, *rest)
        ),
    )
    return saved


def test_damage_in_any_file_of_any_checkpoint_is_named(
    pretraining_manifests, tmp_path, monkeypatch
):
    """Cut short, or one byte changed: the previous checkpoint is used."""
    train(
        ROOT / "hparams/pretraining/tiny.yaml",
        pretraining_manifests,
        tmp_path,
        *("--max_updates=3", "--checkpoint_every_updates=1"),
        "--checkpoints_to_keep=3",
    )
    folder = tmp_path / "checkpoints"
    saved = AtomicCheckpointer(folder).find_checkpoints()
    assert [c.meta["update"] for c in saved] == [3, 2, 1]
    for checkpoint, previous in zip(saved, [*saved[1:], None], strict=True):
        files = sorted(checkpoint.path.iterdir())
        assert len(files) == len(checkpoint.paramfiles) + 2
        for file in files:
            content = file.read_bytes()
            middle = len(content) // 2
            changed = bytearray(content)
            changed[middle] ^= 1
            for damaged in (content[:middle], content[:-1], bytes(changed)):
                file.write_bytes(damaged)
                warn = Mock()
                monkeypatch.setattr(checkpoints.logger, "warning", warn)
                recover = AtomicCheckpointer(folder).recover_if_possible
                if previous is None:
                    with pytest.raises(UserError, match="all checkpoints"):
                        recover()
                else:
                    assert recover() == previous
                ((text, *details),) = (call.args for call in warn.mock_calls)
                told = text % tuple(details)
                assert str(checkpoint.path) in told
                if file.name != MANIFEST_NAME:  # its names may be damaged
                    assert file.name in told
            file.write_bytes(content)
        shutil.rmtree(checkpoint.path)


@pytest.mark.parametrize("lost", ["save_encoder", "encoder folder"])
def test_a_finished_run_has_the_encoder_of_its_last_update(
    pretraining_manifests, tmp_path, monkeypatch, lost
):
    arguments = ROOT / "hparams/pretraining/tiny.yaml", pretraining_manifests
    more = "--max_updates=4"
    train(*arguments, tmp_path / "straight", more)
    train(*arguments, tmp_path / "killed")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(pretraining, "save_encoder", kill)
        train(*arguments, tmp_path / "killed", more)
    state = json.loads((tmp_path / "killed/metrics.json").read_text())
    assert state["update"] == 2  # it speaks of the encoder beside it
    if lost == "encoder folder":
        shutil.rmtree(tmp_path / "killed" / "encoder")
    train(*arguments, tmp_path / "killed", more)
    straight, killed = (weights(tmp_path / n) for n in ("straight", "killed"))
    for name, weight in straight.items():
        torch.testing.assert_close(killed[name], weight, rtol=0, atol=0)
    state = json.loads((tmp_path / "killed/metrics.json").read_text())
    assert (state["update"], state["valid"]["update"]) == (4, 4)
    assert _losses(tmp_path / "killed") == _losses(tmp_path / "straight")


@pytest.mark.parametrize(
    "end", ["killed in the validation", "stopped before the validation"]
)
def test_a_validation_that_a_run_did_not_reach_is_made_up_for(
    end, pretraining_manifests, tmp_path, monkeypatch
):
    arguments = ROOT / "hparams/pretraining/tiny.yaml", pretraining_manifests
    more = "--max_updates=4"
    saved = record_saves(monkeypatch)
    train(*arguments, tmp_path / "straight", more)
    assert saved == [2, 4]  # each once
    with monkeypatch.context() as patch:
        if end.startswith("killed"):
            patch.setattr(pretraining.PretrainingBrain, "evaluate_batch", kill)
        else:
            asked = iter([False, True])
            patch.setattr(pretraining, "stop_requested", lambda: next(asked))
        with pytest.raises((Killed, SystemExit)):
            train(*arguments, tmp_path / "ended", more)
    train(*arguments, tmp_path / "ended", more)
    assert saved[2:] == [2, 4]
    straight, ended = (weights(tmp_path / n) for n in ("straight", "ended"))
    for name, weight in straight.items():
        torch.testing.assert_close(ended[name], weight, rtol=0, atol=0)
    assert _losses(tmp_path / "ended") == _losses(tmp_path / "straight")


@pytest.mark.parametrize("max_updates", [4, 2])
def test_a_stop_in_a_validation_comes_after_it(
    max_updates, pretraining_manifests, tmp_path, monkeypatch
):
    """A run that is complete by then is complete."""
    signals = iter([signal.SIGTERM])
    evaluate = pretraining.PretrainingBrain.evaluate_batch

    def evaluate_and_signal(brain, batch, stage):
        for number in signals:
            os.kill(os.getpid(), number)
        return evaluate(brain, batch, stage)

    monkeypatch.setattr(
        pretraining.PretrainingBrain, "evaluate_batch", evaluate_and_signal
    )
    is_complete = max_updates == 2
    does_end = contextlib.nullcontext if is_complete else pytest.raises
    with does_end(SystemExit) as end:
        train(
            ROOT / "hparams/pretraining/tiny.yaml",
            pretraining_manifests,
            tmp_path,
            f"--max_updates={max_updates}",
        )
    assert is_complete or end.value.code == 75
    assert (tmp_path / "stopped").exists() != is_complete
    state = json.loads((tmp_path / "metrics.json").read_text())
    assert (state["update"], state["valid"]["update"]) == (2, 2)
    entries = [(e["stage"], e["update"]) for e in read_metrics(tmp_path)]
    assert entries == [("train", 1), ("train", 2), ("valid", 2)]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_a_stop_is_marked_as_soon_as_it_is_saved(
    pretraining_manifests, tmp_path, monkeypatch
):
    """A scheduler may kill the run while it exports its encoder."""
    monkeypatch.setattr(pretraining, "stop_requested", lambda: True)
    monkeypatch.setattr(pretraining, "save_encoder", kill)
    with pytest.raises(Killed):
        train(
            ROOT / "hparams/pretraining/tiny.yaml",
            pretraining_manifests,
            tmp_path,
        )
    assert (tmp_path / "stopped").exists()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize(
    ("processes", "accumulation", "expected"),
    [
        pytest.param(2, 2, [0, 2, 4, 5], id="the product is kept"),
        pytest.param(1, 2, [0, 1, 2, 3], id="another product"),
    ],
)
@pytest.mark.parametrize("version", ["0.1.0", "this"])
def test_a_run_goes_on_in_its_batches(
    processes,
    accumulation,
    expected,
    version,
    pretraining_manifests,
    tmp_path,
    monkeypatch,
):
    """One process of several, and then alone."""
    taken, plans = [], []
    iterate = UpdateBatchSampler.__iter__

    def record(sampler):
        plans.append(sampler.plan)
        for batch in iterate(sampler):
            taken.append(batch)
            yield batch

    monkeypatch.setattr(UpdateBatchSampler, "__iter__", record)
    arguments = ROOT / "hparams/pretraining/tiny.yaml", pretraining_manifests
    with monkeypatch.context() as patch:
        patch.setattr(pretraining_data, "world_size", lambda: processes)
        train(*arguments, tmp_path, "--max_batch_seconds=35")
    if version == "0.1.0":
        (checkpoint,) = (tmp_path / "checkpoints").iterdir()
        downgrade(checkpoint, processes)
    train(
        *arguments,
        tmp_path,
        "--max_batch_seconds=35",
        "--max_updates=3",
        f"--accumulation={accumulation}",
    )
    sequence = UpdateBatchSampler(plans[0])
    sequence.set_range(0, 10)
    sequence = list(iterate(sequence))
    assert plans[0].world_size == plans[-1].world_size == processes
    assert taken == [sequence[number] for number in expected]
    is_same = processes == accumulation
    log = (tmp_path / "log.txt").read_text()
    assert ("the batches differ" not in log) == is_same
    assert ("batches_per_update was 1 and is 2" in log) != is_same


def downgrade(checkpoint: Path, processes: int) -> None:
    """Let a checkpoint say what version 0.1.0 did of its batches."""
    for name, change in (
        ("progress.ckpt", lambda content: content.pop("batches_taken")),
        (
            "CKPT.yaml",
            lambda content: content["batches"].update(
                processes=processes,
                accumulation=content["batches"].pop("batches_per_update")
                // processes,
            ),
        ),
    ):
        path = checkpoint / name
        content = yaml.safe_load(path.read_text())
        change(content)
        path.write_text(yaml.safe_dump(content))
    (checkpoint / MANIFEST_NAME).unlink()
    seal(checkpoint)


def _last_update(output: Path) -> int:
    return max([entry["update"] for entry in read_metrics(output)], default=0)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must be refused; return its one message."""
    with pytest.raises(SystemExit) as end:
        run(pretrain, list(words))
    assert end.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    return message


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("--num_head=3", "num_heads"),
        ("--d_model=30", "multiple of num_heads"),
        ("--kernel_size=30", "odd"),
        ("--schedule=cosine", "noam, warm_cool"),
        ("--mask_scheme=mine", "stock, fairseq"),
        ("--max_batch_seconds=5", "max_batch_seconds"),
        ("--accumulation=500", "accumulation"),
        ("--manifests=/nowhere", "/nowhere"),
        ("--profile_updates=-1", "from 0 to 20, not -1"),
        ("--profile_updates=True", "from 0 to 20, not True"),
        ("--checkpoint_every_updates=0", "at least 1, not 0"),
        ("--checkpoint_every_minutes=-1", "at least 0, not -1"),
    ],
)
def test_bad_values_are_explained(
    extra, expected, pretraining_manifests, tmp_path, capsys
):
    file = ROOT / "hparams/pretraining/tiny.yaml"
    words = command(file, pretraining_manifests, tmp_path, extra)
    assert expected in refused(capsys, *words)


def test_checkpoint_of_another_run_is_refused(
    pretraining_manifests, tmp_path, capsys
):
    file = ROOT / "hparams/pretraining/tiny.yaml"
    train(file, pretraining_manifests, tmp_path)
    words = command(file, pretraining_manifests, tmp_path, "--num_layers=3")
    message = refused(capsys, *words)
    assert "num_layers: saved 2, requested 3" in message


def test_moved_audio_is_explained(pretraining_manifests, tmp_path, capsys):
    for name in ("train", "valid"):
        manifest = Manifest.read(pretraining_manifests / f"{name}.csv")
        moved = [
            type(row)(row.id, "/old" + row.path, row.segments, row.duration)
            for row in manifest
        ]
        write_manifest(tmp_path / f"{name}.csv", moved)
    file = ROOT / "hparams/pretraining/tiny.yaml"
    message = refused(capsys, *command(file, tmp_path, tmp_path / "out"))
    assert "relocate" in message


def break_rows(
    source: Path, folder: Path, split: str, number: int | None
) -> Path:
    """Write manifests whose first rows of a split, or all, cannot be read."""
    broken = folder / "broken.flac"
    for name in ("train", "valid"):
        rows = [
            Row(r.id, r.path, r.segments, r.duration)
            for r in Manifest.read(source / "train.csv")
        ]
        if name == split:
            broken.write_bytes(Path(rows[0].path).read_bytes()[:5000])
            for i, row in enumerate(rows[:number]):
                rows[i] = replace(row, path=str(broken))
        write_manifest(folder / f"{name}.csv", rows)
    return broken


@pytest.mark.parametrize("number", [2, None], ids=["some", "all"])
def test_a_validation_without_its_audio_is_none(
    number, pretraining_manifests, tmp_path, capsys
):
    """Over no utterance, contrastive loss and accuracy would be 0."""
    broken = break_rows(pretraining_manifests, tmp_path, "valid", number)
    output = tmp_path / "out"
    message = refused(
        capsys,
        *command(ROOT / "hparams/pretraining/tiny.yaml", tmp_path, output),
    )
    total = len(Manifest.read(tmp_path / "valid.csv"))
    lost = total if number is None else number
    assert f"{lost} of {total} utterances of the validation" in message
    assert [e["stage"] for e in read_metrics(output)] == ["train"] * 2
    assert str(broken) in (output / "unreadable_audio.0.txt").read_text()


def test_one_utterance_may_be_missing_from_a_validation(
    pretraining_manifests, tmp_path
):
    break_rows(pretraining_manifests, tmp_path, "valid", 1)
    file, output = ROOT / "hparams/pretraining/tiny.yaml", tmp_path / "out"
    train(file, tmp_path, output)
    entry = read_metrics(output)[-1]
    total = len(Manifest.read(tmp_path / "valid.csv"))
    assert total > 2 and entry["loss"] > 0
    assert (entry["utterances"], entry["unreadable_utterances"]) == (total, 1)
    expected = f"1 of {total} utterances of the validation could not be read"
    assert expected in (output / "log.txt").read_text()


def write_valid_items(manifests: Path, path: Path) -> Path:
    """Call each half second of the validation one of two phones."""
    manifest = Manifest.read(manifests / "valid.csv")
    names = {Path(manifest[n].path).stem for n in range(len(manifest))}
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    for name in sorted(names):
        for t in range(8):
            times = f"{t / 2} {t / 2 + 0.3}"
            lines.append(f"{name} {times} {'ab'[t % 2]} x y speaker{t % 3}")
    path.write_text("\n".join(lines))
    return path


def test_items_of_a_validation_change_nothing_else(
    pretraining_manifests, tmp_path
):
    """A run with and one without are equal, to the bit."""
    items = write_valid_items(pretraining_manifests, tmp_path / "valid.item")
    file, changes = ROOT / "hparams/pretraining/tiny.yaml", ("--dropout=0.1",)
    more = ("--checkpoint_every_updates=1", "--valid_items_layer=1")
    train(file, pretraining_manifests, tmp_path / "without", *changes, more[0])
    train(
        file,
        pretraining_manifests,
        tmp_path / "with",
        *changes,
        *more,
        f"--valid_items={items}",
    )
    without, compared = (
        weights(tmp_path / "without"),
        weights(tmp_path / "with"),
    )
    assert all(without[name].equal(compared[name]) for name in without)
    assert _losses(tmp_path / "with") == _losses(tmp_path / "without")
    valid = [
        e for e in read_metrics(tmp_path / "with") if e["stage"] == "valid"
    ]
    assert len(valid) == 2
    for entry in valid:
        for kind in ("within", "across"):
            assert 0 < entry[f"abx_{kind}"] <= 1
    runs = {"with": read_run(tmp_path / "with")}
    page = make_page(runs, None, datetime.datetime.now()).html()
    assert "ABX errors across speakers" in page


def test_items_without_their_audio_end_no_run(
    pretraining_manifests, tmp_path, monkeypatch
):
    items = write_valid_items(pretraining_manifests, tmp_path / "valid.item")

    def read_audio(row: Row) -> torch.Tensor:
        raise UserError(f"{row.path} is gone")

    monkeypatch.setattr(evaluation_items, "read_audio", read_audio)
    file, output = ROOT / "hparams/pretraining/tiny.yaml", tmp_path / "out"
    words = f"--valid_items={items}", "--max_updates=1"
    train(file, pretraining_manifests, output, *words)
    entry = read_metrics(output)[-1]
    assert entry["stage"] == "valid" and "abx_within" not in entry
    assert "ABX is left out" in (output / "log.txt").read_text()


def test_unreadable_audio_is_skipped_and_listed(
    pretraining_manifests, tmp_path
):
    """One broken file does not end a run, and is not passed over silently."""
    broken = break_rows(pretraining_manifests, tmp_path, "train", 1)
    output = tmp_path / "out"
    train(
        ROOT / "hparams/pretraining/tiny.yaml",
        tmp_path,
        output,
        "--max_updates=12",
        "--checkpoint_every_updates=12",
    )
    assert str(broken) in (output / "unreadable_audio.0.txt").read_text("utf-8")
