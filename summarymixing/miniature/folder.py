"""A corpus folder that is either complete or absent, built in parallel."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from summarymixing.data.prepare.account import MINIATURE_MARKER
from summarymixing.errors import UserError

Job = Callable[[], None]


def build_once(
    dest: Path,
    corpus: str,
    arguments: Mapping[str, object],
    make_jobs: Callable[[Path], Iterable[Job]],
) -> Path:
    """Build a corpus, unless it is there already.

    It is built in a hidden folder beside its place and moved there at the
    end; a killed run leaves at most that hidden folder, `.NAME.partial-*`.

    Arguments
    ---------
    dest : Path
        The folder of the corpus.
    corpus : str
        The name of the real corpus, for people.
    arguments : mapping
        All that the content depends on; a corpus that was built with the same
        arguments is left alone.
    make_jobs : Callable[[Path], iterable of Job]
        Writes what is common (tables) to the given folder, and returns the
        jobs that write the rest, in any order and in parallel.

    Returns
    -------
    Path
        `dest`. UserError where espeak-ng is missing, or where it holds
        something else.
    """
    marker = _describe(corpus, arguments)
    if _is_built(dest, marker):
        return dest
    dest.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{dest.name}.partial-"
    with tempfile.TemporaryDirectory(dir=dest.parent, prefix=prefix) as aside:
        root = Path(aside) / "corpus"
        root.mkdir()
        run_jobs(list(make_jobs(root)), f"miniature {corpus}")
        # Last, so that it also tells a complete corpus from any other folder.
        (root / MINIATURE_MARKER).write_text(marker, encoding="utf-8")
        try:
            root.replace(dest)
        except OSError:  # not empty: another process was faster
            if not _is_built(dest, marker):
                raise
    return dest


def run_jobs(jobs: Sequence[Job], title: str) -> None:
    """Run independent jobs in parallel, with a progress bar on a terminal.

    Threads suffice: the work is done in other processes and in libraries
    that release the interpreter. The first error of a job is raised; jobs
    that have not begun are then cancelled.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as executor:
        futures = [executor.submit(job) for job in jobs]
        bar = tqdm(total=len(jobs), desc=title, unit="recording", disable=None)
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
            bar.close()


def _describe(corpus: str, arguments: Mapping[str, object]) -> str:
    return (
        f"A miniature of {corpus}: synthetic speech by espeak-ng in the "
        "layout of the real corpus.\n"
        "It exercises software; results on it say nothing about real speech.\n"
        + "".join(f"{name}: {value}\n" for name, value in arguments.items())
    )


def _is_built(dest: Path, marker: str) -> bool:
    """Tell a finished corpus from an empty place; refuse everything else."""
    if not dest.exists() or (dest.is_dir() and not any(dest.iterdir())):
        return False
    found = dest / MINIATURE_MARKER
    if not found.is_file():
        raise UserError(
            f"{dest} exists but is not a miniature corpus. Choose another "
            "folder."
        )
    if found.read_text(encoding="utf-8") != marker:
        raise UserError(
            f"{dest} holds a miniature corpus built with other arguments (see "
            f"{found}). Delete it, or choose another folder."
        )
    return True
