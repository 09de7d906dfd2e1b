"""A corpus as `recipes/prepare.py` offers it: its name, options and plan."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from summarymixing.data.prepare.common import check_source, require
from summarymixing.data.prepare.pipeline import Plan, Preparation


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    metavar: str | None = None,
) -> Any:
    """Declare an option of a corpus, as a field of a dataclass.

    The name of the field is that of the option, and its type says how a word
    is read; `tuple[str, ...]` takes several words, and `| None` is left out.

    Arguments
    ---------
    default : Any
        The value where the option is not given.
    help : str
        What the option does; the default is added unless it is None.
    choices : Sequence of str
        The words that may be given; all of them if there is none.
    metavar : str, optional
        The name of the value in the help.

    Returns
    -------
    dataclasses.Field
        A field with this default.
    """
    about = {"help": help, "choices": choices, "metavar": metavar}
    return field(default=default, metadata=about)


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
        types = get_type_hints(self.options)
        for entry in fields(self.options):
            word_type, several = _type_of_words(types[entry.name])
            text = entry.metadata["help"]
            if entry.default is not None:
                text += f" (default: {_describe(entry.default)})"
            parser.add_argument(
                f"--{entry.name}",
                type=word_type,
                nargs="+" if several else None,
                default=entry.default,
                choices=entry.metadata["choices"] or None,
                metavar=entry.metadata["metavar"],
                help=text.replace("%", "%%"),
            )


def _type_of_words(hint: Any) -> tuple[Callable[[str], Any], bool]:
    """Return the type of one word, and whether there may be several."""
    parts = [part for part in get_args(hint) if part is not type(None)]
    if get_origin(hint) is tuple:
        return parts[0], True
    return _type_of_words(parts[0]) if parts else (hint, False)


def _describe(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(default)
    return f"{default:g}" if isinstance(default, float) else str(default)
