"""LibriSpeech: recordings meet their transcripts, or are listed."""

import pytest

from summarymixing.data.manifest import Manifest
from summarymixing.data.prepare.librispeech import CORPUS
from summarymixing.errors import UserError

CHAPTER = "dev-clean/84/121123"


@pytest.fixture
def add_chapter(tmp_path, write_recording):
    """Add a chapter of recordings and the lines of its transcripts."""

    def add(chapter, *, recordings, lines):
        folder = tmp_path / "LibriSpeech" / chapter
        for name in recordings:
            write_recording(folder / f"{name}.flac", 2.5)
        if lines:
            _, speaker, number = chapter.split("/")
            path = folder / f"{speaker}-{number}.trans.txt"
            path.write_text("\n".join(lines) + "\n")
        return folder

    return add


@pytest.fixture
def prepare(tmp_path):
    """Prepare tmp_path/LibriSpeech."""

    def run(source="LibriSpeech", **options):
        return CORPUS.plan(tmp_path / source, tmp_path / "m", **options).run()

    return run


def read_rows(tmp_path, split="dev-clean"):
    path = tmp_path / "m" / f"{split}.csv"
    return list(Manifest.read(path, ("speaker", "transcript")))


def test_rows_carry_speaker_and_transcript(tmp_path, add_chapter, prepare):
    folder = add_chapter(
        CHAPTER,
        recordings=["84-121123-0000", "84-121123-0001"],
        lines=["84-121123-0000 GO DO YOU HEAR", "84-121123-0001 IT'S  I"],
    )
    account = prepare()
    first, second = read_rows(tmp_path)
    assert first.id == "84-121123-0000"
    assert first.path == str(folder / "84-121123-0000.flac")
    assert (first.segments, first.duration) == ((), 2.5)
    assert first.labels == {"speaker": "84", "transcript": "GO DO YOU HEAR"}
    assert second.labels["transcript"] == "IT'S  I"
    assert not account.problems and account.found.count == 2


GOOD = "84-121123-0000 GOOD"


@pytest.mark.parametrize(
    ("lines", "problems"),
    [
        ([GOOD], {"recording without a transcript": "84-121123-0001.flac"}),
        (
            [GOOD, "84-121123-0001 A", "84-121123-0002 B"],
            {"transcript without a recording": "84-121123-0002"},
        ),
        (
            [GOOD, "84-121123-0001"],
            {
                "malformed transcript line": "84-121123.trans.txt:2",
                "recording without a transcript": "84-121123-0001.flac",
            },
        ),
        (
            [GOOD, "", "99-121123-0001 A"],
            {
                "malformed transcript line": "84-121123.trans.txt:3",
                "recording without a transcript": "84-121123-0001.flac",
            },
        ),
        (
            [GOOD, "84-121123-0001 A", "84-121123-0000 BAD"],
            {
                "utterance listed twice (the first counts)": (
                    "84-121123.trans.txt:3"
                )
            },
        ),
    ],
)
def test_what_does_not_match_is_listed(
    tmp_path, add_chapter, prepare, lines, problems
):
    add_chapter(
        CHAPTER, recordings=["84-121123-0000", "84-121123-0001"], lines=lines
    )
    account = prepare()
    assert account.problems == {
        reason: [f"{CHAPTER}/{name}"] for reason, name in problems.items()
    }
    assert read_rows(tmp_path)[0].labels["transcript"] == "GOOD"


def test_damaged_files_are_listed(tmp_path, add_chapter, prepare):
    add_chapter(CHAPTER, recordings=["84-121123-0000"], lines=[GOOD])
    bad = add_chapter(
        "dev-clean/9/8", recordings=["9-8-0000"], lines=["9-8-0000 A"]
    )
    (bad / "9-8-0000.flac").write_bytes(b"fLaC")
    worse = add_chapter("dev-clean/9/7", recordings=["9-7-0000"], lines=[])
    (worse / "9-7.trans.txt").write_bytes(b"\xff")
    account = prepare()
    assert account.problems == {
        "recording: unreadable": ["dev-clean/9/8/9-8-0000.flac"],
        "recording without a transcript": ["dev-clean/9/7/9-7-0000.flac"],
        "unreadable transcripts": ["dev-clean/9/7/9-7.trans.txt"],
    }
    assert len(read_rows(tmp_path)) == 1


def test_files_at_another_depth_are_listed(tmp_path, add_chapter, prepare):
    folder = add_chapter(CHAPTER, recordings=["84-121123-0000"], lines=[GOOD])
    stray = folder.parent / "stray.flac"
    stray.write_bytes((folder / "84-121123-0000.flac").read_bytes())
    (names,) = prepare().problems.values()
    assert names == ["dev-clean/84/stray.flac"]


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (None, {"dev-clean.csv", "test-other.csv"}),
        (["train-other-500"], {"train-other-500.csv"}),
        (["dev-clean", "train-other-500"], None),
    ],
)
def test_each_split_has_its_manifest(
    tmp_path, add_chapter, prepare, splits, expected
):
    for split in ("dev-clean", "test-other", "train-other-500"):
        add_chapter(
            f"{split}/1/2", recordings=["1-2-0000"], lines=["1-2-0000 A"]
        )
    prepare(source=".", splits=splits)  # found below
    if expected is None:
        expected = {f"{split}.csv" for split in splits}
    assert {p.name for p in (tmp_path / "m").glob("*.csv")} == expected


@pytest.mark.parametrize(
    ("source", "splits", "expected"),
    [
        ("LibriSpeech", ["dev-other"], "no split dev-other"),
        ("LibriSpeech/dev-clean", None, "Give the folder LibriSpeech"),
        ("LibriSpeech/dev-clean/84", None, "Give the folder LibriSpeech"),
        ("LibriSpeech", ["dev-clean", "test-clean"], "usable in test-clean"),
        ("LibriSpeech", ["test-clean"], "Nothing in .* is usable"),
    ],
)
def test_a_wrong_command_is_explained(
    tmp_path, add_chapter, prepare, source, splits, expected
):
    add_chapter(CHAPTER, recordings=["84-121123-0000"], lines=[GOOD])
    (tmp_path / "LibriSpeech" / "test-clean").mkdir()
    with pytest.raises(UserError, match=expected):
        prepare(source=source, splits=splits)
