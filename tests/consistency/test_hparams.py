"""Recipe files: every key is used, and every file loads."""

import re
from pathlib import Path

import pytest
from speechbrain.utils.run_opts import RunOptions

from summarymixing.run.hparams_file import HparamsFile

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path
    for path in (ROOT / "hparams").rglob("*.yaml")
    if path.parent.name != "shared"
)
CODE = "\n".join(
    path.read_text("utf-8") for path in (ROOT / "summarymixing").rglob("*.py")
)
RUN_OPTIONS = set(RunOptions().as_dict())


# NewBob's settings are unused where a file has another schedule.
SETTINGS_OF_NEWBOB = {
    "annealing_factor",
    "weights_annealing_factor",
    "improvement_threshold",
}


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_every_root_key_is_used(file):
    recipe = HparamsFile.read(file)
    text = recipe.as_text()
    unused = [
        key
        for key in recipe.tree
        if f"!ref <{key}" not in text
        and not (key in SETTINGS_OF_NEWBOB and "NewBobScheduler" not in text)
        and not re.search(rf"""["']{key}["']|\bh(params)?\.{key}\b""", CODE)
        and key not in RUN_OPTIONS
        and not key.startswith("__")
    ]
    assert unused == []


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_files_state_only_what_differs(file):
    assert len(file.read_text("utf-8").splitlines()) <= 80
    assert file.read_text("utf-8").lstrip().startswith("#"), "say what it is"


def bases(file):
    """Return a file and those that it begins with."""
    base = re.search(r"^base: (\S+)", file.read_text("utf-8"), re.MULTILINE)
    return [file, *bases(file.parent / base[1])] if base else [file]


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_a_reader_opens_three_files_at_most(file):
    assert len(bases(file)) <= 3
