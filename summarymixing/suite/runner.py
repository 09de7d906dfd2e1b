"""Run a plan: one line a run, and on after one that failed."""

from __future__ import annotations

import datetime
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager

from summarymixing.errors import (
    INTERRUPTED_STATUS,
    STOPPED_NAME,
    STOPPED_STATUS,
)
from summarymixing.suite.command_runner import (
    CommandRunner,
    Interrupted,
    as_typed,
)
from summarymixing.suite.commands import Command, read_tail
from summarymixing.suite.plan import Plan

# How a run ended, in its record.
RUNNING, DONE, FAILED, STOPPED = "running", "done", "failed", "stopped"


def run_plan(plan: Plan, runner: CommandRunner) -> list[Command]:
    """Prepare what is missing and run what is not done.

    Arguments
    ---------
    plan : Plan
        The commands, and what of them is done.
    runner : CommandRunner
        It is in use as a context, so that signals reach what runs.

    Returns
    -------
    list of Command
        What failed. `Interrupted` if a signal came, or if a run was asked
        to stop by someone else.
    """
    to_do = plan.to_do
    if len(to_do) < len(plan.runs):
        print(f"{len(plan.runs) - len(to_do)} runs are done already.")
    unprepared: dict[str, Command] = {}
    for command in plan.preparations:
        print(f"{command.title}: ", end="", flush=True)
        if not _run(command, runner):
            unprepared[command.corpus] = command
    failed = list(unprepared.values())
    start, num_run = time.monotonic(), 0
    for number, run in enumerate(to_do, start=1):
        print(f"[{number}/{len(to_do)}] {run.title}: ", end="", flush=True)
        if run.corpus in unprepared:
            log = str(unprepared[run.corpus].log)
            run.write_record(state=FAILED, log=log)
            print(f"not run, {run.corpus} could not be prepared")
            failed.append(run)
            continue
        if not _run(run, runner):
            failed.append(run)
        num_run += 1
        spent = time.monotonic() - start
        left = spent / num_run * (len(to_do) - number)
        print(f"  {duration(spent)} so far, about {duration(left)} left")
    return failed


def _run(command: Command, runner: CommandRunner) -> bool:
    """Run one command, say how it ended and return whether it went well."""
    with _record(command) as record:
        if reason := command.reason_not_to_run():
            record["state"] = FAILED
            print(f"FAILED: {reason}", flush=True)
            return False
        note = command.folder / STOPPED_NAME
        note.unlink(missing_ok=True)
        ended = runner.run(command.title, command.words, command.log)
        record["status"] = ended.status
        wrong = command.missing_output()
        if ended.status:
            wrong = f"status {ended.status}"
        record["state"] = FAILED if wrong else DONE
        if ended.status in (STOPPED_STATUS, INTERRUPTED_STATUS):
            # By someone else than us, for example by a scheduler.
            raise Interrupted(ended.status)
        if ended.status and note.exists():
            raise Interrupted(STOPPED_STATUS)  # which torchrun hides
    if not wrong:
        print(f"done in {duration(ended.seconds)}", flush=True)
        return True
    print(f"FAILED after {duration(ended.seconds)}, {wrong}")
    tail = read_tail(command.log).replace("\n", "\n  | ")
    print(f"  the end of {command.log}:\n  | {tail}", flush=True)
    return False


@contextmanager
def _record(command: Command) -> Iterator[dict[str, object]]:
    """Write the record before a command, and again when it has ended."""
    outcome: dict[str, object] = {
        "state": RUNNING,
        "started": datetime.datetime.now().isoformat(timespec="seconds"),
    }
    command.write_record(**outcome)
    with command.log.open("a", encoding="utf-8") as log:
        log.write(f"$ {shlex.join(as_typed(command.words))}\n")
    start = time.monotonic()
    try:
        yield outcome
    except Interrupted:
        outcome["state"] = STOPPED
        print("stopped", flush=True)
        raise
    finally:
        outcome["seconds"] = round(time.monotonic() - start, 1)
        command.write_record(**outcome)


def duration(seconds: float) -> str:
    """Return a duration for people.

    Example
    -------
    >>> duration(7.4), duration(190), duration(30 * 3600)
    ('7 s', '3 min 10 s', '30 h 0 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
