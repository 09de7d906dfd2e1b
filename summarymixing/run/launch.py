"""The command line of every recipe: ``train.py FILE.yaml [--key=value ...]``.

Exit status: 0 done, 2 a mistake that the user can repair, 75 asked to stop
(SIGTERM or SIGUSR1; the same command resumes), 130 interrupted by Ctrl-C.
Torchrun turns all but 0 into 1, and dies of SIGUSR1 itself; a run that was
asked to stop also leaves a file `stopped` in its output folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import speechbrain
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.run_opts import HELP_TEXTS, RunOptions

from summarymixing.errors import (
    INTERRUPTED_STATUS,
    STOPPED_STATUS,
    USER_ERROR_STATUS,
    UserError,
)
from summarymixing.run import processes
from summarymixing.run.hparams_file import (
    HparamsFile,
    read_value,
)
from summarymixing.run.output_folder import (
    mark_stopped,
    output_folder_of,
)
from summarymixing.run.stopping import STOP, Stopped
from summarymixing.run.yaml_trees import nearest

logger = logging.getLogger(__name__)

LIST_OPTIONS = ("jit_module_keys", "compile_module_keys")
# The device decides the backend; log.txt is where the output folder is.
UNUSED_OPTIONS = ("distributed_backend", "log_config")
# SpeechBrain would take these past the recipe, which counts updates by its own
# keys, and saves where a run can go on: after an update.
OWN_KEYS = {
    "auto_mix_prec": "precision",
    "bfloat16_mix_prec": "precision",
    "eval_precision": "precision",
    "grad_accumulation_factor": "accumulation",
    "max_grad_norm": "max_gradient_norm",
    "ckpt_interval_minutes": "checkpoint_every_updates",
    "ckpt_interval_steps": "checkpoint_every_updates",
    "remove_vector_weight_decay": "weight_decay",
}
RUN_OPTIONS = {*HELP_TEXTS, *LIST_OPTIONS}.difference(UNUSED_OPTIONS, OWN_KEYS)
FLAGS = tuple(k for k in HELP_TEXTS if RunOptions().as_dict()[k] is False)

_board = processes.FailureBoard()

Main = Callable[[dict[str, Any], RunOptions], None]


def run(main: Main, argv: Sequence[str] | None = None) -> None:
    """Run a recipe from the command line, with or without torchrun.

    Arguments
    ---------
    main : Callable
        Called as ``main(hparams, run_opts)`` on every rank: the objects that
        the YAML describes, and SpeechBrain's run options for the Brain.
    argv : sequence of str, optional
        The command line without the script; `sys.argv` by default.

    Example
    -------
    >>> path = getfixture("tmp_path") / "recipe.yaml"
    >>> _ = path.write_text("seed: 1")
    >>> run(lambda hparams, run_opts: print(hparams), [str(path), "--seed=3"])
    {'seed': 3}
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        _run(main, argv)
    except UserError as error:
        if _board.claim(str(error)):
            print(f"error: {processes.rank_prefix()}{error}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)
    except KeyboardInterrupt:
        if _board.claim("interrupted"):
            print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED_STATUS)
    except RuntimeError:
        # A collective fails on every rank when one of them is gone.
        if not _board.peer_failed():
            raise
        sys.exit(USER_ERROR_STATUS)


def _run(main: Main, argv: Sequence[str]) -> None:
    file, arguments = split_command_line(argv)
    if "help" in arguments or "h" in arguments:
        _print_help(file)
        return
    if file is None:
        raise UserError(f"which recipe? {_usage()}")
    recipe = HparamsFile.read(Path(file))
    run_opts = _apply(arguments, recipe)
    processes.check_precision(
        str(recipe.tree.get("precision")), str(run_opts.device)
    )
    with (
        STOP.listening(),
        processes.process_group(str(run_opts.device)),
        output_folder_of(recipe, argv) as folder,
    ):
        try:
            main(recipe.build(), run_opts)
            stopped = STOP.received is not None
        except Stopped:
            stopped = True
        if stopped and if_main_process():
            # Rank 0 may learn from another rank that it has to stop.
            reason = STOP.received.name if STOP.received else "another rank"
            if folder is not None:
                mark_stopped(folder, reason)
            print(
                f"stopped by {reason}; the same command resumes the run",
                file=sys.stderr,
            )
    if stopped:
        sys.exit(STOPPED_STATUS)


def split_command_line(
    argv: Sequence[str],
) -> tuple[str | None, dict[str, list[str]]]:
    """Split a command line in the recipe file and the values of each key.

    ``--key=value``, ``--key value`` and ``--flag`` are understood; a value
    may hold further ``=``. UserError on what is neither.

    Arguments
    ---------
    argv : sequence of str
        The command line without the script.

    Returns
    -------
    str or None
        The recipe file.
    dict
        The texts given for each key; none for a bare ``--flag``.

    Example
    -------
    >>> split_command_line(["a.yaml", "--note=x=y", "--lr", "-1e-3", "--debug"])
    ('a.yaml', {'note': ['x=y'], 'lr': ['-1e-3'], 'debug': []})
    """
    file: str | None = None
    arguments: dict[str, list[str]] = {}
    open_key: str | None = None
    for word in argv:
        if word.startswith("--") or word == "-h":
            key, equals, value = word.lstrip("-").partition("=")
            arguments[key] = [value] if equals else []
            open_key = None if equals else key
        elif open_key and _takes(open_key, word, arguments[open_key]):
            arguments[open_key].append(word)
        elif file is None:
            file = word
        else:
            raise UserError(f"'{word}' has no place in the command; {_usage()}")
    return file, arguments


def _takes(key: str, word: str, values: list[str]) -> bool:
    """Return whether ``--key word`` gives a value, after `values` before."""
    if key in LIST_OPTIONS:
        return True
    if key in FLAGS:
        return word in ("True", "False") and not values
    return not values


def _apply(arguments: dict[str, list[str]], recipe: HparamsFile) -> RunOptions:
    """Give each argument to the recipe or to SpeechBrain's run options.

    A root key of the recipe goes before a run option of the same name: it is
    the recipe's value that `main` and the Brain then see.
    """
    overrides: dict[str, Any] = {}
    options: dict[str, list[str]] = {}
    for key, values in arguments.items():
        if key in recipe.tree:
            overrides[key] = _recipe_value(key, values, recipe)
        elif key in RUN_OPTIONS:
            options[key] = values
        else:
            own_key = OWN_KEYS.get(key)
            raise UserError(
                f"--{key} is not a key of {recipe.path}; "
                + (
                    f"--{own_key} takes its place"
                    if own_key in recipe.tree
                    else nearest(key, [*recipe.tree, *sorted(RUN_OPTIONS)])
                )
            )
    recipe.override(overrides)
    return _run_options(options, recipe.path)


def _recipe_value(key: str, values: list[str], recipe: HparamsFile) -> Any:
    if not values and not isinstance(recipe.tree[key], bool):
        raise UserError(f"--{key} needs a value: --{key}=...")
    return read_value(values[0], f"--{key}") if values else True


def _run_options(options: dict[str, list[str]], path: Path) -> RunOptions:
    """Parse run options as SpeechBrain does, and choose the device."""
    words = [str(path)]
    for key, values in options.items():
        if key in LIST_OPTIONS:
            words += [f"--{key}", *values]
        elif key in FLAGS and values in ([], ["True"], ["False"]):
            words += [] if values == ["False"] else [f"--{key}"]
        elif values:
            words += [f"--{key}={values[0]}"]
        else:
            raise UserError(f"--{key} needs a value: --{key}=...")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            _, run_opts, _ = speechbrain.parse_arguments(words)
    except SystemExit:
        reason = complaint.getvalue().strip().rpartition("error: ")[2]
        raise UserError(reason) from None
    limit = run_opts.optimizer_step_limit  # a text: it has no default type
    if limit is not None and not str(limit).isdecimal():
        raise UserError(f"--optimizer_step_limit={limit} must be a number")
    return dataclasses.replace(
        run_opts,
        optimizer_step_limit=None if limit is None else int(limit),
        device=processes.choose_device(run_opts.device),
        overridden_args={*run_opts.overridden_args, "device"},
    )


def _usage() -> str:
    return f"usage: {Path(sys.argv[0]).name} FILE.yaml [--key=value ...]"


def _print_help(file: str | None) -> None:
    """Print the usage and, where a recipe is given, what it can be told."""
    if processes.local_rank() != 0:
        return
    print(_usage())
    print(sys.modules["__main__"].__doc__ or "")
    if file is None:
        print("Give a FILE.yaml to see its keys.")
    else:
        recipe = HparamsFile.read(Path(file))
        print(f"Keys of {recipe.path}:\n{recipe.describe()}")
    print(f"\nSpeechBrain's run options: {', '.join(sorted(RUN_OPTIONS))}")
