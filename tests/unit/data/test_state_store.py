"""Stored states: keys, damaged and lost files, several writers."""

import os
from dataclasses import replace

import pytest
import torch

from summarymixing.data.manifest import Row
from summarymixing.data.state_store import (
    StateStore,
    free_bytes,
    groups,
    utterance_key,
)

IDENTITY = {"weights": "a", "dtype": "torch.float32"}


@pytest.fixture
def store(tmp_path):
    made = StateStore(tmp_path / "states", IDENTITY)
    made.prepare()
    return made


@pytest.fixture
def row(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"audio")
    return Row("a", str(path), ((0.5, 1.25),), 0.75, {"label": "x"})


def reopen(store):
    again = StateStore(store.folder.parent, IDENTITY)
    again.refresh()
    return again


def test_what_is_written_is_read(store):
    states = {"x": torch.randn(3, 5, 4), "y": torch.randn(3, 2, 4)}
    store.write(states)
    for reader in (store, reopen(store)):
        assert all(torch.equal(reader[key], states[key]) for key in states)
        assert "z" not in reader


def test_key_is_of_the_audio_alone(row):
    key = utterance_key(row)
    assert utterance_key(replace(row, id="b", labels={})) == key
    assert utterance_key(replace(row, segments=((0.5, 1.0),))) != key
    assert utterance_key(replace(row, segments=())) != key
    moved = row.path + "x"
    os.link(row.path, moved)
    assert utterance_key(replace(row, path=moved)) != key


@pytest.mark.parametrize("change", ["size", "time", "gone"])
def test_changed_audio_has_another_key(row, change):
    before, status = utterance_key(row), os.stat(row.path)
    if change == "size":
        with open(row.path, "ab") as file:
            file.write(b"more")
        os.utime(row.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "time":
        os.utime(row.path, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    else:
        os.remove(row.path)
    assert utterance_key(row) != before


def test_another_encoder_has_another_folder(store):
    store.write({"x": torch.ones(1, 1, 1)})
    other = StateStore(store.folder.parent, {**IDENTITY, "weights": "b"})
    other.prepare()
    assert "x" not in other and other.folder != store.folder


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_torn_file_is_told_and_made_again(store, keep, caplog):
    states = {"x": torch.ones(2, 50, 4)}
    path = store.write(states)
    path.write_bytes(path.read_bytes()[:keep])
    reader = reopen(store)
    assert "x" not in reader and not path.exists()
    assert "damaged" in caplog.text
    store.write(states)
    reader.refresh()
    assert torch.equal(reader["x"], states["x"])


def test_file_of_a_killed_writer_is_no_entry(store):
    path = store.write({"x": torch.ones(2, 50, 4)})
    path.rename(path.with_name(f".{path.name}.0a1b2c3d.partial"))
    assert "x" not in reopen(store)


def test_deleted_store_serves_those_who_have_it_open(store):
    states = {"x": torch.randn(2, 500, 4)}
    path = store.write(states)
    reader = reopen(store)
    path.unlink()
    assert torch.equal(reader["x"], states["x"])
    assert "x" not in reopen(store)


def test_work_is_claimed_by_one(store):
    other = reopen(store)
    with store.claim(["x", "y"]) as mine, other.claim(["x", "y"]) as theirs:
        assert (mine, theirs) == (True, False)
        with other.claim(["z"]) as another:
            assert another
    with other.claim(["x", "y"]) as now:
        assert now
    assert not list(store.folder.glob("*.lock"))


def test_writer_that_fails_gives_its_work_up(store):
    with pytest.raises(OSError), store.claim(["x"]):
        raise OSError
    with reopen(store).claim(["x"]) as mine:
        assert mine


def test_groups_do_not_depend_on_the_order():
    sizes = {f"{i:02}": 10 * i for i in range(20)}
    found = groups(sizes, max_bytes=100, max_utterances=5)
    assert found == groups(dict(reversed(sizes.items())), 100, 5)
    assert sum(found, []) == list(sizes)
    for group in found:
        assert len(group) <= 5
        assert len(group) == 1 or sum(sizes[key] for key in group) <= 100


def test_free_room_of_a_folder_to_come(tmp_path):
    assert free_bytes(tmp_path / "not" / "yet") > 0
