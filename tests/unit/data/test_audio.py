"""Reading audio: only what a row asks for, and nothing wrong in silence."""

import time

import numpy as np
import pytest
import soundfile
import torch

from summarymixing.data.audio import (
    SAMPLE_RATE_HZ,
    AudioBlocks,
    AudioError,
    audio_info,
    read_audio,
)
from summarymixing.data.manifest import Row
from summarymixing.errors import UserError


def make_sine(seconds, rate, channels=1, hertz=440.0):
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(seconds * rate) / rate)
    return np.repeat(wave[:, None], channels, axis=1)


def make_noise(seconds, rate=SAMPLE_RATE_HZ):
    rng = np.random.default_rng(0)
    return rng.uniform(-0.5, 0.5, int(seconds * rate)).astype(np.float32)


def write(path, samples, rate=SAMPLE_RATE_HZ, **options):
    soundfile.write(path, samples, rate, **options)
    return path


def make_row(path, *segments, duration=None):
    total = sum(stop - start for start, stop in segments)
    return Row("item", str(path), segments, duration or total or 1.0)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000])
def test_any_rate_and_channels_become_the_same_wave(
    tmp_path, rate, channels, suffix
):
    path = write(tmp_path / f"a.{suffix}", make_sine(1, rate, channels), rate)
    wav = read_audio(make_row(path))
    assert wav.dtype == torch.float32
    assert wav.shape == (SAMPLE_RATE_HZ,)
    expected = make_sine(1, SAMPLE_RATE_HZ)[:, 0]
    inner = slice(800, -800)  # the edges ring
    assert np.abs(wav.numpy()[inner] - expected[inner]).max() < 0.02


def test_channels_are_averaged(tmp_path):
    left, right = make_noise(1), np.zeros(SAMPLE_RATE_HZ, dtype=np.float32)
    path = write(tmp_path / "a.wav", np.stack([left, right], 1))
    wav = read_audio(make_row(path)).numpy()
    np.testing.assert_allclose(wav, left / 2, atol=1e-4)


@pytest.mark.parametrize(
    "segments",
    [
        [(0.0, 1.0)],
        [(0.25, 0.75), (1.5, 3.0)],
        [(2.0, 3.0), (0.0, 0.5)],
        [(0.0, 1.0), (1.0, 2.0)],
    ],
)
def test_segments_are_read_in_their_order(tmp_path, segments):
    noise = make_noise(3)
    path = write(tmp_path / "a.flac", noise)
    expected = np.concatenate(
        [
            noise[int(start * SAMPLE_RATE_HZ) : int(stop * SAMPLE_RATE_HZ)]
            for start, stop in segments
        ]
    )
    wav = read_audio(make_row(path, *segments)).numpy()
    np.testing.assert_allclose(wav, expected, atol=1e-4)


def test_a_segment_of_a_long_file_costs_a_seek(tmp_path):
    path = write(tmp_path / "long.flac", make_noise(900))

    def seconds_for(row):
        times = []
        for _ in range(3):
            start = time.process_time()
            read_audio(row)
            times.append(time.process_time() - start)
        return min(times)

    whole = seconds_for(make_row(path, duration=900.0))
    assert seconds_for(make_row(path, (880.0, 890.0))) < whole / 5


@pytest.mark.parametrize("excess_s", [0.0, 0.01, 0.05])
def test_a_slight_excess_is_clipped(tmp_path, excess_s):
    path = write(tmp_path / "a.flac", make_noise(2))
    wav = read_audio(make_row(path, (1.0, 2.0 + excess_s)))
    assert wav.shape == (SAMPLE_RATE_HZ,)


@pytest.mark.parametrize("segment", [(1.0, 2.06), (2.0, 2.04), (5.0, 6.0)])
def test_more_than_a_slight_excess_is_an_error(tmp_path, segment):
    path = write(tmp_path / "a.flac", make_noise(2))
    with pytest.raises(AudioError, match="is 2 s long") as caught:
        read_audio(make_row(path, segment))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("rate", [1009, 11_127, 15_999, 44_056])
def test_odd_rates_need_no_huge_kernel(tmp_path, rate):
    path = write(tmp_path / "a.wav", np.zeros(rate), rate)
    start = time.process_time()
    wav = read_audio(make_row(path))
    assert time.process_time() - start < 2
    assert abs(len(wav) - SAMPLE_RATE_HZ) <= 2


RATES = [8000, 11_025, 15_999, 16_000, 44_056, 44_100, 96_000]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("samples", [1, 1000, 30_011])
@pytest.mark.parametrize("seconds", [0.01, 30.0])
def test_blocks_are_the_whole(tmp_path, rate, samples, seconds):
    wave = make_noise(2 * samples, rate=1).reshape(-1, 2)
    path = write(tmp_path / "a.wav", wave, rate)
    row = make_row(path, duration=samples / rate)
    blocks = list(AudioBlocks(row, seconds))
    np.testing.assert_allclose(
        torch.cat(blocks).numpy(), read_audio(row).numpy(), atol=1e-6
    )
    waits = 0.25  # the longest kernel
    assert max(map(len, blocks)) <= (seconds + waits) * SAMPLE_RATE_HZ


def test_blocks_of_segments(tmp_path):
    path = write(tmp_path / "a.flac", make_noise(3, 8000), 8000)
    row = make_row(path, (0.25, 0.75), (1.5, 3.0), (0.0, 0.1))
    np.testing.assert_allclose(
        torch.cat(list(AudioBlocks(row, 0.2))).numpy(),
        read_audio(row).numpy(),
        atol=1e-6,
    )


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_blocks_of_a_truncated_file_end_in_an_error(tmp_path, share):
    path = truncate(write(tmp_path / "a.flac", make_noise(2)), share)
    with pytest.raises(AudioError):
        list(AudioBlocks(make_row(path, (0.0, 2.0)), 0.1))


def truncate(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def make_damaged(kind, folder):
    good = make_noise(2)
    bad = good.copy()
    bad[SAMPLE_RATE_HZ] = float(kind) if kind in ("nan", "inf") else 0
    if kind in ("nan", "inf"):
        return write(folder / "a.wav", bad, subtype="FLOAT")
    if kind == "5 Hz":
        return write(folder / "a.wav", good, rate=5)
    if kind == "zero-length":
        return write(folder / "a.wav", good[:0])
    if kind == "empty":
        (folder / "a.flac").touch()
        return folder / "a.flac"
    if kind == "folder":
        return folder
    if kind == "missing":
        return folder / "a.flac"
    if kind == "text":
        (folder / "a.wav").write_text("not audio")
        return folder / "a.wav"
    suffix, share = kind.split(":")
    return truncate(write(folder / f"a.{suffix}", good), float(share))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("nan", "NaN or infinite samples"),
        ("inf", "NaN or infinite samples"),
        ("zero-length", "has no samples"),
        ("5 Hz", "has a sample rate below 1 kHz"),
        ("empty", "unreadable"),
        ("text", "unreadable"),
        ("folder", "missing"),
        ("missing", "missing"),
        ("flac:0.5", "unreadable"),
        ("flac:0.0003", "unreadable"),
        ("wav:0.5", "truncated"),
        ("mp3:0.5", "truncated"),
    ],
)
def test_damaged_audio_is_an_error(tmp_path, kind, reason):
    path = make_damaged(kind, tmp_path)
    with pytest.raises(AudioError) as caught:
        read_audio(make_row(path, duration=2.0))
    assert caught.value.reason == reason
    assert isinstance(caught.value, UserError)
    assert str(path) in str(caught.value)
    assert "repare" in str(caught.value)  # how to repair


@pytest.mark.parametrize("kind", ["zero-length", "empty", "missing", "text"])
def test_a_damaged_header_is_an_error(tmp_path, kind):
    with pytest.raises(AudioError, match="a\\."):
        audio_info(make_damaged(kind, tmp_path))


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_the_header_tells_the_length(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", make_sine(2, 44_100, 2), 44_100)
    info = audio_info(path)
    assert info.duration_s == pytest.approx(2.0, abs=0.05)
    assert (info.sample_rate_hz, info.channels) == (44_100, 2)
    assert not info.is_float
