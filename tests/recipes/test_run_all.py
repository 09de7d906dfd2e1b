"""`recipes/mp3s/run_all.py` as users type it."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from summarymixing import Wav2Vec2Encoder
from summarymixing.miniature import build_librispeech
from summarymixing.pretrained import save_encoder
from summarymixing.suite.command_runner import Interrupted

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "recipes" / "mp3s" / "run_all.py"
UTTERANCES = {
    "train-clean-100": 3,
    "dev-clean": 2,
    "test-clean": 1,
    "test-other": 1,
}
# One update of a head that a CPU can afford.
SMALL = [
    f"--override={text}"
    for text in (
        "librispeech_lstm:head={hidden_size: 8}",
        "max_updates=1",
        "num_workers=0",
        "device=cpu",
    )
]
HOLD_LOCK = """
import fcntl, sys
with open(sys.argv[1], "a+") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Return a folder with a miniature corpus, its file and two encoders."""
    folder = tmp_path_factory.mktemp("run_all")
    build_librispeech(folder / "corpus", utterances=UTTERANCES)
    (folder / "corpora.yaml").write_text("librispeech: corpus/LibriSpeech\n")
    for name, num_layers in (("one", 1), ("two", 2)):
        encoder = Wav2Vec2Encoder(
            num_layers=num_layers,
            d_model=16,
            d_ffn=32,
            front_end_channels=8,
            num_mels=20,
        )
        save_encoder(encoder, folder / name / "encoder")
    return folder


def command(material, output_folder, *more):
    return [
        f"--encoder={material / 'one' / 'encoder'}",
        f"--corpora={material / 'corpora.yaml'}",
        f"--output_folder={output_folder}",
        *SMALL,
        *more,
    ]


def test_two_encoders_two_seeds_and_again(material, tmp_path, type_command):
    words = command(
        material,
        tmp_path,
        f"--encoder=second={material / 'two' / 'encoder'}",
        "--tasks=librispeech_lstm",
        "--seeds=2",
    )
    status, output, errors = type_command(*words)
    assert status == 0, output + errors
    assert "prepare librispeech: done" in output
    assert "[4/4] second, librispeech_lstm, seed 1987: done" in output
    with open(tmp_path / "results.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    measured = {
        (row["encoder"], row["seed"])
        for row in rows
        if (row["split"], row["metric"]) == ("test-other", "wer")
    }
    assert measured == {
        (name, seed) for name in ("one", "second") for seed in ("1986", "1987")
    }
    assert {row["split"] for row in rows} == {
        "dev-clean",
        "test-clean",
        "test-other",
    }
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("<svg") == 2
    assert page.count("python recipes/mp3s/asr.py") == 4
    assert page.count("python recipes/prepare.py") == 1

    status, output, _ = type_command(*words)
    assert status == 0 and "4 runs are done already" in output
    assert "[1/" not in output and "prepare" not in output.split("|")[0]
    status, _, errors = type_command(*words, "--override=batch_size=2")
    assert status == 2 and "now --batch_size=2" in errors
    (tmp_path / "report.html").unlink()
    status, output, _ = type_command("--report_only", *words[2:3])
    assert status == 0 and "| second |" in output
    assert (tmp_path / "report.html").read_text("utf-8") == page


def test_a_stop_leaves_a_report_of_what_there_is(
    material, tmp_path, type_command, script, monkeypatch
):
    def stop(plan, runner):
        raise Interrupted(75)

    monkeypatch.setattr(script, "run_plan", stop)
    status, output, _ = type_command(*command(material, tmp_path))
    assert status == 75
    assert "the same command goes on from here" in output
    table = (tmp_path / "table.md").read_text("utf-8")
    assert "| one | - | 0 | missing | missing |" in table
    assert "Left out" in (tmp_path / "report.html").read_text("utf-8")


def test_failures_are_listed_at_the_end(
    material, tmp_path, type_command, script, monkeypatch
):
    monkeypatch.setattr(script, "run_plan", lambda plan, runner: plan.runs[:1])
    status, output, _ = type_command(*command(material, tmp_path))
    assert status == 1
    _, failed = output.split("1 failed; the same command tries them again:\n")
    assert failed == "  one, librispeech_lstm, seed 1986\n"


def test_nothing_runs_in_a_dry_run(material, tmp_path, type_command):
    words = command(material, tmp_path / "out", "--random", "--dry_run")
    status, output, errors = type_command(*words, "--nproc=2", "--seeds=1")
    assert status == 0
    assert errors.startswith("Left out") and "slurp_lstm" in errors
    prepare, *runs = output.splitlines()
    assert prepare.startswith("python recipes/prepare.py librispeech ")
    assert len(runs) == 4
    for run in runs:
        assert run.startswith("torchrun --standalone --nproc_per_node=2 ")
    assert ["--random_encoder=True" in run for run in runs] == [False, True] * 2
    assert not (tmp_path / "out").exists()


def test_two_at_once_are_refused(material, tmp_path, type_command):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(tmp_path / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        status, output, errors = type_command(*command(material, tmp_path))
    finally:
        holder.kill()
        holder.wait()
    assert status == 2
    assert "in use by another run" in errors
    assert os.listdir(tmp_path) == [".lock"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks=slurp_lstm"], "names no folder for slurp"),
        (["--encoder=nowhere"], "--encoder=nowhere: there is no such folder"),
        (["--override=batch=2"], "--batch=2: not a key of"),
        (["--corpora=no.yaml"], "--corpora=no.yaml: No such file"),
        (["--seeds=0"], "invalid positive value: '0'"),
    ],
)
def test_mistakes_end_before_anything_starts(
    material, tmp_path, type_command, words, message
):
    out = tmp_path / "out"
    status, _, errors = type_command(*command(material, out, *words))
    assert status == 2
    assert message in errors and "Traceback" not in errors
    assert not out.exists()


def test_tables_without_results(tmp_path, type_command):
    words = ["--report_only", f"--output_folder={tmp_path}"]
    status, _, errors = type_command(*words)
    assert status == 2 and "has no results" in errors


def test_help_needs_no_torch():
    code = (
        "import runpy, sys; sys.argv = ['run_all.py', '--list']; "
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__'); "
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "voxceleb1_ecapa" in done.stdout
