"""Manifests: what is written is read, and what is wrong is named."""

import pickle
import tracemalloc

import pytest

from summarymixing.data.manifest import (
    Manifest,
    Row,
    format_segments,
    parse_segments,
    relocate_manifest,
    write_manifest,
)
from summarymixing.errors import UserError
from summarymixing.files import open_atomically

HEADER = "id,path,segments,duration,text"
LINE = "a,/x/a.flac,0-1;2-3.5,2.5,HI"


def make_rows(count, **labels):
    return [
        Row(f"row{i}", f"/corpus/{i}.flac", ((0.5, 2.0 + i),), 1.5 + i, labels)
        for i in range(count)
    ]


def write_text(tmp_path, *lines):
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "",
        'quotes "here", commas',
        "ŵyneb ñ 語",
        "two\nlines",
        "'",
        " ",
    ],
)
def test_rows_survive_writing_and_reading(tmp_path, text):
    rows = make_rows(5, text=text, speaker="7") + [
        Row("whole", "/b c/d,e.wav", (), 3.25, {"text": text, "speaker": "8"})
    ]
    path = write_manifest(tmp_path / "m.csv", rows)
    manifest = Manifest.read(path, required_labels=["speaker"])
    assert list(manifest) == rows
    assert manifest[-1] == rows[-1]
    assert manifest.label_names == ("text", "speaker")
    assert manifest.durations.tolist() == [row.duration for row in rows]
    assert list(pickle.loads(pickle.dumps(manifest))) == rows
    with pytest.raises(IndexError):
        manifest[len(rows)]


@pytest.mark.parametrize(
    ("segments", "text"),
    [
        ((), ""),
        (((0.0, 30.0),), "0-30"),
        (((0.00001, 1.5), (3599.9999, 3600.0)), "0.00001-1.5;3599.9999-3600"),
        (((100.0, 2000.0),), "100-2000"),
    ],
)
def test_segments_have_no_exponent_and_no_lost_digit(segments, text):
    assert format_segments(segments) == text
    assert parse_segments(text) == segments


@pytest.mark.parametrize(
    "text",
    [
        "1",
        "1-",
        "-1-2",
        "2-1",
        "1-1",
        "1-2;",
        "1-2,3-4",
        "a-b",
        "1-inf",
        "nan-2",
    ],
)
def test_malformed_segments_are_refused(text):
    with pytest.raises(ValueError):
        parse_segments(text)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([HEADER], "no rows"),
        ([HEADER, "a,/x.wav,,1"], "line 2: 4 fields; the header has 5"),
        ([HEADER, LINE, "b,/x.wav,,1,T,U"], "line 3: 6 fields"),
        ([HEADER, LINE, "b,/x.wav,,one,T"], "line 3: malformed number"),
        ([HEADER, LINE, "b,/x.wav,5,1,T"], "line 3: malformed number"),
        ([HEADER, LINE, "b,/x.wav,,0,T"], "line 3: duration '0'"),
        ([HEADER, LINE, "b,/x.wav,,nan,T"], "line 3: duration 'nan'"),
        ([HEADER, LINE, "b,/x.wav,0-5,1,T"], "line 3: duration is 1 s"),
        ([HEADER, LINE, "b,x.wav,,1,T"], "the path must be absolute"),
        ([HEADER, LINE, ",/x.wav,,1,T"], "the id must not be empty"),
        ([HEADER, LINE, "", "b,/x,,1,T", LINE], "line 5: id 'a' .* line 2"),
        ([HEADER, LINE, 'b,/x.wav,,1,"T'], "malformed CSV"),
        (["id,wav,segments,duration", "a,/x,,1"], "line 1: .* id,wav"),
        (["id,path,segments,duration,a,a", LINE], "line 1: .* twice"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, lines, expected):
    path = write_text(tmp_path, *lines)
    with pytest.raises(UserError, match=expected) as caught:
        Manifest.read(path)
    assert str(path) in str(caught.value)


def test_a_missing_label_column_is_named(tmp_path):
    path = write_text(tmp_path, HEADER, LINE)
    with pytest.raises(UserError, match="lacks the column speaker; it has id"):
        Manifest.read(path, required_labels=["text", "speaker"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "There is no manifest"), (b"", "empty"), (b"\xff\xfe,", "UTF-8")],
)
def test_an_unreadable_file_is_explained(tmp_path, content, expected):
    path = tmp_path / "m.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        Manifest.read(path)


def test_files_edited_in_a_spreadsheet_are_read(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes(f"\ufeff{HEADER}\r\n{LINE}\r\n\r\n".encode())
    (row,) = Manifest.read(path)
    assert row.labels == {"text": "HI"} and row.duration == 2.5


def test_a_manifest_costs_little_memory(tmp_path):
    count = 5000
    path = write_manifest(tmp_path / "m.csv", make_rows(count, text="T"))
    Manifest.read(path)  # whatever is allocated once
    tracemalloc.start()
    manifest = Manifest.read(path)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(manifest) == count
    assert used < 20 * count


def test_a_failed_writing_leaves_the_previous_file(tmp_path):
    def break_off():
        yield from make_rows(3)
        raise RuntimeError("disk on fire")

    path = write_manifest(tmp_path / "m.csv", make_rows(2))
    before = path.read_bytes()
    with pytest.raises(RuntimeError):
        write_manifest(path, break_off())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_not_there_before_it_is_complete(tmp_path):
    path = tmp_path / "m.csv"
    with open_atomically(path) as file:
        file.write("half")
        assert not path.exists()
    assert path.read_text() == "half"


@pytest.mark.parametrize(
    "rows", [[], [*make_rows(1, text="T"), *make_rows(1, speaker="S")]]
)
def test_rows_that_do_not_fit_are_refused(tmp_path, rows):
    with pytest.raises(ValueError):
        write_manifest(tmp_path / "m.csv", rows)


@pytest.mark.parametrize("old", ["/old/corpus", "/old/corpus/"])
def test_relocation_changes_whole_folders_only(tmp_path, old):
    paths = ["/old/corpus/a.wav", "/old/corpus2/b.wav", "/z/old/corpus/c.wav"]
    path = write_manifest(
        tmp_path / "m.csv",
        [Row(str(i), p, (), 1.0, {"text": "T"}) for i, p in enumerate(paths)],
    )
    assert relocate_manifest(path, old, "/new/") == 1
    rows = list(Manifest.read(path))
    assert [row.path for row in rows] == ["/new/a.wav", *paths[1:]]
    assert all(row.labels == {"text": "T"} for row in rows)


def test_relocation_without_effect_is_an_error(tmp_path):
    path = write_manifest(tmp_path / "m.csv", make_rows(2))
    before = path.read_bytes()
    with pytest.raises(UserError, match="No path in .* begins with '/corp'"):
        relocate_manifest(path, "/corp", "/new")
    assert path.read_bytes() == before


def test_moved_audio_is_noticed(tmp_path):
    audio = tmp_path / "a.wav"
    audio.touch()
    here = Row("here", str(audio), (), 1.0)
    gone = Row("gone", "/old/b.wav", (), 1.0)
    path = write_manifest(tmp_path / "m.csv", [here, gone])
    with pytest.raises(UserError, match="relocate") as caught:
        Manifest.read(path).check_audio()
    assert "1 of 2" in str(caught.value) and "/old/b.wav" in str(caught.value)
    Manifest.read(write_manifest(path, [here])).check_audio()
