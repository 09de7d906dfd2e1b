"""Reading manifests fast: the same answer as line by line, and indexes."""

import errno
import multiprocessing
import os
import time

import numpy as np
import pytest

from summarymixing.data import manifest_index, manifest_reader
from summarymixing.data.manifest import Manifest, Row, write_manifest
from summarymixing.data.manifest_index import SUFFIX
from summarymixing.data.manifest_reader import ManifestReader
from summarymixing.errors import UserError

HEADER = "id,path,segments,duration,text"


def make_manifest(path, count=100, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        times = np.cumsum(rng.integers(1, 10**7, size=2 * rng.integers(4)))
        pairs = (times / 10**6).reshape(-1, 2).tolist()
        seconds = sum(stop - start for start, stop in pairs) or 1.5 + i
        segments = tuple(map(tuple, pairs))
        rows.append(
            Row(f"{seed}/{i}é", "/x/a.flac", segments, seconds, {"t": str(i)})
        )
    return write_manifest(path, rows)


def read_line_by_line(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(manifest_reader, "_check_plain_rows", lambda *_: None)
        return outcome_of(path)


def outcome_of(path):
    """Return all that a reading gives, or the message of its error."""
    try:
        manifest = Manifest.read(path)
    except UserError as error:
        return str(error)
    return (
        manifest._starts.tolist(),
        manifest._stops.tolist(),
        manifest.durations.tolist(),
        list(manifest),
    )


@pytest.mark.parametrize("block_bytes", [1, 300, 2**18])
def test_reading_in_blocks_is_reading_line_by_line(
    tmp_path, monkeypatch, block_bytes
):
    path = make_manifest(tmp_path / "m.csv")
    expected = read_line_by_line(path, monkeypatch)
    monkeypatch.setattr(manifest_reader, "BLOCK_BYTES", block_bytes)
    # No line may need the slow way.
    monkeypatch.setattr(ManifestReader, "_check_row", None)
    assert outcome_of(path) == expected
    assert len(expected[3]) == 100


@pytest.mark.parametrize(
    "lines",
    [
        [""],
        ["b,/x,,1,T,U"],
        ["b,/x,,1", "c,/x,,1,T,U"],
        ['b,/x,,1,"a, ""b""\nc"', "c,/x,,1,T"],
        ['b,/x,,1,"T'],
        ["b,/x,,1,a\rb"],
        ["b,/x,,1,T\r"],
        ["b,x,,1,T"],
        [",/x,,1,T"],
        ["a0,/x,,1,T"],
        ["b,/x,,1,T", "b,/x,,1,T"],
        ["b,/x,,1,T\0"],
        [f"b,/x,,1,{'T' * 200_000}"],
        *(
            [f"b,/x,,{duration},T"]
            for duration in ("", "0", "-1", "inf", "nan", "1e1", " 1", "1_0")
        ),
        *(
            [f"b,/x,{segments},1,T", "c,/x,2-3,1,T"]
            for segments in (
                "0-1",
                "0-1.04;7-7.005",
                "0-1.1",
                "5",
                "0-",
                "1",
                "0-1;",
                ";0-1",
                "0-1-2",
                "0-1|2-3",
                "0|1",
                "1;2-3-4",
                "0-1;2;3-4",
                "1-0",
                "1-1",
                "-1-0",
                "0-inf",
                "nan-1",
                "1e-5-1",
                "0-1e0",
                "+0-1",
                " 0-1",
                "0-1_0",
                "0-1,",
                "٠-١",
                "0..1-1",
                ".-1",
            )
        ),
        ["b,/x,0-,1,T", "c,/x,1-2,1,T"],
        ["b,/x,-0,1,T", "c,/x,1-2,1,T"],
        ["b,/x,0-1|2,1,T", "c,/x,-3,1,T"],
    ],
)
def test_what_is_unusual_or_wrong_is_judged_as_line_by_line(
    tmp_path, monkeypatch, lines
):
    path = tmp_path / "m.csv"
    before = [f"a{i},/x.wav,0-1;2-3.5,2.5,T" for i in range(20)]
    after = [f"z{i},/x.wav,,2.5,T" for i in range(20)]
    # newline="": a carriage return stays what it is.
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write("\n".join([HEADER, *before, *lines, *after]) + "\n")
    expected = read_line_by_line(path, monkeypatch)
    for block_bytes in (40, 100, 2**18):
        monkeypatch.setattr(manifest_reader, "BLOCK_BYTES", block_bytes)
        assert outcome_of(path) == expected


def test_text_that_is_not_utf8_is_named_in_a_later_block(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes(f"{HEADER}\na,/x,,1,T\nb,/x,,1,".encode() + b"\xff\n")
    with pytest.raises(UserError, match="line 3: not UTF-8"):
        Manifest.read(path)


@pytest.mark.parametrize("damage", ["shortened", "emptied"])
def test_a_manifest_that_changes_in_use_is_noticed(tmp_path, damage):
    path = make_manifest(tmp_path / "m.csv")
    manifest = Manifest.read(path)
    last = manifest[-1]
    make_manifest(path, count=2, seed=1)
    assert manifest[-1] == last  # renamed over: the old one is still open
    manifest = Manifest.read(path)
    os.truncate(path, 0 if damage == "emptied" else path.stat().st_size - 6)
    with pytest.raises(UserError, match="changed while it was in use.*row 2"):
        manifest[1]


def test_a_row_in_the_place_of_another_is_noticed(tmp_path):
    path = make_manifest(tmp_path / "m.csv", seed=2)
    manifest = Manifest.read(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"2/0", b"2/00", 1))
    with pytest.raises(UserError, match="changed while it was in use"):
        list(manifest)


@pytest.fixture
def indexed(monkeypatch):
    """Index manifests of any size; return how many were built so far."""
    monkeypatch.setattr(manifest_reader, "MIN_INDEXED_BYTES", 0)
    built = []
    check = ManifestReader._check_rows

    def count(self, *arguments):
        built.append(self.path)
        return check(self, *arguments)

    monkeypatch.setattr(ManifestReader, "_check_rows", count)
    return built


def test_only_the_first_reading_checks_every_row(tmp_path, indexed):
    path = make_manifest(tmp_path / "m.csv")
    first, second = outcome_of(path), outcome_of(path)
    assert first == second and len(indexed) == 1
    assert sorted(os.listdir(tmp_path)) == ["m.csv", "m.csv" + SUFFIX]
    mapped = Manifest.read(path)
    assert not mapped.durations.flags.writeable
    some = mapped.where(lambda row: row.labels["t"] in ("3", "17"))
    assert [row.labels["t"] for row in some] == ["3", "17"]
    with pytest.raises(UserError, match="lacks the column speaker"):
        Manifest.read(path, required_labels=["speaker"])


def test_a_small_manifest_has_no_index(tmp_path):
    path = make_manifest(tmp_path / "m.csv")
    Manifest.read(path)
    assert list(tmp_path.iterdir()) == [path]


def test_an_index_is_not_believed_for_its_size_and_time(tmp_path, indexed):
    path = make_manifest(tmp_path / "m.csv")
    Manifest.read(path)
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b"/x/a.flac", b"/x/b.flac"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert {row.path for row in Manifest.read(path)} == {"/x/b.flac"}
    assert len(indexed) == 2
    Manifest.read(path)
    assert len(indexed) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:20],
        lambda content: content[:72],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:500] + b"\xff" + content[501:],
        lambda content: b"other" + content[5:],
    ],
)
def test_a_torn_or_foreign_index_is_made_again(tmp_path, indexed, damage):
    path = make_manifest(tmp_path / "m.csv")
    index = path.with_name(path.name + SUFFIX)
    expected = outcome_of(path)
    whole = index.read_bytes()
    index.write_bytes(damage(whole))
    assert outcome_of(path) == expected
    assert len(indexed) == 2 and index.read_bytes() == whole
    other = make_manifest(tmp_path / "other.csv", count=100, seed=1)
    Manifest.read(other)
    other.with_name(other.name + SUFFIX).replace(index)
    assert outcome_of(path) == expected


def test_a_wrong_manifest_leaves_no_index(tmp_path, indexed):
    path = tmp_path / "m.csv"
    path.write_text(f"{HEADER}\na,/x,,1,T\na,/x,,1,T\n")
    for _ in range(2):
        with pytest.raises(UserError, match="line 3: id 'a' .* line 2"):
            Manifest.read(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_costs_time_only(tmp_path, indexed, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = make_manifest(tmp_path / "m.csv")
    expected = outcome_of(path)
    path.with_name(path.name + SUFFIX).unlink()
    monkeypatch.setattr(manifest_index, "open_atomically", refuse)
    caplog.set_level("INFO")
    assert outcome_of(path) == expected
    assert "was not written (No space left on device)" in caplog.text
    assert list(tmp_path.iterdir()) == [path]


def test_of_processes_that_come_at_once_one_builds(
    tmp_path, indexed, monkeypatch
):
    path = make_manifest(tmp_path / "m.csv")
    builds = tmp_path / "builds"
    count = ManifestReader._check_rows

    def note_and_wait(self, *arguments):
        with open(builds, "a") as file:
            file.write("built\n")
        time.sleep(0.2)  # the others come meanwhile
        return count(self, *arguments)

    monkeypatch.setattr(ManifestReader, "_check_rows", note_and_wait)
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=Manifest.read, args=(path,)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert builds.read_text() == "built\n"
