"""What the README tells users to type exists."""

import re
import shlex
from pathlib import Path

import pytest

from summarymixing.data.prepare import CORPORA
from summarymixing.run.hparams_file import HparamsFile

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL))
COMMANDS = [
    line
    for line in SHELL.replace("\\\n", " ").splitlines()
    if re.match(r"(python|torchrun|make) ", line)
]
RECIPES = [command for command in COMMANDS if "hparams/" in command]


def test_there_are_commands():
    assert len(COMMANDS) >= 7
    assert len(RECIPES) >= 3


@pytest.mark.parametrize("command", COMMANDS)
def test_scripts_and_files_exist(command):
    for word in shlex.split(command, comments=True):
        if word.startswith(("recipes/", "hparams/")):
            assert (ROOT / word).is_file(), word


@pytest.mark.parametrize("command", RECIPES)
def test_keys_exist(command):
    words = shlex.split(command, comments=True)
    file = next(word for word in words if word.endswith(".yaml"))
    keys = HparamsFile.read(ROOT / file).tree
    for word in words[words.index(file) + 1 :]:
        name = word.removeprefix("--").partition("=")[0]
        assert name in keys, f"{name} is not a key of {file}"


def test_keys_in_the_text_exist():
    """`--key=value` outside of commands, too."""
    files = (ROOT / "hparams").glob("*/*.yaml")
    keys = {key for file in files for key in HparamsFile.read(file).tree}
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    assert set(re.findall(r"--(\w+)=", text)) - {"key"} <= keys


@pytest.mark.parametrize("name", re.findall(r"prepare\.py (\w+) ", SHELL))
def test_corpora_exist(name):
    assert name in CORPORA


@pytest.mark.parametrize("target", re.findall(r"make (\w+)", README))
def test_make_targets_exist(target):
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_links_exist():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
