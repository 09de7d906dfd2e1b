"""The count of multiply-adds is that of the step that really runs."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from summarymixing.cost.operations import (
    count_multiply_adds,
    encoder_operations,
    peak_flops,
    training_operations,
)
from summarymixing.lobes.pretraining import (
    Wav2Vec2Pretraining,
    gather_masked_frames,
)
from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
from summarymixing.nnet.attention import (
    MultiHeadAttention,
    RelativePositionAttention,
    RotaryAttention,
)
from summarymixing.nnet.summary_mixing import SummaryMixing

MIXERS = {
    "full": SummaryMixing,
    "lite": partial(SummaryMixing, mode="lite"),
    "attention": MultiHeadAttention,
    "rotary": RotaryAttention,
    "relative": RelativePositionAttention,
}


def make_model(mixer=SummaryMixing, **changes):
    sizes = {"num_layers": 2, "d_model": 16, "d_ffn": 24, "kernel_size": 5}
    front_end = {"num_mels": 9, "front_end_channels": 10}
    encoder = Wav2Vec2Encoder(
        mixer=partial(mixer, num_heads=2),
        **{"layer_drop": 0.0, **sizes, **front_end, **changes},
    )
    return Wav2Vec2Pretraining(encoder, num_codes=7, target_dim=6)


@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
def test_count_of_a_step_is_that_of_the_real_one(mixer):
    model = make_model(mixer)
    masked = gather_masked_frames([range(3, 14), range(7), [1]], 37, [1, 2, 3])

    def step():
        wavs = torch.rand(3, 36 * 320 + 77)
        lengths = torch.tensor([1.0, 0.5, 0.2])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(wavs, lengths, masked, temperature=1.0).loss
        loss.backward()

    with sdpa_kernel(SDPBackend.MATH):
        real = count_multiply_adds(step)
    assert training_operations(model)(3, 37, masked=19, widest=11) == real


@pytest.mark.parametrize("frames", [1, 2, 51])
def test_count_of_inference_is_that_of_the_real_one(frames):
    encoder = make_model(RelativePositionAttention).encoder.eval()
    wavs = torch.rand(1, max((frames - 1) * 320, 1))
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        real = count_multiply_adds(lambda: encoder(wavs, torch.ones(1)))
    assert encoder_operations(encoder)(1, frames) == real


def test_count_by_hand():
    """Two layers of width D = 16; matrices of the layer, from the paper."""
    d, ffn, heads, kernel = 16, 24, 2, 5
    b, t = 4, 30
    feed_forwards = 4 * d * ffn
    convolution = 2 * d * d + kernel * d + d * d
    # s and f have two layers for each head; c takes f of every frame and one
    # summary per utterance.
    mixer = 4 * d * d // heads + d * d
    layers = 2 * (b * t * (feed_forwards + convolution + mixer) + b * d * d)
    mels, channels = 9, 10
    front_end = 3 * mels * channels + 3 * channels * channels + channels * d
    filterbank = b * (2 * t - 1) * 201 * mels
    expected = layers + b * t * front_end + filterbank
    assert encoder_operations(make_model().encoder)(b, t) == expected


def test_gradients_of_a_grouped_convolution_cost_as_much_as_its_forward():
    convolution = nn.Conv1d(12, 12, 5, groups=12, padding=2)
    x = torch.rand(2, 12, 31, requires_grad=True)
    forward = count_multiply_adds(lambda: convolution(x))
    assert forward == 2 * 31 * 12 * 5
    both = count_multiply_adds(lambda: convolution(x).sum().backward())
    assert both == 3 * forward


def test_dropped_layers_are_left_out_as_expected():
    sizes = {"utterances": 2, "frames": 50}
    none, two, dropped = (
        encoder_operations(make_model(**changes).encoder, backward=True)
        for changes in ({"num_layers": 0}, {}, {"layer_drop": 0.25})
    )
    layers = two(**sizes) - none(**sizes)
    assert dropped(**sizes) - none(**sizes) == layers * 3 // 4


def test_recomputation_and_the_model_itself_are_left_alone():
    model = make_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    expected = training_operations(model)
    model.encoder.conformer.recompute_share(1.0)
    assert training_operations(model) == expected
    assert len(model.encoder.conformer.layers) == 2
    torch.testing.assert_close(model.state_dict(), before)
    assert all(p.grad is None for p in model.parameters())


def test_peak_of_a_gpu():
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("llvmpipe") is None


def test_a_step_is_three_times_the_forward_pass_but_for_the_first_layer():
    """Nothing asks for the gradient of the audio."""
    encoder = make_model().encoder
    forward, training = (
        encoder_operations(encoder, backward=backward)
        for backward in (False, True)
    )
    b, t, mels, channels = 2, 40, 9, 10
    filterbank = b * (2 * t - 1) * 201 * mels
    first = b * t * 3 * mels * channels
    expected = 3 * (forward(b, t) - filterbank) + filterbank - first
    assert training(b, t) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_positions_of_a_count_have_no_part_in_what_follows(dtype):
    """SpeechBrain keeps them for the whole process, by width and type."""
    encoder = make_model(RotaryAttention, d_model=12).encoder.eval()
    encoder_operations(encoder)
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        states = encoder(torch.rand(1, 1600), torch.ones(1)).hidden_states
    assert all(type(state) is torch.Tensor for state in states)
    assert all(state.isfinite().all() for state in states)
