"""An update of pre-training, without a run around it."""

from functools import partial
from math import prod
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

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
    return PretrainingBrain(
        data=SimpleNamespace(hours=1.0),
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
    brain.window.sums.multiply_adds = counted * 1e12
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
