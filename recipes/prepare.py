#!/usr/bin/env python3
"""Turn a corpus into manifests.

python recipes/prepare.py librilight  /corpora/librilight/medium manifests/ll
python recipes/prepare.py folder      /my/recordings             manifests/mine
python recipes/prepare.py librispeech /corpora/LibriSpeech       manifests/ls
python recipes/prepare.py relocate    manifests/ls/dev-clean.csv /old /new

Likewise commonvoice (a folder a language), slurp, iemocap, voxceleb1, fsdd.

No audio is copied. A preparation that was killed goes on when the same
command is run again; one that is finished is not repeated.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from summarymixing.data.manifest import Manifest, relocate_manifest
from summarymixing.data.prepare import CORPORA
from summarymixing.errors import (
    INTERRUPTED_STATUS,
    UserError,
    exit_on_user_error,
)


def main() -> None:
    """Run the sub-command."""
    arguments = vars(_make_parser().parse_args())
    command = arguments.pop("command")
    if command == "relocate":
        relocate(**arguments)
    else:
        prepare(command, **arguments)


def prepare(
    name: str,
    source: Path,
    manifests: Path,
    num_workers: int,
    overwrite: bool,
    **options: Any,
) -> None:
    """Prepare one corpus and print the account.

    Arguments
    ---------
    name : str
        Key of `CORPORA`.
    source, manifests : Path
        The folder of the corpus and the folder to write to.
    num_workers, overwrite
        See `Preparation.run`.
    **options
        Options of this corpus.
    """
    try:
        preparation = CORPORA[name].plan(source, manifests, **options)
        report = preparation.run(num_workers=num_workers, overwrite=overwrite)
    except KeyboardInterrupt:
        print(
            "Interrupted; the same command goes on from here.", file=sys.stderr
        )
        sys.exit(INTERRUPTED_STATUS)
    print(report.summary())
    if report.reused:
        print(
            "Already prepared with the same options: nothing was done "
            "(--overwrite does it again)."
        )


def relocate(manifest: Path, old_prefix: str, new_prefix: str) -> None:
    """Rewrite the paths of a manifest and say whether the audio is there.

    Arguments
    ---------
    manifest : Path
        The manifest.
    old_prefix, new_prefix : str
        Leading folders: in the manifest, and in its place.
    """
    num_changed = relocate_manifest(manifest, old_prefix, new_prefix)
    print(f"{manifest}: {num_changed:,} paths changed.")
    try:
        Manifest.read(manifest).check_audio()
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND"
    )
    for corpus in CORPORA.values():
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
        help="processes (default: one for each core, %(default)s)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start anew, even if the same preparation is finished",
    )


if __name__ == "__main__":
    exit_on_user_error(main)
