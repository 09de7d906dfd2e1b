"""`recipes/prepare.py` as users type it."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from summarymixing.data.manifest import Manifest
from summarymixing.data.prepare import CORPORA

SCRIPT = Path(__file__).parents[2] / "recipes" / "prepare.py"


@pytest.fixture
def corpus(tmp_path):
    """Write one recording that every corpus understands."""
    folder = tmp_path / "corpus"
    chapter = folder / "dev-clean" / "1" / "2"
    chapter.mkdir(parents=True)
    for number in ("1-2-0000", "1-2-0001"):
        path = chapter / f"{number}.flac"
        soundfile.write(path, np.zeros(50 * 16_000, dtype=np.int16), 16_000)
        path.with_suffix(".json").write_text(
            json.dumps({"voice_activity": [[0, 10], [10.5, 20], [21, 45]]})
        )
    lines = "1-2-0000 HELLO\n1-2-0001 WORLD\n"
    (chapter / "1-2.trans.txt").write_text(lines)
    return folder


@pytest.mark.parametrize(
    ("arguments", "manifests"),
    [
        (["librilight"], {"train.csv": 2, "valid.csv": 2}),
        (["librilight", "--valid_hours=0"], {"train.csv": 4}),
        (["folder", "--cut=even"], {"train.csv": 2, "valid.csv": 2}),
        (["librispeech"], {"dev-clean.csv": 2}),
    ],
)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_each_corpus_is_prepared_once(
    tmp_path, corpus, type_command, arguments, manifests, num_workers
):
    name, *options = arguments
    source = corpus / "dev-clean" if name == "librilight" else corpus
    command = [name, source, tmp_path / "m", *options]
    command.append(f"--num_workers={num_workers}")
    status, output, _ = type_command(*command)
    assert status == 0
    assert f"{name}: 2 recordings" in output
    for file, count in manifests.items():
        assert len(Manifest.read(tmp_path / "m" / file)) == count
    status, output, _ = type_command(*command)
    assert status == 0
    assert "Already prepared" in output


@pytest.mark.parametrize("name", sorted(CORPORA))
def test_every_corpus_explains_itself_and_a_wrong_source(
    tmp_path, type_command, name
):
    status, output, _ = type_command(name, "--help")
    assert status == 0
    assert "SOURCE MANIFESTS" in output and "--num_workers" in output
    status, output, errors = type_command(name, tmp_path / "no", tmp_path)
    assert status == 2
    assert errors.startswith("error: SOURCE ")
    assert "does not exist" in errors


def test_the_corpus_below_source_is_named(tmp_path, corpus, type_command):
    status, output, _ = type_command("librispeech", tmp_path, tmp_path / "m")
    assert status == 0
    first, *account = output.splitlines()
    assert first == f"The corpus below {tmp_path} is {corpus}."
    assert account[0].endswith(f"in {corpus}")


def test_the_help_lists_every_command(type_command):
    status, output, _ = type_command("--help")
    assert status == 0
    assert all(name in output for name in [*CORPORA, "relocate"])


@pytest.mark.parametrize(
    "arguments", [[], ["nothing"], ["folder"], ["folder", "a", "b", "--cut=x"]]
)
def test_a_wrong_command_line_ends_with_status_2(type_command, arguments):
    status, _, errors = type_command(*arguments)
    assert status == 2
    assert "usage:" in errors


def test_moved_manifests_are_relocated(tmp_path, corpus, type_command):
    type_command("librispeech", corpus, tmp_path / "m")
    path = tmp_path / "m" / "dev-clean.csv"
    moved = corpus.rename(tmp_path / "moved")
    status, output, errors = type_command("relocate", path, corpus, moved)
    assert (status, errors) == (0, "")
    assert "2 paths changed" in output
    Manifest.read(path).check_audio()
    status, _, errors = type_command("relocate", path, moved, "/elsewhere")
    assert status == 0
    assert errors.startswith("warning: ")
    status, _, errors = type_command("relocate", path, "/nowhere", "/a")
    assert status == 2
    assert errors.startswith("error: No path")


def test_bad_audio_is_listed_and_a_second_call_says_so(
    tmp_path, corpus, type_command
):
    type_command("librispeech", corpus, tmp_path / "m")
    (corpus / "dev-clean/1/2/1-2-0001.flac").write_bytes(b"gone")
    for known in (False, True):
        status, output, errors = type_command("verify", tmp_path / "m")
        assert (status, errors) == (0, "")
        assert ("An earlier call had verified 2 of 2" in output) == known
        assert "silent: 1" in output and "unreadable: 1" in output
        path = tmp_path / "m" / "quarantine.csv"
        assert output.endswith(f"with --exclude={path}\n")
    assert len(path.read_text().splitlines()) == 3
    _, output, _ = type_command("verify", tmp_path / "m", "--overwrite")
    assert "An earlier call" not in output
    other = tmp_path / "new" / "folder"
    status, output, _ = type_command("verify", path.parent, "--output", other)
    assert status == 0 and f"--exclude={other / 'quarantine.csv'}" in output
    words = ("verify", path.parent, "--output", path)
    status, _, errors = type_command(*words)
    assert status == 2 and "--output=FOLDER" in errors
    status, _, errors = type_command("verify", tmp_path / "none.csv")
    assert status == 2 and errors.startswith("error: There is no manifest")


def test_ctrl_c_says_how_to_go_on(tmp_path, corpus, type_command, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        "summarymixing.data.prepare.pipeline._Chunks.work_through", interrupt
    )
    status, _, errors = type_command("librispeech", corpus, tmp_path / "m")
    assert status == 130
    assert "goes on" in errors and "Traceback" not in errors
