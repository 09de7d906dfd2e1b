"""`recipes/pretraining/doctor.py` as users type it, on one process and two."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from summarymixing.run.launch import run

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "recipes/pretraining/doctor.py"
RECIPE = str(ROOT / "hparams/pretraining/tiny.yaml")
SMALL = ("--d_model=16", "--d_ffn=32", "--num_heads=2", "--num_codes=4")
CHECKS = [
    *("code", "versions", "manifests", "audio"),
    *("all-reduce", "folder", "memory", "disk"),
]

# Runs the doctor with what a bad machine would change on rank 1.
BAD_MACHINE = """
import os, sys
import torch
sys.path.insert(0, {folder!r})
import doctor
from summarymixing.run.launch import run

if os.environ["RANK"] == "1":
    reduce = torch.distributed.all_reduce
    doctor.digest_of = lambda files: "0123"
    doctor.platform.python_version = lambda: "2.7.18"
    doctor.read_audio = lambda row: torch.zeros(8)
    doctor.dist.all_reduce = lambda x: reduce(x.add_(1))
    doctor.Path.is_file = lambda path: ".doctor" not in path.name
    doctor.free_memory = lambda device: 1e6
run(doctor.examine)
"""


@pytest.fixture
def examine(script, capfd, tmp_path, pretraining_manifests, monkeypatch):
    """Return a function that runs the doctor here: status, lines, errors."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def examine(*words: str) -> tuple[int, list[str], str]:
        status = 0
        try:
            run(
                script.examine,
                [
                    RECIPE,
                    *SMALL,
                    f"--manifests={pretraining_manifests}",
                    f"--output_folder={tmp_path / 'out'}",
                    *words,
                ],
            )
        except SystemExit as stop:
            status = stop.code
        output, errors = capfd.readouterr()
        return status, output.splitlines(), errors

    return examine


def names(lines: list[str], word: str) -> list[str]:
    return [line.split()[1] for line in lines if line.startswith(word)]


def test_a_sound_run_gives_a_line_for_each_check(examine, tmp_path):
    status, lines, _ = examine()
    assert (status, names(lines, "ok")) == (0, CHECKS)
    assert names(lines, "PROBLEM") == []
    assert not list((tmp_path / "out").glob(".doctor*"))
    assert list((tmp_path / "out" / "checkpoints").iterdir()) == []


def test_an_excluded_row_is_not_read(
    examine, tmp_path, pretraining_manifests, monkeypatch, script
):
    first = script.Manifest.read(pretraining_manifests / "train.csv")[0].id
    path = tmp_path / "list.csv"
    path.write_text(f"manifest,id\ntrain.csv,{first}\n")
    read_audio = script.read_audio

    def read(row):
        if row.id == first:
            raise script.UserError("unreadable")
        return read_audio(row)

    monkeypatch.setattr(script, "read_audio", read)
    assert examine(f"--exclude={path}")[0] == 0
    assert names(examine()[1], "PROBLEM") == ["audio"]


def refuse_to_flush(script, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)


def fill_disk(script, monkeypatch):
    full = SimpleNamespace(free=1000)
    monkeypatch.setattr(script.shutil, "disk_usage", lambda path: full)


def take_memory(script, monkeypatch):
    monkeypatch.setattr(script, "free_memory", lambda device: 1e6)


def take_locks(script, monkeypatch):
    def lockf(*args):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(script.fcntl, "lockf", lockf)


@pytest.mark.parametrize(
    ("harm", "check", "words"),
    [
        (refuse_to_flush, "folder", "Input/output error"),
        (fill_disk, "disk", "lower --checkpoints_to_keep"),
        (take_memory, "memory", "Lower --max_batch_seconds"),
    ],
)
def test_each_problem_is_one_message(
    examine, script, monkeypatch, harm, check, words
):
    harm(script, monkeypatch)
    status, lines, errors = examine()
    assert status == 2
    assert names(lines, "PROBLEM") == [check]
    assert names(lines, "ok") == [name for name in CHECKS if name != check]
    (message,) = [line for line in lines if words in line]
    assert errors.splitlines()[-1] == "error: problems: 1, see above"


def test_a_folder_without_locks_is_told_of(examine, script, monkeypatch):
    take_locks(script, monkeypatch)
    status, lines, _ = examine()
    assert status == 0
    assert any("has no locks" in line for line in lines)


@pytest.mark.parametrize("is_bad", [False, True])
def test_two_processes_compare_what_they_see(
    tmp_path, pretraining_manifests, is_bad
):
    file = SCRIPT
    if is_bad:
        file = tmp_path / "bad_machine.py"
        file.write_text(BAD_MACHINE.format(folder=str(SCRIPT.parent)))
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node=2", str(file), RECIPE, *SMALL),
            f"--manifests={pretraining_manifests}",
            f"--output_folder={tmp_path / 'out'}",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = done.stdout.splitlines()
    if not is_bad:
        assert (done.returncode, names(lines, "ok")) == (0, CHECKS), done.stderr
        assert "over 2 processes" in done.stdout
        return
    assert done.returncode != 0
    assert names(lines, "ok") == ["disk"]
    problems = {line.split()[1]: line for line in lines if "PROBLEM" in line}
    for name in ("code", "versions", "manifests", "audio"):
        assert "not the same for all processes" in problems[name]
        assert "on rank 0 (" in problems[name]
        assert "on rank 1 (" in problems[name]
    assert "the sum over processes is wrong" in problems["all-reduce"]
    assert "rank 1 (" in problems["folder"]
    assert "another folder on this machine" in problems["folder"]
    assert "rank 1 (" in problems["memory"]
    assert done.stderr.count("error: problems: 7, see above") == 1
