"""The command that builds miniature corpora."""

import runpy
import shlex
import sys
from pathlib import Path

import pytest

from summarymixing.miniature import build_librispeech

SCRIPT = Path(__file__).parents[2] / "recipes" / "miniature.py"
miniature_script = runpy.run_path(str(SCRIPT))


@pytest.fixture
def run_command(monkeypatch):
    """Return a function that runs the script with arguments."""

    def run(*arguments):
        command = [str(SCRIPT), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


def contents_of(root):
    return {
        path.relative_to(root): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_command_builds_what_the_function_builds(tmp_path, run_command, capsys):
    run_command("librispeech", tmp_path / "a", "--hours=0.005", "--seed=3")
    assert capsys.readouterr().out.strip() == (
        f"python recipes/prepare.py librispeech {tmp_path}/a/LibriSpeech "
        "manifests/a"
    )
    build_librispeech(tmp_path / "b", hours=0.005, seed=3)
    assert contents_of(tmp_path / "a") == contents_of(tmp_path / "b")


@pytest.mark.parametrize("name", sorted(miniature_script["BUILDERS"]))
def test_the_printed_command_is_ready(
    tmp_path, run_command, capsys, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    run_command(name, f"my {name}", "--hours=0.005")
    _, script, *words = shlex.split(capsys.readouterr().out)
    monkeypatch.setattr(sys, "argv", [script, *words])
    runpy.run_path(str(SCRIPT.parents[1] / script), run_name="__main__")
    output = capsys.readouterr().out
    assert output.startswith(f"miniature {words[0]}: ")
    assert list((tmp_path / "manifests" / f"my {name}").glob("*.csv"))


@pytest.mark.parametrize(
    "arguments, message",
    [(["librilight", "--hours=0"], "positive"), (["timit"], "librispeech")],
)
def test_mistakes_end_with_a_message(
    tmp_path, run_command, capsys, arguments, message
):
    with pytest.raises(SystemExit) as exit_info:
        run_command(*arguments, tmp_path / "a")
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
