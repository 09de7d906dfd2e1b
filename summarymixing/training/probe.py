"""A probe from its recipe: loading, checks, training, tests.

A new task is a `ProbeTask` and a YAML file that names it with its head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.checkpoints import DEFAULT_SAVE_HOOKS, get_default_hook
from torch import nn

from summarymixing.errors import UserError
from summarymixing.lobes.encoders import PRECISIONS
from summarymixing.lobes.probes import Probe
from summarymixing.nnet.randomness import derive_seed
from summarymixing.run import processes
from summarymixing.run.checkpoints import (
    AtomicCheckpointer,
    check_same_run,
)
from summarymixing.run.hparams_file import check_words
from summarymixing.training.frozen_encoder import (
    digest,
    load_frozen_encoder,
)
from summarymixing.training.probe_brain import ProbeBrain, schedules
from summarymixing.training.probe_data import ProbeData, load_probe_data
from summarymixing.training.probe_task import ProbeTask


def make_head(
    hparams: Mapping[str, Any], d_model: int, task: ProbeTask
) -> nn.Module:
    """Make the head for the outputs of a task, the same on every process."""
    wanted, found = hparams["num_outputs"], len(task.outputs)
    if wanted not in (None, found):
        raise UserError(
            f"num_outputs is {wanted}, but column '{task.label}' of "
            f"{hparams['train_split']}.csv makes {found}: "
            f"{', '.join(map(repr, task.outputs[:40]))}. Prepare the whole "
            f"corpus, or give --num_outputs=null."
        )
    torch.manual_seed(derive_seed(hparams["seed"], "head"))
    return hparams["head"](d_model, found)


def run_fingerprint(
    hparams: Mapping[str, Any],
    encoder: nn.Module,
    task: ProbeTask,
) -> dict[str, Any]:
    """What must not change between the runs that share an output folder."""
    return {
        "task": task.name,
        "encoder": digest(encoder),
        "outputs": f"{derive_seed(*task.outputs):x}",
        "seed": hparams["seed"],
        **task.identity(),
    }


def make_brain(hparams: dict[str, Any], run_opts: Any) -> ProbeBrain:
    """Load what a probe needs; UserError for what does not fit together.

    Arguments
    ---------
    hparams : dict
        Built from a file of hparams/mp3s/.
    run_opts : RunOptions
        SpeechBrain's options from the command line.
    """
    task = hparams["task"]
    check_choices(hparams, task, anneal_on=("loss", "epoch", *task.metrics))
    encoder = load_frozen_encoder(hparams)
    data = load_data(hparams, task)
    head = make_head(hparams, encoder.encoder.d_model, task)
    model = Probe(encoder.encoder.num_layers + 1, head)
    return ProbeBrain(
        task=task,
        data=data,
        modules={"encoder": encoder, "probe": model},
        hparams={
            **hparams,
            "precision": "fp32",  # of the head; the encoder has its own
            "max_grad_norm": hparams["max_gradient_norm"],
            "grad_accumulation_factor": hparams["accumulation"],
        },
        run_opts=run_opts,
        checkpointer=make_checkpointer(
            hparams,
            {"probe": model, **_recoverable_schedules(hparams)},
            run_fingerprint(hparams, encoder, task),
        ),
    )


def load_data(hparams: Mapping[str, Any], task: ProbeTask) -> ProbeData:
    """Load this process's share of the data, and fit the task to it."""
    return load_probe_data(
        hparams,
        task,
        rank=processes.rank(),
        world_size=processes.world_size(),
    )


def make_checkpointer(
    hparams: Mapping[str, Any],
    recoverables: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
) -> AtomicCheckpointer:
    """Open the checkpoints of a run; UserError if another run left them."""
    folder = Path(hparams["output_folder"]) / "checkpoints"
    check_same_run(folder, fingerprint)
    return AtomicCheckpointer(folder, recoverables, fingerprint)


def check_choices(
    hparams: Mapping[str, Any], task: ProbeTask, **more: Sequence[str]
) -> None:
    """Raise UserError for a word that is none of those allowed for its key.

    Arguments
    ---------
    hparams : mapping
    task : ProbeTask
    more : sequence of str
        What is allowed, for keys that not all trainings have.
    """
    choices: dict[str, Sequence[str]] = {
        "precision": tuple(PRECISIONS),
        "select_by": ("loss", *task.metrics),
        "order": ("ascending", "random"),
        **more,
    }
    check_words(hparams, choices)


def _recoverable_schedules(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schedules with a state: some are functions of the epoch."""
    return {
        name: schedule
        for name, schedule in schedules(hparams).items()
        if get_default_hook(schedule, DEFAULT_SAVE_HOOKS)
    }


def probe(hparams: dict[str, Any], run_opts: Any) -> None:
    """Train and test a probe, or go on with one; arguments: `make_brain`."""
    train_and_test(make_brain(hparams, run_opts))


def train_and_test(brain: ProbeBrain) -> None:
    """Do what is left of a run; raises `Stopped` where it saves and stops."""
    brain.fit(brain.epochs(), brain.data.train, brain.data.valid)
    brain.test()
