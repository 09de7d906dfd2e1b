"""A corpus as `recipes/prepare.py` offers it: its name, options and plan."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from summarymixing.data.prepare.common import check_source, require
from summarymixing.data.prepare.pipeline import Plan, Preparation
from summarymixing.options import add_arguments
from summarymixing.options import option as option  # for corpora


@dataclass(frozen=True)
class NoOptions:
    """The options of a corpus that has none."""


@dataclass(frozen=True)
class Corpus:
    """One corpus of `recipes/prepare.py`.

    Arguments
    ---------
    name : str
        The name that users type.
    summary : str
        One line of help.
    layout : str
        The files that SOURCE should hold, for error messages.
    list_work : Callable[[Path, Any], Plan]
        Called with the absolute SOURCE and the options; it lists the work
        and writes nothing.
    options : type
        A frozen dataclass whose fields are made by `option`.
    """

    name: str
    summary: str
    layout: str
    list_work: Callable[[Path, Any], Plan]
    options: type[Any] = NoOptions

    def plan(
        self, source: Path, manifests_folder: Path, **options: Any
    ) -> Preparation:
        """List the work of a preparation; its `run` writes the manifests.

        Arguments
        ---------
        source, manifests_folder : Path
            The folder of the corpus, and the one that will hold the manifests
            and report.json.
        **options
            The options that differ from their defaults, by name.

        Returns
        -------
        Preparation
            The preparation, of which nothing is written yet.
        """
        values = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in options.items()
        }
        chosen = self.options(**values)
        for entry in fields(chosen):
            value, choices = getattr(chosen, entry.name), entry.metadata
            words = choices["choices"]
            require(
                not words or value in words,
                f"--{entry.name} is {value!r}; give {' or '.join(words)}.",
            )
        return Preparation(
            corpus=self.name,
            layout=self.layout,
            options=asdict(chosen),
            manifests_folder=manifests_folder,
            plan=self.list_work(check_source(source), chosen),
        )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the options to the parser of the sub-command of this corpus."""
        add_arguments(parser, self.options)
