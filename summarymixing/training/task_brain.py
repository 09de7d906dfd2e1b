"""The Brain of trainings with labels: what probes and fine-tuning share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import speechbrain as sb
import torch
import torch.distributed as dist
from speechbrain.utils.logger import get_logger
from torch import Tensor

from summarymixing.data.prepare.account import is_miniature
from summarymixing.errors import UserError
from summarymixing.files import write_json
from summarymixing.nnet.randomness import derive_seed
from summarymixing.run.brain import ResumableBrain
from summarymixing.run.processes import gather_objects, on_main_process
from summarymixing.run.stopping import (
    Stopped,
    stop_requested,
    stop_requested_anywhere,
)
from summarymixing.training.probe_data import ProbeBatch, ProbeData
from summarymixing.training.probe_task import ProbeTask

logger = get_logger(__name__)


class Scored(NamedTuple):
    """What an evaluation keeps of one utterance."""

    id: str
    loss: float | None  # None where the task has no loss in this evaluation
    score: Any  # whatever the task's `summarise` needs


class TaskBrain(ResumableBrain):
    """Train and test a model on a task with labels, on SpeechBrain's loop.

    A training adds its optimisers and its forward pass (`init_optimizers`,
    `compute_forward`), and what it writes about its model.

    Arguments
    ---------
    task : ProbeTask
        Its labels, loss and metrics, fitted to the training data.
    data : ProbeData
        The loaders of this process.
    **kwargs : Any
        See `ResumableBrain`. A checkpoint holds `modules["probe"]`.
    """

    LEARNER = "probe"
    BATCHES_ARE_FIXED = (
        "The length of the run and its schedules are counted in epochs of "
        "these batches."
    )

    def __init__(
        self, *, task: ProbeTask, data: ProbeData, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.task, self.data = task, data
        self.stage_task = task  # another one in tests, see `for_test`
        self.scored: list[Scored] = []  # of the evaluation under way
        self.results: dict[str, float] = {}  # of the evaluation just done
        self.last_update_of_epoch = 0
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

    def train_and_test(self) -> None:
        """Train and test; `Stopped` where the run saves and stops."""
        self.fit(self.epochs(), self.data.train, self.data.valid)
        self.test()

    def on_fit_start(self) -> None:
        """Wrap, make the optimisers, resume, also before a validation."""
        super().on_fit_start()
        if self.resumed_from and "epoch" not in self.resumed_from.meta:
            self.saved_to_validate = self.optimizer_step

    def describe_batches(self) -> dict[str, float]:
        """Return what a number of updates means."""
        return {
            "batches_per_epoch": len(self.data.sampler.plan),
            "batches_per_update": self.data.batches_per_update,
        }

    def on_fit_batch_start(self, batch: ProbeBatch, should_step: bool) -> None:
        """Let dropout depend on the position alone, for an exact resume."""
        torch.manual_seed(
            derive_seed(self.hparams.seed, *self.position(), self.rank)
        )

    def compute_objectives(
        self,
        predictions: tuple[Tensor, Tensor],
        batch: ProbeBatch,
        stage: sb.Stage,
    ) -> Tensor:
        """Return the mean loss of a batch; keep the scores in evaluation."""
        losses = self.stage_task.loss(*predictions, batch.rows)
        if stage == sb.Stage.TRAIN:
            assert losses is not None
            return losses.mean()
        scores = self.stage_task.score(*predictions, batch.rows)
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
        mean = loss.detach().double()
        sums = torch.stack([mean, torch.ones_like(mean)]) * len(batch.rows)
        self.loss_sums += sums
        # After the last update of an epoch its validation comes first.
        if not should_step or self.optimizer_step >= self.last_update_of_epoch:
            return
        if stop_requested_anywhere():
            self.save_checkpoint({})
            raise Stopped

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
        super().on_stage_start(stage, epoch)
        testing = stage == sb.Stage.TEST
        self.stage_task = self.task.for_test() if testing else self.task
        self.scored = []
        self.loss_sums = torch.zeros(2, dtype=torch.float64, device=self.device)

    def on_stage_end(
        self, stage: sb.Stage, stage_loss: float, epoch: int | None = None
    ) -> None:
        """Log; after a validation anneal and save."""
        if stage != sb.Stage.TRAIN:
            self.scored = gather(self.scored)
            self.results = self._summarise()
            if stage == sb.Stage.VALID:
                self._end_epoch({"epoch": epoch or 0, **self.results})
        elif self.step:  # else the batches were before this run went on
            self._log_train()
            # A kill during the validation costs no more than it.
            self.save_checkpoint({})
            self.saved_to_validate = self.optimizer_step

    def _log_train(self) -> None:
        if dist.is_initialized():
            dist.all_reduce(self.loss_sums)
        total, count = self.loss_sums.tolist()
        metrics = {"loss": total / max(count, 1), **self.learning_rates()}
        self.run_log.write("train", self.optimizer_step, metrics)

    def learning_rates(self) -> dict[str, float]:
        """Return the rates of the coming update, by their names in the log."""
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
            **self.stage_task.summarise([s.score for s in self.scored]),
            "utterances": len(self.scored),
        }

    def _end_epoch(self, metrics: dict[str, float]) -> None:
        self.run_log.write("valid", self.optimizer_step, metrics)
        warmup = getattr(self.hparams, "warmup_updates", 0)
        remark = self.task.remark(metrics, self.optimizer_step, warmup)
        if remark:
            logger.warning("%s", remark)
        self.after_validation(metrics)
        # In an order of checkpoints NaN has no place: it could come first.
        self.save_checkpoint(
            {k: math.inf if math.isnan(v) else v for k, v in metrics.items()}
        )
        self.saved_to_validate = None
        if stop_requested_anywhere():
            raise Stopped

    def after_validation(self, metrics: dict[str, float]) -> None:
        """Do what follows a validation, before its checkpoint."""

    def checkpoints_to_keep(self) -> dict[str, Any]:
        """Keep the last checkpoint and the best of `select_by`."""
        return {"min_keys": [self.selected_by] if self.selected_by else []}

    def test(self) -> dict[str, dict[str, Any]]:
        """Test the selected checkpoint; write the reports and metrics.json.

        Returns
        -------
        dict
            Metrics by name of the split.
        """
        tested = self.checkpointer.recover_if_possible(min_key=self.selected_by)
        if tested is None:
            raise UserError(
                f"{self.folder} has no checkpoint to test; train first, "
                "without --test_only and with at least one update"
            )
        splits: dict[str, dict[str, Any]] = {}
        for split, loader in self.data.tests.items():
            self.evaluate(loader)
            scores = [scored.score for scored in self.scored]
            splits[split] = {
                **self.results,
                **on_main_process(partial(self.stage_task.intervals, scores)),
                **self.data.problems[split],
            }
            report = self.stage_task.write_report
            on_main_process(partial(report, self.folder, split, scores))
            logger.info("%s: %s", split, splits[split])
        on_main_process(lambda: self._write_results(splits, tested.meta))
        return splits

    def on_evaluate_start(
        self, max_key: str | None = None, min_key: str | None = None
    ) -> None:
        """Load nothing: `test` has loaded what it tests, once for all."""

    def _write_results(
        self, splits: dict[str, dict[str, Any]], tested: dict[str, Any]
    ) -> None:
        last = self.checkpointer.find_checkpoint().meta
        metrics = {
            "task": self.task.name,
            "encoder": str(self.hparams.encoder),
            "random_encoder": self.hparams.random_encoder,
            "miniature": is_miniature(Path(self.hparams.manifests)),
            "splits": splits,
            "valid": {
                name: value
                for name, value in tested.items()
                if isinstance(value, int | float)
                and name not in ("unixtime", "end-of-epoch")
            },
            "epochs": last.get("epoch", 0),
            "updates": last["update"],
            "outputs": len(self.task.outputs),
            **self.describe_model(),
        }
        write_json(self.folder / "metrics.json", metrics)
        self.write_model(metrics)

    def describe_model(self) -> dict[str, Any]:
        """Return what metrics.json says of the model."""
        raise NotImplementedError

    def write_model(self, metrics: dict[str, Any]) -> None:
        """Write or draw the model that was tested, on the main process.

        Arguments
        ---------
        metrics : dict
            The content of metrics.json.
        """
        raise NotImplementedError


def gather(scored: list[Scored]) -> list[Scored]:
    """Return the scores of all processes, sorted by id; a collective."""
    everywhere = chain.from_iterable(gather_objects(scored))
    return sorted(everywhere, key=lambda entry: entry.id)
