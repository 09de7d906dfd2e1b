"""Build a miniature corpus: synthetic speech in the layout of a real one.

    python recipes/miniature.py librilight DEST --hours=0.5 --seed=1

A second run with the same arguments does nothing. Results on miniature
corpora exercise the software and say nothing about real speech.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from summarymixing import miniature
from summarymixing.errors import exit_on_user_error

BUILDERS: dict[str, Callable[..., Path]] = {
    "librilight": miniature.build_librilight,
    "librispeech": miniature.build_librispeech,
    "commonvoice_cy": partial(miniature.build_commonvoice, language="cy"),
    "commonvoice_eu": partial(miniature.build_commonvoice, language="eu"),
    "slurp": miniature.build_slurp,
    "iemocap": miniature.build_iemocap,
    "voxceleb1": miniature.build_voxceleb1,
}


def main() -> None:
    """Parse the command line and build one corpus."""
    parser = argparse.ArgumentParser(
        description="Build a miniature corpus of synthetic speech."
    )
    parser.add_argument("corpus", choices=BUILDERS, help="whose layout")
    parser.add_argument("dest", type=Path, help="folder of the corpus")
    parser.add_argument(
        "--hours", type=float, default=0.2, help="approximate (default: 0.2)"
    )
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    arguments = parser.parse_args()
    build = BUILDERS[arguments.corpus]
    print(build(arguments.dest, hours=arguments.hours, seed=arguments.seed))


if __name__ == "__main__":
    exit_on_user_error(main)
