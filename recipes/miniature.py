"""Build a miniature corpus: synthetic speech in the layout of a real one.

    python recipes/miniature.py librilight DEST --hours=0.5 --seed=1

It prints the command that prepares the corpus. A second run with the same
arguments does nothing. Results on miniature corpora exercise the software and
say nothing about real speech.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from summarymixing import miniature
from summarymixing.errors import exit_on_user_error
from summarymixing.miniature.commonvoice import RELEASE

# For each corpus, its builder and the folder of DEST to prepare.
BUILDERS: dict[str, tuple[Callable[..., Path], str]] = {
    "librilight": (miniature.build_librilight, ""),
    "librispeech": (miniature.build_librispeech, "LibriSpeech"),
    "commonvoice_cy": (
        partial(miniature.build_commonvoice, language="cy"),
        f"{RELEASE}/cy",
    ),
    "commonvoice_eu": (
        partial(miniature.build_commonvoice, language="eu"),
        f"{RELEASE}/eu",
    ),
    "slurp": (miniature.build_slurp, ""),
    "iemocap": (miniature.build_iemocap, ""),
    "voxceleb1": (miniature.build_voxceleb1, ""),
}


def main() -> None:
    """Build one corpus and print the command that prepares it."""
    parser = argparse.ArgumentParser(
        description="Build a miniature corpus of synthetic speech."
    )
    parser.add_argument(
        "corpus", choices=BUILDERS, help="the corpus whose layout it has"
    )
    parser.add_argument("dest", type=Path, help="the folder to build it in")
    parser.add_argument(
        "--hours",
        type=float,
        default=0.2,
        help="approximate hours of audio (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="another seed gives other speech (default: %(default)s)",
    )
    arguments = parser.parse_args()
    build, below = BUILDERS[arguments.corpus]
    dest = build(arguments.dest, hours=arguments.hours, seed=arguments.seed)
    name = arguments.corpus.partition("_")[0]
    command = ["python", "recipes/prepare.py", name, str(dest / below)]
    print(shlex.join([*command, f"manifests/{dest.name}"]))


if __name__ == "__main__":
    exit_on_user_error(main)
