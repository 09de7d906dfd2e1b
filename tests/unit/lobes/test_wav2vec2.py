"""The encoder: the same states alone and in a batch; built by its config."""

import json
import math
from functools import partial

import pytest
import torch

from summarymixing import MultiHeadAttention, SummaryMixing, Wav2Vec2Encoder
from summarymixing.errors import UserError
from summarymixing.lobes.wav2vec2 import sine_positions
from summarymixing.nnet.attention import (
    RelativePositionAttention,
    RotaryAttention,
)
from summarymixing.nnet.mixer import mixer_from_description
from tests import reference

TINY = {
    "num_layers": 3,
    "d_model": 8,
    "d_ffn": 16,
    "kernel_size": 5,
    "num_mels": 20,
    "front_end_channels": 6,
}
MIXERS = [
    partial(SummaryMixing, num_heads=2),
    partial(SummaryMixing, num_heads=2, mode="lite"),
    partial(MultiHeadAttention, num_heads=2),
    partial(RotaryAttention, num_heads=2),
    partial(RelativePositionAttention, num_heads=2),
]
IDS = ["summary", "lite", "attention", "rotary", "relative"]
every_mixer = pytest.mark.parametrize("mixer", MIXERS, ids=IDS)


def make_encoder(device, mixer=MIXERS[0], **options):
    encoder = Wav2Vec2Encoder(mixer=mixer, **{**TINY, **options})
    return encoder.to(device).eval()


def speech(num_samples, device):
    """Noise whose loudness changes, with silence inside."""
    time = torch.arange(num_samples, device=device) / 16_000
    envelope = (2 * math.pi * 3 * time).sin().clamp(min=0)
    return envelope * torch.randn(num_samples, device=device)


@every_mixer
@pytest.mark.parametrize("garbage", [0.0, 1e3, math.nan])
def test_states_are_those_of_the_utterance_alone(garbage, mixer, device):
    encoder = make_encoder(device, mixer)
    lengths = [16_000, 3_999, 8_161, 1]
    utterances = [speech(n, device) for n in lengths]
    wavs = torch.full((len(lengths), max(lengths)), garbage, device=device)
    for row, utterance in zip(wavs, utterances, strict=True):
        row[: len(utterance)] = utterance
    wav_lens = torch.tensor(lengths, device=device) / max(lengths)
    joint = encoder(wavs, wav_lens)
    assert len(joint.hidden_states) == TINY["num_layers"] + 1
    for b, utterance in enumerate(utterances):
        alone = encoder(utterance[None], torch.ones(1, device=device))
        frames = alone.hidden_states[0].shape[1]
        assert (~joint.padding_mask[b]).sum() == frames
        for state, expected in zip(
            joint.hidden_states, alone.hidden_states, strict=True
        ):
            torch.testing.assert_close(
                state[b, :frames], expected[0], rtol=1e-4, atol=1e-4
            )


def test_a_longer_input_than_any_before_gets_its_positions(device):
    encoder = make_encoder(device)
    ones = torch.ones(1, device=device)
    short, long = speech(16_000, device)[None], speech(96_000, device)[None]
    first = encoder(short, ones).hidden_states
    fresh = make_encoder(device)
    fresh.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(
        encoder(long, ones).hidden_states, fresh(long, ones).hidden_states
    )
    torch.testing.assert_close(encoder(short, ones).hidden_states, first)


@pytest.mark.parametrize("d_model", [4, 7])
def test_positions_are_sines_and_cosines(d_model):
    table = sine_positions(50, d_model)
    for t in range(50):
        for c in range(d_model):
            angle = t / 10_000 ** (2 * (c // 2) / d_model)
            wanted = math.cos(angle) if c % 2 else math.sin(angle)
            assert table[t, c].item() == pytest.approx(wanted, abs=1e-5)


def test_the_positions_are_added_to_the_input_of_the_first_layer(device):
    encoder = make_encoder(device)
    latents, mask = encoder.extract(
        speech(16_000, device)[None], torch.ones(1, device=device)
    )
    out = encoder.contextualise(latents, mask, all_hidden_states=True)
    expected = encoder.project(latents) + sine_positions(51, 8).to(device)
    torch.testing.assert_close(out.hidden_states[0], expected)


def test_masked_frames_become_the_mask_embedding(device):
    encoder = make_encoder(device)
    latents, mask = encoder.extract(
        speech(16_000, device)[None], torch.ones(1, device=device)
    )
    span_mask = torch.zeros_like(mask)
    span_mask[0, 3:7] = True
    latents = latents.detach().requires_grad_()
    out = encoder.contextualise(
        latents, mask, span_mask=span_mask, all_hidden_states=True
    )
    first = out.hidden_states[0] - sine_positions(51, 8).to(device)
    torch.testing.assert_close(
        first[0, 3:7], encoder.mask_embedding.expand(4, -1)
    )
    # What was there cannot be seen any more.
    slope = torch.linspace(-1, 2, 8, device=device)
    (gradient,) = torch.autograd.grad((out.output * slope).sum(), latents)
    assert not gradient[span_mask].any()
    assert gradient[~span_mask].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_whole_encoder_runs_in_another_precision(dtype, device):
    encoder = make_encoder(device)
    wavs = torch.stack([speech(16_000, device), speech(16_000, device)])
    wav_lens = torch.tensor([1.0, 0.6], device=device)
    expected = encoder(wavs, wav_lens).hidden_states
    actual = encoder.to(dtype)(wavs, wav_lens).hidden_states
    for state, wanted in zip(actual, expected, strict=True):
        assert state.dtype == dtype
        torch.testing.assert_close(state.float(), wanted, rtol=0.1, atol=0.1)


def test_it_trains_after_it_was_used_in_inference_mode(device):
    encoder = make_encoder(device)
    wav, ones = speech(8_000, device)[None], torch.ones(1, device=device)
    with torch.inference_mode():
        encoder(wav, ones)
    values = reference.values_and_gradients(
        lambda wav: encoder(wav, ones).hidden_states[-1],
        wav,
        [encoder.project.weight],
    )
    assert values[-1].any()


def test_the_config_builds_the_same_encoder(device):
    encoder = make_encoder(device, dropout=0.2, layer_drop=0.1)
    config = json.loads(json.dumps(encoder.config))
    mixer = mixer_from_description(config.pop("mixer"))
    again = Wav2Vec2Encoder(mixer=mixer, **config)
    assert again.config == encoder.untrained_twin().config == encoder.config
    again.load_state_dict(encoder.state_dict())
    encoder.untrained_twin().load_state_dict(encoder.state_dict())


def test_a_mixer_that_could_not_be_loaded_again_is_refused_at_once():
    with pytest.raises(UserError, match="cannot be found again by its name"):
        Wav2Vec2Encoder(mixer=lambda d_model: SummaryMixing(d_model), **TINY)
