"""An update of pre-training, without a run around it."""

from functools import partial
from itertools import chain, pairwise
from math import prod
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from summarymixing.data.batching import BatchPlan, UpdateBatchSampler
from summarymixing.lobes.pretraining import Wav2Vec2Pretraining
from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
from summarymixing.nnet.summary_mixing import SummaryMixing
from summarymixing.run.checkpoints import AtomicCheckpointer
from summarymixing.training.pretraining import PretrainingBrain

HPARAMS = {
    "seed": 1,
    "max_updates": 10,
    "max_batch_seconds": 2,
    "grad_accumulation_factor": 1,
    "schedule": "noam",
    "learning_rate": 1e-2,
    "warmup_updates": 1,
    "optimizer": torch.optim.AdamW,
    "loss_reduction": "mean",
    "max_gradient_norm": 1.0,
    "patience_nonfinite": 0,
    "temperature_start": 2.0,
    "temperature_end": 0.5,
    "temperature_factor": 0.9,
    "log_every_updates": 1000,
    "checkpoint_every_minutes": 0,
    "compile": False,
    "profile_updates": 0,
    "memory_budget": 1.0,
    "on_bad_health": "warn",
    "stalled_after_seconds": 600,
    "valid_items": None,
    "valid_items_layer": None,
    "health_patience_updates": 0,
}


def make_model():
    encoder = Wav2Vec2Encoder(
        mixer=partial(SummaryMixing, num_heads=2),
        num_layers=2,
        d_model=8,
        d_ffn=16,
        kernel_size=5,
        num_mels=20,
        front_end_channels=8,
    )
    return Wav2Vec2Pretraining(encoder, num_codes=6, target_dim=8)


def make_brain(folder, model, **hparams):
    plan = BatchPlan([1.0], seed=0, batch_size=1)
    return PretrainingBrain(
        data=SimpleNamespace(hours=1.0, sampler=UpdateBatchSampler(plan)),
        modules={"model": model},
        hparams={**HPARAMS, **hparams, "output_folder": str(folder)},
        run_opts={"device": "cpu", "noprogressbar": True},
        checkpointer=AtomicCheckpointer(
            folder / "checkpoints", {"model": model}
        ),
    )


class Waits(TorchDispatchMode):
    """Notes the operations for which the host waits for the device."""

    def __init__(self):
        super().__init__()
        self.kernels, self.found = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        self.kernels += 1
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero"):
            self.found.append(name)
        elif name in ("copy_", "_to_copy"):
            source = args[1] if name == "copy_" else args[0]
            waits = not (kwargs.get("non_blocking") or True in args[2:])
            if waits and source.device != result.device:
                self.found.append(f"{source.device} to {result.device}")
        return result


@pytest.mark.parametrize("loss_reduction", ["mean", "sum"])
def test_the_host_waits_for_nothing_in_an_update(
    tmp_path, monkeypatch, loss_reduction
):
    """With tensors that are of a GPU by name, and hold nothing."""
    monkeypatch.setattr(torch.cuda, "Event", Mock())
    model = make_model()
    brain = make_brain(tmp_path, model, loss_reduction=loss_reduction)
    zeros = partial(torch.zeros, device="cuda")
    with FakeTensorMode():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                fake = torch.nn.Parameter(zeros(parameter.shape))
                module.register_parameter(name, fake)
        brain.updates_behind = 1
        brain.update_frames = zeros((), dtype=torch.float64)
        brain.init_optimizers()
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            with Waits() as waits:
                brain.optimizers_step()
            assert waits.found == []
            assert waits.kernels > 10
            brain.outcomes.clear()


@pytest.mark.parametrize(
    ("gpu", "shares"),
    [("NVIDIA A100-SXM4-80GB", {"share_of_peak": 0.25}), ("Unknown", {})],
)
def test_the_share_of_peak_is_told_where_the_peak_is_known(
    tmp_path, monkeypatch, gpu, shares
):
    """Two processes share 312e12 multiply-adds, and take 4 s."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: gpu)
    brain = make_brain(tmp_path, make_model())
    brain.world_size = 2
    brain.operations = lambda *sizes: prod(sizes)
    batch = SimpleNamespace(
        masked=SimpleNamespace(
            span_mask=torch.zeros(2, 3), frames=torch.zeros(4), widest=13
        )
    )
    counted = brain._multiply_adds(batch)
    assert counted == 2 * 3 * 4 * 13
    brain.window.sums.counts["multiply_adds"] = counted * 1e12
    cost = brain._cost(brain.window, elapsed=4.0)
    assert cost.pop("tflops_per_gpu") == 78
    assert {k: v for k, v in cost.items() if "share" in k} == shares


def test_operations_of_a_model_that_cannot_be_traced_are_not_told(
    tmp_path, caplog
):
    model = make_model()
    brain = make_brain(tmp_path, model)
    brain._count_operations()
    assert brain.operations(2, 100) > 0
    brain.operations = None
    for layer in model.encoder.conformer.layers:
        layer.mixer.forward = lambda x, mask: x * x.sum().item()
    brain._count_operations()
    assert brain.operations is None
    assert "operations cannot be counted" in caplog.text


class Part(NamedTuple):
    """A part of a run, and the hardware that it is made on."""

    processes: int
    accumulation: int
    updates: int
    workers: int = 0


PARTS = (
    Part(8, 1, 0),  # ended before its first update
    Part(8, 1, 2),
    Part(4, 2, 1, workers=1),
    Part(4, 1, 1),
    Part(8, 1, 1),
    Part(3, 1, 3),
    Part(3, 5, 1),
    Part(16, 1, 1),
    Part(1, 1, 2),
)


class Echo(torch.utils.data.Dataset):
    """Items that are what they are asked by."""

    def __getitem__(self, item):
        return item


def run_part(part, plan, folder):
    """Go on from the checkpoint of the part before; return the batches."""
    samplers = [
        UpdateBatchSampler(
            plan,
            rank=rank,
            world_size=part.processes,
            accumulation=part.accumulation,
        )
        for rank in range(part.processes)
    ]
    brain = make_brain(folder, make_model(), checkpoints_to_keep=1)
    brain.world_size = part.processes
    brain.init_optimizers()
    last = brain.checkpointer.recover_if_possible()
    for sampler in samplers:  # each process resumes for itself
        brain.data.sampler = sampler
        if last is not None:
            brain._compare_batches(last)
            brain._go_on_in_batches(last.meta)
        first = brain.optimizer_step
        sampler.set_range(first, first + part.updates)
    batches = [
        DataLoader(
            Echo(),
            batch_sampler=sampler,
            collate_fn=list,
            num_workers=part.workers,
            multiprocessing_context="fork" if part.workers else None,
        )
        for sampler in samplers
    ]
    brain.optimizer_step += part.updates
    brain.save_checkpoint({})
    return list(chain(*zip(*batches, strict=True)))


@pytest.mark.parametrize("num_batches", [16, 31, 40, 43])
def test_a_run_that_moves_takes_each_batch_once(num_batches, tmp_path, caplog):
    """An epoch ends before, in, at the end of and behind an update."""
    seconds = np.linspace(1, 2, 2 * num_batches)

    def make_plan(processes):
        return BatchPlan(seconds, seed=1, batch_size=2, world_size=processes)

    plan = make_plan(PARTS[0].processes)
    assert len(plan) == num_batches
    taken, told, products = [], [], []
    for part in PARTS:
        caplog.clear()
        # As it is loaded: made for the processes that are there now.
        taken += run_part(part, make_plan(part.processes), tmp_path)
        told.append(
            "the batches differ from here on: batches_per" in caplog.text
        )
        products.append(part.processes * part.accumulation)
    assert told == [False, *(a != b for a, b in pairwise(products))]
    straight = UpdateBatchSampler(plan)
    straight.set_range(0, len(taken))
    assert taken == list(straight)
    for epoch in range(len(taken) // num_batches):
        first = epoch * num_batches
        items = list(chain(*taken[first : first + num_batches]))
        assert {item.epoch for item in items} == {epoch}
        utterances = sorted(item.utterance for item in items)
        assert utterances == list(range(len(seconds)))
