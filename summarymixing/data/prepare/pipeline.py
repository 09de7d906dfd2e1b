"""Runs a preparation in many processes; a killed one can go on.

Work items are done in chunks. The result of each chunk is a file below
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
    Account,
    Outcome,
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


Work = Callable[[str], Outcome]
Assign = Callable[[Mapping[str, float]], Mapping[str, str]]


@dataclass(frozen=True)
class Plan:
    """The work of a corpus: what to do with which files.

    Arguments
    ---------
    source : Path
        The folder of the corpus: SOURCE, or the right one below it.
    files : Sequence of FoundFile
        The files that the result depends on.
    work_items : Sequence of str
        What `work` is called with, in the order of the manifests.
    work : Callable[[str], Outcome]
        Does one item. It is called in other processes, so it must be a
        function of a module, perhaps with `functools.partial`.
    assign : Callable[[Mapping[str, float]], Mapping[str, str]]
        Given the seconds of each group, names the manifest of each group. It
        raises `UserError` where the groups are not what they must be: then no
        manifest is written, and the account follows the message.
    replaces : Sequence of str
        Manifests of an earlier preparation that must not stay beside the new
        ones: an old valid.csv may hold what is now in train.csv.
    listing_outcome : Outcome
        What was dropped, and what is wrong, as far as that was seen while
        the work was listed; it has no rows.
    finish : Callable[[Account], None], optional
        Called when the manifests are there and report.json is not: writes
        the files that belong to them, such as a list of trials, and counts
        their lines in `account.other_files`.
    """

    source: Path
    files: Sequence[FoundFile]
    work_items: Sequence[str]
    work: Work
    assign: Assign
    replaces: Sequence[str] = ()
    listing_outcome: Outcome = field(
        default_factory=lambda: Outcome(num_recordings=0)
    )
    finish: Callable[[Account], None] | None = None


@dataclass(frozen=True)
class Preparation:
    """A plan with the names that its account gives."""

    corpus: str
    layout: str  # the files that it should hold, where none is usable
    options: Mapping[str, Any]
    manifests_folder: Path  # will hold the manifests and report.json
    plan: Plan

    def run(self, *, num_workers: int = 1, overwrite: bool = False) -> Account:
        """Write the manifests and the account.

        Arguments
        ---------
        num_workers : int
            The number of processes; the result does not depend on it.
        overwrite : bool
            Whether to start anew even if this preparation is finished.

        Returns
        -------
        Account
            What was found, kept and dropped.
        """
        require(num_workers >= 1, "--num_workers must be at least 1.")
        folder = Path(os.path.abspath(self.manifests_folder))
        plan = self.plan
        with _explain_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            account = self._new_account(folder)
            if overwrite:
                # If this run is killed, the next one must not find the old.
                (folder / REPORT_NAME).unlink(missing_ok=True)
            finished = _find_finished(account)
            if finished is not None:
                return finished
            partial_folder = _open_partial(account, overwrite)
            chunks = _Chunks(partial_folder, plan.work_items, plan.work)
            chunks.work_through(num_workers)
            # The old account would describe files that are about to change.
            for name in (REPORT_NAME, *plan.replaces):
                (folder / name).unlink(missing_ok=True)
            account.add(plan.listing_outcome)
            _put_together(chunks, plan.assign, account)
            if account.manifests and plan.finish is not None:
                plan.finish(account)
            account.save()
            shutil.rmtree(partial_folder.parent)
        if not account.kept.count:
            raise account.nothing_usable(self.layout)
        return account

    def _new_account(self, folder: Path) -> Account:
        plan = self.plan
        options = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in self.options.items()
        }
        miniature = holds_miniature(plan.source)
        key = [
            RULES_VERSION,
            self.corpus,
            str(plan.source),
            options,
            plan.files,
            plan.work_items,
            miniature,
        ]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        return Account(
            corpus=self.corpus,
            source=str(plan.source),
            manifests_folder=str(folder),
            options=options,
            fingerprint=digest,
            miniature=miniature,
        )


def _open_partial(account: Account, overwrite: bool) -> Path:
    """Return the folder of finished chunks; those of others go."""
    partial_folder = Path(account.manifests_folder) / ".partial"
    mine = partial_folder / account.fingerprint[:16]
    if partial_folder.exists() and (overwrite or not mine.exists()):
        shutil.rmtree(partial_folder)
    mine.mkdir(parents=True, exist_ok=True)
    return mine


class _Chunks:
    """The outcomes of all work items, in a folder of files."""

    def __init__(
        self, folder: Path, work_items: Sequence[str], work: Work
    ) -> None:
        # Not a function of the number of workers: a second run may have more.
        size = min(MAX_CHUNK_SIZE, max(1, len(work_items) // MIN_CHUNKS))
        self.chunks = {
            folder / f"{start // size:06d}.json": work_items[
                start : start + size
            ]
            for start in range(0, len(work_items), size)
        }
        self.work = work

    def __iter__(self) -> Iterator[Outcome]:
        """Yield the outcomes in the order of the work items."""
        for path in self.chunks:
            for saved in json.loads(path.read_text("utf-8")):
                yield Outcome.from_json(saved)

    def work_through(self, num_workers: int) -> None:
        """Do what is not yet done, with a progress bar."""
        # What another process needs, and not the other chunks.
        todo = [
            (path, work_items, self.work)
            for path, work_items in self.chunks.items()
            if not _is_whole(path)
        ]
        num_todo = sum(len(work_items) for _, work_items, _ in todo)
        num_workers = min(num_workers, len(todo))
        if num_workers <= 1:
            self._show_progress(num_todo, (_finish_chunk(*job) for job in todo))
            return
        with ProcessPoolExecutor(
            num_workers, initializer=start_pool_worker
        ) as pool:
            try:
                # Submitting forks the processes: before the bar starts a
                # thread. It raises, too, if one has died in the meantime.
                futures = [pool.submit(_finish_chunk, *job) for job in todo]
                self._show_progress(
                    num_todo,
                    (future.result() for future in as_completed(futures)),
                )
            except BrokenProcessPool as error:
                raise UserError(
                    "A worker process was killed, perhaps for lack of memory. "
                    "Run the same command again, it goes on from here; try a "
                    "smaller --num_workers."
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)

    def _show_progress(self, num_todo: int, finished: Iterable[int]) -> None:
        num_items = sum(map(len, self.chunks.values()))
        with tqdm(
            total=num_items,
            initial=num_items - num_todo,
            unit=" files",
            disable=None,  # no bar in log files
        ) as bar:
            for num_finished in finished:
                bar.update(num_finished)


def _finish_chunk(path: Path, work_items: Sequence[str], work: Work) -> int:
    """Write the outcomes of a chunk; return how many there are."""
    outcomes = [work(item).to_json() for item in work_items]
    with open_atomically(path, durable=False) as file:
        file.write(json.dumps(outcomes))  # faster than json.dump
    return len(outcomes)


def _is_whole(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # ValueError: torn by a power cut
        return False
    return True


def start_pool_worker() -> None:
    """Let the main process handle Ctrl-C, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _find_finished(account: Account) -> Account | None:
    """Return the earlier account, if it is about this very preparation."""
    manifests_folder = Path(account.manifests_folder)
    earlier = Account.load(manifests_folder)
    if earlier is None or not earlier.manifests:
        return None
    if earlier.corpus != account.corpus:
        raise UserError(
            f"{manifests_folder} holds the manifests of another corpus "
            f"({earlier.corpus}, {earlier.source}). Give each corpus a "
            "MANIFESTS folder of its own, or replace them with --overwrite."
        )
    if earlier.fingerprint != account.fingerprint:
        return None
    written = (*earlier.manifests, *earlier.other_files)
    if not all((manifests_folder / name).exists() for name in written):
        return None
    earlier.reused = True
    return earlier


def _put_together(chunks: _Chunks, assign: Assign, account: Account) -> None:
    """Write the manifests, one after the other."""
    manifests_folder = Path(account.manifests_folder)
    group_seconds: dict[str, float] = {}
    for outcome in chunks:
        account.add(outcome)
        if outcome.rows:
            seconds = sum(row.duration for row in outcome.rows)
            group_seconds.setdefault(outcome.group, 0.0)
            group_seconds[outcome.group] += seconds
    try:
        manifest_of = assign(group_seconds) if group_seconds else {}
    except UserError as error:
        account.save()
        raise UserError(f"{error}\n{account.summary()}") from error
    for name in sorted(set(manifest_of.values())):
        account.manifests[name] = total = Total()
        write_manifest(
            manifests_folder / name, _rows_of(name, chunks, manifest_of, total)
        )


def _rows_of(
    name: str, chunks: _Chunks, manifest_of: Mapping[str, str], total: Total
) -> Iterator[Row]:
    """Yield the rows of one manifest, and add them up."""
    for outcome in chunks:
        if outcome.rows and manifest_of[outcome.group] == name:
            for row in outcome.rows:
                total.add(row.duration)
                yield row


@contextmanager
def _explain_write_errors(manifests_folder: Path) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"MANIFESTS {manifests_folder} cannot be a folder: it, or what "
            "stands above it, is a file. Give another folder."
        ) from error
    except OSError as error:
        if error.errno not in WRITE_ERRORS:
            raise
        raise UserError(
            f"Cannot write {error.filename or manifests_folder}: "
            f"{error.strerror}. Give a MANIFESTS folder that you can write "
            "to, with space left. What is done is kept: the same command "
            "goes on."
        ) from error
