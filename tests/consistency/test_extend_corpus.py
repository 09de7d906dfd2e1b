"""Adding a corpus takes one file, in the package or anywhere else."""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from summarymixing.data.manifest import Manifest
from summarymixing.data.prepare import CORPORA, MODULES, fsdd

PREPARE = Path(__file__).parents[2] / "recipes" / "prepare.py"

MY_CORPUS = """
from functools import partial
from pathlib import Path

from summarymixing.data.prepare.common import assign_splits, list_files
from summarymixing.data.prepare.corpus import Corpus, NoOptions
from summarymixing.data.prepare.listing import Listing, Recording
from summarymixing.data.prepare.pipeline import Plan

SPLITS = ("train", "test")


def plan(source: Path, options: NoOptions) -> Plan:
    listing = Listing()
    files = list_files(source, (".wav",))
    for file in files:
        split, word, name = file.relative.split("/")
        recording = Recording(split, name, file.relative, {"word": word})
        listing.add(recording, place=file.relative)
    assign = partial(assign_splits, splits=SPLITS, advice="Record more.")
    return listing.plan(source, files, assign=assign, replaces=())


CORPUS = Corpus("my_corpus", "my words", "SPLIT/WORD/NAME.wav", plan)
"""


@pytest.fixture
def source(tmp_path):
    for name in ("train/yes/a", "train/no/b", "test/yes/c"):
        path = tmp_path / "audio" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(16_000, dtype=np.int16), 16_000)
    return tmp_path / "audio"


def prepare(folder, *words):
    return subprocess.run(
        [sys.executable, str(PREPARE), *map(str, words)],
        capture_output=True,
        text=True,
        cwd=folder,
    )


def test_a_corpus_may_stand_outside_the_package(tmp_path, source):
    (tmp_path / "my_corpus.py").write_text(MY_CORPUS)
    done = prepare(
        tmp_path,
        "--corpus_module=my_corpus.py",
        "my_corpus",
        source,
        "manifests",
        "--num_workers=2",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "my_corpus: 3 recordings" in done.stdout
    rows = Manifest.read(tmp_path / "manifests" / "train.csv", ["word"])
    assert sorted(row.labels["word"] for row in rows) == ["no", "yes"]
    help_text = prepare(tmp_path, "--corpus_module=my_corpus.py", "--help")
    assert "my words" in help_text.stdout


def test_the_tutorial_works_where_it_is_copied(tmp_path):
    shutil.copy(fsdd.__file__, tmp_path / "my_digits.py")
    name = tmp_path / "my_digits.py"
    name.write_text(name.read_text().replace('name="fsdd"', 'name="digits"'))
    done = prepare(tmp_path, f"--corpus_module={name}", "digits", "--help")
    assert done.returncode == 0, done.stderr
    assert "--test_speakers" in done.stdout


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("nowhere.py", None, "is not a file"),
        ("mine.py", "", "defines no CORPUS"),
        ("mine.py", "CORPUS = 3", "defines no CORPUS"),
        ("json.py", MY_CORPUS, "there is another module json"),
    ],
)
def test_a_wrong_module_is_explained(
    tmp_path, monkeypatch, capsys, name, content, expected
):
    if content is not None:
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(sys, "path", [*sys.path])
    command = [str(PREPARE), f"--corpus_module={tmp_path / name}", "--help"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(PREPARE), run_name="__main__")
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_corpus_of_the_package_is_a_file_and_a_line():
    assert list(CORPORA) == list(MODULES)
    for name, corpus in CORPORA.items():
        assert corpus.name == name
