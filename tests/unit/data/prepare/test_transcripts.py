"""A folder with texts: none lost, none guessed."""

import numpy as np
import pytest
import soundfile

from summarymixing.data.manifest import Manifest
from summarymixing.data.prepare.folder import CORPUS
from summarymixing.errors import UserError


@pytest.fixture
def audio(tmp_path, write_recording):
    """Make SOURCE with ten recordings of one second in two folders."""
    for i in range(10):
        write_recording(tmp_path / f"audio/s{i % 2}/{i}.wav", 1.0)
    return tmp_path / "audio"


def prepare(audio, transcripts, **options):
    """Prepare everything into train.csv, unless options say otherwise."""
    alone = {"valid_fraction": 0.0, "test_fraction": 0.0}
    return CORPUS.plan(
        audio,
        audio.parent / "m",
        transcripts=str(transcripts),
        **{**alone, **options},
    ).run()


def write_table(audio, *lines):
    path = audio.parent / "texts.tsv"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def texts_of(audio, split="train"):
    manifest = Manifest.read(audio.parent / "m" / f"{split}.csv")
    return {row.id: row.labels["transcript"] for row in manifest}


@pytest.mark.parametrize(
    "key", ["s0/4.wav", "s0/4", "4.wav", "4", "./s0/4.wav", "{audio}/s0/4.wav"]
)
@pytest.mark.parametrize("header", [[], ["path\ttext"]])
def test_a_recording_has_several_names(audio, key, header):
    line = f"{key.format(audio=audio)}\t un  mot "
    prepare(audio, write_table(audio, *header, line))
    assert texts_of(audio) == {"s0/4.wav": "un mot"}


def test_every_line_and_recording_is_accounted_for(audio, write_recording):
    write_recording(audio / "s0/1.flac", 1.0)  # beside s1/1.wav
    write_recording(audio / "s0/long.wav", 31.0)
    write_recording(audio / "s0/short.wav", 0.05)
    (audio / "s0/broken.wav").write_text("not audio")
    nan = np.full(16_000, np.nan)
    soundfile.write(audio / "s0/nan.wav", nan, 16_000, subtype="FLOAT")
    table = write_table(
        audio,
        "id\ttext",
        "0\tnull",
        "s0/2\tzwei",
        "s0/2.wav\tdeux",
        "4\t ",
        "no tab",
        "6\ta\tb",
        "1\tone",
        "nobody\tlost",
        *(f"{name}\tx" for name in ("long", "short", "broken", "nan")),
    )
    account = prepare(audio, table)
    assert texts_of(audio) == {"s0/0.wav": "null", "s0/2.wav": "zwei"}
    assert {
        reason: sorted(names) for reason, names in account.problems.items()
    } == {
        "listed twice (the first counts)": ["texts.tsv:4"],
        "line is not a path or id, a tab and a text": [
            "texts.tsv:6",
            "texts.tsv:7",
        ],
        "transcript for several audio files (left out)": ["texts.tsv:8 (1)"],
        "transcript without audio": ["texts.tsv:9 (nobody)"],
        "no transcript": [
            "s0/1.flac",
            "s0/6.wav",
            "s0/8.wav",
            *(f"s1/{i}.wav" for i in (1, 3, 5, 7, 9)),
            "texts.tsv:5",
        ],
        "recording: unreadable": ["s0/broken.wav"],
        "NaN or infinite samples": ["s0/nan.wav"],
    }
    assert set(account.dropped) == {
        "longer than 30 s, and not cut",
        "shorter than 0.1 s",
    }


def test_texts_may_stand_beside_the_audio(audio):
    (audio / "s0/0.txt").write_text("two\nlines\n")
    (audio / "s0/2.TXT").write_text(" ")
    (audio / "s0/4.txt").write_bytes(b"\xff\xfe")
    (audio / "s0/nobody.txt").write_text("lost")
    account = prepare(audio, "beside")
    assert texts_of(audio) == {"s0/0.wav": "two lines"}
    problems = account.problems
    assert problems["transcript without audio"] == ["s0/nobody.txt"]
    assert problems["line is not UTF-8 text"] == ["s0/4.txt:1"]
    assert {"s0/2.TXT", "s0/4.txt"} <= set(problems["no transcript"])


def test_a_changed_table_is_prepared_again(audio):
    prepare(audio, write_table(audio, "0\tone"))
    assert prepare(audio, audio.parent / "texts.tsv").reused
    prepare(audio, write_table(audio, "0\tanother"))
    assert texts_of(audio) == {"s0/0.wav": "another"}


def test_splits_and_their_characters(audio):
    table = write_table(audio, *(f"{i}\tword {i}" for i in range(10)))
    account = prepare(audio, table, valid_fraction=0.2, test_fraction=0.2)
    ids = {split: texts_of(audio, split) for split in ("train", "valid")}
    ids["test"] = test = texts_of(audio, "test")
    assert [len(ids[split]) for split in ids] == [6, 2, 2]
    assert len({i for split in ids.values() for i in split}) == 10
    (reason,) = account.problems
    assert reason == "characters that train.csv never has"
    for name, text in test.items():
        assert f"{name} ({text[-1]})" in account.problems[reason]
    lines = (audio.parent / "m/characters.tsv").read_text().splitlines()
    assert lines[0] == "character\tcode\ttrain.csv\tvalid.csv\ttest.csv"
    assert "w\tU+0077\t6\t2\t2" in lines
    assert len(lines) - 1 == account.other_files["characters.tsv"] == 15
    # Without texts, what belonged to them goes.
    CORPUS.plan(audio, audio.parent / "m", valid_fraction=0.1).run()
    left = {path.name for path in (audio.parent / "m").iterdir()}
    assert left == {"train.csv", "valid.csv", "report.json"}


def test_folders_stay_together(audio, write_recording):
    write_recording(audio / "s2/10.wav", 1.0)
    table = write_table(audio, *(f"{i}\tword" for i in range(11)))
    prepare(
        audio,
        table,
        split_by="folder",
        valid_fraction=0.1,
        test_fraction=0.1,
    )
    speakers = [
        {name.split("/")[0] for name in texts_of(audio, split)}
        for split in ("train", "valid", "test")
    ]
    assert sorted(map(len, speakers)) == [1, 1, 1]
    assert len(set.union(*speakers)) == 3


def test_a_missing_table_is_explained(audio):
    with pytest.raises(UserError, match="or beside for NAME.txt"):
        prepare(audio, audio / "nowhere.tsv")


def test_texts_of_nothing_are_explained(audio):
    with pytest.raises(UserError, match="10: no transcript"):
        prepare(audio, write_table(audio, "path\ttext"))
