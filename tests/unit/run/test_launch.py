"""The command line of recipes: what users type, and how runs end."""

import errno
import logging
import os
import signal
import sys
from pathlib import Path

import pytest

from summarymixing.errors import STOPPED_STATUS, UserError
from summarymixing.run import launch, output_folder, processes, stopping
from summarymixing.run.hparams_file import load_hparams
from summarymixing.run.records import RunLog

RECIPE = """
seed: 1   # of everything
manifests: !PLACEHOLDER   # folder of manifests
precision: fp32
fast: False
note: none
output_folder: !ref <manifests>/results/<seed>
"""


@pytest.fixture(autouse=True)
def untouched_process(monkeypatch):
    """Give back what a run changes for its whole process."""
    monkeypatch.setenv("SB_LOG_LEVEL", "INFO")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def run(recipe: Path, *words: str, main=None):
    """Run the recipe; return what its main function received."""
    received = []
    command = [str(recipe), f"--manifests={recipe.parent}", *words]
    launch.run(main or (lambda *given: received.append(given)), command)
    return received[0] if received else None


def message_of(capsys, recipe: Path, *words: str, main=None) -> str:
    """Run a recipe that must end with a message; return the message."""
    with pytest.raises(SystemExit) as end:
        run(recipe, *words, main=main)
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("error: ") == 1
    assert "Traceback" not in message
    return message


def folder_of(recipe: Path) -> Path:
    return recipe.parent / "results" / "1"


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--seed=2"], "seed", 2),
        (["--seed", "-2"], "seed", -2),
        (["--note=a=b"], "note", "a=b"),
        (["--note", "x y"], "note", "x y"),
        (["--fast=True"], "fast", True),
        (["--fast"], "fast", True),
        (["--precision=bf16"], "precision", "bf16"),
    ],
)
def test_arguments_override_the_recipe(recipe, words, key, value):
    hparams, run_opts = run(recipe, *words)
    assert hparams[key] == value
    assert type(hparams[key]) is type(value)
    # or the Brain would prefer SpeechBrain's default
    assert key not in run_opts.overridden_args


@pytest.mark.parametrize(
    ("words", "option", "value"),
    [
        (["--optimizer_step_limit=3"], "optimizer_step_limit", 3),
        (["--debug"], "debug", True),
        (["--debug=True"], "debug", True),
        (["--debug", "True"], "debug", True),
        (["--profile_steps", "2"], "profile_steps", 2),
        (
            ["--compile_module_keys", "a", "b"],
            "compile_module_keys",
            ["a", "b"],
        ),
        (["--device=cpu"], "device", "cpu"),
    ],
)
def test_other_arguments_are_run_options(recipe, words, option, value):
    _, run_opts = run(recipe, *words)
    assert run_opts[option] == value
    assert option in run_opts.overridden_args


def test_flag_may_be_switched_off(recipe):
    _, run_opts = run(recipe, "--debug=False")
    assert not run_opts.debug


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--sed=2"], "did you mean 'seed'"),
        (["--comp"], "--comp is not a key"),
        (["--noprogress"], "did you mean 'noprogressbar'"),
        (["--seed"], "--seed needs a value"),
        (["--seed=two"], "'seed' must be a number (it is 1), not 'two'"),
        (["--seed=1x"], "'seed' must be a number"),
        (["--fast=maybe"], "'fast' must be True or False"),
        (["--device=gpu"], "--device=gpu is not a device"),
        (["--precision=fp16", "--device=cpu"], "fp16 needs a GPU"),
        (["--profile_steps=much"], "profile_steps"),
        (["--optimizer_step_limit=few"], "must be a number"),
        (["--debug=maybe"], "debug"),
        (["--seed=1", "2"], "'2' has no place"),
        (["--note=[1"], "--note"),
        (["--distributed_backend=gloo"], "is not a key"),
        (["--seed=!new:datetime.date {year: 0}"], "key 'seed'"),
    ],
)
def test_wrong_arguments_end_with_one_message(recipe, capsys, words, expected):
    assert expected in message_of(capsys, recipe, *words)


@pytest.mark.parametrize(("rank", "printed"), [("0", 1), ("1", 0)])
def test_wrong_arguments_are_reported_by_one_rank(
    recipe, capsys, monkeypatch, rank, printed
):
    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(SystemExit):
        run(recipe, "--sed=2")
    assert capsys.readouterr().err.count("error: ") == printed


def test_missing_recipe_is_asked_for(capsys):
    with pytest.raises(SystemExit):
        launch.run(print, ["--seed=1"])
    assert "FILE.yaml" in capsys.readouterr().err


def test_missing_value_names_its_argument(recipe, capsys):
    with pytest.raises(SystemExit):
        launch.run(print, [str(recipe)])
    assert "--manifests=... (folder of manifests)" in capsys.readouterr().err


def test_help_lists_keys_values_and_comments(recipe, capsys):
    launch.run(print, [str(recipe), "--help"])
    shown = capsys.readouterr().out
    assert "usage: " in shown
    assert "--seed=1" in shown
    assert "of everything" in shown


def test_output_folder_holds_what_repeats_the_run(recipe):
    run(recipe, "--note=hello")
    saved = folder_of(recipe)
    names = {path.name for path in saved.iterdir()}
    assert {"hyperparams.yaml", "log.txt", "env.log"} <= names
    hparams = load_hparams(saved / "hyperparams.yaml")
    assert hparams["note"] == "hello"
    assert hparams["output_folder"] == str(saved)
    assert "torch==" in (saved / "env.log").read_text()


def test_settings_of_an_earlier_run_are_kept(recipe):
    for note in ("first", "first", "second"):
        run(recipe, f"--note={note}")
    kept = sorted(folder_of(recipe).glob("hyperparams*"))
    notes = [load_hparams(path)["note"] for path in kept]
    assert notes == ["first", "second"]


@pytest.mark.parametrize(
    "obstacle",
    [errno.ENOSPC, errno.EACCES, errno.EROFS],
    ids=errno.errorcode.get,
)
def test_folder_that_cannot_be_written_is_one_message(
    recipe, capsys, monkeypatch, obstacle
):
    def refuse(path, *args, **kwargs):
        raise OSError(obstacle, os.strerror(obstacle), str(path))

    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", refuse)
        message = message_of(capsys, recipe)
    assert os.strerror(obstacle) in message
    assert str(folder_of(recipe)) in message


def test_second_run_on_the_same_folder_is_refused(recipe, capsys):
    def try_to_lock(hparams, run_opts):
        pid = os.fork()
        if pid == 0:
            try:
                with output_folder.locked_folder(folder_of(recipe)):
                    os._exit(0)
            except UserError as error:
                os._exit(1 if str(os.getppid()) in str(error) else 2)
        status.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    status: list[int] = []
    run(recipe, main=try_to_lock)
    assert status == [1]
    run(recipe)  # free again


@pytest.mark.parametrize("alive", [True, False])
def test_lock_without_file_system_support_follows_the_process(
    tmp_path, monkeypatch, alive
):
    pid = os.fork()
    if pid == 0:
        signal.pause()
    if not alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    host = output_folder.socket.gethostname()
    lock = tmp_path / output_folder.LOCK_NAME
    lock.write_text(f"process {pid} on {host}\n")

    def unsupported(*args):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(output_folder.fcntl, "lockf", unsupported)
    if alive:
        with (
            pytest.raises(UserError, match=str(pid)),
            output_folder.locked_folder(tmp_path),
        ):
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with output_folder.locked_folder(tmp_path):
        assert str(os.getpid()) in lock.read_text()


@pytest.fixture
def without_locks(tmp_path, monkeypatch):
    """Write a lock file as another machine's run would, and watch briefly."""

    def unsupported(*args):
        raise OSError(errno.ENOSYS, "function not implemented")

    monkeypatch.setattr(output_folder.fcntl, "lockf", unsupported)
    monkeypatch.setattr(output_folder, "RENEW_S", 0.15)
    monkeypatch.setattr(output_folder, "WATCH_S", 0.6)
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / output_folder.LOCK_NAME


def test_without_locks_a_dead_run_elsewhere_is_found_out(without_locks):
    without_locks.write_text("process 4711 on gpu-17, renewed\n")
    with output_folder.locked_folder(without_locks.parent):
        assert str(os.getpid()) in without_locks.read_text()


def test_without_locks_a_run_elsewhere_that_lives_is_left_alone(without_locks):
    with output_folder.locked_folder(without_locks.parent):
        text = without_locks.read_text()
        assert text.endswith(", renewed\n")
        without_locks.write_text("process 4711 on gpu-17, renewed\n")
        with (
            pytest.raises(UserError, match=f"dead, delete {without_locks}"),
            output_folder.locked_folder(without_locks.parent),
        ):
            pass
    # Nothing renews it any more.
    without_locks.write_text("process 4711 on gpu-17, renewed\n")
    with output_folder.locked_folder(without_locks.parent):
        pass


def test_without_locks_an_earlier_version_is_taken_for_alive(without_locks):
    """It renewed nothing; the message tells the way out."""
    without_locks.write_text("process 4711 on gpu-17\n")
    with (
        pytest.raises(UserError, match=f"dead, delete {without_locks}"),
        output_folder.locked_folder(without_locks.parent),
    ):
        pass


@pytest.mark.parametrize("start", [0, 1])
def test_without_locks_a_requeued_job_goes_on_at_once(
    without_locks, monkeypatch, start
):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setattr(output_folder, "WATCH_S", 1000)
    with monkeypatch.context() as before:
        before.setattr(output_folder.socket, "gethostname", lambda: "gpu-17")
        before.setattr(output_folder.os, "getpid", lambda: 4711)
        owner = output_folder._describe_owner()
    without_locks.write_text(f"{owner}, renewed\n")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(start))
    if start:  # else it may be another step of the job
        with output_folder.locked_folder(without_locks.parent):
            assert "job 77 start 1" in without_locks.read_text()
        return
    monkeypatch.setattr(output_folder, "_is_renewed", lambda path: True)
    with (
        pytest.raises(UserError, match="job 77 start 0"),
        output_folder.locked_folder(without_locks.parent),
    ):
        pass


def test_user_error_of_the_recipe_is_one_message(recipe, capsys):
    def refuse(hparams, run_opts):
        raise UserError("no such corpus")

    assert message_of(capsys, recipe, main=refuse) == "error: no such corpus\n"


def test_defect_keeps_its_traceback(recipe):
    def fail(hparams, run_opts):
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        run(recipe, main=fail)


def test_interrupt_is_a_short_message(recipe, capsys):
    def interrupt(hparams, run_opts):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run(recipe, main=interrupt)
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_asks_the_run_to_stop(recipe, capsys, number):
    seen = []

    def train(hparams, run_opts):
        seen.append(stopping.stop_requested())
        os.kill(os.getpid(), number)
        seen.append(stopping.stop_requested())
        raise stopping.Stopped

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end:
        run(recipe, main=train)
    assert end.value.code == STOPPED_STATUS
    assert seen == [False, True]
    assert signal.getsignal(number) is before
    assert number.name in capsys.readouterr().err


def test_stopped_run_leaves_a_note_until_it_goes_on(recipe, tmp_path, capsys):
    """Torchrun hides the status, and rank 0 perhaps got no signal itself."""

    def train(hparams, run_opts):
        assert not note.exists()
        raise stopping.Stopped

    note = tmp_path / "results" / "stopped"
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            run(recipe, f"--output_folder={note.parent}", main=train)
        assert end.value.code == STOPPED_STATUS
        assert note.read_text() == "stopped by another rank\n"
    run(recipe, f"--output_folder={note.parent}", main=lambda *given: None)
    assert not note.exists()


@pytest.mark.parametrize("supported", [False, True])
def test_emulated_bf16_is_a_warning(monkeypatch, caplog, supported):
    monkeypatch.setattr(
        "torch.cuda.is_bf16_supported", lambda including_emulation: supported
    )
    processes.check_precision("bf16", "cuda:0")
    assert ("--precision=fp16" in caplog.text) != supported


@pytest.mark.parametrize("has_begun", [False, True])
def test_refused_run_leaves_the_settings_of_the_one_before(
    recipe, tmp_path, capsys, has_begun
):
    """They tell what saved the checkpoints; not so where it has trained."""
    folder = tmp_path / "out"

    def refuse(hparams, run_opts):
        if has_begun:
            RunLog(folder)
        raise UserError("other widths")

    words = ("--note=first", f"--output_folder={folder}")
    run(recipe, *words, main=lambda *given: None)
    message_of(capsys, recipe, "--note=second", *words[1:], main=refuse)
    kept = load_hparams(folder / "hyperparams.yaml")["note"]
    assert kept == ("second" if has_begun else "first")
    assert (folder / "hyperparams.1.yaml").exists() == has_begun


@pytest.mark.parametrize("key", sorted(launch.REPLACED_OPTIONS))
def test_options_past_the_recipe_are_refused(recipe, capsys, key):
    added = ("accumulation", "weight_decay")
    recipe.write_text(recipe.read_text() + "".join(f"{k}: 1\n" for k in added))
    keys = (*added, "precision")
    message = message_of(capsys, recipe, f"--{key}=1")
    assert f"--{key} is not a key of" in message
    own_key = next(k for k, v in launch.SYNONYMS.items() if key in v.split())
    assert (f"--{own_key} takes its place" in message) == (own_key in keys)


@pytest.mark.parametrize(
    ("words", "own_key"),
    [
        ("lr max_lr", "learning_rate"),
        ("number_of_epochs max_steps max_update", "max_updates"),
        ("data_folder train_csv data_dir", "manifests"),
        ("save_folder output_dir save_dir", "output_folder"),
        ("max_batch_length batch_size max_tokens", "max_batch_seconds"),
        ("grad_accumulation_factor update_freq", "accumulation"),
    ],
)
def test_words_of_other_toolkits_find_the_right_key(
    tmp_path, capsys, words, own_key
):
    """A wrong guess may cost a corpus: output_folder is written to."""
    for word in words.split():
        with pytest.raises(SystemExit):
            launch.run(print, ["pretraining/tiny.yaml", f"--{word}=x"])
        message = capsys.readouterr().err
        assert f"--{own_key} takes its place" in message, word
        assert "did you mean" not in message


@pytest.mark.parametrize("word", ["input_folder", "put_folder", "a_folder"])
def test_a_folder_that_is_written_to_is_never_guessed(recipe, capsys, word):
    assert "did you mean 'output" not in message_of(
        capsys, recipe, f"--{word}=/corpus"
    )


def test_changed_settings_are_in_the_log(recipe):
    for note in ("first", "second"):
        run(recipe, f"--note={note}")
        run(recipe, f"--note={note}")
    log = (folder_of(recipe) / "log.txt").read_text()
    assert log.count("settings differ from those of the earlier run") == 1
    assert "note: first -> second" in log


def test_torn_settings_do_not_stop_a_run(recipe):
    run(recipe)
    (folder_of(recipe) / "hyperparams.yaml").write_text("seed: [1\n")
    run(recipe)
    assert load_hparams(folder_of(recipe) / "hyperparams.yaml")["seed"] == 1


@pytest.mark.parametrize(
    ("echo_seconds", "status"), [(-1, -signal.SIGTERM), (60, 0)]
)
def test_second_signal_ends_the_process(echo_seconds, status):
    """Unless it is an echo of the first."""
    pid = os.fork()
    if pid == 0:
        stopping.STOP.ECHO_SECONDS = echo_seconds
        try:
            with stopping.STOP.listening():
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status


def test_signal_still_ends_a_forked_worker():
    ready, announce = os.pipe()
    with stopping.STOP.listening():
        pid = os.fork()
        if pid == 0:
            os.write(announce, b"x")
            signal.pause()
            os._exit(0)
        os.read(ready, 1)
        os.kill(pid, signal.SIGTERM)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == -signal.SIGTERM
    assert not stopping.stop_requested()
