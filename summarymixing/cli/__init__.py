"""The command `summarymixing`, which comes with the package.

A sub-command is a module of this folder: its docstring is the help, `Options`
declares what can be typed (see summarymixing/options.py), and `run(options)`
does it and returns the exit status. It imports what is heavy in `run`, so
that help comes at once.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib import import_module

from summarymixing.errors import (
    INTERRUPTED_STATUS,
    UserError,
    exit_on_user_error,
)
from summarymixing.files import describe_os_error
from summarymixing.options import add_arguments

# The name of each module, and what it does.
COMMANDS = {
    "abx": "tell how well an encoder tells phones apart",
    "encode": "turn recordings of any length into features",
    "push": "publish an encoder on the HuggingFace hub",
    "export": "write an encoder as an ONNX file, for programs without PyTorch",
    "transcribe": "turn recordings of any length into text, with times",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sub-command that the command line names, and exit.

    Arguments
    ---------
    argv : sequence of str, optional
        The command line without the program; `sys.argv` by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    sys.exit(exit_on_user_error(lambda: _run(words)))


def _run(words: list[str]) -> int:
    name = words[0] if words else ""
    if name not in COMMANDS:
        _command_parser().parse_args(words or ["--help"])
    module = import_module(f"summarymixing.cli.{name}")
    parser = ArgumentParser(
        prog=f"summarymixing {name}",
        description=module.__doc__,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser, module.Options)
    options = module.Options(**vars(parser.parse_args(words[1:])))
    try:
        status: int = module.run(options)
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED_STATUS
    except OSError as error:
        raise UserError(describe_os_error(error)) from error


def _command_parser() -> ArgumentParser:
    names = "\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items())
    parser = ArgumentParser(
        prog="summarymixing",
        description="Speech encoders of linear cost.",
        epilog=f"commands:\n{names}\n\n"
        "`summarymixing COMMAND --help` tells more about each.",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=[*COMMANDS])
    return parser
