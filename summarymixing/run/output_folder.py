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
LOCK_OWNER = re.compile(r"process (?P<pid>\d+) on (?P<host>\S+)")
LOCKED_ERRNOS = (errno.EACCES, errno.EAGAIN)


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
    On file systems without locks, the process id and host in the lock file
    decide.

    Arguments
    ---------
    folder : Path
        An existing folder. UserError while another run holds it.
    """
    with open(folder / LOCK_NAME, "a+", encoding="utf-8") as file:
        file.seek(0)
        owner = file.read().strip()
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = False
        except OSError as error:
            held = error.errno in LOCKED_ERRNOS or _is_alive(owner)
        if held:
            raise UserError(
                f"{folder} is in use by another run ({owner or 'starting'}); "
                "wait for it or choose another --output_folder"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _is_alive(owner: str) -> bool:
    """Return whether the process named in a lock file may still run."""
    match = LOCK_OWNER.fullmatch(owner)
    if match is None or int(match["pid"]) == os.getpid():
        return False
    if match["host"] != socket.gethostname():
        return True  # another machine's processes cannot be seen from here
    try:
        os.kill(int(match["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


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
