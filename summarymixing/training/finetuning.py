"""The Brain of full fine-tuning: a probe's training, the encoder included.

What learns, how fast, and what is masked are functions of the update, so
that a run goes on exactly where it was.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import speechbrain as sb
from speechbrain.utils.logger import get_logger
from torch import Tensor

from summarymixing.errors import UserError
from summarymixing.lobes.encoders import random_twin
from summarymixing.lobes.features import num_frames
from summarymixing.lobes.finetuning import (
    FineTuned,
    LatentMasks,
    draw_masks,
    with_regularisation,
)
from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
from summarymixing.nnet.masking import absolute_lengths
from summarymixing.nnet.randomness import derive_seed
from summarymixing.nnet.span_mask import MaskScheme, overlapping_spans
from summarymixing.pretrained import save_encoder, save_weights
from summarymixing.run.brain import count_parameters, make_optimizer
from summarymixing.run.checkpoints import open_checkpoints
from summarymixing.run.hparams_file import check_minima
from summarymixing.training.ctc import CtcTask
from summarymixing.training.pretraining import parameter_groups
from summarymixing.training.probe import (
    FIXED,
    check_task_choices,
    make_fingerprint,
    make_head,
)
from summarymixing.training.probe_data import ProbeBatch, load_probe_data
from summarymixing.training.recogniser import HEAD_NAME, save_recogniser
from summarymixing.training.schedules import make_schedule
from summarymixing.training.task_brain import TaskBrain

logger = get_logger(__name__)

UNFREEZING_ORDERS = ("together", "top_down", "bottom_up")


def layers_that_learn(
    update: int, num_layers: int, *, freeze: int, every: int, order: str
) -> range:
    """Return the layers of the encoder that an update changes.

    Arguments
    ---------
    update : int
        The first one is 1.
    num_layers : int
    freeze : int
        Updates at the start that change the head alone.
    every : int
        Updates from one layer to the next, unless all come together.
    order : str
        One of `UNFREEZING_ORDERS`.

    Returns
    -------
    range

    Example
    -------
    >>> [
    ...     list(layers_that_learn(u, 3, freeze=1, every=2, order="top_down"))
    ...     for u in (1, 2, 3, 4)
    ... ]
    [[], [2], [2], [1, 2]]
    """
    if update <= freeze:
        return range(0)
    if order == "together":
        return range(num_layers)
    count = min((update - freeze - 1) // every + 1, num_layers)
    if order == "top_down":
        return range(num_layers - count, num_layers)
    return range(count)


def learning_groups(model: FineTuned) -> list[dict[str, Any]]:
    """Separate head, mixers and the rest of the encoder, for an optimiser.

    Each in what weight decay shrinks and what it must not; `name` tells the
    parts apart.
    """
    parts = {id(p): "head" for p in model.head.parameters()}
    parts |= {id(p): "mixers" for p in model.mixers().parameters()}
    groups = []
    for group in parameter_groups(model):
        for name in ("head", "mixers", "encoder"):
            members = [
                p
                for p in group["params"]
                if parts.get(id(p), "encoder") == name
            ]
            groups.append({**group, "params": members, "name": name})
    return [group for group in groups if group["params"]]


class FineTuningBrain(TaskBrain):
    """Train and test an encoder with its head on SpeechBrain's loop.

    Arguments
    ---------
    **kwargs : Any
        See `TaskBrain`; `hparams` has the keys of
        hparams/finetuning/librispeech100.yaml, `modules` is {"probe":
        FineTuned}. A checkpoint holds the whole model.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        h = self.hparams
        self.schedule = make_schedule(
            h.schedule,
            peak=1.0,
            warmup=h.warmup_updates,
            total=self.num_updates,
        )
        self.peak_rates = {
            "head": h.learning_rate,
            "encoder": h.encoder_learning_rate,
            "mixers": h.encoder_learning_rate * h.mixer_learning_rate_factor,
        }
        self.frame_scheme = _mask_scheme(h.time_mask_ratio, h.time_mask_length)
        self.channel_scheme = _mask_scheme(
            h.channel_mask_ratio, h.channel_mask_length
        )
        self.layers = range(0)  # those that learn in the coming update
        self.model.train_layers(self.layers)
        self._choose_layers()

    def _choose_layers(self) -> bool:
        """Let the layers of the coming update learn; tell if they changed."""
        h, before = self.hparams, self.layers
        self.layers = layers_that_learn(
            self.optimizer_step + 1,
            self.model.encoder.num_layers,
            freeze=h.freeze_encoder_updates,
            every=h.unfreeze_every_updates,
            order=h.unfreezing_order,
        )
        if self.layers == before:
            return False
        self.model.train_layers(self.layers)
        return True

    def on_fit_batch_start(self, batch: ProbeBatch, should_step: bool) -> None:
        """Seed dropout and choose the layers, from the position alone."""
        super().on_fit_batch_start(batch, should_step)
        if self._choose_layers():
            # DDP waits for gradients of what it found when it was wrapped,
            # and for no others. All processes change at the same update.
            self._wrap_distributed()
            gc.collect()  # the old wrapper, with its buckets, is a cycle

    def init_optimizers(self) -> None:
        """AdamW over all that will learn at some time."""
        self.optimizer = make_optimizer(
            self.hparams.optimizer, learning_groups(self.model)
        )
        self.optimizers_dict = {"optimizer": self.optimizer}
        self.checkpointer.add_recoverables(self.optimizers_dict)

    def set_learning_rates(self, update: int) -> None:
        """Follow the schedule, each part of the model from its own peak.

        What is frozen has no gradient, so that neither momentum nor weight
        decay touch it.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(update) * self.peak_rates[group["name"]]

    def learning_rates(self) -> dict[str, float]:
        """Return the rates of the last update, and how many layers learn."""
        groups = self.optimizer.param_groups
        rates = {f"{g['name']}_learning_rate": g["lr"] for g in groups}
        return {**rates, "learning_layers": len(self.layers)}

    def compute_forward(
        self, batch: ProbeBatch, stage: sb.Stage
    ) -> tuple[Tensor, Tensor]:
        """Return what the head predicts, and the padding mask (B, T)."""
        moved = batch.to(self.device)
        if stage != sb.Stage.TRAIN:
            # Not through DDP: processes may have unequal numbers of batches.
            return self.model(moved.wavs, moved.wav_lens)
        return self.modules["probe"](
            moved.wavs,
            moved.wav_lens,
            masks=self.draw_masks(batch).to(self.device),
            # The same on all processes: none waits for one with more layers.
            layer_drop_seed=derive_seed(
                self.hparams.seed, "layer drop", *self.position()
            ),
        )

    def draw_masks(self, batch: ProbeBatch) -> LatentMasks:
        """Draw the masks of a training batch, from update and utterance."""
        lengths = absolute_lengths(batch.wav_lens, batch.wavs.shape[1])
        start = self.hparams.seed, "mask", self.optimizer_step
        return draw_masks(
            num_frames(lengths).tolist(),
            self.model.encoder.config["front_end_channels"],
            [derive_seed(*start, row.id) for row in batch.rows],
            frames=self.frame_scheme,
            channels=self.channel_scheme,
        )

    def describe_model(self) -> dict[str, Any]:
        """Return the sizes of the parts, for metrics.json."""
        encoder = count_parameters(self.model.encoder)
        head = count_parameters(self.model.head)
        return {"parameters": {"encoder": encoder, "head": head}}

    def write_model(self, metrics: dict[str, Any]) -> None:
        """Export what was tested, for `summarymixing transcribe`."""
        save_encoder(
            self.model.encoder, self.folder / "encoder", trained_on=metrics
        )
        head, task = self.model.head, self.task
        if not isinstance(task, CtcTask):
            save_weights(head, self.folder / HEAD_NAME)
            return
        reason = save_recogniser(
            self.folder, head, self.hparams.head, task.tokenizer
        )
        if reason:
            logger.warning("summarymixing transcribe cannot use it: %s", reason)


def _mask_scheme(ratio: float, length: int) -> MaskScheme | None:
    if ratio == 0:
        return None
    return partial(overlapping_spans, probability=ratio, length=length)


def load_trainable_encoder(hparams: Mapping[str, Any]) -> Wav2Vec2Encoder:
    """Load the encoder that is to learn, with the regularisation asked for.

    Arguments
    ---------
    hparams : mapping
        `encoder`, `mixer`, `random_encoder`, `seed`, `dropout`, `layer_drop`
        and `mixer_dropout` of hparams/finetuning/librispeech100.yaml.

    Returns
    -------
    Wav2Vec2Encoder
        UserError for a folder without one, and for what it cannot be given.
    """
    encoder: Any = Wav2Vec2Encoder.from_pretrained(
        hparams["encoder"], mixer=hparams["mixer"]
    )
    if hparams["random_encoder"]:
        encoder = random_twin(encoder, hparams["seed"])
    keys = ("dropout", "layer_drop", "mixer_dropout")
    changes = {key: hparams[key] for key in keys}
    try:
        return with_regularisation(encoder, **changes)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{hparams['encoder']} cannot be built with {changes}: {error}. "
            "null keeps what it was pre-trained with."
        ) from error


def make_brain(hparams: dict[str, Any], run_opts: Any) -> FineTuningBrain:
    """Load what fine-tuning needs; UserError for what does not fit together.

    Arguments
    ---------
    hparams : dict
        Built from a file of hparams/finetuning/.
    run_opts : RunOptions
        SpeechBrain's options from the command line.
    """
    task = hparams["task"]
    _check(hparams, task)
    encoder = load_trainable_encoder(hparams)
    data = load_probe_data(hparams, task)
    head = make_head(hparams, encoder.d_model, task)
    model = FineTuned(encoder, head, train_front_end=hparams["train_front_end"])
    return FineTuningBrain(
        task=task,
        data=data,
        modules={"probe": model},
        hparams={
            **hparams,
            "eval_precision": hparams["precision"],
            "grad_accumulation_factor": hparams["accumulation"],
        },
        run_opts=run_opts,
        checkpointer=open_checkpoints(
            Path(hparams["output_folder"]) / "checkpoints",
            {"probe": model},
            make_fingerprint(hparams, encoder, task),
            FIXED,
        ),
    )


def _check(hparams: Mapping[str, Any], task: Any) -> None:
    check_task_choices(hparams, task, unfreezing_order=UNFREEZING_ORDERS)
    masks = "time_mask_length", "channel_mask_length"
    at_least_1 = "max_batch_seconds", "unfreeze_every_updates", *masks
    check_minima(hparams, dict.fromkeys(at_least_1, 1))
    source = Path(hparams["encoder"]).resolve()
    if source == Path(hparams["output_folder"]).resolve() / "encoder":
        raise UserError(
            f"the fine-tuned encoder would replace {source}, from which it "
            "starts; choose another --output_folder."
        )


def fine_tune(hparams: dict[str, Any], run_opts: Any) -> None:
    """Fine-tune and test, or go on with a run; arguments: `make_brain`."""
    make_brain(hparams, run_opts).train_and_test()
