"""Tables to rows: what a line may hold, and audio that ends too early."""

import numpy as np
import pytest
import soundfile

from summarymixing.data.prepare.account import Outcome
from summarymixing.data.prepare.listing import (
    Listing,
    Recording,
    measure,
    process_recording,
)
from summarymixing.errors import UserError


def make_recording(row_id="a", path="a.wav", **labels):
    return Recording("train", row_id, path, labels)


def test_lines_end_at_newlines_alone(tmp_path):
    content = b"\xef\xbb\xbfone\r\n\n \t\ntwo\xe2\x80\xa8\x0bstill\n\xff\nend"
    (tmp_path / "t.tsv").write_bytes(content)
    listing = Listing()
    assert list(listing.read_lines(tmp_path, "t.tsv")) == [
        ("t.tsv:1", "one"),
        ("t.tsv:4", "two\u2028\x0bstill"),
        ("t.tsv:6", "end"),
    ]
    assert listing.outcome.problems == [("line is not UTF-8 text", "t.tsv:5")]


def test_a_table_that_cannot_be_read_is_explained(tmp_path):
    (tmp_path / "t.tsv").mkdir()
    with pytest.raises(UserError, match="Cannot read .*t.tsv"):
        list(Listing().read_lines(tmp_path, "t.tsv"))


def test_the_first_usable_line_of_a_recording_counts():
    listing = Listing()
    listing.add(make_recording(speaker=""), "t:1")
    listing.add(make_recording(speaker="x"), "t:2")
    listing.add(make_recording(speaker="y"), "t:3")
    assert listing.outcome.problems == [
        ("no speaker", "t:1"),
        ("listed twice (the first counts)", "t:3"),
    ]
    assert len(listing.work_items) == 1


def test_an_item_becomes_a_row(tmp_path, write_recording):
    write_recording(tmp_path / "b/ü.wav", 1.5, rate=8000)
    listing = Listing()
    listing.add(make_recording("ü", "b/ü.wav", speaker="ç, ;\n"), "t:1")
    outcome = process_recording(listing.work_items[0], root=tmp_path)
    (row,) = outcome.rows
    assert (row.id, row.path) == ("ü", str(tmp_path / "b/ü.wav"))
    assert (row.segments, row.duration) == ((), 1.5)
    assert row.labels == {"speaker": "ç, ;\n"}
    assert (outcome.group, outcome.found_s) == ("train", 1.5)


def test_what_is_dropped_is_found_too():
    listing = Listing()
    listing.drop("another emotion", 2.5)
    assert listing.outcome == Outcome(
        num_recordings=1, found_s=2.5, dropped=[("another emotion", 2.5)]
    )


@pytest.fixture
def write_noise(tmp_path):
    """Write two seconds of noise: silence would compress to nothing."""

    def write(name, seconds=2.0):
        noise = np.random.default_rng(1).normal(size=round(seconds * 16_000))
        soundfile.write(tmp_path / name, 0.1 * noise, 16_000)
        return tmp_path / name

    return write


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
@pytest.mark.parametrize("seconds", [0.01, 2.0])
def test_sound_recordings_are_measured(tmp_path, write_noise, suffix, seconds):
    write_noise(f"a.{suffix}", seconds)
    outcome = Outcome()
    duration_s = measure(outcome, tmp_path, f"a.{suffix}")
    assert duration_s == outcome.found_s == pytest.approx(seconds, abs=0.05)
    assert not outcome.problems


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_truncated_recordings_are_noticed(tmp_path, write_noise, suffix, kept):
    path = write_noise(f"a.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    outcome = Outcome()
    assert measure(outcome, tmp_path, path.name) == 0
    assert outcome.problems == [("recording: truncated", path.name)]
    assert outcome.found_s == 0


@pytest.mark.parametrize("stated", [0xFFFFFFFF, 0x7FFFFFFF - 36])
def test_a_wav_from_a_pipe_states_no_size_and_is_sound(
    tmp_path, write_noise, stated
):
    path = write_noise("a.wav")
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = stated.to_bytes(4, "little")
    path.write_bytes(content)
    outcome = Outcome()
    assert measure(outcome, tmp_path, "a.wav") == 2.0
    assert not outcome.problems
