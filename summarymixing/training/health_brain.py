"""A Brain that judges itself, and acts on what it finds."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NoReturn

from speechbrain.utils.checkpoints import ckpt_recency
from speechbrain.utils.logger import get_logger

from summarymixing.lobes.pretraining import PretrainingOutput
from summarymixing.run import peers
from summarymixing.run.brain import ResumableBrain
from summarymixing.run.processes import on_main_process
from summarymixing.training.health_actions import (
    RunHealth,
    WentBack,
    by_health,
    describe,
    is_healthy,
    mark_unhealthy,
    refuse_unhealthy,
)
from summarymixing.training.nonfinite import Origin, find_origin
from summarymixing.training.pretraining_data import (
    PretrainingBatch,
    PretrainingData,
)
from summarymixing.training.pretraining_statistics import first_of_all

logger = get_logger(__name__)

# How often the origin of NaN is looked for: it takes as long as an update.
MAX_EXPLAINED = 20


class HealthBrain(ResumableBrain):
    """What a pre-training does when something goes wrong with it.

    Arguments
    ---------
    data : PretrainingData
        Makes the batches of an update once more.
    **kwargs : Any
        See `ResumableBrain`; `hparams` has the keys about health of
        hparams/shared/pretraining.yaml, too.
    """

    def __init__(self, *, data: PretrainingData, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        h = self.hparams
        self.data = data
        self.health = RunHealth(h.on_bad_health, h.health_patience_updates)
        self.has_gone_back = False  # since the process has started
        self.explained = 0  # updates that were not finite

    def intervals(self) -> Iterator[int]:
        """Count the intervals that are left, as epochs of `fit`."""
        raise NotImplementedError

    def forward_again(
        self, batch: PretrainingBatch, update: int, micro_batch: int
    ) -> PretrainingOutput:
        """Repeat a forward pass of an update on this process alone."""
        raise NotImplementedError

    def fit(self, epoch_counter: Any, *args: Any, **kwargs: Any) -> None:
        """Train; after a return to an earlier checkpoint, once more."""
        on_main_process(
            lambda: refuse_unhealthy(self.folder, self.hparams.on_bad_health)
        )
        while True:
            try:
                super().fit(epoch_counter, *args, **kwargs)
                return
            except WentBack:
                self.has_gone_back = True
                epoch_counter = self.intervals()

    def _open_log(self) -> None:
        super()._open_log()
        self.health.open(self.run_log, self.progress.returns)

    def go_back_or_fail(self, verdict: dict[str, Any]) -> str:
        """Raise WentBack, or return why the run ends."""
        h, before = self.hparams, dict(vars(self.progress))
        message = describe(verdict)
        if h.on_bad_health == "go_back":
            if len(before["returns"]) >= h.max_returns:
                message += f" The run went back {h.max_returns} times before."
            elif self._load_healthy(verdict["since"]):
                self._start_again(verdict, before)
            else:
                message += " No checkpoint of before that is left."
        on_main_process(lambda: mark_unhealthy(self.folder, message))
        return message

    def _load_healthy(self, until: int) -> bool:
        return bool(
            self.checkpointer.recover_if_possible(
                ckpt_predicate=partial(is_healthy, until=until)
            )
        )

    def _start_again(
        self, verdict: dict[str, Any], before: dict[str, Any]
    ) -> NoReturn:
        """Go on from the checkpoint that was loaded, at a lower rate.

        Saved at once: a kill does not undo it.
        """
        factor = before["learning_rate_factor"] * self.hparams.return_rate
        line = {
            "stage": "verdict",
            "update": self.optimizer_step,
            "name": verdict["name"],
            "event": "returned",
            "from_update": verdict["update"],
            "learning_rate_factor": factor,
            "message": verdict["message"],
        }
        progress = self.progress
        progress.returns = [*before["returns"], line]
        progress.learning_rate_factor = factor
        for spent in ("gpu_seconds", "audio_seconds", "skipped_updates"):
            setattr(progress, spent, before[spent])
        logger.warning(
            "%s Going back to update %d, with %g of the learning rate.",
            describe(verdict),
            self.optimizer_step,
            factor,
        )
        self.outcomes.clear()
        self.stop_after_update, self.nonfinite_updates = False, 0
        self.data.close()
        self.health.open(self.run_log, ())
        self.save_checkpoint({})
        raise WentBack

    def checkpoints_to_keep(self) -> dict[str, Any]:
        """Keep the latest ones, and to go back to, the latest healthy ones."""
        keep: dict[str, Any] = {"num_to_keep": self.hparams.checkpoints_to_keep}
        if self.hparams.on_bad_health == "go_back":
            keep["importance_keys"] = [ckpt_recency, by_health]
        return keep

    def save_checkpoint(
        self, metrics: dict[str, Any], beside: bool = False
    ) -> None:
        """Write a checkpoint, which says whether the run is in good health."""
        super().save_checkpoint(
            {**metrics, **self.health.checkpoint_facts()}, beside
        )

    def _count_skipped(self, update: int) -> None:
        # In fp16 single ones belong to the search for a scale of the loss.
        in_a_row = 3 if self.scaler.is_enabled() else 1
        is_due = self.nonfinite_updates + 1 == in_a_row
        if is_due and self.explained < MAX_EXPLAINED:
            self.explained += 1
            self._explain(update)
        super()._count_skipped(update)

    def _explain(self, update: int) -> None:
        """Say where an update stopped being finite; every process calls it.

        On a GPU the weights are those of an update later, since its outcome
        is read then.
        """
        peers.rest()  # it takes longer than an update
        origin, failed = None, ""
        try:
            origin = self._find_origin(update)
        except (RuntimeError, OSError) as error:  # such as no memory for it
            failed = f" It could not be computed again: {error}"
        told = None
        if origin is not None:
            names = ", ".join(origin.ids)
            told = f"update {update}: {origin.place}; utterances: {names}"
            path = self.folder / f"nonfinite_updates.{self.rank}.txt"
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{told}\n")
            told += f" (rank {self.rank}, {path})"
        logger.warning(
            "%s%s",
            first_of_all(told)
            or f"update {update} is finite when it is computed again",
            failed,
        )

    def _find_origin(self, update: int) -> Origin | None:
        for number, (ids, batch) in enumerate(self.data.remake(update)):
            batch = batch.to(self.device)
            forward = partial(self.forward_again, batch, update, number)
            origin = find_origin(self.model, batch, ids, forward)
            if origin is not None:
                return origin
        return None
