"""Libri-Light: the paper's rule on raw folders, and all that can be wrong."""

import json

import pytest

from summarymixing.data.manifest import Manifest
from summarymixing.data.prepare.librilight import CORPUS
from summarymixing.errors import UserError

NO_VALID = {"valid_hours": 0.0}


def read_rows(folder, name="train.csv"):
    return list(Manifest.read(folder / name, ("speaker", "book")))


@pytest.fixture
def prepare(tmp_path):
    """Prepare a corpus below tmp_path into one folder."""

    def run(source="medium", **options):
        return CORPUS.plan(
            tmp_path / source, tmp_path / "m", **{**NO_VALID, **options}
        ).run()

    return run


def test_the_example_of_the_paper(tmp_path, add_librilight, prepare):
    clips = [[0.5, 10.5], [11.0, 21.0], [22.0, 57.0]]
    path = add_librilight(tmp_path / "medium/100/emma/emma_01", clips)
    prepare()
    rows = read_rows(tmp_path / "m")
    assert [row.duration for row in rows] == [20.0, 35.0]
    assert rows[0].segments == ((0.5, 10.5), (11.0, 21.0))
    assert [row.id for row in rows] == [
        "medium/100/emma/emma_01/0000",
        "medium/100/emma/emma_01/0001",
    ]
    assert {row.path for row in rows} == {str(path)}
    assert rows[0].labels == {"speaker": "100", "book": "emma"}


@pytest.mark.parametrize(
    ("clips", "kept", "dropped"),
    [
        (
            [[0, 10], [11, 81], [82, 92]],
            [10, 10],
            {"clip longer than 60 s": 70},
        ),
        ([[0, 30]], [30], {}),
        ([[0, 60]], [60], {}),
        ([[0, 10], [10, 20], [20, 30.0000001]], [30], {}),
        ([[0, 10], [11, 12.99]], [11.99], {}),
        ([[0, 40], [41, 42.99]], [40], {"shorter than 2 s": 1.99}),
        ([[0, 40], [41, 43]], [40, 2], {}),
        ([[0, 40], [50, 50], [60, 65]], [40, 5], {}),
        ([[0, 10], [90, 100.05]], [20], {}),
        ([[-0.01, 40], [39.96, 65], [65, 65.01]], [40, 25.01], {}),
    ],
)
def test_hours_are_kept_or_dropped_for_a_reason(
    tmp_path, add_librilight, prepare, clips, kept, dropped
):
    add_librilight(tmp_path / "medium/1/b/c", clips)
    account = prepare()
    rows = read_rows(tmp_path / "m")
    assert [row.duration for row in rows] == pytest.approx(kept)
    seconds = {k: 3600 * v.hours for k, v in account.dropped.items()}
    silence = seconds.pop("no voice activity")
    assert seconds == pytest.approx(dropped)
    total = sum(kept) + sum(dropped.values()) + silence
    assert total == pytest.approx(100.0)
    assert not account.problems


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "recording without JSON"),
        ("{", "malformed JSON"),
        ("\udcff", "malformed JSON"),
        ("[]", "JSON without voice_activity"),
        ('{"book_meta": {}}', "JSON without voice_activity"),
        ('{"voice_activity": null}', "malformed voice_activity"),
        ('{"voice_activity": 3}', "malformed voice_activity"),
        ('{"voice_activity": [1, 2]}', "malformed voice_activity"),
        ('{"voice_activity": [[1, 2, 3]]}', "malformed voice_activity"),
        ('{"voice_activity": [["a", "b"]]}', "malformed voice_activity"),
        ('{"voice_activity": [[2, 1]]}', "malformed voice_activity"),
        ('{"voice_activity": [[-1, 1]]}', "malformed voice_activity"),
        ('{"voice_activity": [[0, NaN]]}', "malformed voice_activity"),
        ('{"voice_activity": [[0, Infinity]]}', "malformed voice_activity"),
        ('{"voice_activity": [[5, 9], [0, 4]]}', "malformed voice_activity"),
        ('{"voice_activity": [[0, 5], [4, 9]]}', "malformed voice_activity"),
        ('{"voice_activity": [[0, 5], [4.9, 9]]}', "malformed voice_activity"),
        ('{"voice_activity": []}', "empty voice_activity"),
        ('{"voice_activity": [[3, 3]]}', "empty voice_activity"),
    ],
)
def test_a_bad_json_is_listed_and_the_rest_is_kept(
    tmp_path, add_librilight, prepare, content, reason
):
    add_librilight(tmp_path / "medium/1/b/good", [[0, 10]])
    bad = add_librilight(tmp_path / "medium/1/b/bad", []).with_suffix(".json")
    bad.unlink()
    if content is not None:
        bad.write_bytes(content.encode("utf-8", "surrogateescape"))
    account = prepare()
    assert list(account.problems) == [reason]
    (name,) = account.problems[reason]
    assert name.startswith("medium/1/b/bad")
    assert reason in account.summary() and name in account.summary()
    saved = json.loads((tmp_path / "m" / "report.json").read_text())
    assert saved["problems"] == {reason: [name]}
    (row,) = read_rows(tmp_path / "m")
    assert row.id == "medium/1/b/good/0000"


@pytest.mark.parametrize(
    ("num_bytes", "reason"),
    [
        (0, "recording: unreadable"),
        (20, "recording: unreadable"),
        (None, "JSON without a recording"),
    ],
)
def test_a_bad_recording_is_listed(
    tmp_path, add_librilight, prepare, num_bytes, reason
):
    add_librilight(tmp_path / "medium/1/b/good", [[0, 10]])
    bad = add_librilight(tmp_path / "medium/1/b/bad", [[0, 10]])
    content = bad.read_bytes()
    bad.unlink()
    if num_bytes is not None:
        bad.write_bytes(content[:num_bytes])
    account = prepare()
    assert list(account.problems) == [reason]
    assert len(read_rows(tmp_path / "m")) == 1


def test_activity_beyond_the_end_is_listed_and_the_rest_kept(
    tmp_path, add_librilight, prepare
):
    clips = [[0, 10], [11, 21], [99, 101], [105, 110]]
    add_librilight(tmp_path / "medium/1/b/c", clips, seconds=100.0)
    account = prepare()
    assert account.problems == {
        "voice_activity beyond the end of the recording": ["medium/1/b/c.json"]
    }
    assert [row.duration for row in read_rows(tmp_path / "m")] == [20.0]


def test_nothing_usable_is_an_error(tmp_path, add_librilight, prepare):
    add_librilight(tmp_path / "medium/1/b/c", [[0, 70]])
    with pytest.raises(UserError, match="clip longer than 60 s"):
        prepare()


def test_ids_stay_unique_where_names_repeat(tmp_path, add_librilight, prepare):
    for place in ("small/1/b", "medium/1/b", "medium/1/b2", "medium/12/b"):
        add_librilight(tmp_path / place / "c", [[0, 10], [20, 50]])
    prepare(source=".")
    rows = read_rows(tmp_path / "m")
    assert len({row.id for row in rows}) == len(rows) == 8


def add_splits(tmp_path, add_librilight):
    for split in ("small", "medium", "finetuning"):
        add_librilight(tmp_path / "ll" / split / "1/b/c", [[0, 10]])


@pytest.mark.parametrize(
    ("source", "splits", "expected"),
    [
        ("ll", None, {"small", "medium"}),
        ("ll", ["finetuning"], {"finetuning"}),
        ("ll/medium", None, {"medium"}),
        ("ll/finetuning", None, {"finetuning"}),
        (".", None, {"small", "medium"}),
    ],
)
def test_a_split_or_its_parent_may_be_given(
    tmp_path, add_librilight, prepare, source, splits, expected
):
    add_splits(tmp_path, add_librilight)
    prepare(source=source, splits=splits)
    rows = read_rows(tmp_path / "m")
    assert {row.id.split("/")[0] for row in rows} == expected


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("ll/medium/1", {}, "folder below the splits"),
        ("ll/medium/1/b", {}, "folder below the splits"),
        ("other", {}, "folder above the splits"),
        ("empty", {}, "no .flac or .json"),
        ("ll", {"splits": ["large"]}, "has no split large"),
        ("ll/medium", {"splits": ["medium"]}, "has no split medium"),
        ("ll", {"min_seconds": 0}, "0 < min_seconds"),
        ("ll", {"max_clip_seconds": 20}, "max_clip_seconds"),
        ("ll", {"valid_hours": -1}, "valid_hours"),
        ("ll", {"valid_by": "book"}, "valid_by"),
        ("ll/medium", {"valid_hours": 1}, "Only one recording or group"),
    ],
)
def test_a_wrong_command_is_explained(
    tmp_path, add_librilight, prepare, source, options, expected
):
    add_splits(tmp_path, add_librilight)
    add_librilight(tmp_path / "other/x/unknown/1/b/c", [[0, 10]])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=expected):
        prepare(source=source, **options)


@pytest.mark.parametrize("valid_by", ["recording", "speaker"])
@pytest.mark.parametrize("valid_hours", [0.03, 100.0])
def test_train_and_valid_share_nothing(
    tmp_path, add_librilight, prepare, valid_by, valid_hours
):
    for i in range(60):
        stem = tmp_path / f"medium/{i % 30}/b/c{i}"
        add_librilight(stem, [[0, 25], [30, 55]])
    prepare(valid_hours=valid_hours, valid_by=valid_by)
    train, valid = (
        read_rows(tmp_path / "m", f"{name}.csv") for name in ("train", "valid")
    )
    assert len(train) + len(valid) == 120
    kept_s = 60 * 50
    valid_s = sum(row.duration for row in valid)
    assert 0 < valid_s <= min(3600 * valid_hours, 0.05 * kept_s)

    def things(rows):
        if valid_by == "speaker":
            return {row.labels["speaker"] for row in rows}
        return {row.path for row in rows}

    assert not things(train) & things(valid)


def test_the_number_of_workers_changes_nothing(tmp_path, add_librilight):
    for i in range(70):
        add_librilight(tmp_path / f"medium/{i % 7}/b/c{i}", [[0, 25], [30, 55]])
    contents = []
    for num_workers in (1, 3):
        folder = tmp_path / f"m{num_workers}"
        CORPUS.plan(tmp_path / "medium", folder).run(num_workers=num_workers)
        contents.append([p.read_bytes() for p in sorted(folder.glob("*.csv"))])
    assert len(contents[0]) == 2 and contents[0] == contents[1]


def test_no_old_validation_set_stays_beside_a_new_training_set(
    tmp_path, add_librilight, prepare
):
    for name in "abc":
        add_librilight(tmp_path / f"medium/1/b/{name}", [[0, 10]])
    prepare(valid_hours=1.0)
    assert len(read_rows(tmp_path / "m", "valid.csv")) == 1
    prepare(valid_hours=0.0)
    assert len(read_rows(tmp_path / "m")) == 3
    assert not (tmp_path / "m" / "valid.csv").exists()


def test_a_repaired_file_is_noticed(tmp_path, add_librilight, prepare):
    add_librilight(tmp_path / "medium/1/b/good", [[0, 10]])
    bad = add_librilight(tmp_path / "medium/1/b/bad", [[0, 10]])
    content = bad.read_bytes()
    bad.write_bytes(content[:10])
    assert prepare().kept.count == 1
    assert prepare().reused
    bad.write_bytes(content)
    assert prepare().kept.count == 2
