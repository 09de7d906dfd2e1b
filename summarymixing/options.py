"""Options of commands, declared once as fields of a dataclass."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import MISSING, field, fields
from typing import Any, get_args, get_origin, get_type_hints


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    metavar: str | None = None,
) -> Any:
    """Declare an option, as a field of a dataclass.

    The name of the field is that of the option, and its type says how a word
    is read; `tuple[str, ...]` takes several words, and `| None` is left out.
    A `bool` is a flag, False by default.

    Arguments
    ---------
    default : Any
        The value where the option is not given; `MISSING` of dataclasses
        where it must be given.
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


def argument(help: str, *, metavar: str | None = None) -> Any:
    """Declare an argument without a name, as a field of a dataclass.

    The arguments are those of `option`; the place in the dataclass is the
    place on the command line.
    """
    about = {"help": help, "choices": (), "metavar": metavar}
    return field(metadata={**about, "positional": True})


def add_arguments(parser: ArgumentParser, options: type[Any]) -> None:
    """Add the fields of a dataclass to a parser.

    Arguments
    ---------
    parser : ArgumentParser
        Its result, as keywords, makes the dataclass.
    options : type
        A dataclass whose fields are made by `option` and `argument`.
    """
    types = get_type_hints(options)
    for entry in fields(options):
        word_type, several = _type_of_words(types[entry.name])
        about, text = entry.metadata, entry.metadata["help"]
        settings: dict[str, Any] = {"metavar": about["metavar"]}
        if word_type is bool:
            settings = {"action": "store_true"}
        else:
            settings["type"] = word_type
            settings["nargs"] = "+" if several else None
            settings["choices"] = about["choices"] or None
        if about.get("positional"):
            name = entry.name
        else:
            name = f"--{entry.name}"
            settings["required"] = entry.default is MISSING
            settings["default"] = entry.default
            if entry.default not in (None, MISSING, False):
                text += f" (default: {_describe(entry.default)})"
        parser.add_argument(name, help=text.replace("%", "%%"), **settings)


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
