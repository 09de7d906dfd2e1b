"""The clip rule on every boundary, and speech found by energy."""

import numpy as np
import pytest
import soundfile

from summarymixing.data.prepare.cutting import (
    DamagedAudioError,
    cut_by_energy,
    cut_evenly,
    join_clips,
)

RATE = 16_000


def lay_out(durations):
    """Return clips of these durations with half a second between them."""
    clips, now = [], 0.0
    for duration in durations:
        clips.append((now, now + duration))
        now += duration + 0.5
    return clips


@pytest.mark.parametrize(
    ("durations", "sequences", "dropped"),
    [
        ([], [], []),
        ([10, 10, 35], [[10, 10], [35]], []),
        ([35, 10, 10], [[35], [10, 10]], []),
        ([10, 35, 10], [[10], [35], [10]], []),
        ([30], [[30]], []),
        ([30, 0.1], [[30], [0.1]], []),
        ([10, 20, 1], [[10, 20], [1]], []),
        ([10, 20.1], [[10], [20.1]], []),
        ([60], [[60]], []),
        ([60.1], [], [60.1]),
        ([60, 60.1, 60], [[60], [60]], [60.1]),
        ([10, 70, 10], [[10], [10]], [70]),
        ([10, 70, 80, 10, 10], [[10], [10, 10]], [70, 80]),
        ([70, 10], [[10]], [70]),
        # Times have four decimals: what is below is rounding.
        ([10, 10, 10.0000001], [[10, 10, 10.0000001]], []),
        ([10, 10, 10.0001], [[10, 10], [10.0001]], []),
        ([60.0000001], [[60.0000001]], []),
        ([60.0001], [], [60.0001]),
        ([0.1] * 300, [[0.1] * 300], []),
        ([0.1] * 301, [[0.1] * 300, [0.1]], []),
    ],
)
def test_clips_are_joined_by_the_rule(durations, sequences, dropped):
    joined, left_out = join_clips(
        lay_out(durations), max_joined_s=30, max_clip_s=60
    )
    flat = [stop - start for sequence in joined for start, stop in sequence]
    assert [len(s) for s in joined] == [len(s) for s in sequences]
    assert flat == pytest.approx([d for s in sequences for d in s])
    assert [stop - start for start, stop in left_out] == pytest.approx(dropped)


@pytest.mark.parametrize("seed", range(20))
def test_joining_loses_nothing_and_keeps_the_limits(seed):
    rng = np.random.default_rng(seed)
    clips = lay_out(np.round(rng.gamma(1.0, 12.0, size=60) + 0.01, 4))
    sequences, dropped = join_clips(clips, max_joined_s=30, max_clip_s=60)
    assert sorted(dropped + sum(sequences, [])) == clips
    for sequence in sequences:
        total = sum(stop - start for start, stop in sequence)
        assert total <= (30.0001 if len(sequence) > 1 else 60.0001)
        first = clips.index(sequence[0])  # adjacent in the recording
        assert clips[first : first + len(sequence)] == sequence


@pytest.mark.parametrize(
    ("duration_s", "num_pieces"), [(30.1, 2), (60.0, 2), (61.0, 3), (3600, 120)]
)
def test_even_pieces_cover_everything(duration_s, num_pieces):
    pieces = cut_evenly(duration_s, max_seconds=30)
    assert len(pieces) == num_pieces
    assert pieces[0][0] == 0 and pieces[-1][1] == duration_s
    assert all(a[1] == b[0] for a, b in zip(pieces, pieces[1:], strict=False))
    lengths = [stop - start for start, stop in pieces]
    assert max(lengths) <= 30.0001
    assert max(lengths) - min(lengths) < 1e-6


def write_bursts(path, bursts, seconds, floor=1e-3, rate=RATE):
    """Write faint noise with louder bursts at (start, stop)."""
    rng = np.random.default_rng(0)
    samples = floor * rng.standard_normal(int(seconds * rate))
    for start, stop in bursts:
        samples[int(start * rate) : int(stop * rate)] *= 0.1 / floor
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


@pytest.mark.parametrize("rate", [8000, 22_050])
@pytest.mark.parametrize("floor", [1e-3, 1e-6])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_bursts_are_found_with_a_margin(tmp_path, floor, rate, suffix):
    bursts = [(1.0, 4.0), (10.0, 12.5), (33.0, 39.0)]  # 30 s end one block
    path = write_bursts(tmp_path / f"a.{suffix}", bursts, 41, floor, rate)
    found = cut_by_energy(path, max_seconds=30)
    assert len(found) == len(bursts)
    for (start, stop), (first, last) in zip(found, bursts, strict=True):
        assert start == pytest.approx(first - 0.2, abs=0.03)
        assert stop == pytest.approx(last + 0.2, abs=0.03)


def test_short_pauses_and_clicks_are_passed_over(tmp_path):
    bursts = [(5.0, 7.0), (7.2, 9.0), (20.0, 20.05), (30.0, 32.0)]
    path = write_bursts(tmp_path / "a.wav", bursts, 40)
    assert [round(b - a) for a, b in cut_by_energy(path, 30)] == [4, 2]


def test_long_speech_is_cut_where_it_is_quietest(tmp_path):
    bursts = [(0.0, 22.0), (22.2, 45.0), (45.2, 50.0)]
    path = write_bursts(tmp_path / "a.wav", bursts, 60)
    found = cut_by_energy(path, max_seconds=30)
    assert all(stop - start <= 30 for start, stop in found)
    assert 22.0 <= found[0][1] <= 22.21


@pytest.mark.parametrize(("level", "expected"), [(0.0, []), (0.1, [(0, 40)])])
def test_even_levels_are_all_silence_or_all_speech(tmp_path, level, expected):
    samples = level * np.random.default_rng(0).standard_normal(40 * RATE)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    found = cut_by_energy(tmp_path / "a.wav", max_seconds=60)
    assert [pytest.approx(clip) for clip in found] == expected


def test_the_file_is_never_read_as_a_whole(tmp_path, monkeypatch):
    path = write_bursts(tmp_path / "a.wav", [(10, 20)], 100)
    sizes = []
    blocks = soundfile.SoundFile.blocks

    def watch(*args, **kwargs):
        for block in blocks(*args, **kwargs):
            sizes.append(len(block))
            yield block

    monkeypatch.setattr(soundfile.SoundFile, "blocks", watch)
    monkeypatch.setattr(soundfile, "read", None)
    cut_by_energy(path, max_seconds=30)
    assert sum(sizes) == 100 * RATE
    assert max(sizes) <= 30 * RATE


@pytest.mark.parametrize("damage", ["nan", "inf", "truncated"])
def test_damaged_samples_are_noticed(tmp_path, damage):
    samples = np.random.default_rng(0).standard_normal(50 * RATE)
    path = tmp_path / "a.flac"
    if damage == "truncated":
        soundfile.write(path, 0.1 * samples, RATE)
        path.write_bytes(path.read_bytes()[:400_000])
    else:
        path = tmp_path / "a.wav"
        samples[-1] = float(damage)
        soundfile.write(path, samples, RATE, subtype="FLOAT")
    with pytest.raises(DamagedAudioError):
        cut_by_energy(path, max_seconds=30)
