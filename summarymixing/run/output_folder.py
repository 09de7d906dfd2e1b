"""The output folder of a run: one owner, and what repeats the run."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import importlib.metadata
import logging
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import torch
from speechbrain.core import DEFAULT_LOG_CONFIG
from speechbrain.utils.logger import get_logger, setup_logging

from summarymixing.errors import STOPPED_NAME, UserError
from summarymixing.run.hparams_file import HparamsFile
from summarymixing.run.processes import on_main_process

logger = get_logger(__name__)
LOCK_NAME = ".lock"
LOG_NAME = "log.jsonl"
LOCK_OWNER = re.compile(
    r"process (?P<pid>\d+) on (?P<host>\S+)"
    r"(?: in job (?P<job>\S+) start (?P<start>\d+))?(?P<renewed>, renewed)?"
)
LOCKED_ERRNOS = (errno.EACCES, errno.EAGAIN)

# Where the file system has no locks: how often an owner renews its file, and
# how long a file that nobody renews is watched. Network file systems may show
# another machine's change a minute late.
RENEW_S = 15.0
WATCH_S = 120.0


@contextlib.contextmanager
def output_folder_of(
    recipe: HparamsFile, argv: Sequence[str]
) -> Iterator[Path | None]:
    """Own the recipe's output folder for the duration of a run.

    Writes what repeats the run (``hyperparams.yaml``, the script, ``env.log``)
    and opens ``log.txt``. SpeechBrain's `create_experiment_directory` copies
    the file that calls it, takes 5 s to list the packages and saves the YAML
    with references resolved, so that overrides of it would not spread.

    Arguments
    ---------
    recipe : HparamsFile
        Without the key ``output_folder`` nothing is written.
    argv : sequence of str
        The command line, for the record.

    Yields
    ------
    Path or None
        The folder.
    """
    value = recipe.value("output_folder")
    if value is None:
        yield None
        return
    folder = Path(str(value))
    with contextlib.ExitStack() as stack:
        on_main_process(lambda: _open_folder(folder, recipe, argv, stack))
        yield folder


def mark_stopped(folder: Path, reason: str) -> None:
    """Leave a file that says why the run has stopped, until the next run.

    Arguments
    ---------
    folder : Path
        The output folder.
    reason : str
        The name of the signal, or which rank has asked.
    """
    (folder / STOPPED_NAME).write_text(f"stopped by {reason}\n", "utf-8")


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep a second run out of a folder while this one writes to it.

    The lock belongs to the process, so that a killed run leaves none behind.
    On file systems without locks (such as Lustre mounted without `flock`) the
    owner writes down who it is and renews the time of the file; a file that
    nobody renews belongs to a dead run.

    Arguments
    ---------
    folder : Path
        An existing folder. UserError while another run holds it.
    """
    path = folder / LOCK_NAME
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "a+", encoding="utf-8"))
        file.seek(0)
        owner, text = file.read().strip(), _describe_owner()
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = False
        except OSError as error:
            held = error.errno in LOCKED_ERRNOS
            if not held:
                held = _is_alive(owner, path)
                text += ", renewed"
        if held:
            raise UserError(
                f"{folder} is in use by another run ({owner or 'starting'}); "
                "wait for it or choose another --output_folder. If that run "
                f"is dead, delete {path}"
            )
        file.truncate(0)
        file.write(f"{text}\n")
        file.flush()
        stack.callback(file.truncate, 0)
        if text.endswith(", renewed"):
            stack.enter_context(_renewing(path))
        yield


def _describe_owner() -> str:
    """Return what a lock file says of this process."""
    text = f"process {os.getpid()} on {socket.gethostname()}"
    job = os.environ.get("SLURM_JOB_ID")
    if job:  # the same after a requeue, but for the count of starts
        start = os.environ.get("SLURM_RESTART_COUNT", "0")
        text += f" in job {job} start {start}"
    return text


@contextlib.contextmanager
def _renewing(path: Path) -> Iterator[None]:
    """Renew the time of a file for as long as this process lives."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(RENEW_S):
            with contextlib.suppress(OSError):  # the disk may come back
                os.utime(path)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _is_alive(owner: str, path: Path) -> bool:
    """Return whether the process named in a lock file may still run.

    Without locks, and perhaps on another machine, whose clock may differ:
    what is compared is the file with itself, some time later.
    """
    match = LOCK_OWNER.fullmatch(owner)
    if match is None or int(match["pid"]) == os.getpid():
        return False
    mine = LOCK_OWNER.fullmatch(_describe_owner())
    same_job = mine and mine["job"] and mine["job"] == match["job"]
    if same_job and mine and mine["start"] != match["start"]:
        return False  # a job is queued again when all of it has ended
    if match["host"] != socket.gethostname():
        return match["renewed"] is None or _is_renewed(path)
    try:
        os.kill(int(match["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _is_renewed(path: Path) -> bool:
    """Watch a lock file; return whether its owner renews it."""
    logger.info("watching %s for %d s: is its run alive?", path, WATCH_S)
    before = _modified(path)
    deadline = time.monotonic() + WATCH_S
    while time.monotonic() < deadline:
        time.sleep(RENEW_S / 15)
        if _modified(path) != before:
            return True
    return False


def _modified(path: Path) -> int:
    # Network file systems ask the server when a file is opened.
    with open(path, "rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _open_folder(
    folder: Path,
    recipe: HparamsFile,
    argv: Sequence[str],
    stack: contextlib.ExitStack,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stack.enter_context(locked_folder(folder))
    (folder / STOPPED_NAME).unlink(missing_ok=True)
    script = Path(sys.argv[0])
    command = shlex.join([str(script), *argv])
    settings = folder / "hyperparams.yaml"
    changes: list[str] = []
    # Also torn by a kill, or by hand: it is kept aside.
    with contextlib.suppress(FileNotFoundError, UserError):
        changes = recipe.changes_since(settings.read_text("utf-8"))
    kept = _keep_earlier(settings, recipe.as_text())
    settings.write_text(
        f"# Written on {datetime.date.today()} by:\n# {command}\n"
        "# Repeats that run when given to the same script.\n"
        f"# yamllint disable\n{recipe.as_text()}",
        encoding="utf-8",
    )
    environment = _environment()
    _keep_earlier(folder / "env.log", environment)
    (folder / "env.log").write_text(environment, "utf-8")
    if script.is_file():
        shutil.copy(script, folder)
    log_file = {"file_handler": {"filename": str(folder / "log.txt")}}
    setup_logging(DEFAULT_LOG_CONFIG, {"handlers": log_file})
    # log.txt takes all levels, and looking for a font is thousands of lines.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    sys.excepthook = _log_exception
    logger.info("%s", command)
    if changes:
        logger.warning(
            "settings differ from those of the earlier run in this folder: %s",
            "; ".join(changes),
        )
    if kept is not None:
        stack.enter_context(_put_back_if_refused(folder, kept))


@contextlib.contextmanager
def _put_back_if_refused(folder: Path, kept: Path) -> Iterator[None]:
    """Restore the earlier hyperparams.yaml where this run is refused.

    Not where it has begun to train: its checkpoints are then about this one.
    """
    log_time = _log_time(folder)
    try:
        yield
    except UserError:
        if _log_time(folder) == log_time:
            kept.replace(folder / "hyperparams.yaml")
        raise


def _log_time(folder: Path) -> int | None:
    """Return when the log was written last; a training run renews it."""
    log = folder / LOG_NAME
    return log.stat().st_mtime_ns if log.exists() else None


def _keep_earlier(path: Path, new_text: str) -> Path | None:
    """Move the settings of an earlier, different run aside; return them."""
    if not path.is_file() or path.read_text("utf-8").endswith(new_text):
        return None
    number = 1
    while (kept := path.with_suffix(f".{number}{path.suffix}")).exists():
        number += 1
    return path.rename(kept)


def _log_exception(
    kind: type[BaseException],
    error: BaseException,
    traceback: TracebackType | None,
) -> None:
    """Write the traceback of a defect to the log file as well."""
    logger.error("Stopped by:", exc_info=(kind, error, traceback))


def _environment() -> str:
    """Return the versions that may explain a result."""
    packages = sorted(
        f"{package.name}=={package.version}"
        for package in importlib.metadata.distributions()
    )
    with contextlib.suppress(OSError):
        git = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
        packages.append(f"summarymixing at git {git.stdout.strip() or '-'}")
    machine = f"{platform.platform()}, {os.cpu_count()} cores"
    versions = f"Python {sys.version}", machine, f"CUDA {torch.version.cuda}"
    return "\n".join([*versions, *packages, ""])
