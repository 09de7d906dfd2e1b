"""Recordings in blocks: the states of one forward pass, in bounded memory."""

import math
from functools import partial

import pytest
import soundfile
import torch
import torch.nn.functional as F

from summarymixing import MultiHeadAttention, SummaryMixing, Wav2Vec2Encoder
from summarymixing.data.audio import AudioError, read_audio
from summarymixing.data.manifest import Row
from summarymixing.lobes.encoders import LogMelEncoder
from summarymixing.lobes.features import num_frames
from summarymixing.lobes.long_audio import (
    CONTEXT_SECONDS,
    WINDOW_SECONDS,
    Workspace,
    averaged,
)
from tests import reference

FRAME = 320  # samples
KERNEL = 5
MODES = ["full", "lite"]
every_mode = pytest.mark.parametrize("mode", MODES)


def make_encoder(device="cpu", mode="full", **options):
    mixer = partial(SummaryMixing, num_heads=2, mode=mode)
    sizes = {
        "num_layers": 3,
        "d_model": 8,
        "d_ffn": 16,
        "kernel_size": KERNEL,
        "num_mels": 20,
        "front_end_channels": 6,
    }
    encoder = Wav2Vec2Encoder(**{"mixer": mixer, **sizes, **options})
    # Biases start at zero, where one that is left out would not show.
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder.to(device).eval()


def speech(num_samples, device="cpu"):
    """Noise whose loudness changes, with silence inside."""
    time = torch.arange(num_samples, device=device) / 16_000
    envelope = (2 * math.pi * 0.7 * time).sin().clamp(min=0)
    return envelope * torch.randn(num_samples, device=device)


@torch.no_grad()
def at_once(encoder, wav):
    ones = torch.ones(1, device=wav.device)
    return [state[0] for state in encoder(wav[None], ones).hidden_states]


def joined(pieces):
    return [
        torch.cat(parts)
        for parts in zip(*(p.hidden_states for p in pieces), strict=True)
    ]


def assert_same_states(actual, expected, within=1e-5):
    assert len(actual) == len(expected)
    for state, wanted in zip(actual, expected, strict=True):
        assert state.shape == wanted.shape
        deviation = wanted.double().std().item() if len(wanted) > 1 else 1.0
        error = (state.double() - wanted.double()).abs().max().item()
        assert error <= within * max(deviation, 1e-2)


def reference_states(encoder, wav):
    """All hidden states in float64, from the formulas."""
    front_end, mixers = encoder.front_end, encoder.conformer.layers
    window = front_end.window.view(torch.float32).double()
    filters = front_end.mel_matrix.view(torch.float32).double()
    padded = F.pad(wav.double(), (200, 200))
    decibels = []
    for centre in range(0, len(wav) + 1, 160):
        spectrum = torch.fft.rfft(padded[centre : centre + 400] * window)
        energies = spectrum.abs().square() @ filters
        decibels.append(10 * energies.clamp(min=1e-10).log10())
    mels = torch.stack(decibels)
    mels = mels.clamp(min=mels.max() - 80)
    mels = (mels - mels.mean(0)) / (mels.var(0, unbiased=False) + 1e-5).sqrt()
    encoder = make_like(encoder)
    x = encoder.front_end.convolve(mels[None], None)
    x = encoder.project(x)
    angles = torch.arange(x.shape[1])[:, None] / 10_000 ** (
        torch.arange(0, 8, 2, dtype=torch.float64) / 8
    )
    x = x + torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
    states = [x]
    for layer, _ in zip(encoder.conformer.layers, mixers, strict=True):
        x = x + layer.feed_forward_in(x) / 2
        x = x + reference.summary_mixing(layer.mixer, layer.norm_mixer(x))
        x = x + layer.convolution(x, None)
        x = layer.norm(x + layer.feed_forward_out(x) / 2)
        states.append(x)
    states[-1] = encoder.conformer.norm(x)
    return [state[0] for state in states]


def make_like(encoder):
    twin = encoder.untrained_twin()
    twin.load_state_dict(encoder.state_dict())
    return twin.double().eval()


@every_mode
@pytest.mark.parametrize("block_frames", [40, 250])
def test_blocks_are_the_formulas_in_float64(mode, block_frames):
    encoder = make_encoder(mode=mode)
    wav = speech(block_frames * FRAME + 1)
    pieces = encoder.encode_long(wav, block_seconds=block_frames / 50)
    with torch.no_grad():
        assert_same_states(joined(pieces), reference_states(encoder, wav))


ODD = [1, 159, 160, 399, 40 * FRAME - 1, 40 * FRAME, 41 * FRAME, 16_001]


@every_mode
@pytest.mark.parametrize("num_samples", ODD)
@pytest.mark.parametrize("block_frames", [1, KERNEL // 2, 40, 3000])
def test_odd_lengths_and_blocks(num_samples, block_frames, mode, device):
    encoder = make_encoder(device, mode)
    wav = speech(num_samples, device)
    pieces = list(encoder.encode_long(wav, block_seconds=block_frames / 50))
    assert_same_states(joined(pieces), at_once(encoder, wav))
    starts = range(0, num_frames(num_samples), block_frames)
    assert [p.start_seconds for p in pieces] == [s / 50 for s in starts]


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_silence_and_a_click(level):
    encoder = make_encoder()
    wav = torch.zeros(50_000)
    wav[40_000] = level  # far behind, it sets the floor of all blocks
    pieces = encoder.encode_long(wav, block_seconds=0.5)
    assert_same_states(joined(pieces), at_once(encoder, wav), within=1e-4)


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
def test_files_of_any_rate_and_channels(rate, tmp_path):
    encoder = make_encoder()
    path, seconds = tmp_path / "a.wav", 65  # read in three parts
    left, right = speech(rate * seconds), speech(rate * seconds)
    soundfile.write(path, torch.stack([left, right], 1).numpy() / 5, rate)
    wav = read_audio(Row("a", str(path), (), float(seconds)))
    assert_same_states(
        joined(encoder.encode_long(path, block_seconds=7)),
        at_once(encoder, wav),
    )


def test_what_does_not_fit_lies_in_files(tmp_path, monkeypatch):
    encoder, wav = make_encoder(), speech(50_000)
    files = []
    make_file = __import__("tempfile").TemporaryFile
    monkeypatch.setattr(
        "summarymixing.lobes.long_audio.tempfile.TemporaryFile",
        lambda **options: files.append(make_file(**options)) or files[-1],
    )
    expected = at_once(encoder, wav)
    assert_same_states(joined(encoder.encode_long(wav, memory=1e9)), expected)
    assert not files
    assert_same_states(joined(encoder.encode_long(wav, memory=1e3)), expected)
    assert len(files) == 2 + 3  # mels, frames, layers before the last


def test_layers_come_in_the_order_asked_for_and_alone():
    encoder, wav = make_encoder(), speech(30_000)
    expected = at_once(encoder, wav)
    states = joined(encoder.encode_long(wav, [2, 0], block_seconds=1))
    assert_same_states(states, [expected[2], expected[0]])
    run = []
    for layer in encoder.conformer.layers:
        layer.register_forward_hook(lambda *_: run.append(1))
        layer.feed_forward_out.register_forward_hook(lambda *_: run.append(1))
    list(encoder.encode_long(wav, [1], block_seconds=60))
    assert len(run) == 1


def test_pieces_can_be_kept_and_changed():
    encoder, wav = make_encoder(), speech(30_000)
    expected = at_once(encoder, wav)
    pieces = []
    for piece in encoder.encode_long(wav, block_seconds=0.3):
        pieces.append(type(piece)(0.0, [x.clone() for x in piece[1]]))
        for state in piece.hidden_states:
            state.zero_()
    assert_same_states(joined(pieces), expected)


def test_the_mean_of_all_states(tmp_path):
    encoder, wav = make_encoder(), speech(30_000)
    for memory in (1e3, 1e9):
        workspace = Workspace(memory, tmp_path)
        blocks = averaged(encoder.state_blocks([wav], workspace), 4, workspace)
        mean = torch.cat([block.states for block in blocks])
        assert_same_states([mean], [torch.stack(at_once(encoder, wav)).mean(0)])


def test_under_autocast_and_in_float64():
    encoder, wav = make_encoder(), speech(30_000)
    expected = at_once(encoder, wav)
    with torch.autocast("cpu", torch.bfloat16):
        low = joined(encoder.encode_long(wav, block_seconds=0.5))
    assert_same_states(low, expected, within=0.2)
    double = make_like(encoder)
    assert_same_states(
        joined(double.encode_long(wav, block_seconds=0.5)),
        at_once(double, wav),
    )


@pytest.mark.parametrize("kind", ["attention", "log_mel"])
def test_other_encoders_run_in_windows_that_overlap(kind):
    encoder = LogMelEncoder(20).eval()
    if kind == "attention":
        encoder = make_encoder(mixer=MultiHeadAttention)
    assert not encoder.is_exact and make_encoder().is_exact
    seconds = 2 * WINDOW_SECONDS + 1
    wav = speech(seconds * 16_000 + 7)
    pieces = list(encoder.encode_long(wav))
    assert [p.start_seconds for p in pieces] == [0, 50, 100]
    states = joined(pieces)
    assert states[-1].shape == at_once(encoder, wav)[-1].shape
    stop = 2 * WINDOW_SECONDS + CONTEXT_SECONDS
    second = wav[(WINDOW_SECONDS - CONTEXT_SECONDS) * 16_000 : stop * 16_000]
    frames = slice(50 * CONTEXT_SECONDS, 50 * (stop - WINDOW_SECONDS))
    assert_same_states(
        pieces[1].hidden_states,
        [state[frames] for state in at_once(encoder, second)],
    )


def test_wrong_calls_are_explained(tmp_path):
    encoder = make_encoder()
    with pytest.raises(ValueError, match="0 to 3"):
        next(encoder.encode_long(speech(100), [4]))
    with pytest.raises(AudioError, match="no audio file"):
        next(encoder.encode_long(tmp_path / "a.wav"))
    with pytest.raises(ValueError, match="eval"):
        next(encoder.train().encode_long(speech(100)))
