"""Runs a preparation in many processes; a killed one can go on.

The tasks are worked on in chunks. The result of each chunk is a file below
`MANIFESTS/.partial`, written atomically, so that a second run takes up what
the first has finished. When all are there they are put together in order;
`report.json` is written last and says that the preparation is complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from summarymixing.data.manifest import Row, write_manifest
from summarymixing.data.prepare.account import (
    REPORT_NAME,
    Outcome,
    Report,
    Total,
    holds_miniature,
)
from summarymixing.data.prepare.common import FoundFile, require
from summarymixing.errors import UserError
from summarymixing.files import open_atomically

# Part of the fingerprint: raise it when the rules of a corpus change.
RULES_VERSION = 3

# Many chunks for a few long recordings, few files for millions of short ones.
MIN_CHUNKS = 64
MAX_CHUNK_SIZE = 128

WRITE_ERRORS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
)


def _nothing_listed() -> Outcome:
    return Outcome(num_recordings=0)


def _write_nothing(report: Report) -> None:
    """Write no file beside the manifests."""


@dataclass(frozen=True)
class Preparation:
    """All that a corpus hands over to be prepared.

    Arguments
    ---------
    corpus : str
        Name of the corpus.
    corpus_dir, manifest_dir : Path
        SOURCE and MANIFESTS.
    options : Mapping[str, Any]
        Whatever the result depends on, as JSON values.
    files : Sequence of FoundFile
        The files that the result depends on.
    tasks : Sequence of str
        What `work` is called with, in the order of the manifests.
    work : Callable[[str], Outcome]
        Does one task; called in other processes, so a function of a module.
    assign : Callable[[Mapping[str, float]], Mapping[str, str]]
        Given the seconds of each group, names the manifest of each group, or
        raises `UserError` where they are not what they must be: then no
        manifest is written, and the message goes on with the account.
    expected : str
        The layout of the corpus, for the message that nothing is usable.
    replaces : Sequence of str
        Manifests of an earlier preparation that must not stay beside the new
        ones: an old valid.csv may hold what is now in train.csv.
    listed : Outcome
        What was dropped, and what is wrong, as far as that was seen while
        the tasks were listed; it has no rows.
    finish : Callable[[Report], None]
        Called when the manifests are there and the report is not yet: writes
        the files that belong to them, such as a list of trials, and counts
        their lines in `report.further`.
    """

    corpus: str
    corpus_dir: Path
    manifest_dir: Path
    options: Mapping[str, Any]
    files: Sequence[FoundFile]
    tasks: Sequence[str]
    work: Callable[[str], Outcome]
    assign: Callable[[Mapping[str, float]], Mapping[str, str]]
    expected: str
    replaces: Sequence[str] = ()
    listed: Outcome = field(default_factory=_nothing_listed)
    finish: Callable[[Report], None] = _write_nothing

    def run(self, *, num_workers: int = 1, overwrite: bool = False) -> Report:
        """Write the manifests and the report.

        Arguments
        ---------
        num_workers : int
            Processes; the result does not depend on them.
        overwrite : bool
            Start anew even if this preparation is finished.

        Returns
        -------
        Report
            What was found, kept and dropped.
        """
        require(num_workers >= 1, "--num_workers must be at least 1.")
        manifest_dir = Path(os.path.abspath(self.manifest_dir))
        with _explain_write_errors(manifest_dir):
            manifest_dir.mkdir(parents=True, exist_ok=True)
            report = self._new_report(manifest_dir)
            if overwrite:
                # If this run is killed, the next one must not find the old.
                (manifest_dir / REPORT_NAME).unlink(missing_ok=True)
            finished = _find_finished(report)
            if finished is not None:
                return finished
            partial_dir = self._open_partial(report, overwrite)
            chunks = _Chunks(partial_dir, self.tasks, self.work)
            chunks.work_through(num_workers)
            self._remove_earlier(manifest_dir)
            report.add(self.listed)
            _put_together(chunks, self.assign, report)
            if report.manifests:
                self.finish(report)
            report.save()
            shutil.rmtree(partial_dir.parent)
        if not report.kept.count:
            raise report.nothing_usable(self.expected)
        return report

    def _new_report(self, manifest_dir: Path) -> Report:
        key = [
            RULES_VERSION,
            self.corpus,
            str(self.corpus_dir),
            dict(self.options),
            self.files,
            self.tasks,
        ]
        miniature = holds_miniature(self.corpus_dir)
        if miniature:  # nothing else may change: real corpora are large
            key.append("miniature")
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        return Report(
            corpus=self.corpus,
            source=str(self.corpus_dir),
            manifest_dir=str(manifest_dir),
            options=dict(self.options),
            fingerprint=digest,
            miniature=miniature,
        )

    def _remove_earlier(self, manifest_dir: Path) -> None:
        """Also the report: it must not vouch for what comes now."""
        for name in (REPORT_NAME, *self.replaces):
            (manifest_dir / name).unlink(missing_ok=True)

    def _open_partial(self, report: Report, overwrite: bool) -> Path:
        """Return the folder of finished chunks; those of others go."""
        partial_dir = Path(report.manifest_dir) / ".partial"
        mine = partial_dir / report.fingerprint[:16]
        if partial_dir.exists() and (overwrite or not mine.exists()):
            shutil.rmtree(partial_dir)
        mine.mkdir(parents=True, exist_ok=True)
        return mine


@dataclass(frozen=True)
class Corpus:
    """One corpus of `recipes/prepare.py`.

    Arguments
    ---------
    name : str
        What users type.
    summary : str
        One line of help.
    add_arguments : Callable[[ArgumentParser], None]
        Adds the options of this corpus; their names are the keyword
        arguments of `plan`.
    plan : Callable[..., Preparation]
        Called as `plan(corpus_dir, manifest_dir, **options)`; nothing is
        written before its `run`.
    """

    name: str
    summary: str
    add_arguments: Callable[[ArgumentParser], None]
    plan: Callable[..., Preparation]


def add_no_arguments(parser: ArgumentParser) -> None:
    """Add nothing, for a corpus without options.

    Arguments
    ---------
    parser : ArgumentParser
        Of its sub-command.
    """


class _Chunks:
    """The outcomes of all tasks, on disk.

    Arguments
    ---------
    folder : Path
        Where the chunks are written.
    tasks : Sequence of str
        All tasks.
    work : Callable[[str], Outcome]
        Does one task.
    """

    def __init__(
        self,
        folder: Path,
        tasks: Sequence[str],
        work: Callable[[str], Outcome],
    ) -> None:
        # Not a function of the number of workers: a second run may have more.
        size = min(MAX_CHUNK_SIZE, max(1, len(tasks) // MIN_CHUNKS))
        self.chunks = {
            folder / f"{start // size:06d}.json": tasks[start : start + size]
            for start in range(0, len(tasks), size)
        }
        self.work = work

    def __iter__(self) -> Iterator[Outcome]:
        """Yield the outcomes in the order of the tasks."""
        for path in self.chunks:
            for saved in json.loads(path.read_text("utf-8")):
                yield Outcome.from_json(saved)

    def work_through(self, num_workers: int) -> None:
        """Do what is not yet done, with a progress bar."""
        todo = [path for path in self.chunks if not _is_whole(path)]
        num_workers = min(num_workers, len(todo))
        if num_workers <= 1:
            self._show_progress(
                todo, (_finish_chunk(*self._chunk(path)) for path in todo)
            )
            return
        with ProcessPoolExecutor(
            num_workers, initializer=_start_worker
        ) as pool:
            try:
                # Submitting forks the processes: before the bar starts a
                # thread. It raises, too, if one has died in the meantime.
                futures = [
                    pool.submit(_finish_chunk, *self._chunk(path))
                    for path in todo
                ]
                self._show_progress(
                    todo, (future.result() for future in as_completed(futures))
                )
            except BrokenProcessPool as error:
                raise UserError(
                    "A worker process was killed, perhaps for lack of memory. "
                    "Run the same command again, it goes on from here; try a "
                    "smaller --num_workers."
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)

    def _chunk(
        self, path: Path
    ) -> tuple[Path, Sequence[str], Callable[[str], Outcome]]:
        """Return what another process needs, and not the other chunks."""
        return path, self.chunks[path], self.work

    def _show_progress(
        self, todo: Sequence[Path], finished: Iterable[Path]
    ) -> None:
        num_tasks = sum(map(len, self.chunks.values()))
        num_todo = sum(len(self.chunks[path]) for path in todo)
        with tqdm(
            total=num_tasks,
            initial=num_tasks - num_todo,
            unit=" files",
            disable=None,  # no bar in log files
        ) as bar:
            for path in finished:
                bar.update(len(self.chunks[path]))


def _finish_chunk(
    path: Path, tasks: Sequence[str], work: Callable[[str], Outcome]
) -> Path:
    outcomes = [work(task).to_json() for task in tasks]
    with open_atomically(path, durable=False) as file:
        file.write(json.dumps(outcomes))  # faster than json.dump
    return path


def _is_whole(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # ValueError: torn by a power cut
        return False
    return True


def _start_worker() -> None:
    """Let the main process handle Ctrl-C, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _find_finished(report: Report) -> Report | None:
    """Return the earlier report, if it is about this very preparation."""
    manifest_dir = Path(report.manifest_dir)
    earlier = Report.load(manifest_dir)
    if earlier is None or not earlier.manifests:
        return None
    if earlier.corpus != report.corpus:
        raise UserError(
            f"{manifest_dir} holds the manifests of another corpus "
            f"({earlier.corpus}, {earlier.source}). Give each corpus a "
            "MANIFESTS folder of its own, or replace them with --overwrite."
        )
    if earlier.fingerprint != report.fingerprint:
        return None
    written = (*earlier.manifests, *earlier.further)
    if not all((manifest_dir / name).exists() for name in written):
        return None
    earlier.reused = True
    return earlier


def _put_together(
    chunks: _Chunks,
    assign: Callable[[Mapping[str, float]], Mapping[str, str]],
    report: Report,
) -> None:
    """Write the manifests, one after the other."""
    manifest_dir = Path(report.manifest_dir)
    group_seconds: dict[str, float] = {}
    for outcome in chunks:
        report.add(outcome)
        if outcome.rows:
            seconds = sum(row.duration for row in outcome.rows)
            group_seconds.setdefault(outcome.group, 0.0)
            group_seconds[outcome.group] += seconds
    try:
        manifest_of = assign(group_seconds) if group_seconds else {}
    except UserError as error:
        report.save()
        raise UserError(f"{error}\n{report.summary()}") from error
    for name in sorted(set(manifest_of.values())):
        report.manifests[name] = total = Total()
        write_manifest(
            manifest_dir / name, _rows_of(name, chunks, manifest_of, total)
        )


def _rows_of(
    name: str,
    chunks: _Chunks,
    manifest_of: Mapping[str, str],
    total: Total,
) -> Iterator[Row]:
    """Yield the rows of one manifest, and add them up."""
    for outcome in chunks:
        if outcome.rows and manifest_of[outcome.group] == name:
            for row in outcome.rows:
                total.add(row.duration)
                yield row


@contextmanager
def _explain_write_errors(manifest_dir: Path) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"MANIFESTS {manifest_dir} cannot be a folder: it, or what "
            "stands above it, is a file. Give another folder."
        ) from error
    except OSError as error:
        if error.errno not in WRITE_ERRORS:
            raise
        raise UserError(
            f"Cannot write {error.filename or manifest_dir}: "
            f"{error.strerror}. Give a MANIFESTS folder that you can write "
            "to, with space left. What is done is kept: the same command "
            "goes on."
        ) from error
