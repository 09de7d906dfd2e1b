"""The front end: frame counts, and utterances that never see each other."""

import math

import pytest
import torch
from speechbrain.lobes.features import Fbank
from speechbrain.processing.features import Filterbank

from summarymixing.lobes.features import (
    FRAMES_PER_SECOND,
    HOP_SAMPLES,
    SAMPLE_RATE_HZ,
    FbankFrontEnd,
    MelFilterbank,
    mel_filters,
    num_frames,
    with_floor,
)
from tests import reference


@pytest.fixture
def front_end(device):
    return FbankFrontEnd(num_mels=20, channels=4).to(device)


def noise(*shape, device):
    return torch.randn(*shape, device=device)


# Frames never get fewer with more samples, neither in truth nor by formula:
# where both ends of every step agree, all of 1..2000 do.
ENDS_OF_STEPS = [n + k for n in range(160, 2081, 160) for k in (-1, 0)]


@pytest.mark.parametrize(
    "num_samples", [1, *ENDS_OF_STEPS, 15_999, 16_000, 479_999, 480_160]
)
def test_frames_are_as_many_as_num_frames_says(num_samples, front_end, device):
    latents, mask = front_end(
        torch.zeros(1, num_samples, device=device),
        torch.tensor([num_samples], device=device),
    )
    assert latents.shape[1] == num_frames(num_samples)
    assert not mask.any()


def test_num_frames_of_a_tensor_is_num_frames_of_each():
    lengths = list(range(1, 2001))
    frames = [num_frames(n) for n in lengths]
    assert num_frames(torch.tensor(lengths)).tolist() == frames
    assert frames == sorted(frames)


def test_a_minute_has_fifty_frames_a_second():
    minute = num_frames(60 * SAMPLE_RATE_HZ)
    assert minute == 60 * FRAMES_PER_SECOND + 1  # the first is centred on 0


@pytest.mark.parametrize("num_samples", [1, 159, 160, 161, 399, 4800, 16_001])
def test_filterbank_has_the_frames_and_values_of_speechbrain(
    num_samples, front_end, device
):
    wav = noise(1, num_samples, device=device)
    mels = front_end.mel_features(
        wav, torch.tensor([num_samples], device=device)
    )[0]
    stock = Fbank(n_mels=20, n_fft=400, win_length=25, hop_length=10)
    expected = stock.to(device)(wav)[0]
    assert len(mels) == len(expected) == num_samples // HOP_SAMPLES + 1
    if len(mels) > 1:
        expected = (expected - expected.mean(0)) / expected.std(
            0, unbiased=False
        )
        torch.testing.assert_close(mels, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("garbage", [0.0, 1e3, math.nan, math.inf])
@pytest.mark.parametrize("num_samples", [1, 3_999, 4_000, 4_001, 8_000])
def test_nothing_behind_the_end_reaches_a_frame(
    num_samples, garbage, front_end, device
):
    wav = noise(1, num_samples, device=device)
    length = torch.tensor([num_samples], device=device)
    wavs = noise(2, 10_000, device=device)
    wavs[0, :num_samples] = wav
    wavs[0, num_samples:] = garbage
    lengths = torch.tensor([num_samples, 10_000], device=device)
    frames = num_frames(num_samples)

    def padded(wavs):
        latents, mask = front_end(wavs, lengths)
        assert mask[0].tolist() == [t >= frames for t in range(len(mask[0]))]
        assert (latents[mask] == 0).all()
        return latents[:1, :frames]

    parameters = list(front_end.parameters())
    alone, _, *gradients_alone = reference.values_and_gradients(
        lambda wav: front_end(wav, length)[0], wav, parameters
    )
    actual, _, *gradients = reference.values_and_gradients(
        padded, wavs, parameters
    )
    torch.testing.assert_close(actual, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients, gradients_alone, rtol=1e-4, atol=1e-4)


def test_a_loud_end_sets_no_floor_that_depends_on_the_batch(front_end, device):
    # Only a batch has a frame behind the end, centred on the loudest samples.
    wav = torch.zeros(1, 4_799, device=device)
    wav[0, 1_000:2_000] = 1e-3 * noise(1_000, device=device)
    wav[0, -20:] = noise(20, device=device)
    padded = torch.nn.functional.pad(wav, (0, 3_000))
    length = torch.tensor([wav.shape[1]], device=device)
    alone = front_end.mel_features(wav, length)
    together = front_end.mel_features(padded, length)[:, : alone.shape[1]]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", [0.0, 0.5])
def test_silence_stays_at_zero(level, front_end, device):
    # A constant level is silence to all but the first mel channels and edges.
    wav = torch.full((1, 1_600), level, device=device)
    mels = front_end.mel_features(wav, torch.tensor([1_600], device=device))
    assert mels.isfinite().all()
    if level == 0:
        assert not mels.any()


def test_features_have_mean_0_and_deviation_1_in_each_utterance(
    front_end, device
):
    lengths = torch.tensor([16_000, 6_400], device=device)
    scale = torch.linspace(0.01, 1, 16_000, device=device)
    mels = front_end.mel_features(
        scale * noise(2, 16_000, device=device), lengths
    )
    for b, frames in enumerate([101, 41]):
        own = mels[b, :frames]
        torch.testing.assert_close(
            own.mean(0), torch.zeros(20, device=device), rtol=0, atol=1e-4
        )
        torch.testing.assert_close(
            own.std(0, unbiased=False),
            torch.ones(20, device=device),
            rtol=1e-3,
            atol=0,
        )
        assert not mels[b, frames:].any()


def test_loudness_does_not_matter(front_end, device):
    wav, length = noise(1, 8_000, device=device), torch.tensor([8_000])
    torch.testing.assert_close(
        front_end(0.05 * wav, length.to(device))[0],
        front_end(wav, length.to(device))[0],
        rtol=1e-3,
        atol=1e-3,
    )


def test_features_are_float32_under_autocast(front_end, device):
    wav, length = noise(1, 8_000, device=device), torch.tensor([8_000])
    expected = front_end.mel_features(wav, length.to(device))
    with torch.autocast(device.type, torch.bfloat16):
        actual = front_end.mel_features(
            wav.bfloat16().float(), length.to(device)
        )
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0.1, atol=0.1)


def test_constants_of_the_filterbank_are_no_weights(front_end):
    assert all(
        name.startswith(("convolutions.", "norm."))
        for name in front_end.state_dict()
    )


@pytest.mark.parametrize("num_mels", [20, 80])
def test_energies_are_those_of_speechbrain(num_mels, device):
    wavs = noise(2, 4_801, device=device)
    stock = Fbank(n_mels=num_mels, n_fft=400, win_length=25, hop_length=10)
    stock.compute_fbanks.log_mel = False
    torch.testing.assert_close(
        MelFilterbank(num_mels).to(device)._energies(wavs),
        stock.to(device)(wavs),
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("num_mels", [20, 40, 80])
def test_filters_are_bit_for_bit_those_of_speechbrain(num_mels):
    stock = Filterbank(num_mels, log_mel=False)
    filters = stock(torch.eye(201)[None])[0]
    torch.testing.assert_close(mel_filters(num_mels), filters, rtol=0, atol=0)


@pytest.mark.parametrize("num_samples", [1, 159, 160, 401, 16_001])
@pytest.mark.parametrize("size", [1, 160, 777, 20_000])
def test_decibels_of_blocks_are_those_of_the_whole(num_samples, size, device):
    wav = noise(num_samples, device=device)
    filterbank = MelFilterbank(20).to(device)
    whole, _ = filterbank.decibels(
        wav[None], torch.tensor([num_samples], device=device)
    )
    blocks = wav[: 50 * size].split(size)
    if 50 * size < num_samples:
        blocks = [*blocks, wav[50 * size :]]
    parts = torch.cat(list(filterbank.stream_decibels(blocks)), dim=1)
    torch.testing.assert_close(with_floor(parts), whole, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_filterbank_is_not_rounded_with_the_weights(dtype, device):
    wav, length = noise(1, 8_000, device=device), torch.tensor([8_000])
    filterbank = MelFilterbank(20).to(device)
    expected = filterbank.mel_features(wav, length.to(device))
    actual = filterbank.to(dtype).mel_features(wav, length.to(device))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
