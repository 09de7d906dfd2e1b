"""What every training shares, through a Brain that fits one number."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import speechbrain as sb
import torch
import torch.distributed as dist

from summarymixing.errors import UserError
from summarymixing.run.brain import (
    ResumableBrain,
    make_optimizer,
    takes_scale,
)
from summarymixing.run.checkpoints import AtomicCheckpointer
from summarymixing.run.records import read_metrics

HPARAMS = {
    "seed": 1,
    "max_gradient_norm": 2.0,
    "patience_nonfinite": 2,
    "grad_accumulation_factor": 1,
}


class Number(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(()))


class NumberBrain(ResumableBrain):
    """The gradient of an update is the batch."""

    batches = {"size": 1}
    optimizer_factory = torch.optim.SGD

    def init_optimizers(self):
        optimizer = make_optimizer(
            self.optimizer_factory, [{"params": [self.model.value]}]
        )
        self.optimizers_dict = {"optimizer": optimizer}
        self.checkpointer.add_recoverables(self.optimizers_dict)

    def set_learning_rates(self, update):
        for group in self.optimizers_dict["optimizer"].param_groups:
            group["lr"] = 1.0

    def describe_batches(self):
        return self.batches

    def checkpoints_to_keep(self):
        return {"num_to_keep": 1}

    def compute_forward(self, batch, stage):
        return self.model.value * batch

    def compute_objectives(self, predictions, batch, stage):
        return predictions

    def on_stage_end(self, stage, stage_loss, epoch=None):
        self.save_checkpoint({})


def make_brain(folder, kind=NumberBrain):
    model = Number()
    return kind(
        modules={"model": model},
        hparams={**HPARAMS, "output_folder": str(folder)},
        run_opts={"device": "cpu", "noprogressbar": True},
        checkpointer=AtomicCheckpointer(
            folder / "checkpoints", {"model": model}
        ),
    )


def fit(folder, *gradients, kind=NumberBrain):
    brain = make_brain(folder, kind)
    brain.fit(range(1), [torch.tensor(float(g)) for g in gradients])
    return brain


def test_gradients_are_clipped(tmp_path):
    brain = fit(tmp_path, 1.0, 3.0)
    assert brain.model.value.item() == pytest.approx(-3.0)
    assert brain.gradient_norm == pytest.approx(3.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_update_that_is_not_finite_is_left_out_and_counted(tmp_path, bad):
    brain = fit(tmp_path, 1.0, bad, bad, 1.0, bad)
    assert brain.model.value.item() == -2.0
    assert brain.optimizer_step == 5
    assert brain.progress.skipped_updates == 3
    assert fit(tmp_path, 1.0).progress.skipped_updates == 3  # after a resume


def test_too_many_of_them_end_the_run(tmp_path):
    with pytest.raises(UserError, match="of 3 updates in a row .* update 4"):
        fit(tmp_path, 1.0, math.nan, math.nan, math.nan)


@pytest.mark.parametrize("reason", [None, "They are counted."])
def test_other_batches_are_refused_or_told(tmp_path, caplog, reason):
    class Other(NumberBrain):
        batches = {"size": 2, "new": 1}
        BATCHES_ARE_FIXED = reason

    fit(tmp_path, 1.0)
    if reason:
        with pytest.raises(UserError, match="size was 1 and is 2. They are c"):
            fit(tmp_path, 1.0, kind=Other)
    else:
        fit(tmp_path, 1.0, kind=Other)
        assert "size was 1 and is 2. The run is not" in caplog.text


def test_a_run_that_began_with_the_first_batch_plan_is_told(tmp_path, caplog):
    class Now(NumberBrain):
        batches = {"size": 1, "batch_plan": 2}

    fit(tmp_path, 1.0)  # says nothing of its plan, as checkpoints once did
    fit(tmp_path, 1.0, kind=Now)
    assert "batch_plan was 1 and is 2. The run is not" in caplog.text
    caplog.clear()
    fit(tmp_path, 1.0, kind=Now)
    assert "batch_plan" not in caplog.text


def test_further_loggers_get_every_stage_that_they_know(tmp_path):
    from speechbrain.utils.train_logger import TrainLogger

    class Recorder(TrainLogger):
        def __init__(self):
            self.seen = []

        def log_stats(self, stats_meta, **stats):
            self.seen.append((stats_meta, stats))

    first, second = Recorder(), Recorder()
    brain = make_brain(tmp_path)
    brain.hparams = SimpleNamespace(
        **vars(brain.hparams), train_logger=[first, second]
    )
    brain.on_fit_start()
    brain.run_log.write("train", 7, {"loss": 1.5})
    brain.run_log.write("layer_weights", 7, {"layer_0": 1.0})
    expected = [({"epoch": 7}, {"train_stats": {"loss": 1.5}})]
    assert first.seen == second.seen == expected
    assert [e["stage"] for e in read_metrics(tmp_path)] == [
        "train",
        "layer_weights",
    ]


@pytest.fixture
def process_group():
    """Make this process the only one of a group."""
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_compiled_model_stays_so_in_a_process_group(tmp_path, process_group):
    brain = make_brain(tmp_path)
    compiled = torch.compile(brain.model, backend="eager")
    brain.modules["model"] = compiled
    for _ in range(2):  # fine-tuning wraps again where layers join
        brain._wrap_distributed()
        assert brain.modules["model"].module is compiled


def test_every_process_evaluates_with_the_statistics_of_the_first(
    tmp_path, process_group, monkeypatch
):
    sent = []
    monkeypatch.setattr(dist, "broadcast", lambda buffer, src: sent.append(src))
    brain = make_brain(tmp_path)
    brain.model.register_buffer("mean", torch.zeros(3))
    for stage in sb.Stage:
        brain.on_stage_start(stage)
    assert sent == [0, 0]


PLAIN, FUSED = (
    partial(torch.optim.AdamW, weight_decay=0.1, fused=fused)
    for fused in (False, True)
)


@pytest.mark.parametrize("gradients", [[0.5, 9.0], [9.0, math.nan, -1.0]])
def test_fused_kernels_scale_clip_and_skip_as_plain_ones(tmp_path, gradients):
    """Three runs: plain, fused, and fused from a checkpoint of a plain one."""

    class Plain(NumberBrain):
        optimizer_factory = PLAIN

        def gradient_factor(self):
            return torch.tensor(0.5)

    class Fused(Plain):
        optimizer_factory = FUSED

    brains = [
        fit(tmp_path / kind.__name__, *gradients, kind=kind)
        for kind in (Plain, Fused)
    ]
    fit(tmp_path / "mixed", gradients[0], kind=Plain)
    brains.append(fit(tmp_path / "mixed", *gradients[1:], kind=Fused))
    optimizers = [b.optimizers_dict["optimizer"] for b in brains]
    assert [takes_scale(o) for o in optimizers] == [False, True, True]
    plain, *others = (
        [b.model.value, *o.state[b.model.value].values()]
        for b, o in zip(brains, optimizers, strict=True)
    )
    for other in others:
        torch.testing.assert_close(other, plain)


@pytest.mark.parametrize("factory", [PLAIN, FUSED])
def test_reading_an_update_behind_changes_no_weight(tmp_path, factory):
    class Prompt(NumberBrain):
        optimizer_factory = factory

    class Behind(Prompt):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.updates_behind = 1

    gradients = 1.0, math.inf, 3.0, math.nan
    prompt = fit(tmp_path / "prompt", *gradients, kind=Prompt)
    behind = fit(tmp_path / "behind", *gradients, kind=Behind)
    assert behind.model.value.item() == prompt.model.value.item()
    # The checkpoint at the end waits for the last one.
    for brain in (prompt, behind):
        assert brain.progress.skipped_updates == 2
        assert not brain.outcomes
    bad = [math.nan] * 4
    with pytest.raises(UserError, match="the last one update 3"):
        fit(tmp_path / "bad", *bad, kind=Behind)


def test_what_the_file_says_of_fused_kernels_goes_first():
    parameter = torch.nn.Parameter(torch.zeros(()))
    for fused in (False, True):
        factory = partial(torch.optim.AdamW, fused=fused)
        optimizer = make_optimizer(factory, [{"params": [parameter]}])
        assert optimizer.defaults["fused"] is fused


@pytest.mark.parametrize("refused", [False, True])
def test_fused_kernels_are_asked_for_where_an_optimiser_has_them(refused):
    class Adagrad(torch.optim.SGD):
        def __init__(self, groups, fused=None):
            super().__init__(groups, fused=fused)
            if fused and refused:
                raise RuntimeError("not on this device")

    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = make_optimizer(Adagrad, [{"params": [parameter]}])
    assert optimizer.param_groups[0]["lr"] == 0
    assert takes_scale(optimizer) is not refused


@pytest.mark.parametrize("factory", [PLAIN, FUSED])
def test_the_scaler_of_fp16_goes_with_clipping_and_skipping(tmp_path, factory):
    class Without(NumberBrain):
        optimizer_factory = factory

    class With(Without):
        def on_fit_start(self):
            super().on_fit_start()
            self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    gradients = 0.5, math.inf, 9.0
    without, scaled = (
        fit(tmp_path / kind.__name__, *gradients, kind=kind)
        for kind in (Without, With)
    )
    torch.testing.assert_close(scaled.model.value, without.model.value)
    assert scaled.progress.skipped_updates == 1
    assert scaled.scaler.get_scale() == 4.0  # halved, once
    (state,) = scaled.optimizers_dict["optimizer"].state.values()
    assert state["step"] == 2
