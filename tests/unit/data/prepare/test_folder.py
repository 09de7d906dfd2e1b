"""Any folder of audio: every format, every length, nothing lost silently."""

import numpy as np
import pytest
import soundfile

from summarymixing.data.audio import read_audio
from summarymixing.data.manifest import Manifest
from summarymixing.data.prepare.folder import CORPUS
from summarymixing.errors import UserError

RATE = 16_000


@pytest.fixture
def prepare(tmp_path):
    """Prepare tmp_path/audio without a validation set."""
    (tmp_path / "audio").mkdir()

    def run(**options):
        return CORPUS.plan(
            tmp_path / "audio",
            tmp_path / "m",
            **{"valid_fraction": 0.0, **options},
        ).run()

    return run


def read_rows(tmp_path, name="train"):
    return list(Manifest.read(tmp_path / "m" / f"{name}.csv"))


def write_speech(path, bursts, seconds, rate=RATE):
    """Write silence with bursts of noise at (start, stop)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.zeros(int(seconds * rate))
    rng = np.random.default_rng(0)
    for start, stop in bursts:
        span = slice(int(start * rate), int(stop * rate))
        samples[span] = 0.1 * rng.standard_normal(len(samples[span]))
    soundfile.write(path, samples, rate)
    return path


@pytest.mark.parametrize("suffix", ["flac", "wav", "ogg", "mp3", "WAV"])
@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (8000, 1)])
def test_every_format_becomes_one_readable_row(
    tmp_path, prepare, write_recording, suffix, rate, channels
):
    write_recording(tmp_path / f"audio/x/a b.{suffix}", 3.0, rate, channels)
    prepare()
    (row,) = read_rows(tmp_path)
    assert row.id == f"x/a b.{suffix}"
    assert row.segments == ()
    assert row.duration == pytest.approx(3.0, abs=0.06)
    assert len(read_audio(row)) == pytest.approx(3.0 * RATE, abs=0.06 * RATE)


def test_names_that_differ_in_their_ending_only_stay_apart(
    tmp_path, prepare, write_recording
):
    for suffix in ("wav", "flac"):
        write_recording(tmp_path / f"audio/a.{suffix}", 2.0)
    prepare()
    assert [row.id for row in read_rows(tmp_path)] == ["a.flac", "a.wav"]


def test_long_files_are_cut_at_pauses(tmp_path, prepare):
    bursts = [(5, 15), (20, 32), (60, 89), (100, 100.4)]
    write_speech(tmp_path / "audio/long.flac", bursts, 120)
    account = prepare()
    rows = read_rows(tmp_path)
    assert [round(row.duration) for row in rows] == [23, 29]
    assert len(rows[0].segments) == 2  # 10 and 12 s, joined
    assert [row.id for row in rows] == ["long.flac/0000", "long.flac/0001"]
    hours = account.kept.hours + sum(t.hours for t in account.dropped.values())
    assert 3600 * hours == pytest.approx(120)
    assert set(account.dropped) == {"silence", "shorter than 1 s"}
    assert len(read_audio(rows[0])) / RATE == pytest.approx(rows[0].duration)


def test_long_files_are_cut_evenly(tmp_path, prepare):
    write_speech(tmp_path / "audio/long.wav", [(0, 10)], 100)
    prepare(cut="even", max_seconds=20)
    rows = read_rows(tmp_path)
    assert [row.duration for row in rows] == [20.0] * 5
    assert rows[4].segments == ((80.0, 100.0),)


@pytest.mark.parametrize("seconds", [29.9, 30.0])
def test_short_files_cost_their_header_only(
    tmp_path, prepare, write_recording, monkeypatch, seconds
):
    write_recording(tmp_path / "audio/a.flac", seconds)
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    monkeypatch.setattr(soundfile.SoundFile, "blocks", None)
    prepare()
    (row,) = read_rows(tmp_path)
    assert (row.segments, row.duration) == ((), seconds)


def make_unusable(kind, folder):
    path = folder / "bad.wav"
    good = 0.1 * np.random.default_rng(0).standard_normal(2 * RATE)
    if kind == "text":
        path.write_text("not audio")
    elif kind == "empty":
        path.touch()
    elif kind == "zero-length":
        soundfile.write(path, good[:0], RATE)
    elif kind == "link":
        path.symlink_to(folder / "nowhere.wav")
    elif kind == "silence":
        soundfile.write(path, np.zeros(40 * RATE), RATE)
    elif kind.startswith("nan"):
        samples = np.tile(good, int(kind.split(":")[1]))
        samples[-5] = np.nan
        soundfile.write(path, samples, RATE, subtype="FLOAT")
    else:
        path = folder / "bad.flac"
        soundfile.write(path, np.tile(good, 20), RATE)
        path.write_bytes(path.read_bytes()[:300_000])
    return path


@pytest.mark.parametrize("cut", ["energy", "even"])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("text", "unreadable"),
        ("empty", "unreadable"),
        ("zero-length", "has no samples"),
        ("link", "missing"),
        ("nan:1", "NaN or infinite samples"),
        ("nan:20", "NaN or infinite samples"),
        ("silence", "nothing above silence"),
        ("truncated", "truncated or damaged audio"),
    ],
)
def test_unusable_files_are_listed(
    tmp_path, prepare, write_recording, kind, reason, cut
):
    if cut == "even" and kind in ("silence", "truncated"):
        pytest.skip("cutting evenly reads headers only")
    write_recording(tmp_path / "audio/good.wav", 2.0)
    bad = make_unusable(kind, tmp_path / "audio")
    account = prepare(cut=cut)
    assert account.problems == {reason: [bad.name]}
    assert [row.id for row in read_rows(tmp_path)] == ["good.wav"]


def test_short_files_are_counted(tmp_path, prepare, write_recording):
    write_recording(tmp_path / "audio/good.wav", 1.0)
    write_recording(tmp_path / "audio/short.wav", 0.9)
    account = prepare()
    assert account.dropped["shorter than 1 s"].count == 1
    assert len(read_rows(tmp_path)) == 1


@pytest.mark.parametrize("split_by", ["file", "folder"])
def test_train_and_valid_share_nothing(
    tmp_path, prepare, write_recording, split_by
):
    for i in range(40):
        write_recording(tmp_path / f"audio/s{i % 8}/deep/{i}.flac", 20.0)
    prepare(valid_fraction=0.2, split_by=split_by, max_seconds=8, cut="even")
    train, valid = read_rows(tmp_path), read_rows(tmp_path, "valid")
    assert len(train) + len(valid) == 120
    assert 0 < len(valid) <= 24
    part = 2 if split_by == "file" else 0
    assert not {row.id.split("/")[part] for row in train} & {
        row.id.split("/")[part] for row in valid
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"min_seconds": 0}, "0 < min_seconds"),
        ({"min_seconds": 40}, "max_seconds"),
        ({"valid_fraction": 1.0}, "valid_fraction"),
        ({"cut": "magic"}, "energy or even"),
        ({"split_by": "speaker"}, "file or folder"),
        ({"valid_fraction": 0.5}, "Only one recording or group"),
    ],
)
def test_a_wrong_option_is_explained(
    tmp_path, prepare, write_recording, options, expected
):
    write_recording(tmp_path / "audio/a.wav", 2.0)
    with pytest.raises(UserError, match=expected):
        prepare(**options)


def test_a_folder_without_audio_is_explained(tmp_path, prepare):
    (tmp_path / "audio/readme.txt").touch()
    with pytest.raises(UserError, match="no audio"):
        prepare()
