r"""Pre-train wav2vec 2.0 with a SummaryMixing (or attention) Conformer.

torchrun --nproc_per_node=N recipes/pretraining/train.py \
    hparams/pretraining/summarymixing_base.yaml \
    --manifests=MANIFESTS --output_folder=results/my_run [--key=value ...]

Started again with the same command, the run goes on from its last checkpoint.
"""

import contextlib
from pathlib import Path
from typing import Any

from summarymixing.run.checkpoints import open_checkpoints
from summarymixing.run.hparams_file import check_choices, check_minima
from summarymixing.run.launch import RunOptions, run
from summarymixing.training.health_actions import ON_BAD_HEALTH
from summarymixing.training.pretraining import (
    FIXED,
    PretrainingBrain,
    make_fingerprint,
)
from summarymixing.training.pretraining_data import load_pretraining_data


def pretrain(hparams: dict[str, Any], run_opts: RunOptions) -> None:
    """Pre-train from manifests, or go on with a run; every process calls it.

    Arguments
    ---------
    hparams : dict
        The objects and values of a file of hparams/pretraining/. The model
        (`hparams["model"]`) is one module whose forward returns the losses.
    run_opts : RunOptions
        SpeechBrain's options from the command line.
    """
    check_choices(
        hparams,
        {
            "loss_reduction": ("mean", "sum"),
            "on_bad_health": ON_BAD_HEALTH,
            "precision": ("fp32", "bf16", "fp16"),
        },
    )
    check_minima(
        hparams,
        {
            "checkpoint_every_updates": 1,
            "checkpoint_every_minutes": 0,
            "checkpoints_to_keep": 1,
            "log_every_updates": 1,
        },
    )
    # Masks are drawn with the batches, in the processes that load the audio.
    data = load_pretraining_data(hparams)
    checkpointer = open_checkpoints(
        Path(hparams["output_folder"]) / "checkpoints",
        {"model": hparams["model"]},
        make_fingerprint(hparams),
        FIXED,
    )
    brain = PretrainingBrain(
        data=data,
        modules={"model": hparams["model"]},
        # Under the names that SpeechBrain knows:
        hparams={
            **hparams,
            "grad_accumulation_factor": hparams["accumulation"],
            "eval_precision": hparams["precision"],
        },
        run_opts=run_opts,
        checkpointer=checkpointer,
    )
    # Each interval ends with a validation, a checkpoint and an encoder.
    with contextlib.closing(data):
        brain.fit(brain.intervals(), data.train, data.valid)


if __name__ == "__main__":
    run(pretrain)
