"""Real speech by package name: transcripts, splits, restarts; no network."""

from __future__ import annotations

import gzip
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from summarymixing.errors import UserError

SCRIPT = Path(__file__).parents[2] / "recipes" / "benchmark" / "real_speech.py"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Your party's line, please...", "YOUR PARTY'S LINE PLEASE"),
        ("press 1, 4 or 0.", "PRESS ONE FOUR OR ZERO"),
        ("Un-muted!", "UN MUTED"),
        ("A.M.", "A M"),
        ("o'clock", "O'CLOCK"),
        ("a 'quoted' word", "A QUOTED WORD"),
        ('a "quoted" word', "A QUOTED WORD"),
        ("at [@]", "AT"),
        ("Leave a message. (tone plays)", "LEAVE A MESSAGE"),
        ("[ascending tones]", None),
        ("<beep ascending>", None),
        ("(10 seconds of silence)", None),
        ("dial 600", None),
        ("a 28.8 kilobit modem", None),
        ("3D audio", None),
        ("H.323", None),
        ("press * or #", None),
        ("visit www.asterisk.org", None),
        ("...", None),
        ("", None),
    ],
)
def test_transcript_has_only_words_that_are_said(script, text, expected):
    assert script.clean_transcript(text) == expected


def test_transcripts_skip_comments_and_uncertain_prompts(script):
    lines = [
        "; Core sounds: a comment\n",
        "\n",
        "is: Is.\n",
        "digits/a-m: A.M.\n",
        "colon: He said: yes\n",
        "beep: [a tone]\n",
    ]
    assert script.read_transcripts(lines) == {
        "is": "IS",
        "digits/a-m": "A M",
        "colon": "HE SAID YES",
    }


@pytest.mark.parametrize(
    ("transcript", "split"),
    [
        ("ADDED", "train-clean-100"),
        ("THANK YOU", "dev-clean"),
        ("ACTIVATED", "test-clean"),
    ],
)
def test_split_is_the_same_on_every_machine(script, transcript, split):
    assert script.split_of(transcript) == split


def test_shares_of_the_splits(script):
    splits = [script.split_of(f"PROMPT {number}") for number in range(4000)]
    shares = {split: splits.count(split) / 4000 for split in script.CHAPTERS}
    assert shares == pytest.approx(
        {"train-clean-100": 0.75, "dev-clean": 0.10, "test-clean": 0.15},
        abs=0.03,  # four standard deviations
    )


@pytest.fixture
def cache(script, tmp_path, monkeypatch):
    """Write the English packages, unpacked; decoding gives a constant."""
    texts = tmp_path / "packages/asterisk-core-sounds-en/usr/share/doc/x"
    sounds = (
        tmp_path
        / "packages/asterisk-core-sounds-en-g722"
        / "usr/share/asterisk/sounds/en_US"
    )
    terms = (
        tmp_path
        / "packages/asterisk-core-sounds-en-g722"
        / "usr/share/doc/asterisk-core-sounds-en-g722"
    )
    for folder in (texts, terms, sounds / "silence"):
        folder.mkdir(parents=True)
    (terms / "copyright").write_text("terms")
    prompts = {f"p{n}": f"Say{'o' * (n % 50)}!" for n in range(100)}
    prompts |= {"number": "Dial 600", "silence/1": "one", "gone": "gone"}
    with gzip.open(texts / "core-sounds-en.txt.gz", "wt") as file:
        file.writelines(f"{name}: {text}\n" for name, text in prompts.items())
    for name in [*prompts, "beep", "empty"]:
        content = b"" if name == "empty" else name.encode()
        (sounds / f"{name}.g722").write_bytes(content)
    (sounds / "gone.g722").unlink()

    def decode(source):
        return np.full(160, zlib.crc32(source.read_bytes()) % 2**15, np.int16)

    monkeypatch.setattr(script, "decode_g722", decode)
    return tmp_path / "packages"


def write_english(script, cache, dest):
    script.write_voice(script.ENGLISH, cache, dest)
    script.write_librispeech(cache, dest)


def read_splits(dest):
    """Return {split: {transcript: [audio file, ...]}}."""
    splits = {}
    for path in (dest / "LibriSpeech").rglob("*.trans.txt"):
        said = splits.setdefault(path.relative_to(dest).parts[1], {})
        for line in path.read_text().splitlines():
            utterance, transcript = line.split(" ", 1)
            audio = path.with_name(f"{utterance}.flac")
            said.setdefault(transcript, []).append(audio)
    return splits


def test_same_words_are_never_in_two_splits(script, cache, tmp_path):
    write_english(script, cache, tmp_path)
    splits = read_splits(tmp_path)
    assert set(splits) == set(script.CHAPTERS)
    transcripts = [text for said in splits.values() for text in said]
    assert len(transcripts) == len(set(transcripts)) == 50
    files = [f for said in splits.values() for fs in said.values() for f in fs]
    assert len(files) == 100
    assert set(files) == set((tmp_path / "LibriSpeech").rglob("*.flac"))
    assert len({f.name for f in files}) == 100


def test_held_out_audio_is_not_in_the_pretraining_folder(
    script, cache, tmp_path
):
    write_english(script, cache, tmp_path)
    splits = read_splits(tmp_path)
    folder = tmp_path / "audio" / "asterisk-en"
    names = {path.stem for path in folder.rglob("*.flac")}
    num_train = sum(len(f) for f in splits["train-clean-100"].values())
    assert len(names) == num_train + 1
    assert "number" in names  # speech without transcript
    assert not names & {"1", "beep", "empty"}  # no speech
    heard = {soundfile.read(p)[0][0] for p in folder.rglob("*.flac")}
    for split in ("dev-clean", "test-clean"):
        for audio in (f for files in splits[split].values() for f in files):
            assert soundfile.read(audio)[0][0] not in heard


def test_an_interrupted_run_continues_and_a_second_changes_nothing(
    script, cache, tmp_path, monkeypatch
):
    once, twice = tmp_path / "once", tmp_path / "twice"
    write_english(script, cache, once)
    with monkeypatch.context() as patch:
        patch.setattr(script.soundfile, "write", write_half_then_die(5))
        with pytest.raises(KeyboardInterrupt):
            write_english(script, cache, twice)
    write_english(script, cache, twice)
    assert contents(once) == contents(twice)

    def fail(*arguments, **options):
        raise AssertionError("a file was written again")

    monkeypatch.setattr(script.soundfile, "write", fail)
    write_english(script, cache, twice)


def write_half_then_die(num_whole):
    """Stand in for soundfile.write: fail in the middle of one file."""
    write, calls = soundfile.write, []

    def interrupted(path, *arguments, **options):
        calls.append(path)
        if len(calls) > num_whole:
            Path(path).write_bytes(b"fLaC")
            raise KeyboardInterrupt
        write(path, *arguments, **options)

    return interrupted


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_a_finished_result_needs_no_tools(
    script, tmp_path, monkeypatch, capsys
):
    (tmp_path / "README.txt").write_text("the table")
    monkeypatch.setattr(script.shutil, "which", lambda tool: None)
    monkeypatch.setattr(sys, "argv", ["real_speech.py", str(tmp_path)])
    script.main()
    assert "the table" in capsys.readouterr().out


def test_missing_apt_is_explained(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script.shutil, "which", lambda tool: None)
    with pytest.raises(UserError, match="apt-get was not found.*Debian"):
        script.build(tmp_path, tmp_path / "packages")


def test_a_package_that_cannot_be_had_is_named(script, tmp_path, monkeypatch):
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho no such package >&2\nexit 100\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(UserError, match="festvox-ru(.|\n)*no such(.|\n)*sudo"):
        script.fetch_package("festvox-ru", tmp_path / "packages")
    assert not (tmp_path / "packages" / "festvox-ru").exists()


def test_a_file_half_placed_by_a_killed_run_is_placed_again(script, tmp_path):
    source, target = tmp_path / "a.wav", tmp_path / "audio" / "a.wav"
    source.write_bytes(b"samples")
    target.parent.mkdir()
    target.with_name(".a.wav.part").hardlink_to(source)
    script.place_file(source, target)
    assert contents(target.parent) == {Path("a.wav"): b"samples"}
