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
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import speechbrain
from speechbrain.utils.run_opts import HELP_TEXTS, RunOptions

from summarymixing.errors import (
    INTERRUPTED_STATUS,
    STOPPED_STATUS,
    USER_ERROR_STATUS,
    UserError,
)
from summarymixing.run import peers, processes
from summarymixing.run.hparams_file import HparamsFile, read_value
from summarymixing.run.output_folder import mark_stopped, output_folder_of
from summarymixing.run.stopping import STOP, Stopped, stop_reason
from summarymixing.run.yaml_trees import nearest

LIST_OPTIONS = ("jit_module_keys", "compile_module_keys")
# The device decides the backend; log.txt is where the output folder is.
UNUSED_OPTIONS = ("distributed_backend", "log_config")
# SpeechBrain would take these past the recipe, which counts updates by its own
# keys, and saves where a run can go on: after an update.
REPLACED_OPTIONS = {
    "auto_mix_prec",
    "bfloat16_mix_prec",
    "eval_precision",
    "grad_accumulation_factor",
    "max_grad_norm",
    "ckpt_interval_minutes",
    "ckpt_interval_steps",
    "remove_vector_weight_decay",
    "nonfinite_patience",
    "skip_nonfinite_grads",
}
# Our keys, and what SpeechBrain, fairseq and HuggingFace call them. The first
# key that a recipe has takes the place of the word.
SYNONYMS = {
    "learning_rate": "lr lr_adam lr_initial max_lr peak_lr",
    "weights_learning_rate": "lr_weights",
    "encoder_learning_rate": "lr_wav2vec lr_ssl lr_encoder",
    "max_updates": "max_update max_steps "
    "number_of_epochs num_train_epochs max_epoch epochs number_of_steps",
    "number_of_epochs": "num_train_epochs max_epoch epochs max_steps "
    "max_update",
    "warmup_updates": "warmup warmup_steps n_warmup_steps num_warmup_steps "
    "warmup_ratio",
    "manifests": "data_folder data_dir data_root data dataset data_path "
    "corpus train_csv valid_csv test_csv train_manifest csv_folder "
    "manifest_dir train_file validation_file dataset_name",
    "output_folder": "save_folder save_dir output_dir checkpoint_dir "
    "checkpoints_folder results_folder exp_dir restore_file",
    "encoder": "ssl_hub wav2vec2_hub wav2vec2_folder ssl_folder encoder_path "
    "pretrained_path model_name_or_path encoder_checkpoint w2v_path ssl_model",
    "max_batch_seconds": "max_batch_length max_batch_len max_tokens "
    "batch_size per_device_train_batch_size dynamic_batch_size",
    "batch_size": "per_device_train_batch_size",
    "accumulation": "grad_accumulation_factor gradient_accumulation "
    "gradient_accumulation_steps update_freq accum_grad",
    "precision": "auto_mix_prec bfloat16_mix_prec eval_precision fp16 bf16 "
    "mixed_precision amp",
    "max_gradient_norm": "max_grad_norm clip_norm grad_clip clip_grad_norm",
    "patience_nonfinite": "nonfinite_patience skip_nonfinite_grads",
    "checkpoint_every_minutes": "ckpt_interval_minutes",
    "checkpoint_every_updates": "ckpt_interval_steps "
    "save_interval_updates save_steps checkpoint_interval eval_steps",
    "log_every_updates": "log_interval logging_steps",
    "weight_decay": "remove_vector_weight_decay",
    "num_workers": "dataloader_num_workers",
    "mask_probability": "mask_prob mask_time_prob",
    "time_mask_ratio": "mask_prob mask_time_prob",
    "diversity_weight": "diversity_loss_weight",
    "num_negatives": "n_negatives",
    "front_end_gradient": "feature_grad_mult",
    "d_model": "embedding_dim encoder_embed_dim hidden_size",
    "num_layers": "num_encoder_layers encoder_layers num_hidden_layers",
    "num_heads": "nhead encoder_attention_heads num_attention_heads",
    "schedule": "lr_scheduler lr_scheduler_type scheduler",
    "optimizer": "opt opt_class optim",
}
RUN_OPTIONS = {*HELP_TEXTS, *LIST_OPTIONS}.difference(
    UNUSED_OPTIONS, REPLACED_OPTIONS
)
FLAGS = tuple(k for k in HELP_TEXTS if RunOptions().as_dict()[k] is False)

Main = Callable[[dict[str, Any], RunOptions], None]


def run(main: Main, argv: Sequence[str] | None = None) -> None:
    """Run a recipe from the command line, with or without torchrun.

    Under torchrun this is the last that a script does: the process ends here.

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
    with STOP.listening():  # also while it ends: torchrun sends SIGTERM then
        status = _run_and_report(main, argv)
        if processes.is_under_torchrun():
            processes.leave(status)
    if status:
        sys.exit(status)


def _run_and_report(main: Main, argv: Sequence[str]) -> int:
    """Return the exit status, after the message that belongs to it."""
    try:
        return _run(main, argv)
    except UserError as error:
        rank = processes.rank()  # ranks above 0 say so
        prefix = f"rank {rank}: " if rank else ""
        status, message = USER_ERROR_STATUS, f"error: {prefix}{error}"
    except KeyboardInterrupt:
        status, message = INTERRUPTED_STATUS, "interrupted"
    except Exception as error:
        own = peers.current()
        if own is None:
            raise
        # A collective fails on every process when one of them is gone.
        lost = own.find_lost() if peers.is_of_collective(error) else None
        if lost is None:
            if own.announce(repr(error)):
                sys.excepthook(type(error), error, error.__traceback__)
            return peers.STATUS
        status, message = USER_ERROR_STATUS, f"error: {lost}"
    if peers.announce(message):
        print(message, file=sys.stderr)
    return status


def _run(main: Main, argv: Sequence[str]) -> int:
    file, arguments = split_command_line(argv)
    if "help" in arguments or "h" in arguments:
        _print_help(file)
        return 0
    if file is None:
        raise UserError(f"which file of hyper-parameters? {_usage()}")
    recipe = HparamsFile.read(Path(file))
    run_opts = _apply(arguments, recipe)
    processes.check_precision(
        str(recipe.tree.get("precision")), str(run_opts.device)
    )
    with (
        processes.process_group(str(run_opts.device)),
        peers.watching(),
        output_folder_of(recipe, argv) as folder,
    ):
        stopped = False  # a run that was complete by then is complete
        try:
            main(recipe.build(), run_opts)
        except Stopped:
            stopped = True
        if stopped and processes.rank() == 0:
            reason = stop_reason()
            if folder is not None:
                mark_stopped(folder, reason)
            print(
                f"stopped by {reason}; the same command resumes the run",
                file=sys.stderr,
            )
    return STOPPED_STATUS if stopped else 0


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
            raise UserError(
                f"--{key} is not a key of {recipe.path}; "
                + _key_in_its_place(key, recipe)
            )
    recipe.override(overrides)
    return _run_options(options, recipe.path)


def _key_in_its_place(key: str, recipe: HparamsFile) -> str:
    """Return which key to give instead of one that a recipe lacks."""
    for own_key, words in SYNONYMS.items():
        if own_key in recipe.tree and key in words.split():
            place = recipe.keys.get(own_key)
            meaning = f" ({place.comment})" if place and place.comment else ""
            return f"--{own_key} takes its place{meaning}"
    return nearest(key, [*recipe.tree, *sorted(RUN_OPTIONS)])


def _recipe_value(key: str, values: list[str], recipe: HparamsFile) -> Any:
    if not (values or key in FLAGS or isinstance(recipe.tree[key], bool)):
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
    options = RUN_OPTIONS
    if file is None:
        print("Give a FILE.yaml to see its keys.")
    else:
        recipe = HparamsFile.read(Path(file))
        print(f"Keys of {recipe.path}, by the file that gives the value\n")
        print(recipe.describe())
        options = RUN_OPTIONS - recipe.tree.keys()  # the recipe's go first
    print(f"\nSpeechBrain's run options: {', '.join(sorted(options))}")
