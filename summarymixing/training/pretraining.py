"""The Brain of wav2vec 2.0 pre-training.

One "epoch" of SpeechBrain's loop is the stretch between two checkpoints, so
each ends with a validation, a checkpoint and an exported encoder. The only
position that a run has is its number of updates.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from summarymixing.errors import UserError
from summarymixing.lobes.features import FRAMES_PER_SECOND
from summarymixing.lobes.pretraining import PretrainingOutput
from summarymixing.nnet.quantiser import temperature_at
from summarymixing.nnet.randomness import derive_seed
from summarymixing.pretrained import save_encoder
from summarymixing.run import processes
from summarymixing.run.checkpoints import (
    AtomicCheckpointer,
    check_same_run,
)
from summarymixing.run.hparams_file import check_words
from summarymixing.run.records import RunLog
from summarymixing.run.stopping import Stopped, stop_requested
from summarymixing.training.pretraining_data import (
    PretrainingBatch,
    PretrainingData,
    load_pretraining_data,
)
from summarymixing.training.pretraining_statistics import Progress, Sums
from summarymixing.training.schedules import SCHEDULES

logger = logging.getLogger(__name__)

# Unreadable utterances are skipped and listed, but not without limit.
MAX_UNREADABLE_SHARE = 0.01
MIN_UNREADABLE = 20

# Below this share of the codes in use, accuracy says nothing any more.
COLLAPSE_SHARE = 0.1


class PretrainingBrain(sb.Brain):
    """wav2vec 2.0 on SpeechBrain's loop.

    hparams : the keys of hparams/shared/pretraining.yaml. modules : {"model":
    Wav2Vec2Pretraining}. `data` gives the updates of each stretch.
    """

    optimizer_step: int  # of SpeechBrain's Brain: updates done
    step: int  # micro-batches done in this stretch
    _idle_since: float

    def __init__(self, *, data: PretrainingData, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        h = self.hparams
        self.data = data
        self.model = self.modules["model"]  # without DDP around it
        self.rank = processes.rank()
        self.world_size = processes.world_size()
        self.folder = Path(h.output_folder)
        self.schedule = SCHEDULES[h.schedule](
            peak=h.learning_rate, warmup=h.warmup_updates, total=h.max_updates
        )
        # Sums of the loss are divided by this constant before backward, for
        # the range of fp16, and put right when the update is complete.
        self.nominal_frames = h.max_batch_seconds * FRAMES_PER_SECOND
        self.progress = Progress()
        self.checkpointer.add_recoverable("progress", self.progress)
        self.nonfinite_updates = 0
        self.unreadable = self.utterances = 0
        self._start_logging_window()

    def stretches(self) -> Iterator[int]:
        """Count the stretches between checkpoints, as fit's epochs."""
        every = self.hparams.checkpoint_every_updates
        while self.optimizer_step < self.hparams.max_updates:
            start = self.optimizer_step
            number = start // every
            stop = min((number + 1) * every, self.hparams.max_updates)
            self.data.sampler.set_range(start, stop)
            yield number + 1
            if self.optimizer_step == start:
                raise UserError(
                    f"no update was made after update {start}: the batches "
                    "ended before --accumulation of them were there. Leave "
                    "out what shortens an epoch, such as --debug_batches"
                )

    # Start

    def on_fit_start(self) -> None:
        """Compile, wrap, make the optimiser, resume."""
        super().on_fit_start()
        self.run_log = RunLog(self.folder, resumed_at=self.optimizer_step)
        self._start_logging_window()
        if self.optimizer_step:
            logger.info("going on from update %d", self.optimizer_step)
            self._warn_of_other_batches()

    def _describe_batches(self) -> dict[str, float]:
        """Return what the batches are a function of, beside the update."""
        h = self.hparams
        return {
            "train_hours": round(self.data.hours, 3),
            "processes": self.world_size,
            "max_batch_seconds": h.max_batch_seconds,
            "accumulation": h.accumulation,
        }

    def _warn_of_other_batches(self) -> None:
        """Other data and hardware are allowed, but not without a word."""
        saved = self.checkpointer.find_checkpoint().meta.get("batches", {})
        changes = [
            f"{name} {saved[name]:g} before, {value:g} now"
            for name, value in self._describe_batches().items()
            if saved.get(name, value) != value
        ]
        if changes:
            logger.warning(
                "from here on the batches are others: %s. The run is not "
                "what a straight one would have been.",
                "; ".join(changes),
            )

    def _compile(self) -> None:
        """Compile layer by layer: one graph serves all, names stay."""
        if not self.hparams.compile:
            share = 1 - self.hparams.memory_budget
            self.model.encoder.encoder.recompute_share(share)
            return
        # Imported here: torch loads it with its compiler, and that is slow.
        import torch._functorch.config as compiler

        compiler.activation_memory_budget = self.hparams.memory_budget
        for layer in self.model.encoder.encoder.layers:
            layer.compile(dynamic=True)

    def _wrap_distributed(self) -> None:
        """Wrap the model once.

        Unlike SpeechBrain: buffers are constants and need no broadcast at
        each forward; gradients live in the buckets and need no copy.
        """
        if dist.is_initialized():
            on_gpu = self.device_type == "cuda"
            self.modules["model"] = DistributedDataParallel(
                self.model,
                device_ids=[self.device] if on_gpu else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )

    def init_optimizers(self) -> None:
        """AdamW without decay on norms, biases and the mask embedding."""
        h = self.hparams
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, h.weight_decay),
            lr=0.0,  # set before each update
            betas=tuple(h.adam_betas),
            eps=h.adam_epsilon,
            fused=self.device_type == "cuda",
        )
        self.optimizers_dict = {"optimizer": self.optimizer}
        self.checkpointer.add_recoverables(self.optimizers_dict)

    # Training

    def fit_batch(self, batch: PretrainingBatch) -> Tensor:
        """Forward and backward of a micro-batch; update when it is due."""
        self.seconds_waited += time.perf_counter() - self._idle_since
        self._report_unreadable(batch)
        should_step = self.step % self.grad_accumulation_factor == 0
        # `step` starts at a multiple of the accumulation in each stretch.
        micro_step = self.step % self.grad_accumulation_factor
        seed = derive_seed(self.hparams.seed, self.optimizer_step, micro_step)
        # Dropout is the one part that draws from the global stream.
        torch.manual_seed(derive_seed(seed, self.rank))
        with self.no_sync(not should_step):
            with self.training_ctx:
                output = self._forward(batch, layer_drop_seed=seed)
            self.scaler.scale(output.loss / self.nominal_frames).backward()
        self.sums.add(output, batch.seconds)
        self.update_frames += output.frames
        if should_step:
            self.optimizers_step()
        self._idle_since = time.perf_counter()
        return output.loss.detach()

    def _forward(
        self, batch: PretrainingBatch, layer_drop_seed: int | None = None
    ) -> PretrainingOutput:
        batch = batch.to(self.device)
        # In evaluation not through DDP: processes may have unequal numbers
        # of batches there.
        model = self.modules["model"] if self.model.training else self.model
        return model(
            batch.wavs,
            batch.wav_lens,
            batch.masked,
            temperature=self.temperature(),
            layer_drop_seed=layer_drop_seed,
        )

    def temperature(self) -> float:
        """Temperature of the Gumbel softmax at the coming update."""
        h = self.hparams
        return temperature_at(
            self.optimizer_step,
            h.temperature_start,
            h.temperature_end,
            h.temperature_factor,
        )

    def optimizers_step(self) -> None:
        """Normalise, clip and apply the gradients of an update."""
        update = self.optimizer_step + 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(update)
        self.scaler.unscale_(self.optimizer)
        stop = self._normalise_gradients()
        # One norm over all parameters, the same on every process.
        self.gradient_norm = nn.utils.clip_grad_norm_(
            self.model.parameters(), self.hparams.max_gradient_norm
        ).item()
        self._apply_or_skip()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step = update
        # Checkpoints count hours, up to the last entry of the log.
        if stop or update % self.hparams.log_every_updates == 0:
            self._log_train()
        if stop:
            self.save_checkpoint()
            raise Stopped

    def _normalise_gradients(self) -> bool:
        """Turn sums into means over the frames of the update, everywhere.

        DDP has averaged over processes. Returns whether any process was
        asked to stop, which rides on the same collective.
        """
        packed = torch.stack(
            [
                self.update_frames.double(),
                torch.tensor(float(stop_requested())).to(self.update_frames),
            ]
        )
        if dist.is_initialized():
            dist.all_reduce(packed)
        self.update_frames.zero_()
        if self.hparams.loss_reduction == "mean":
            factor = self.nominal_frames * self.world_size / packed[0].clamp(1)
        else:  # sum over frames, mean over micro-batches, as the stock recipe
            factor = torch.full_like(
                packed[0], self.nominal_frames / self.grad_accumulation_factor
            )
        gradients = [
            p.grad for p in self.model.parameters() if p.grad is not None
        ]
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
        return bool(packed[1].item())

    def _apply_or_skip(self) -> None:
        """Step, or leave an update with NaN or infinite gradients out.

        The norm is of reduced gradients: all processes decide alike.
        """
        finite = torch.isfinite(torch.tensor(self.gradient_norm)).item()
        if finite or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)  # fp16: skips by itself
            self.scaler.update()
        if finite:
            self.nonfinite_updates = 0
            return
        self.progress.skipped_updates += 1
        self.nonfinite_updates += 1
        logger.warning(
            "update %d left out: its gradients are not finite (%d in a row)",
            self.optimizer_step + 1,
            self.nonfinite_updates,
        )
        if self.nonfinite_updates > self.hparams.patience_nonfinite:
            raise UserError(
                f"the gradients of {self.nonfinite_updates} updates in a row "
                f"were NaN or infinite, the last one update "
                f"{self.optimizer_step + 1}. The last checkpoint is sound; "
                f"start again with a lower --learning_rate or with "
                f"--precision=fp32."
            )

    def _report_unreadable(self, batch: PretrainingBatch) -> None:
        """List utterances that could not be read; too many end the run."""
        self.utterances += len(batch.masked.counts) + len(batch.unreadable)
        if not batch.unreadable:
            return
        self.unreadable += len(batch.unreadable)
        path = self.folder / f"unreadable_audio.{self.rank}.txt"
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{message}\n" for message in batch.unreadable)
        limit = max(MIN_UNREADABLE, MAX_UNREADABLE_SHARE * self.utterances)
        if self.unreadable > limit:
            raise UserError(
                f"{self.unreadable} of {self.utterances} utterances could not "
                f"be read, the last one: {batch.unreadable[-1]} All are "
                f"listed in {path}. Is a disk gone?"
            )

    def update_average(self, loss: Tensor, avg_loss: float) -> float:
        """Show the last logged loss: reading each one would stall a GPU."""
        del loss, avg_loss
        return self.shown_loss

    # Logging, validation, checkpoints

    def _start_logging_window(self) -> None:
        self.sums = Sums()
        self.update_frames = torch.zeros((), device=self.device).double()
        self.shown_loss = getattr(self, "shown_loss", 0.0)
        self.seconds_waited = 0.0
        self.gradient_norm = 0.0
        self._window_update = self.optimizer_step
        self._window_start = self._idle_since = time.perf_counter()

    def _log_train(self) -> None:
        """Write the numbers of the updates since the last time."""
        self.sums.reduce(self.model, self.device)
        elapsed = time.perf_counter() - self._window_start
        self.progress.gpu_seconds += elapsed * self.world_size
        self.progress.audio_seconds += self.sums.seconds
        numbers = self.sums.numbers(self.hparams.diversity_weight)
        self.shown_loss = numbers["loss"]
        numbers |= {
            "gradient_norm": self.gradient_norm,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "temperature": self.temperature(),
            "audio_hours_per_hour": self.sums.seconds / elapsed,
            "seconds_waited_for_data": self.seconds_waited,
            "peak_memory_gib": peak_memory_gib(self.device_type),
            "gpu_hours": self.progress.gpu_seconds / 3600,
            "audio_hours": self.progress.audio_seconds / 3600,
            "skipped_updates": self.progress.skipped_updates,
        }
        self.run_log.write("train", self.optimizer_step, numbers)
        self._start_logging_window()

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Start the sums of a stage."""
        del epoch
        self._stage_start = time.perf_counter()
        if stage == sb.Stage.VALID:
            self.valid_sums = Sums()
        else:
            self._idle_since = self._stage_start

    def evaluate_batch(
        self, batch: PretrainingBatch, stage: sb.Stage
    ) -> Tensor:
        """Add a validation batch, whose masks and negatives are fixed."""
        del stage
        with torch.no_grad(), self.evaluation_ctx:
            output = self._forward(batch)
        self.valid_sums.add(output, batch.seconds)
        return output.loss

    def on_stage_end(
        self, stage: sb.Stage, stage_loss: float, epoch: int | None = None
    ) -> None:
        """Log what is left; after validation: log, save, export."""
        del stage_loss, epoch
        if stage != sb.Stage.VALID:
            if self.optimizer_step > self._window_update:
                self._log_train()
            return
        self.valid_sums.reduce(self.model, self.device)
        numbers = self.valid_sums.numbers(self.hparams.diversity_weight)
        self.run_log.write("valid", self.optimizer_step, numbers)
        self._warn_of_collapse(numbers)
        self.save_checkpoint(numbers)
        # Validation and saving are not training time of the next window.
        spent = time.perf_counter() - self._stage_start
        self._window_start += spent
        self.progress.gpu_seconds += spent * self.world_size

    def _warn_of_collapse(self, numbers: dict[str, float]) -> None:
        codes = self.hparams.num_groups * self.hparams.num_codes
        if numbers["code_perplexity"] < COLLAPSE_SHARE * codes:
            logger.warning(
                "the codebook is collapsing: %.1f of %d codes are in use at "
                "update %d, and %.0f %% of the negatives equal the positive, "
                "so accuracy means little. A large run recovers from this in "
                "its first thousands of updates; a small one needs "
                "--diversity_weight=1.0 --front_end_gradient=0.1, fewer "
                "--num_codes, or more audio in an update.",
                numbers["code_perplexity"],
                codes,
                self.optimizer_step,
                100 * numbers["negatives_excluded"],
            )

    def save_checkpoint(self, valid: dict[str, float] | None = None) -> None:
        """Write a checkpoint, the encoder and the metrics."""
        self.step = 0  # a stretch always starts at its first micro-batch
        self.checkpointer.save_and_keep_only(
            meta={
                "update": self.optimizer_step,
                "batches": self._describe_batches(),
                **(valid or {}),
            },
            num_to_keep=self.hparams.checkpoints_to_keep,
            name=None,
        )
        metrics = {
            "update": self.optimizer_step,
            "max_updates": self.hparams.max_updates,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "train_hours": self.data.hours,
            "gpu_hours": self.progress.gpu_seconds / 3600,
            "audio_hours": self.progress.audio_seconds / 3600,
            "skipped_updates": self.progress.skipped_updates,
            "valid": valid or {},
        }
        self.run_log.write_metrics(metrics)
        # The other processes wait: one that ended would take this one along.
        processes.on_main_process(
            lambda: save_encoder(
                self.model.encoder, self.folder / "encoder", trained_on=metrics
            )
        )


def parameter_groups(
    model: nn.Module, weight_decay: float
) -> list[dict[str, Any]]:
    """Separate what weight decay shrinks from what it must not.

    Norms, biases and the mask embedding are no maps between features;
    pulling them to zero only fights their purpose. Biases of head-wise
    layers have more than one dimension, so the name decides.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_map = parameter.dim() > 1 and "bias" not in name.split(".")[-1]
        (decayed if is_map else kept).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def peak_memory_gib(device_type: str) -> float:
    """Most memory in use so far: of the GPU, or of this process."""
    if device_type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    # Not on Windows, hence not at the top of the file.
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run_fingerprint(hparams: dict[str, Any]) -> dict[str, Any]:
    """What must not change between the runs that share an output folder."""
    names = ("num_groups", "num_codes", "target_dim", "seed")
    return {
        **hparams["encoder"].config,
        **{name: hparams[name] for name in names},
    }


def pretrain(hparams: dict[str, Any], run_opts: Any) -> None:
    """Pre-train from manifests, or go on with a run.

    Arguments
    ---------
    hparams : dict
        Built from a file of hparams/pretraining/.
    run_opts : RunOptions
        SpeechBrain's options from the command line.
    """
    check_words(
        hparams,
        {
            "schedule": tuple(SCHEDULES),
            "loss_reduction": ("mean", "sum"),
            "precision": ("fp32", "bf16", "fp16"),
        },
    )
    data = load_pretraining_data(
        hparams["manifests"],
        **{
            name: hparams[name]
            for name in (
                "seed",
                "max_batch_seconds",
                "accumulation",
                "mask_scheme",
                "mask_probability",
                "mask_length",
                "num_workers",
            )
        },
        rank=processes.rank(),
        world_size=processes.world_size(),
        pin_memory=torch.cuda.is_available(),
    )
    folder = Path(hparams["output_folder"]) / "checkpoints"
    fingerprint = run_fingerprint(hparams)
    check_same_run(folder, fingerprint)
    hparams["grad_accumulation_factor"] = hparams["accumulation"]
    hparams["eval_precision"] = hparams["precision"]
    brain = PretrainingBrain(
        data=data,
        modules={"model": hparams["model"]},
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=AtomicCheckpointer(
            folder,
            recoverables={"model": hparams["model"]},
            fingerprint=fingerprint,
        ),
    )
    brain.fit(brain.stretches(), data.train, data.valid)
