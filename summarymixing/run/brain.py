"""The Brain under every training: a run that stops, resumes and says so.

Its position is the number of updates, in pre-training with the number of
batches taken; masks, noise and dropout are functions of it, so that a resumed
run makes the updates of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
from collections import deque
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import speechbrain as sb
import torch
import torch.distributed as dist
import yaml
from speechbrain.utils.checkpoints import (
    Checkpoint,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.logger import get_logger
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from summarymixing.errors import UserError
from summarymixing.run import processes
from summarymixing.run.records import RunLog

# SpeechBrain's logger: the ranks above 0 stay silent.
logger = get_logger(__name__)


@register_checkpoint_hooks
class Progress:
    """What a run has used so far; it is part of every checkpoint."""

    def __init__(self) -> None:
        self.gpu_seconds = 0.0
        self.audio_seconds = 0.0
        self.skipped_updates = 0
        # The last one of a pre-training: its update and its metrics.
        self.validation: dict[str, float] = {}
        # The place of a pre-training in the sequence of its batches, and the
        # number of processes that this is made for.
        self.batches_taken: int | None = None
        self.batches_made_for: int | None = None
        # Lines of the log: returns of a pre-training to an earlier checkpoint,
        # and what its learning rates are multiplied by since then.
        self.returns: list[dict[str, Any]] = []
        self.learning_rate_factor = 1.0

    def metrics(self) -> dict[str, float]:
        """Return hours and updates, by their names in the log."""
        return {
            "gpu_hours": self.gpu_seconds / 3600,
            "audio_hours": self.audio_seconds / 3600,
            "skipped_updates": self.skipped_updates,
        }

    @mark_as_saver
    def save(self, path: Path) -> None:
        """Write as YAML."""
        Path(path).write_text(yaml.safe_dump(vars(self)), encoding="utf-8")

    @mark_as_loader
    def load(self, path: Path, end_of_epoch: bool) -> None:
        """Read what `save` wrote."""
        del end_of_epoch
        vars(self).update(yaml.safe_load(Path(path).read_text("utf-8")))


class Outcome(NamedTuple):
    """What an update came to, on its way from the device."""

    update: int
    # (3,): norm of the gradients; not 0 to stop the run; not 0 where a process
    # had no gradients of its own, and the update was left out.
    values: Tensor
    copied: torch.cuda.Event | None  # None where nothing had to be copied

    @classmethod
    def send(cls, update: int, values: Tensor) -> Outcome:
        """Begin to copy the values without waiting for them."""
        copied = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)  # to pinned memory
            copied = torch.cuda.Event()
            copied.record()
        return cls(update, values, copied)

    def receive(self) -> tuple[float, bool, bool]:
        """Wait for the norm, whether to stop, and whether it was left out."""
        if self.copied is not None:
            self.copied.synchronize()
        norm, stop, broken = self.values.tolist()
        return norm, stop > 0, broken > 0


class ResumableBrain(sb.Brain):
    """SpeechBrain's loop with what pre-training, probes and fine-tuning share.

    A training overrides what it does differently: `init_optimizers`,
    `set_learning_rates`, the forward pass, `describe_batches`.

    Arguments
    ---------
    **kwargs : Any
        Arguments of SpeechBrain's Brain. `modules` holds what learns under
        the name `LEARNER`; `hparams` has `output_folder`, `seed`,
        `max_gradient_norm`, `patience_nonfinite` and, if wanted,
        `train_logger`; `checkpointer` is an `AtomicCheckpointer`.
    """

    LEARNER: ClassVar[str] = "model"
    # Why a run cannot go on with other batches; None where it can.
    BATCHES_ARE_FIXED: ClassVar[str | None] = None

    optimizer_step: int  # SpeechBrain's name for the updates done
    step: int  # micro-batches done since `fit` began its epoch
    avg_train_loss: float

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # A bar in a file is a line for each of its steps.
        self.noprogressbar |= not sys.stderr.isatty()
        self.model = self.modules[self.LEARNER]  # without DDP around it
        self.rank = processes.rank()
        self.world_size = processes.world_size()
        self.folder = Path(self.hparams.output_folder)
        self.gradient_norm = 0.0  # of the last update that was read
        self.nonfinite_updates = 0  # in a row
        # A GPU works on the last update while the next one is queued.
        self.updates_behind = 1 if self.device_type == "cuda" else 0
        self.outcomes: deque[Outcome] = deque()
        self.stop_asked = torch.zeros((), device=self.device)
        self.is_broken = torch.zeros((), device=self.device)
        self.stop_after_update = False
        self.progress = Progress()
        self.checkpointer.add_recoverable(
            "progress", self.progress, optional_load=True
        )

    def on_fit_start(self) -> None:
        """Compile, wrap, make the optimisers, resume, open the log.

        SpeechBrain's own does not tell which checkpoint it has loaded; where
        the latest one is damaged, that is an earlier one.
        """
        self._compile()
        self._wrap_distributed()
        self.init_optimizers()
        self.resumed_from = self.checkpointer.recover_if_possible()
        if self.resumed_from is not None:
            logger.info("going on from update %d", self.optimizer_step)
            self._compare_batches(self.resumed_from)
        self._open_log()

    def _open_log(self) -> None:
        self.run_log = RunLog(
            self.folder,
            resumed_at=self.optimizer_step,
            loggers=getattr(self.hparams, "train_logger", None),
        )

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Train as SpeechBrain does; what is being saved then is saved.

        Also when something else ends the training: the folder belongs to this
        run no longer than its thread would write to it.
        """
        try:
            super().fit(*args, **kwargs)
            self.checkpointer.finish_saving()
        finally:
            self.checkpointer.close()

    def describe_batches(self) -> dict[str, float]:
        """Return what the batches depend on beside seed and update."""
        raise NotImplementedError

    def _compare_batches(self, last: Checkpoint) -> None:
        """Warn of other batches than before, or refuse them."""
        # Version 0.1.0 called them units, where they were fixed.
        saved = last.meta.get("batches", last.meta.get("units", {}))
        saved = {"batch_plan": 1, **saved}  # the first was not written down
        if "processes" in saved:  # of a pre-training of version 0.1.0
            per_update = saved["processes"] * saved["accumulation"]
            saved["batches_per_update"] = per_update
        changes = ", ".join(
            f"{name} was {saved[name]:g} and is {value:g}"
            for name, value in self.describe_batches().items()
            if saved.get(name, value) != value
        )
        if changes and self.BATCHES_ARE_FIXED:
            raise UserError(
                f"{last.path} was saved with other batches: {changes}. "
                f"{self.BATCHES_ARE_FIXED} Give the earlier settings to go "
                "on, or another --output_folder."
            )
        if changes:
            logger.warning(
                "the batches differ from here on: %s. The run is not "
                "identical to an uninterrupted one.",
                changes,
            )

    def _wrap_distributed(self) -> None:
        """Wrap what learns, once.

        Unlike SpeechBrain: batch norm is synchronised on GPUs alone, where
        that exists; running statistics need no broadcast at each forward,
        since evaluation takes those of rank 0; gradients live in the buckets
        and need no copy.
        """
        if not dist.is_initialized():
            return
        on_gpu = self.device_type == "cuda"
        if on_gpu:
            nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        learner = self.modules[self.LEARNER]  # compiled, where that was asked
        if isinstance(learner, DistributedDataParallel):
            learner = learner.module
        self.modules[self.LEARNER] = DistributedDataParallel(
            learner,
            device_ids=[self.device] if on_gpu else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )

    def position(self) -> tuple[int, int]:
        """Return the updates done, and the batches of the one under way."""
        return self.optimizer_step, self.step % self.grad_accumulation_factor

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Evaluate with the running statistics of rank 0 on every process."""
        if stage != sb.Stage.TRAIN and dist.is_initialized():
            for buffer in self.model.buffers():
                dist.broadcast(buffer, src=0)

    def set_learning_rates(self, update: int) -> None:
        """Set the learning rates of an update, the first of which is 1."""

    def gradient_factor(self) -> Tensor | float:
        """Return what the gradients of an update are multiplied by.

        A training in which a process may be asked to stop during an update
        sets `stop_asked` here, alike on all processes, and `is_broken` where
        the gradients of one are missing.
        """
        return 1.0

    def check_loss_isfinite(self, loss: Tensor) -> None:
        """Leave the check to `optimizers_step`.

        SpeechBrain reads the loss of each batch, for which a GPU must stop,
        and counts on each process for itself.
        """

    def optimizers_step(self) -> None:
        """Scale and clip the gradients and apply them, or leave them out.

        SpeechBrain clips only the first group of an optimiser, and looks for
        NaN after clipping has spread it. Here the gradients of each optimiser
        have a norm for themselves. The host waits for no number on the way:
        what came of the update is read when the next one is queued.
        """
        update = self.optimizer_step + 1
        optimizers = self.optimizers_dict.values()
        self.set_learning_rates(update)
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)
        factor = self.gradient_factor()
        norms = [
            nn.utils.get_total_norm(gradients_of(optimizer)) * factor
            for optimizer in optimizers
        ]
        norm = torch.stack(norms).norm()
        skip = norm.isfinite().logical_not() | (self.is_broken > 0)
        for optimizer, own in zip(optimizers, norms, strict=True):
            share = self.hparams.max_gradient_norm / (own + 1e-6)
            self._apply(optimizer, factor * share.clamp(max=1.0), skip)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        self.optimizer_step = update
        values = torch.stack(
            [norm, self.stop_asked.to(norm), self.is_broken.to(norm)]
        )
        self.outcomes.append(Outcome.send(update, values))
        self._read_outcomes(self.updates_behind)

    def _apply(
        self, optimizer: torch.optim.Optimizer, scale: Tensor, skip: Tensor
    ) -> None:
        """Step with scaled gradients, unless the update is to be skipped.

        The norm is that of reduced gradients: all processes decide alike.
        Fused kernels take both from the device, as GradScaler hands them
        over. Other optimisers wait for the decision, and with GradScaler
        (fp16), which has looked at all gradients, it is made there.
        """
        if takes_scale(optimizer):
            vars(optimizer).update(
                grad_scale=scale.float().reciprocal(), found_inf=skip.float()
            )
            self.scaler.step(optimizer)
            for name in ("grad_scale", "found_inf"):
                vars(optimizer).pop(name, None)
        elif not skip.item() or (
            self.scaler.is_enabled() and not self.is_broken.item()
        ):
            gradients = gradients_of(optimizer)
            torch._foreach_mul_(gradients, scale.to(gradients[0].dtype))
            self.scaler.step(optimizer)

    def _read_outcomes(self, keep: int = 0) -> None:
        """Read what updates came to, but for the last ones, and act on it."""
        while len(self.outcomes) > keep:
            outcome = self.outcomes.popleft()
            norm, stop, is_broken = outcome.receive()
            self.stop_after_update |= stop
            if is_broken:
                # Nor has any later one been made.
                self.outcomes.clear()
                self.optimizer_step = outcome.update - 1
                return
            self.gradient_norm = norm
            if math.isfinite(self.gradient_norm):
                self.nonfinite_updates = 0
            else:
                self._count_skipped(outcome.update)

    def _count_skipped(self, update: int) -> None:
        """Tell of an update that was left out; too many end the run."""
        self.progress.skipped_updates += 1
        self.nonfinite_updates += 1
        logger.warning(
            "update %d left out: its gradients are not finite (%d in a row)",
            update,
            self.nonfinite_updates,
        )
        if self.nonfinite_updates > self.hparams.patience_nonfinite:
            raise UserError(
                f"the gradients of {self.nonfinite_updates} updates in a row "
                f"were NaN or infinite, the last one update {update}. The "
                "last checkpoint is sound; start again with --precision=fp32 "
                "or a lower --learning_rate (of a probe whose schedule follows "
                "the validation: in another --output_folder)."
            )

    def checkpoints_to_keep(self) -> dict[str, Any]:
        """Return `num_to_keep` or `min_keys`, as SpeechBrain takes them."""
        raise NotImplementedError

    def save_checkpoint(
        self, metrics: dict[str, Any], beside: bool = False
    ) -> None:
        """Write a checkpoint of this update; every process calls it.

        Arguments
        ---------
        metrics : dict
            Numbers that belong to this update, such as its validation.
        beside : bool
            Whether to go on while it is written, see
            `AtomicCheckpointer.begin_saving`.
        """
        self._read_outcomes()
        self.step = 0  # what follows begins with a first micro-batch
        self.avg_train_loss = 0.0
        checkpointer = self.checkpointer
        save = (
            checkpointer.begin_saving
            if beside
            else checkpointer.save_and_keep_only
        )
        save(
            meta={
                "update": self.optimizer_step,
                "batches": self.describe_batches(),
                **metrics,
            },
            **self.checkpoints_to_keep(),
        )


def count_parameters(module: nn.Module) -> int:
    """Return the number of weights of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def make_optimizer(
    factory: Any, groups: list[dict[str, Any]]
) -> torch.optim.Optimizer:
    """Make the optimiser that a YAML file names.

    Where it has fused kernels (`fused` among its keywords, which the file
    leaves open), they are asked for: one pass over the weights, on the CPU,
    too, where AdamW is three times as fast by them.

    Arguments
    ---------
    factory : callable
        Called with the groups, for example `!name:torch.optim.AdamW`.
    groups : list of dict
        Groups of parameters, as torch takes them.

    Returns
    -------
    torch.optim.Optimizer
        With a learning rate of 0, until an update sets it.
    """
    optimizer: torch.optim.Optimizer | None = None
    fused = inspect.signature(factory).parameters.get("fused")
    if fused and fused.default is None:
        # Refused for some devices, by Adagrad for GPUs.
        with contextlib.suppress(RuntimeError):
            optimizer = factory([dict(group) for group in groups], fused=True)
    if optimizer is None:
        optimizer = factory(groups)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.register_load_state_dict_pre_hook(_keep_kernels)
    return optimizer


def _keep_kernels(
    optimizer: torch.optim.Optimizer, saved: dict[str, Any]
) -> dict[str, Any]:
    """Let the optimiser, not its checkpoint, decide on fused kernels."""
    own = {
        name: optimizer.defaults[name]
        for name in ("fused", "foreach")
        if name in optimizer.defaults
    }
    groups = [{**group, **own} for group in saved["param_groups"]]
    return {**saved, "param_groups": groups}


def gradients_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the gradients that an optimiser applies."""
    return [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]


def takes_scale(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a step reads `grad_scale` and `found_inf`.

    That is what torch.amp.GradScaler asks, and that the groups are fused.
    """
    return getattr(optimizer, "_step_supports_amp_scaling", False) and all(
        group.get("fused") for group in optimizer.param_groups
    )
