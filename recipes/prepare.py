#!/usr/bin/env python3
"""Turn a corpus into manifests.

python recipes/prepare.py librilight  /corpora/librilight/medium manifests/ll
python recipes/prepare.py folder      /my/recordings             manifests/mine
python recipes/prepare.py librispeech /corpora/LibriSpeech       manifests/ls
python recipes/prepare.py relocate    manifests/ls/dev-clean.csv /old /new
python recipes/prepare.py verify      manifests/ll

Likewise commonvoice (one language at a time), slurp, iemocap, voxceleb1, fsdd
and your own corpus (--corpus_module=my_corpus.py, written like
summarymixing/data/prepare/fsdd.py).

SOURCE may also be a folder that holds the corpus a few levels below. No audio
is copied. A preparation that was killed goes on when the same command is run
again; one that is finished is not repeated. So does `verify`, which reads all
audio and lists what is bad.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NoReturn

from summarymixing.data import audit
from summarymixing.data.manifest import Manifest, relocate_manifest
from summarymixing.data.prepare import CORPORA
from summarymixing.data.prepare.corpus import Corpus
from summarymixing.errors import (
    INTERRUPTED_STATUS,
    UserError,
    exit_on_user_error,
)
from summarymixing.files import describe_os_error


def main() -> None:
    """Run the sub-command."""
    corpora = dict(CORPORA)
    known, others = _module_parser().parse_known_args()
    if known.corpus_module is not None:
        corpus = load_corpus(known.corpus_module)
        corpora[corpus.name] = corpus
    arguments = vars(_make_parser(corpora).parse_args(others))
    del arguments["corpus_module"]
    command = arguments.pop("command")
    if command == "relocate":
        relocate(**arguments)
    elif command == "verify":
        verify(**arguments)
    else:
        prepare(corpora[command], **arguments)


def load_corpus(path: Path) -> Corpus:
    """Import a module and return its corpus.

    Arguments
    ---------
    path : Path
        A Python file that defines CORPUS.

    Returns
    -------
    Corpus
        The corpus, whose name becomes a command.
    """
    if not path.is_file():
        raise UserError(
            f"--corpus_module {path} is not a file. Give a Python file like "
            "summarymixing/data/prepare/fsdd.py."
        )
    # Worker processes find the module by its name, too.
    sys.path.insert(0, str(path.resolve().parent))
    corpus = getattr(importlib.import_module(path.stem), "CORPUS", None)
    if not isinstance(corpus, Corpus):
        raise UserError(
            f"{path} defines no CORPUS = Corpus(...). Add it as in "
            "summarymixing/data/prepare/fsdd.py; if it is there, rename the "
            f"file, for there is another module {path.stem}."
        )
    return corpus


def prepare(
    corpus: Corpus,
    source: Path,
    manifests: Path,
    num_workers: int,
    overwrite: bool,
    **options: Any,
) -> None:
    """Prepare one corpus and print the account.

    Arguments
    ---------
    corpus : Corpus
        The corpus.
    source, manifests : Path
        The folder of the corpus and the folder to write to.
    num_workers, overwrite
        See `Preparation.run`.
    **options
        The options of this corpus.
    """
    try:
        preparation = corpus.plan(source, manifests, **options)
        found = preparation.plan.source
        if found != Path(os.path.abspath(source)):
            print(f"The corpus below {source} is {found}.")
        account = preparation.run(num_workers=num_workers, overwrite=overwrite)
    except KeyboardInterrupt:
        _end_interrupted()
    print(account.summary())
    if account.reused:
        print(
            "Already prepared with the same options: nothing was done "
            "(--overwrite does it again)."
        )


def relocate(manifest: Path, old_prefix: str, new_prefix: str) -> None:
    """Rewrite the paths of a manifest and say whether the audio is there.

    Arguments
    ---------
    manifest : Path
        The manifest, which is rewritten.
    old_prefix, new_prefix : str
        The folder at the start of its paths, and the one to write instead.
    """
    num_changed = relocate_manifest(manifest, old_prefix, new_prefix)
    print(f"{manifest}: {num_changed:,} paths changed.")
    try:
        Manifest.read(manifest).check_audio()
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)


def verify(
    places: list[Path],
    output: Path | None,
    num_workers: int,
    overwrite: bool,
) -> None:
    """Read all audio of manifests, and list the rows that are bad.

    Arguments
    ---------
    places : list of Path
        Folders of manifests, or CSV files.
    output : Path or None
        Folder of the report and the list; beside the first manifest if None.
    num_workers : int
        The number of processes.
    overwrite : bool
        Whether to read again what an earlier call has verified.
    """
    manifests = audit.find_manifests(places)
    folder = (output or manifests[0].parent).absolute()
    report, quarantine = (
        folder / name for name in (audit.REPORT_NAME, audit.QUARANTINE_NAME)
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            report.unlink(missing_ok=True)
        found = audit.verify(manifests, report, num_workers=num_workers)
        audit.write_quarantine(found, quarantine)
    except KeyboardInterrupt:
        _end_interrupted()
    except BrokenProcessPool as error:
        raise UserError(
            "A worker process was killed, perhaps for lack of memory. Run the "
            "same command again, it goes on from here; try a smaller "
            "--num_workers."
        ) from error
    except OSError as error:
        raise UserError(
            f"{describe_os_error(error)}. --output=FOLDER takes "
            f"{audit.REPORT_NAME} and {audit.QUARANTINE_NAME} elsewhere"
        ) from error
    if found.num_known:
        print(
            f"An earlier call had verified {found.num_known:,} of "
            f"{found.num_rows:,} rows ({report}; --overwrite reads all again)."
        )
    print(found.summary())
    if found.findings:
        print(
            f"{quarantine} lists {len(found.findings):,} rows; recipes/"
            f"pretraining/train.py leaves them out with --exclude={quarantine}"
        )


def _end_interrupted() -> NoReturn:
    print("Interrupted; the same command goes on from here.", file=sys.stderr)
    sys.exit(INTERRUPTED_STATUS)


def _module_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--corpus_module",
        type=Path,
        metavar="FILE",
        help="a Python file with your own corpus, which becomes a COMMAND",
    )
    return parser


def _make_parser(corpora: Mapping[str, Corpus]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        parents=[_module_parser()],
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND"
    )
    for corpus in corpora.values():
        sub = commands.add_parser(
            corpus.name, help=corpus.summary, description=corpus.summary
        )
        sub.add_argument("source", metavar="SOURCE", type=Path)
        sub.add_argument("manifests", metavar="MANIFESTS", type=Path)
        corpus.add_arguments(sub)
        _add_common_arguments(sub)
    summary = "replace the leading folder of the paths in a manifest"
    sub = commands.add_parser("relocate", help=summary, description=summary)
    sub.add_argument("manifest", metavar="MANIFEST", type=Path)
    sub.add_argument("old_prefix", metavar="OLD_PREFIX")
    sub.add_argument("new_prefix", metavar="NEW_PREFIX")
    summary = "read all audio of manifests and list what is bad"
    sub = commands.add_parser("verify", help=summary, description=summary)
    sub.add_argument("places", metavar="MANIFESTS", type=Path, nargs="+")
    sub.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="for the report and the list (default: beside the first manifest)",
    )
    _add_common_arguments(sub)
    return parser


def _count_cores() -> int:
    """Count the cores that this process may use, as a job scheduler says."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num_workers",
        type=int,
        default=_count_cores(),
        metavar="N",
        help="number of processes (default: one for each core, %(default)s)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start anew, even if the same work is finished",
    )


if __name__ == "__main__":
    exit_on_user_error(main)
