"""What the documents tell users to type exists, and what they claim holds."""

import re
import shlex
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

from summarymixing import Wav2Vec2Encoder
from summarymixing.cli import COMMANDS as SUB_COMMANDS
from summarymixing.data.prepare import CORPORA
from summarymixing.pretrained import save_encoder
from summarymixing.run.hparams_file import HparamsFile

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCUMENTS = [
    README,
    *sorted((ROOT / ".github").rglob("*.md")),
    *sorted((ROOT / "recipes").rglob("*.md")),
    *sorted((ROOT / "summarymixing").rglob("*.md")),
]
TEXTS = {path: path.read_text("utf-8") for path in DOCUMENTS}
ALL_TEXT = "\n".join(TEXTS.values())
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", ALL_TEXT, flags=re.DOTALL))
COMMANDS = sorted(
    {
        line
        for line in SHELL.replace("\\\n", " ").splitlines()
        if re.match(r"(python|torchrun|make) ", line)
    }
)
RECIPES = [command for command in COMMANDS if "hparams/" in command]
each_document = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)
PROGRAMS = [
    line
    for line in SHELL.replace("\\\n", " ").splitlines()
    if line.startswith("summarymixing ")
]
# Options of scripts, which are no keys of a YAML file.
OPTIONS = {"key", "nproc", "tasks", "corpus_module", "gpu_memory", "gpus"}
OPTIONS |= {"signal"}  # of Slurm
OPTIONS_OF = {
    name: {
        entry.name
        for entry in fields(import_module(f"summarymixing.cli.{name}").Options)
    }
    for name in SUB_COMMANDS
}
OPTIONS |= set().union(*OPTIONS_OF.values())
OPTIONS |= {
    entry.name
    for corpus in CORPORA.values()
    for entry in fields(corpus.options)
}


def test_there_are_commands():
    assert len(COMMANDS) >= 15
    assert len(RECIPES) >= 7


@pytest.mark.parametrize("command", COMMANDS)
def test_scripts_and_files_exist(command):
    for word in shlex.split(command, comments=True):
        if word.startswith(("recipes/", "hparams/", "tests/")):
            assert (ROOT / word).is_file(), word


@pytest.mark.parametrize("command", RECIPES)
def test_keys_exist(command):
    words = shlex.split(command, comments=True)
    file = next(word for word in words if word.endswith(".yaml"))
    keys = HparamsFile.read(ROOT / file).tree
    for word in words[words.index(file) + 1 :]:
        name = word.removeprefix("--").partition("=")[0]
        assert name in {*keys, *OPTIONS}, f"{name} is not a key of {file}"


@pytest.mark.parametrize("command", PROGRAMS)
def test_sub_commands_and_their_options_exist(command):
    _, name, *words = shlex.split(command, comments=True)
    given = {w[2:].partition("=")[0] for w in words if w.startswith("--")}
    assert given <= OPTIONS_OF[name]


def test_keys_in_the_text_exist():
    """`--key=value` outside of commands, too."""
    files = (ROOT / "hparams").glob("*/*.yaml")
    keys = {key for file in files for key in HparamsFile.read(file).tree}
    text = re.sub(r"```.*?```", "", ALL_TEXT, flags=re.DOTALL)
    assert set(re.findall(r"--(\w+)=", text)) - OPTIONS <= keys


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"prepare\.py (\w+) ", SHELL)))
)
def test_corpora_exist(name):
    assert name in {*CORPORA, "verify"}


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"(?:^|`)make (\w+)", ALL_TEXT, re.MULTILINE))
    assert {"demo", "test", "lint"} <= targets
    assert targets <= set(re.findall(r"^(\w+):", makefile, re.MULTILINE))


@each_document
def test_files_in_the_text_exist(path):
    """Files in backticks, from the root, the package or the document."""
    text = re.sub(r"```.*?```", "", TEXTS[path], flags=re.DOTALL)
    for name in re.findall(r"`([\w./]+/\w+\.(?:py|yaml|md))", text):
        if name.startswith("results/") or "my_" in name or "CORPUS" in name:
            continue
        places = (ROOT, ROOT / "summarymixing", path.parent)
        assert any((place / name).is_file() for place in places), name


@each_document
def test_links_exist(path):
    for link in re.findall(r"\]\(([^):]+)\)", TEXTS[path]):
        file, _, heading = link.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", TEXTS[linked], re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", h.lower()) for h in headings}
            assert heading in {slug.replace(" ", "-") for slug in slugs}


@each_document
def test_code_is_narrow(path):
    for block in re.findall(r"```.*?```", TEXTS[path], flags=re.DOTALL):
        assert max(map(len, block.splitlines())) <= 100, block


def test_python_of_the_readme_runs(tmp_path):
    (block,) = re.findall(
        r"```python\n(.*?)```", TEXTS[README], flags=re.DOTALL
    )
    encoder = Wav2Vec2Encoder(num_layers=1, d_model=16, d_ffn=32)
    folder = save_encoder(encoder, tmp_path / "encoder")
    block, replaced = re.subn(r'"results/.*?"', repr(str(folder)), block)
    assert replaced == 1
    names = {}
    exec(block, names)
    assert names["h"].shape == names["x"].shape
    assert len(names["out"].hidden_states) == 2
