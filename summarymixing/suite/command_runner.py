"""Commands that are run one after the other, and are stopped cleanly."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from summarymixing.errors import INTERRUPTED_STATUS, STOPPED_STATUS

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")


def as_typed(command: Sequence[str]) -> list[str]:
    """Return a command as users type it, with .venv on their path.

    Example
    -------
    >>> as_typed([*TORCHRUN, "--nproc_per_node=2", "a.py"])
    ['torchrun', '--standalone', '--nproc_per_node=2', 'a.py']
    >>> as_typed([sys.executable, "a.py"])
    ['python', 'a.py']
    """
    words = list(command)
    if words[:3] == list(TORCHRUN[:3]):
        return ["torchrun", *words[3:]]
    return ["python", *words[1:]] if words[0] == sys.executable else words


class Interrupted(SystemExit):
    """A signal ended the commands; its status is that of this process."""


class FinishedCommand(NamedTuple):
    """A command that has ended."""

    title: str  # what the command does
    command: list[str]  # as users type it
    seconds: float  # how long it took
    status: int  # 0, or what went wrong; negative: the signal that killed it


class CommandRunner:
    """Run commands in the repository and remember them for a report.

    As a context, it passes signals on to the command that runs: the first
    one asks it to stop, and is waited for; the next kills it. A command has a
    session of its own, so that Ctrl-C reaches it once.

    Arguments
    ---------
    repository : Path
        The folder that commands are run in.

    Example
    -------
    >>> with CommandRunner(Path()) as runner:
    ...     ended = runner.run("wait", [sys.executable, "-c", "exit(3)"])
    >>> ended.status, len(runner.done)
    (3, 1)
    """

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.done: list[FinishedCommand] = []
        self.received: signal.Signals | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._is_told = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> CommandRunner:
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler != signal.SIG_IGN:  # nohup, or a shell's `&`
                self._before[number] = handler
                signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(
        self, title: str, command: Sequence[str], log: Path | None = None
    ) -> FinishedCommand:
        """Run a command to its end; `Interrupted` if a signal came.

        Arguments
        ---------
        title : str
            What the command does.
        command : sequence of str
            The words of the command.
        log : Path, optional
            Where its output is added; without, it goes to the screen.
        """
        self.check()
        start = time.monotonic()
        with log.open("ab") if log else contextlib.nullcontext() as output:
            self._is_told = False
            self._child = subprocess.Popen(
                command,
                cwd=self.repository,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            if self.received is not None:  # while it started
                self._tell_child()
            status = self._child.wait()
            self._child = None
        seconds = time.monotonic() - start
        self.done.append(
            FinishedCommand(title, as_typed(command), seconds, status)
        )
        self.check()
        return self.done[-1]

    def check(self) -> None:
        """Raise `Interrupted` if a signal came."""
        if self.received is not None:
            by_user = self.received == signal.SIGINT
            raise Interrupted(INTERRUPTED_STATUS if by_user else STOPPED_STATUS)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None
        self.received = self.received or signal.Signals(number)
        if self._child is None:
            return
        if again and self._is_told:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
        else:
            self._tell_child()

    def _tell_child(self) -> None:
        """Pass the signal on, once; all but Ctrl-C ask to save and stop."""
        if not self._is_told and self._child is not None:
            self._is_told = True
            by_user = self.received == signal.SIGINT
            self._child.send_signal(
                signal.SIGINT if by_user else signal.SIGTERM
            )
