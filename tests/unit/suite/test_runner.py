"""Running a plan with recipes that write, fail and hang."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from summarymixing.suite.command_runner import CommandRunner, Interrupted
from summarymixing.suite.commands import (
    Command,
    ProbeRun,
    read_metrics,
    read_record,
)
from summarymixing.suite.encoders import EncoderSource
from summarymixing.suite.plan import Plan
from summarymixing.suite.runner import run_plan
from summarymixing.suite.tasks import benchmark_tasks

ROOT = Path(__file__).resolve().parents[3]
# A recipe: what it is called with says what it does.
RECIPE = """
import json, signal, sys, time
from pathlib import Path

what, folder = sys.argv[1], Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "calls", "a") as file:
    file.write(what + "\\n")
if what == "hang":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    (folder / "ready").touch()
    time.sleep(60)
if what == "stop":
    sys.exit(75)
if what == "stop behind torchrun":
    (folder / "stopped").touch()
    sys.exit(1)
if what == "fail":
    print("on the way")
    sys.exit("error: no good")
if what != "forget":
    (folder / "metrics.json").write_text(json.dumps({"splits": {}}))
"""


@pytest.fixture
def make_plan(tmp_path):
    """Make a plan of one run for each word; "corpus:word" prepares too."""
    (tmp_path / "recipe.py").write_text(RECIPE)

    def make(*words, prepare=()):
        return Plan(
            tuple(make_job(tmp_path, corpus, word) for corpus, word in prepare),
            tuple(make_run(tmp_path, n, word) for n, word in enumerate(words)),
        )

    return make


def command(folder, word, target):
    return (sys.executable, str(folder / "recipe.py"), word, str(target))


def make_job(folder, corpus, word):
    target = folder / "preparation" / corpus
    return Command(target, command(folder, word, target), corpus)


def make_run(folder, number, word):
    task = list(benchmark_tasks().values())[number]
    target = folder / "out" / task.name
    words = command(folder, word, target)
    encoder = EncoderSource("mine", "x/y")
    return ProbeRun(target, words, task.corpus, encoder, task, 1986)


def execute(plan, tmp_path):
    with CommandRunner(tmp_path) as runner:
        return run_plan(plan, runner)


def test_one_that_fails_does_not_stop_the_others(make_plan, tmp_path, capsys):
    plan = make_plan("fail", "forget", "write")
    failed = execute(plan, tmp_path)
    assert failed == list(plan.runs[:2])
    assert read_metrics(plan.runs[2].folder) == {"splits": {}}
    states = [read_record(run.folder)["state"] for run in plan.runs]
    assert states == ["failed", "failed", "done"]
    shown = capsys.readouterr().out
    assert "[1/3] mine, librispeech_lstm, seed 1986: FAILED after" in shown
    assert ", status 1\n" in shown and "left\n" in shown
    assert "  | on the way\n" in shown and "  | error: no good\n" in shown
    assert "it wrote no metrics.json" in shown
    assert "[3/3] mine, commonvoice_cy_lstm, seed 1986: done in" in shown
    log = plan.runs[0].log.read_text()
    assert log.startswith("$ python ") and "error: no good" in log


def test_the_same_plan_again_runs_what_is_not_done(make_plan, tmp_path, capsys):
    execute(make_plan("write", "fail"), tmp_path)
    plan = make_plan("write", "write")
    assert execute(plan, tmp_path) == []
    assert "1 runs are done already" in capsys.readouterr().out
    calls = [(run.folder / "calls").read_text().split() for run in plan.runs]
    assert calls == [["write"], ["fail", "write"]]


def test_the_order_of_values_makes_no_other_command(tmp_path):
    def make(*words):
        run = make_run(tmp_path, 0, "write")
        return replace(run, words=(*run.words, *words))

    run = make("--a=1", "--b=2")
    run.write_record()
    (run.folder / "metrics.json").write_text('{"splits": {}}')
    assert make("--b=2", "--a=1").conflict_with_earlier() is None
    assert make("--b=2").conflict_with_earlier() == "then --a=1, now without"


def test_what_cannot_be_prepared_is_not_run(make_plan, tmp_path, capsys):
    # Runs 0 and 1 are LibriSpeech, run 2 is Welsh.
    plan = make_plan(
        "write",
        "write",
        "write",
        prepare=[("librispeech", "fail"), ("commonvoice_cy", "write")],
    )
    failed = execute(plan, tmp_path)
    assert failed == [plan.preparations[0], *plan.runs[:2]]
    assert not (plan.runs[0].folder / "calls").exists()
    assert plan.runs[2].is_done()
    record = read_record(plan.runs[0].folder)
    assert record["state"] == "failed"
    assert "error: no good" in Path(record["log"]).read_text()
    assert "librispeech could not be prepared" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["stop", "stop behind torchrun"])
def test_a_run_that_someone_stops_stops_the_plan(make_plan, tmp_path, word):
    plan = make_plan(word, "write")
    with pytest.raises(Interrupted) as stop:
        execute(plan, tmp_path)
    assert stop.value.code == 75
    assert read_record(plan.runs[0].folder)["state"] == "stopped"
    assert not plan.runs[1].folder.exists()


def test_an_old_note_of_a_stop_explains_no_failure(make_plan, tmp_path):
    plan = make_plan("fail", "write")
    plan.runs[0].folder.mkdir(parents=True)
    (plan.runs[0].folder / "stopped").touch()
    assert execute(plan, tmp_path) == [plan.runs[0]]
    assert plan.runs[1].is_done()


DRIVER = """
import signal
import sys
from pathlib import Path

# Whoever started the tests may have it ignored, as nohup does.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {here!r})
from test_runner import execute, make_run
from summarymixing.suite.plan import Plan

folder = Path({folder!r})
runs = tuple(make_run(folder, n, w) for n, w in enumerate(["hang", "write"]))
execute(Plan((), runs), folder)
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_a_signal_stops_the_run_and_is_waited_for(
    make_plan, tmp_path, number, status
):
    plan = make_plan("hang", "write")
    driver = DRIVER.format(
        here=str(Path(__file__).parent), folder=str(tmp_path)
    )
    process = subprocess.Popen(
        [sys.executable, "-c", driver],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(plan.runs[0].folder / "ready", process)
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == status
    assert output.endswith("stopped\n")
    assert (
        json.loads((plan.runs[0].folder / "run_all.json").read_text())["state"]
        == "stopped"
    )
    assert not plan.runs[1].folder.exists()


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.05)
