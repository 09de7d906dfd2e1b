"""NaN is planted somewhere, and must be found there."""

import math
from types import SimpleNamespace

import pytest
import torch

from summarymixing.lobes.pretraining import gather_masked_frames
from summarymixing.training.nonfinite import find_origin
from tests.unit.training.test_pretraining import make_model

IDS = ["first", "second"]


@pytest.fixture
def case():
    """A model in training, a batch of two utterances, and their forward."""
    model = make_model().train()
    model.encoder.conformer.layer_drop = 0.0
    batch = SimpleNamespace(
        wavs=torch.randn(2, 8_000),
        wav_lens=torch.ones(2),
        masked=gather_masked_frames([range(3, 12), range(8, 20)], 26, [1, 2]),
    )

    def forward():
        torch.manual_seed(1)
        return model(batch.wavs, batch.wav_lens, batch.masked, temperature=2.0)

    return model, batch, forward


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder.front_end.convolutions.1", ["second"]),
        ("encoder.conformer.layers.1.mixer", ["second"]),
        ("encoder.conformer.norm", ["second"]),
        ("project", ["second"]),  # of masked frames alone
    ],
)
def test_the_first_module_is_named(case, name, expected):
    model, batch, forward = case

    def spoil(_module, _inputs, out):
        out = out.clone()
        out[-1] = math.nan
        return out

    hook = model.get_submodule(name).register_forward_hook(spoil)
    origin = find_origin(model, batch, IDS, forward)
    assert origin == (name, expected)
    hook.remove()
    assert find_origin(model, batch, IDS, forward) is None


def test_weights_are_named(case):
    model, batch, forward = case
    with torch.no_grad():
        model.quantiser.to_logits.weight[0, 0] = math.nan
        model.encoder.mask_embedding[0] = math.inf
    origin = find_origin(model, batch, IDS, forward)
    expected = "the weights encoder.mask_embedding and 1 more"
    assert origin == (expected, IDS)


def test_audio_is_named(case):
    model, batch, forward = case
    batch.wavs[0, 100] = math.nan
    origin = find_origin(model, batch, IDS, forward)
    assert origin == ("the audio", ["first"])


def test_what_happens_between_modules_is_the_input_of_the_next(case):
    model, batch, forward = case
    batch.wavs[1] *= 1e30  # finite; its energy is not
    origin = find_origin(model, batch, IDS, forward)
    place = "the input of encoder.front_end.convolutions.0"
    assert origin == (place, ["second"])


def test_the_backward_pass_is_named(case):
    model, batch, forward = case

    def spoil(_module, inputs):
        if inputs[0].requires_grad:  # not while the forward pass is watched
            inputs[0].register_hook(lambda gradient: gradient * math.nan)

    layer = model.encoder.conformer.layers[1]
    layer.norm.register_forward_pre_hook(spoil)
    origin = find_origin(model, batch, IDS, forward)
    assert origin.ids == IDS
    assert origin.place.startswith(
        "the backward pass, first in the gradient of "
        "encoder.conformer.layers.1.feed_forward_out."
    )


def test_looking_leaves_no_trace(case):
    model, batch, forward = case
    before = torch.random.get_rng_state()
    assert find_origin(model, batch, IDS, forward) is None
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.exchange and model.training
    assert all(p.grad is None for p in model.parameters())
    hooks = [
        hook
        for module in model.modules()
        for kind in (module._forward_hooks, module._forward_pre_hooks)
        for hook in kind
    ]
    assert hooks == []
