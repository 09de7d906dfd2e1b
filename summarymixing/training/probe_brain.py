"""The Brain of all probes: a head and layer weights on a frozen encoder.

The only position that a run has is its number of updates.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import speechbrain as sb
import torch
import torch.distributed as dist
from speechbrain.nnet.schedulers import update_learning_rate
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from summarymixing.errors import UserError
from summarymixing.files import write_json
from summarymixing.nnet.randomness import derive_seed
from summarymixing.run import processes
from summarymixing.run.processes import on_main_process
from summarymixing.run.records import RunLog
from summarymixing.run.stopping import (
    Stopped,
    stop_requested,
    stop_requested_anywhere,
)
from summarymixing.training import layer_weights
from summarymixing.training.probe_data import (
    ProbeBatch,
    ProbeData,
)
from summarymixing.training.probe_task import ProbeTask

logger = logging.getLogger(__name__)


class Scored(NamedTuple):
    """id : of the utterance; loss : if it has one; score : of the task."""

    id: str
    loss: float | None
    score: Any


class ProbeBrain(sb.Brain):
    """Train and test a probe on SpeechBrain's loop.

    hparams : the keys of hparams/shared/probe.yaml. modules : {"encoder":
    FrozenEncoder, "probe": Probe}. A checkpoint holds the probe, not the
    encoder.
    """

    def __init__(
        self, *, task: ProbeTask, data: ProbeData, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.task, self.data = task, data
        self.probe = self.modules["probe"]  # without DDP around it
        self.rank = processes.rank()
        self.folder = Path(self.hparams.output_folder)
        self.results: dict[str, float] = {}  # of the evaluation just done
        self.saved_to_validate: int | None = None  # last update of its epoch

    @property
    def selected_by(self) -> str | None:
        """The number whose lowest value chooses the epoch; None: the last."""
        h = self.hparams
        return None if h.test_last_epoch else h.select_by

    @property
    def num_updates(self) -> int:
        """Updates of the whole run."""
        h = self.hparams
        limit = self.data.first_update(h.number_of_epochs)
        return limit if h.max_updates is None else min(limit, h.max_updates)

    def epochs(self) -> Iterator[int]:
        """Count epochs from 1, beginning with the one that comes next."""
        data = self.data
        for epoch in range(self.hparams.number_of_epochs):
            start = max(self.optimizer_step, data.first_update(epoch))
            stop = min(data.first_update(epoch + 1), self.num_updates)
            if start < stop or start == stop == self.saved_to_validate:
                data.sampler.set_range(start, stop)
                self.last_update_of_epoch = stop
                yield epoch + 1

    # Start

    def on_fit_start(self) -> None:
        """Wrap, make the optimisers, resume."""
        super().on_fit_start()
        self._read_position()
        self.run_log = RunLog(self.folder, resumed_at=self.optimizer_step)
        if self.optimizer_step:
            logger.info("going on from update %d", self.optimizer_step)

    def _read_position(self) -> None:
        """See where the run goes on; UserError if in other units of updates."""
        last = self.checkpointer.find_checkpoint()
        if last is None:
            return
        if last.meta["units"] != self.data.units:
            raise UserError(
                f"{last.path} was saved with {last.meta['units']}, this run "
                f"has {self.data.units}. Give the same batches and number of "
                "processes to go on, --test_only to test it, or another "
                "--output_folder"
            )
        if "epoch" not in last.meta:
            self.saved_to_validate = self.optimizer_step

    def _wrap_distributed(self) -> None:
        """Wrap the probe once.

        Unlike SpeechBrain: SyncBatchNorm only where it exists, on GPUs;
        gradients live in the buckets and need no copy.
        """
        if not dist.is_initialized():
            return
        on_gpu = self.device_type == "cuda"
        if on_gpu:
            nn.SyncBatchNorm.convert_sync_batchnorm(self.probe)
        self.modules["probe"] = DistributedDataParallel(
            self.probe,
            device_ids=[self.device] if on_gpu else None,
            gradient_as_bucket_view=True,
        )

    def init_optimizers(self) -> None:
        """Make one optimiser for the head and one for the layer weights.

        Each has a single group: SpeechBrain clips only the first.
        """
        h, probe = self.hparams, self.probe
        self.optimizers_dict = {
            "head_optimizer": h.head_optimizer(probe.head.parameters()),
            "weights_optimizer": h.weights_optimizer(
                probe.weighted_sum.parameters()
            ),
        }
        self.checkpointer.add_recoverables(self.optimizers_dict)

    # Training

    def on_fit_batch_start(self, batch: ProbeBatch, should_step: bool) -> None:
        """Let dropout depend on the position alone, for an exact resume."""
        del batch, should_step
        torch.manual_seed(
            derive_seed(self.hparams.seed, *self._position(), self.rank)
        )

    def _position(self) -> tuple[int, int]:
        """Return the updates done and the batches of the one under way."""
        return self.optimizer_step, self.step % self.grad_accumulation_factor

    def compute_forward(
        self, batch: ProbeBatch, stage: sb.Stage
    ) -> tuple[Tensor, Tensor]:
        """Return what the head predicts, and the padding mask (B, T)."""
        batch = batch.to(self.device)
        encoded = self.modules["encoder"](batch.wavs, batch.wav_lens)
        # In evaluation not through DDP: processes may have unequal numbers
        # of batches there.
        probe = self.modules["probe"] if _is_training(stage) else self.probe
        return probe(*encoded), encoded.padding_mask

    def compute_objectives(
        self,
        predictions: tuple[Tensor, Tensor],
        batch: ProbeBatch,
        stage: sb.Stage,
    ) -> Tensor:
        """Return the mean loss of a batch; keep the scores in evaluation."""
        losses = self.judge.loss(*predictions, batch.rows)
        if _is_training(stage):
            assert losses is not None
            return losses.mean()
        scores = self.judge.score(*predictions, batch.rows)
        values = [None] * len(scores) if losses is None else losses.tolist()
        self.scored += map(Scored, [r.id for r in batch.rows], values, scores)
        return torch.zeros(()) if losses is None else losses.mean()

    def on_fit_batch_end(
        self,
        batch: ProbeBatch,
        outputs: tuple[Tensor, Tensor],
        loss: Tensor,
        should_step: bool,
    ) -> None:
        """Sum the loss, and stop between updates where that is asked for."""
        del outputs
        count = len(batch.rows)
        self.loss_sums += torch.stack(
            [loss.detach().double() * count, loss.new_tensor(count).double()]
        )
        # After the last update of an epoch its validation comes first.
        if not should_step or self.optimizer_step >= self.last_update_of_epoch:
            return
        if stop_requested_anywhere():
            self.save_checkpoint({})
            raise Stopped

    # Stages

    def evaluate_batch(self, batch: ProbeBatch, stage: sb.Stage) -> Tensor:
        """Leave an evaluation at once where that is asked for.

        Not where several processes may have unequal numbers of batches: they
        could not agree. What they have learned is saved all the same.
        """
        if stop_requested() and not dist.is_initialized():
            raise Stopped
        return super().evaluate_batch(batch, stage)

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Start the sums of a stage."""
        del epoch
        testing = stage == sb.Stage.TEST
        self.judge = self.task.for_test() if testing else self.task
        self.scored: list[Scored] = []
        self.loss_sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        if not _is_training(stage) and dist.is_initialized():
            # Running statistics differ between processes after an update.
            for buffer in self.probe.buffers():
                dist.broadcast(buffer, src=0)

    def on_stage_end(
        self, stage: sb.Stage, stage_loss: float, epoch: int | None = None
    ) -> None:
        """Log; after a validation anneal and save."""
        del stage_loss
        if _is_training(stage):
            self._end_training()
            return
        self.scored = gather(self.scored)
        self.results = self._summarise()
        if stage == sb.Stage.VALID:
            self._end_epoch(int(epoch or 0), self.results)

    def _end_training(self) -> None:
        """Log and save: a kill during the validation costs no more than it."""
        if self.optimizer_step == self.saved_to_validate:
            return  # that was before this run went on
        self._log_train()
        self.save_checkpoint({})
        self.saved_to_validate = self.optimizer_step

    def _log_train(self) -> None:
        if dist.is_initialized():
            dist.all_reduce(self.loss_sums)
        total, count = self.loss_sums.tolist()
        numbers = {"loss": total / max(count, 1), **self._learning_rates()}
        self.run_log.write("train", self.optimizer_step, numbers)

    def _learning_rates(self) -> dict[str, float]:
        return {
            name.replace("optimizer", "learning_rate"): o.param_groups[0]["lr"]
            for name, o in self.optimizers_dict.items()
        }

    def _summarise(self) -> dict[str, float]:
        losses = [s.loss for s in self.scored if s.loss is not None]
        # Exact sums, so that the order of utterances makes no difference.
        loss = {"loss": math.fsum(losses) / len(losses)} if losses else {}
        return {
            **loss,
            **self.judge.summarise([scored.score for scored in self.scored]),
            "utterances": len(self.scored),
        }

    def _end_epoch(self, epoch: int, numbers: dict[str, float]) -> None:
        numbers = {"epoch": epoch, **numbers}
        self.run_log.write("valid", self.optimizer_step, numbers)
        self._log_model(epoch)
        self._anneal(numbers)
        self.save_checkpoint(numbers)
        self.saved_to_validate = None
        if stop_requested_anywhere():
            raise Stopped

    def _log_model(self, epoch: int) -> None:
        """Write down what an epoch has made of the model."""
        weights = layer_weights.as_numbers(self.layer_weights())
        self.run_log.write(
            layer_weights.STAGE,
            self.optimizer_step,
            {"epoch": epoch, **weights},
        )
        on_main_process(lambda: layer_weights.write_layer_weights(self.folder))

    def _anneal(self, numbers: Mapping[str, float]) -> None:
        h = self.hparams
        for name, schedule in schedules(vars(h)).items():
            _, rate = schedule(numbers[h.anneal_on])
            optimizer = name.replace("schedule", "optimizer")
            update_learning_rate(self.optimizers_dict[optimizer], rate)

    def save_checkpoint(self, numbers: dict[str, float]) -> None:
        """Save; keep the last checkpoint and the best of `select_by`.

        Arguments
        ---------
        numbers : dict
            Of the validation, with its `epoch`; empty before it.
        """
        self.step = 0  # an epoch, or its rest, starts at a first micro-batch
        self.avg_train_loss = 0.0
        best = self.selected_by
        self.checkpointer.save_and_keep_only(
            meta={
                "update": self.optimizer_step,
                "units": self.data.units,
                **numbers,
            },
            min_keys=[best] if best else [],
        )

    def layer_weights(self) -> list[float]:
        """Return the weight of each of the L + 1 hidden states."""
        return self.probe.weighted_sum.weights().tolist()

    # Test

    def test(self) -> dict[str, dict[str, float]]:
        """Test the selected checkpoint; write the reports and metrics.json.

        Returns
        -------
        dict
            Metrics by name of the split.
        """
        if self._tested_checkpoint() is None:
            raise UserError(
                f"{self.folder} has no checkpoint to test; train first, "
                "without --test_only and with at least one update"
            )
        splits = {}
        for split, loader in self.data.tests.items():
            self.evaluate(loader, min_key=self.selected_by)
            splits[split] = {**self.results, **self.data.problems[split]}
            on_main_process(partial(self._write_report, split))
            logger.info("%s: %s", split, splits[split])
        on_main_process(lambda: self._write_results(splits))
        return splits

    def _write_report(self, split: str) -> None:
        scores = [scored.score for scored in self.scored]
        self.judge.write_report(self.folder, split, scores)

    def _tested_checkpoint(self) -> Any:
        return self.checkpointer.find_checkpoint(min_key=self.selected_by)

    def _write_results(self, splits: dict[str, dict[str, float]]) -> None:
        h = self.hparams
        last = self.checkpointer.find_checkpoint()
        metrics = {
            "task": self.task.name,
            "encoder": str(h.encoder),
            "random_encoder": h.random_encoder,
            "splits": splits,
            "valid": _numbers(self._tested_checkpoint()),
            "epochs": _numbers(last).get("epoch", 0),
            "updates": _numbers(last).get("update", 0),
            "outputs": len(self.task.outputs),
            **self._describe_model(),
        }
        write_json(self.folder / "metrics.json", metrics)
        self._write_model(metrics)

    def _describe_model(self) -> dict[str, Any]:
        """Return what metrics.json says of the model."""
        weights = self.layer_weights()
        return {
            "layer_weights": weights,
            "parameters": {
                "encoder": count_parameters(self.modules["encoder"]),
                "head": count_parameters(self.probe.head),
                "layer_weights": len(weights),
            },
        }

    def _write_model(self, metrics: dict[str, Any]) -> None:
        """Write or draw the model that was tested, on the main process."""
        layer_weights.draw_layer_weights(
            metrics["layer_weights"], self.folder, self.task.name
        )


def _is_training(stage: sb.Stage) -> bool:
    return stage == sb.Stage.TRAIN


def _numbers(checkpoint: Any) -> dict[str, float]:
    """Return the numbers that were saved with a checkpoint."""
    return {
        name: value
        for name, value in checkpoint.meta.items()
        if isinstance(value, int | float)
        and name not in ("unixtime", "end-of-epoch")
    }


def count_parameters(module: nn.Module) -> int:
    """Return the number of weights of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def gather(scored: list[Scored]) -> list[Scored]:
    """Return the scores of all processes, sorted by id; a collective."""
    if dist.is_initialized():
        shares: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(shares, scored)
        scored = [entry for share in shares for entry in share]
    return sorted(scored, key=lambda entry: entry.id)


def schedules(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schedules that are not constant, by key."""
    names = ("head_schedule", "weights_schedule")
    return {name: hparams[name] for name in names if hparams[name]}
