"""A probe from its recipe: loading, checks, training, tests, folds.

A new task is a `ProbeTask` and a YAML file that names it with its head.
"""

from __future__ import annotations

import gc
import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.nnet.schedulers import update_learning_rate
from speechbrain.utils.checkpoints import DEFAULT_SAVE_HOOKS, get_default_hook
from torch import Tensor, nn

from summarymixing.errors import UserError
from summarymixing.files import sha256_of, write_json
from summarymixing.lobes.encoders import (
    PRECISIONS,
    digest,
    load_frozen_encoder,
)
from summarymixing.lobes.probes import Probe
from summarymixing.nnet.bootstrap import mean_interval
from summarymixing.nnet.randomness import derive_seed
from summarymixing.run.brain import count_parameters
from summarymixing.run.checkpoints import open_checkpoints
from summarymixing.run.hparams_file import HparamsFile, check_choices
from summarymixing.run.processes import on_main_process
from summarymixing.run.stopping import Stopped, stop_requested_anywhere
from summarymixing.training import layer_weights
from summarymixing.training.classification import ALL, SPEAKERS
from summarymixing.training.encode_once import (
    AUTO,
    DTYPES,
    OFF,
    ON,
    encode_once,
)
from summarymixing.training.probe_data import ProbeBatch, load_probe_data
from summarymixing.training.probe_task import ProbeTask
from summarymixing.training.task_brain import TaskBrain

TESTED_NAME = "tested.json"  # of a fold: what its metrics.json is made from


class ProbeBrain(TaskBrain):
    """Train and test a probe: a head and layer weights on a frozen encoder.

    Arguments
    ---------
    **kwargs : Any
        See `TaskBrain`; `hparams` has the keys of hparams/shared/probe.yaml,
        `modules` is {"encoder": FrozenEncoder, "probe": Probe}.
    """

    def train_and_test(self) -> None:
        """Encode what no run has stored, train and test."""
        self.encode_once()
        super().train_and_test()

    def encode_once(self) -> None:
        """Take stored states in place of audio, as far as they fit."""
        last = on_main_process(self.checkpointer.find_checkpoint)
        left = self.num_updates - (last.meta["update"] if last else 0)
        self.data = encode_once(
            self.data,
            self.task,
            self.modules["encoder"],
            vars(self.hparams),
            trains_an_epoch=left >= self.data.first_update(1),
        )

    def init_optimizers(self) -> None:
        """Make one optimiser for the head and one for the layer weights."""
        h, probe = self.hparams, self.model
        self.optimizers_dict = {
            "head_optimizer": h.head_optimizer(probe.head.parameters()),
            "weights_optimizer": h.weights_optimizer(
                probe.weighted_sum.parameters()
            ),
        }
        self.checkpointer.add_recoverables(self.optimizers_dict)

    def set_learning_rates(self, update: int) -> None:
        """Keep a constant rate at what the file says, not the checkpoint."""
        followed = schedules(vars(self.hparams))
        for name, optimizer in self.optimizers_dict.items():
            if name.replace("optimizer", "schedule") not in followed:
                update_learning_rate(optimizer, optimizer.defaults["lr"])

    def compute_forward(
        self, batch: ProbeBatch, stage: sb.Stage
    ) -> tuple[Tensor, Tensor]:
        """Return what the head predicts, and the padding mask (B, T)."""
        batch = batch.to(self.device)
        encoded = batch.encoded  # where it is stored
        if encoded is None:
            encoded = self.modules["encoder"](batch.wavs, batch.wav_lens)
        # In evaluation not through DDP: processes may have unequal numbers
        # of batches there.
        training = stage == sb.Stage.TRAIN
        probe = self.modules["probe"] if training else self.model
        return probe(*encoded), encoded.padding_mask

    def after_validation(self, metrics: dict[str, float]) -> None:
        """Log the weights of the layers; let the schedules follow."""
        weights = layer_weights.as_numbers(self.layer_weights())
        self.run_log.write(
            layer_weights.STAGE,
            self.optimizer_step,
            {"epoch": metrics["epoch"], **weights},
        )
        on_main_process(lambda: layer_weights.write_layer_weights(self.folder))
        for name, schedule in schedules(vars(self.hparams)).items():
            _, rate = schedule(metrics[self.hparams.anneal_on])
            optimizer = name.replace("schedule", "optimizer")
            update_learning_rate(self.optimizers_dict[optimizer], rate)

    def layer_weights(self) -> list[float]:
        """Return the weight of each of the L + 1 hidden states."""
        return self.model.weighted_sum.weights().tolist()

    def describe_model(self) -> dict[str, Any]:
        """Return what metrics.json says of the model."""
        weights = self.layer_weights()
        return {
            "layer_weights": weights,
            "parameters": {
                "encoder": count_parameters(self.modules["encoder"]),
                "head": count_parameters(self.model.head),
                "layer_weights": len(weights),
            },
        }

    def write_model(self, metrics: dict[str, Any]) -> None:
        """Write or draw the model that was tested, on the main process."""
        layer_weights.draw_layer_weights(
            metrics["layer_weights"], self.folder, self.task.name
        )


def schedules(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schedules that are not constant, by key."""
    names = ("head_schedule", "weights_schedule")
    return {name: hparams[name] for name in names if hparams[name]}


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


# Settings that a run keeps, and why.
FIXED = {
    "task": "its metrics choose the checkpoint",
    "encoder": "the head has learned from its features",
    "outputs": "the head has one output for each",
    "seed": "batches, masks and dropout are functions of it",
}


def make_fingerprint(
    hparams: Mapping[str, Any], encoder: nn.Module, task: ProbeTask
) -> dict[str, Any]:
    """Return the settings that a run keeps, with their values."""
    return {
        "task": task.name,
        "encoder": digest(encoder),
        "outputs": f"{derive_seed(*task.outputs):x}",
        "seed": hparams["seed"],
        **task.identity(),
    }


def check_task_choices(
    hparams: Mapping[str, Any], task: ProbeTask, **more: Sequence[str]
) -> None:
    """Raise UserError for a value that is not allowed for its key.

    Arguments
    ---------
    hparams : mapping
        The keys of a probe or of a fine-tuning.
    task : ProbeTask
        Its metrics may select the epoch that is tested.
    **more : sequence of str
        The allowed values of keys that not all trainings have.
    """
    check_choices(
        hparams,
        {
            "precision": tuple(PRECISIONS),
            "select_by": ("loss", *task.metrics),
            "order": ("ascending", "random"),
            **more,
        },
    )


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
    # Words of YAML that its older version takes for truth values.
    cache = {True: ON, False: OFF}.get(hparams["cache_features"])
    hparams = {**hparams, "cache_features": cache or hparams["cache_features"]}
    check_task_choices(
        hparams,
        task,
        anneal_on=("loss", "epoch", *task.metrics),
        cache_features=(AUTO, ON, OFF),
        cache_dtype=tuple(DTYPES),
    )
    encoder = load_frozen_encoder(hparams)
    data = load_probe_data(hparams, task)
    head = make_head(hparams, encoder.inner.d_model, task)
    model = Probe(encoder.inner.num_layers + 1, head)
    with_a_state = {  # others are functions of the epoch
        name: schedule
        for name, schedule in schedules(hparams).items()
        if get_default_hook(schedule, DEFAULT_SAVE_HOOKS)
    }
    return ProbeBrain(
        task=task,
        data=data,
        modules={"encoder": encoder, "probe": model},
        hparams={
            **hparams,
            "precision": "fp32",  # of the head; the encoder has its own
            "grad_accumulation_factor": hparams["accumulation"],
        },
        run_opts=run_opts,
        checkpointer=open_checkpoints(
            Path(hparams["output_folder"]) / "checkpoints",
            {"probe": model, **with_a_state},
            make_fingerprint(hparams, encoder, task),
            FIXED,
        ),
    )


def probe(hparams: dict[str, Any], run_opts: Any) -> None:
    """Train and test a probe, or go on with one; arguments: `make_brain`."""
    make_brain(hparams, run_opts).train_and_test()


def run_probe(hparams: dict[str, Any], run_opts: Any) -> None:
    """Run a probe, or one for each fold where `fold` is "all".

    Arguments as in `make_brain`. The folds run in `output_folder/fold_N`; each
    goes on from its own checkpoint, and one that is tested is left alone.
    """
    if hparams.get("fold") != ALL:
        probe(hparams, run_opts)
        return
    folder = Path(hparams["output_folder"])
    folders = {fold: folder / f"fold_{fold}" for fold in SPEAKERS}
    for fold, output_folder in folders.items():
        recipe = HparamsFile.read(folder / "hyperparams.yaml")
        recipe.override({"fold": fold, "output_folder": str(output_folder)})
        # Schedules and the like have a state, so each fold needs its own.
        brain = make_brain(recipe.build(), run_opts)
        tested = output_folder / TESTED_NAME
        inputs = on_main_process(partial(_inputs, recipe, hparams))
        if not on_main_process(partial(_is_tested, tested, inputs, brain)):
            brain.train_and_test()
            on_main_process(partial(write_json, tested, inputs))
        del brain
        if stop_requested_anywhere():
            raise Stopped
        gc.collect()  # the Brain of a fold is a reference cycle
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    on_main_process(lambda: _write_results(folder, folders))


def _inputs(recipe: HparamsFile, hparams: Mapping[str, Any]) -> dict[str, str]:
    """Return what the result of a fold depends on, beside its encoder.

    A changed encoder is refused: the checkpoint knows it.
    """
    splits = hparams["train_split"], hparams["valid_split"]
    paths = {
        Path(hparams["manifests"]) / f"{split}.csv"
        for split in (*splits, *hparams["test_splits"])
    }
    manifests = {path.name: sha256_of(path) for path in sorted(paths)}
    return {**manifests, "settings": recipe.as_text()}


def _is_tested(
    tested: Path, inputs: Mapping[str, str], brain: ProbeBrain
) -> bool:
    """Return whether a fold was trained and tested with these inputs."""
    try:
        metrics = json.loads((brain.folder / "metrics.json").read_text("utf-8"))
        earlier = json.loads(tested.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    # An option such as --optimizer_step_limit may have ended it early.
    complete: bool = metrics["updates"] >= brain.num_updates
    return complete and earlier == inputs and not brain.test_only


def _write_results(folder: Path, folders: Mapping[int, Path]) -> None:
    folds = {
        fold: json.loads((path / "metrics.json").read_text("utf-8"))
        for fold, path in folders.items()
    }
    metrics = join_folds(list(folds.values()))
    write_json(folder / "metrics.json", {**metrics, "folds": folds})
    layer_weights.draw_layer_weights(
        metrics["layer_weights"], folder, f"{metrics['task']}, mean of folds"
    )


def join_folds(folds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the metrics of folds: means, and NAME_std beside each.

    Arguments
    ---------
    folds : sequence of dict
        Contents of their metrics.json.

    Returns
    -------
    dict
        Of the same layout; `utterances` is the sum over the folds.

    Example
    -------
    >>> common = {"task": "x", "valid": {}, "layer_weights": [1.0]}
    >>> join_folds(
    ...     [
    ...         {**common, "splits": {"test": {"accuracy": 60.0}}},
    ...         {**common, "splits": {"test": {"accuracy": 70.0}}},
    ...     ]
    ... )["splits"]
    {'test': {'accuracy': 65.0, 'accuracy_std': 7.0710678118654755}}
    """
    splits = {
        split: _join([fold["splits"][split] for fold in folds])
        for split in folds[0]["splits"]
    }
    weights = zip(*(fold["layer_weights"] for fold in folds), strict=True)
    return {
        **folds[0],
        "splits": splits,
        "valid": _join([fold["valid"] for fold in folds]),
        "layer_weights": [statistics.fmean(column) for column in weights],
    }


def _join(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for name in metrics[0]:
        values = [one[name] for one in metrics]
        if name == "utterances":
            joined[name] = sum(values)
        elif name.endswith("_interval"):
            rates = [one[name.removesuffix("_interval")] for one in metrics]
            joined[name] = mean_interval(rates, values)
        else:
            joined[name] = statistics.fmean(values)
            joined[f"{name}_std"] = statistics.stdev(values)
    return joined
