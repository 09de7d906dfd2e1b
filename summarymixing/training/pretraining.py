"""The Brain of wav2vec 2.0 pre-training.

One "epoch" of SpeechBrain's loop is an interval of `checkpoint_every_updates`.
Each ends with a checkpoint, a validation and an exported encoder, in this
order: a run that dies on the way makes up for what is missing when it is
started again. By the clock there may be further checkpoints in between.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
import torch.distributed as dist
from speechbrain.utils.logger import get_logger
from torch import Tensor, nn

from summarymixing.cost.operations import (
    Operations,
    peak_flops,
    training_operations,
)
from summarymixing.data.batching import BatchPlan
from summarymixing.errors import UserError
from summarymixing.files import describe_os_error
from summarymixing.lobes.features import FRAMES_PER_SECOND
from summarymixing.lobes.pretraining import PretrainingOutput
from summarymixing.nnet.quantiser import temperature_at
from summarymixing.nnet.randomness import derive_seed
from summarymixing.pretrained import read_config, save_encoder
from summarymixing.run import peers
from summarymixing.run.brain import (
    count_parameters,
    make_optimizer,
)
from summarymixing.run.output_folder import mark_stopped
from summarymixing.run.processes import on_main_process
from summarymixing.run.stopping import (
    Stopped,
    stop_reason,
    stop_requested,
    stop_requested_anywhere,
)
from summarymixing.training.compilation import compile_layers, should_compile
from summarymixing.training.health_brain import HealthBrain
from summarymixing.training.layer_statistics import LayerStatistics
from summarymixing.training.pretraining_data import (
    PretrainingBatch,
    PretrainingData,
    silence,
)
from summarymixing.training.pretraining_statistics import (
    LoggingWindow,
    MetricSums,
    OwnWork,
    disk_space,
    first_of_all,
    norms_by_part,
    of_each_process,
    peak_memory,
    slowest_rank,
)
from summarymixing.training.schedules import make_schedule
from summarymixing.training.traces import TraceOfUpdates
from summarymixing.training.valid_items import ValidItems

logger = get_logger(__name__)

# Unreadable utterances are skipped and listed, but not without limit.
MAX_UNREADABLE_SHARE = 0.01
MIN_UNREADABLE = 20

MESSAGE_CHARACTERS = 600  # of an exception; the rest is in a file

ENCODER_NAME = "encoder"  # the folder of the exported encoder

# Settings that a run keeps, beside those of its encoder, and why.
FIXED = {
    "seed": "batches, masks and noise are functions of it",
    "num_groups": "the weights of the codebook have its shape",
    "num_codes": "the weights of the codebook have its shape",
    "target_dim": "the weights of the codebook have its shape",
}


class PretrainingBrain(HealthBrain):
    """wav2vec 2.0 on SpeechBrain's loop.

    Arguments
    ---------
    data : PretrainingData
        Gives the updates of each interval between checkpoints.
    **kwargs : Any
        See `HealthBrain`; `hparams` has the keys of
        hparams/shared/pretraining.yaml, `modules` is {"model":
        Wav2Vec2Pretraining}.
    """

    def __init__(self, *, data: PretrainingData, **kwargs: Any) -> None:
        super().__init__(data=data, **kwargs)
        h = self.hparams
        self.valid_items = ValidItems(vars(h))
        self.schedule = make_schedule(
            h.schedule,
            peak=h.learning_rate,
            warmup=h.warmup_updates,
            total=h.max_updates,
        )
        # Sums of the loss are divided by this constant before backward, for
        # the range of fp16, and put right when the update is complete.
        self.nominal_frames = h.max_batch_seconds * FRAMES_PER_SECOND
        self.update_frames = torch.zeros((), device=self.device).double()
        self.unreadable = self.utterances = 0
        # Of this process alone: why it cannot go on, and whether it lacks the
        # gradients of the update under way.
        self.failure: str | None = None
        self.lacks_gradients = False
        self.validation_due = False  # when the run before this one has ended
        self.own_work = OwnWork(self.model, self.device_type)
        self.shown_loss = 0.0
        self.seconds_compiling = 0.0
        self.saved_at = time.monotonic()  # or begun
        self.minutes_unsaved = 0.0  # by the last entry of the log
        self.operations: Operations | None = None  # where a share is known
        self.trace = TraceOfUpdates(
            self.folder / "trace.json.gz", h.profile_updates
        )
        self._open_window()

    def intervals(self) -> Iterator[int]:
        """Count the intervals between validations, as fit's epochs.

        Each step also tells the sampler of the data which updates come next.
        """
        every = self.hparams.checkpoint_every_updates
        if self.validation_due:
            self.data.sampler.set_range(
                self.optimizer_step, self.optimizer_step
            )
            yield -(-self.optimizer_step // every)
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

    def on_fit_start(self) -> None:
        """Compile, wrap, make the optimiser, resume."""
        if self.has_gone_back:
            self._open_log()
            self._open_window()
            return
        if self.device_type == "cuda":
            self._count_operations()
        super().on_fit_start()
        self.progress.gpu_seconds += self.seconds_compiling * self.world_size
        if self.resumed_from is not None:
            self._go_on_in_batches(self.resumed_from.meta)
            self._catch_up()
        self.saved_at = time.monotonic()
        self._open_window()
        self.window.seconds_compiling = self.seconds_compiling

    def _go_on_in_batches(self, meta: dict[str, Any]) -> None:
        """Take the batches from where the run before this one ended.

        Their order stays that of the number of processes which began, so that
        others repeat and leave out nothing.
        """
        progress, sampler = self.progress, self.data.sampler
        if progress.batches_taken is None:  # saved by version 0.1.0
            saved = meta.get("batches", {})
            processes = saved.get("processes", self.world_size)
            accumulation = saved.get("accumulation", sampler.accumulation)
            taken = self.optimizer_step * processes * accumulation
            progress.batches_taken, progress.batches_made_for = taken, processes
        sampler.go_on(self.optimizer_step, progress.batches_taken)
        made_for = progress.batches_made_for or self.world_size
        sampler.plan.world_size = made_for
        if made_for % self.world_size:
            logger.info(
                "the order of the batches stays that of %d processes; %d wait "
                "longer for each other than in one of their own",
                made_for,
                self.world_size,
            )

    def _catch_up(self) -> None:
        """Do what a run that ended after its last checkpoint did not."""
        h, update = self.hparams, self.optimizer_step
        exported = on_main_process(lambda: exported_facts(self.folder))
        is_exported = exported.get("update") == update
        # Version 0.1.0 did not note the update of a validation.
        validation = {"update": update, **(exported.get("valid") or {})}
        is_validated = is_exported and validation.keys() > {"update"}
        is_validated &= validation["update"] == update
        if is_validated:
            self.progress.validation = validation
        ends_interval = not update % h.checkpoint_every_updates
        ends_interval |= update >= h.max_updates
        self.validation_due = ends_interval and not is_validated
        if is_exported:
            self.run_log.write_metrics(exported)
        elif not self.validation_due:  # after which it is exported
            self._export()

    def _count_operations(self) -> None:
        try:
            self.operations = training_operations(self.model)
        except RuntimeError as error:  # a mixer that looks at its values
            logger.warning(
                "share_of_peak is not logged, since operations cannot be "
                "counted: %s",
                error,
            )

    def describe_batches(self) -> dict[str, float]:
        """Return what the batches depend on beside seed and update."""
        h = self.hparams
        return {
            "train_hours": round(self.data.hours, 3),
            "max_batch_seconds": h.max_batch_seconds,
            "batches_per_update": self.data.sampler.batches_per_update,
            "batch_plan": BatchPlan.VERSION,
        }

    def _compile(self) -> None:
        """Compile the layers, or keep the memory budget without."""
        h, encoder = self.hparams, self.model.encoder
        if should_compile(h.compile, self.device_type):
            seconds = compile_layers(
                encoder,
                memory_budget=h.memory_budget,
                max_batch_seconds=h.max_batch_seconds,
                device=self.device,
                contexts={True: self.training_ctx, False: self.evaluation_ctx},
            )
            if seconds is not None:
                self.seconds_compiling = seconds
                return
        encoder.conformer.recompute_share(1 - h.memory_budget)

    def init_optimizers(self) -> None:
        """Keep weight decay off norms, biases and the mask embedding."""
        self.optimizer = make_optimizer(
            self.hparams.optimizer, parameter_groups(self.model)
        )
        self.optimizers_dict = {"optimizer": self.optimizer}
        self.checkpointer.add_recoverables(self.optimizers_dict)

    def fit_batch(self, batch: PretrainingBatch) -> Tensor:
        """Forward and backward of a micro-batch; update when it is due.

        SpeechBrain's own reads the loss of each batch, for which a GPU must
        stop, and divides it by the number of batches instead of frames.
        """
        waited = time.perf_counter() - self.window.idle_since
        self.window.seconds_waited += waited
        self._report_unreadable(batch)
        update, micro_step = self.position()
        should_step = micro_step == 0
        # The last one of an update is number 0.
        seed = self._seed(
            update, (micro_step - 1) % self.data.sampler.accumulation
        )
        with self.no_sync(not should_step):
            output = self._forward_in_order(batch, seed)
            loss = self.scaler.scale(output.loss / self.nominal_frames)
            self._backward_in_order(loss, exchanges=should_step)
        self.window.sums.add(output, batch, self._multiply_adds(batch))
        self.update_frames += output.frames
        if should_step:
            self.optimizers_step()
        self.window.idle_since = time.perf_counter()
        return output.loss.detach()

    def _seed(self, updates_done: int, micro_batch: int) -> int:
        """Seed the dropout of a micro-batch; return the seed of layer drop.

        Dropout belongs to the batch, and layers are dropped for the whole
        update, so that neither depends on how many processes share it.
        Dropout is the one part that draws from the global stream.
        """
        sampler, seed = self.data.sampler, self.hparams.seed
        step = updates_done * sampler.accumulation + micro_batch
        torch.manual_seed(derive_seed(seed, "dropout", sampler.number(step)))
        return derive_seed(seed, "layer drop", updates_done)

    def _forward_in_order(
        self, batch: PretrainingBatch, seed: int
    ) -> PretrainingOutput:
        """Forward; where it fails, take part in the collectives by silence.

        The others would wait for this process, and save nothing.
        """
        peers.mark(self.hparams.stalled_after_seconds)
        if batch.error is not None:
            self._fail(batch.error)
        try:
            with self.training_ctx:
                self.own_work.begin()
                return self._forward(batch, layer_drop_seed=seed)
        except Exception as error:
            self._fail(error)
        with self.training_ctx:
            return self._forward(silence(), layer_drop_seed=seed)

    def _backward_in_order(self, loss: Tensor, *, exchanges: bool) -> None:
        """Backward; once gradients are exchanged, no failure is in order."""
        peers.mark(self.hparams.stalled_after_seconds)
        try:
            loss.backward()
        except Exception as error:
            if exchanges and self.world_size > 1:
                raise
            self._fail(error)
        peers.mark(self.hparams.stalled_after_seconds)

    def _fail(self, error: Exception) -> None:
        """Let all processes leave this update out, save, and end."""
        self.lacks_gradients = True
        if self.failure is not None:
            return
        place = f"rank {self.rank}: " if self.world_size > 1 else ""
        if isinstance(error, UserError):
            self.failure = f"{place}{error}"
            return
        path = self.folder / f"failure.{self.rank}.txt"
        text = "".join(traceback.format_exception(error))
        where = f"see {path}"
        try:
            path.write_text(text, encoding="utf-8")
        except OSError:
            where = text
        what = " ".join(str(error).split())[:MESSAGE_CHARACTERS]
        self.failure = f"{place}{type(error).__name__}: {what} ({where})"

    def _multiply_adds(self, batch: PretrainingBatch) -> int:
        masked = batch.masked
        size, num_frames = masked.span_mask.shape
        return (
            self.operations(size, num_frames, len(masked.frames), masked.widest)
            if self.operations is not None
            else 0
        )

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

    def forward_again(
        self, batch: PretrainingBatch, update: int, micro_batch: int
    ) -> PretrainingOutput:
        """Repeat a forward pass of an update, seeded alike, without DDP."""
        before = update - 1
        seed = self._seed(before, micro_batch)
        with self.training_ctx:
            output: PretrainingOutput = self.model(
                batch.wavs,
                batch.wav_lens,
                batch.masked,
                temperature=self.temperature(before),
                layer_drop_seed=seed,
            )
        loss = self.scaler.scale(output.loss / self.nominal_frames)
        return output._replace(loss=loss)

    def temperature(self, update: int | None = None) -> float:
        """Temperature of the Gumbel softmax after so many updates, or now."""
        h = self.hparams
        return temperature_at(
            self.optimizer_step if update is None else update,
            h.temperature_start,
            h.temperature_end,
            h.temperature_factor,
        )

    def set_learning_rates(self, update: int) -> None:
        """Follow the schedule, one rate for all groups."""
        factor = self.progress.learning_rate_factor
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(update) * factor

    def optimizers_step(self) -> None:
        """Make an update; log it and stop after it where that is due."""
        super().optimizers_step()
        self.trace.end_update()
        is_due = self.optimizer_step % self.hparams.log_every_updates == 0
        if is_due and self.optimizer_step > self.window.update:
            self._log_train()
            self._save_if_due()
        self._stop_if_asked()

    def _save_if_due(self) -> None:
        """Save by the clock, behind an entry of the log.

        There the processes have agreed on the time, and the sums that a resume
        would lose are written down: its log is that of a straight run.
        """
        every = self.hparams.checkpoint_every_minutes
        is_due = bool(every) and self.minutes_unsaved >= every
        if is_due and not self.stop_after_update:
            self.save_checkpoint({}, beside=True)

    def _stop_if_asked(self) -> None:
        if not self.stop_after_update:
            return
        peers.rest()
        failure = first_of_all(self.failure)
        verdict = first_of_all(self.health.pending)
        # Checkpoints count hours, up to the last entry of the log.
        if self.optimizer_step > self.window.update:
            self._log_train()
        if failure is None and verdict is not None:
            failure = self.go_back_or_fail(verdict)
        if failure is not None:
            # For log.txt: on the screen it is what the run ends with.
            logger.debug(
                "ending after update %d: %s", self.optimizer_step, failure
            )
        self.save_checkpoint({})
        if failure is None:
            # At once: whoever asked may not wait for the encoder.
            self._mark_stopped()
        self._export()
        if failure is not None:
            raise UserError(failure)
        raise Stopped

    def _mark_stopped(self) -> None:
        on_main_process(lambda: mark_stopped(self.folder, stop_reason()))

    def gradient_factor(self) -> Tensor:
        """Turn sums into means over the frames of the update, everywhere.

        DDP has averaged over processes. Whether any process was asked to stop,
        or cannot go on, rides on the same collective.
        """
        must_stop = stop_requested() or bool(
            self.failure or self.health.pending
        )
        flags = torch.tensor(
            [must_stop, self.lacks_gradients], dtype=torch.float64
        )
        packed = torch.cat(
            [
                self.update_frames[None],
                flags.to(self.update_frames, non_blocking=True),
            ]
        )
        if dist.is_initialized():
            dist.all_reduce(packed)
        frames, self.stop_asked, self.is_broken = packed.unbind()
        self.update_frames.zero_()
        if self.hparams.loss_reduction == "mean":
            factor = self.nominal_frames * self.world_size / frames.clamp(1)
        else:
            # Sum over frames, mean over micro-batches, as the stock recipe.
            share = self.nominal_frames / self.grad_accumulation_factor
            factor = torch.full_like(frames, share)
        if (self.optimizer_step + 1) % self.hparams.log_every_updates == 0:
            self.window.part_norms = norms_by_part(self.model) * factor
        return factor

    def _report_unreadable(self, batch: PretrainingBatch) -> None:
        """List utterances that could not be read; too many end the run.

        It ends after the update, on all processes: what they have learned is
        sound, and is saved.
        """
        self.utterances += batch.utterances
        if not batch.unreadable:
            return
        self.unreadable += len(batch.unreadable)
        path = self._list_unreadable(batch)
        limit = max(MIN_UNREADABLE, MAX_UNREADABLE_SHARE * self.utterances)
        if self.unreadable > limit:
            place = f"rank {self.rank}: " if self.world_size > 1 else ""
            self.failure = (
                f"{place}{self.unreadable} of {self.utterances} utterances "
                f"could not be read, the last one: {batch.unreadable[-1]} All "
                f"are listed in {path}. Is a disk gone?"
            )

    def _list_unreadable(self, batch: PretrainingBatch) -> Path:
        path = self.folder / f"unreadable_audio.{self.rank}.txt"
        if batch.unreadable:
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line in batch.unreadable)
            except OSError as error:  # ends no run
                logger.warning("not listed: %s", describe_os_error(error))
        return path

    def update_average(self, loss: Tensor, avg_loss: float) -> float:
        """Show the last logged loss: reading each one would stall a GPU."""
        del loss, avg_loss
        return self.shown_loss

    def _open_window(self) -> None:
        sums = MetricSums(self.model, self.device)
        self.window = LoggingWindow(sums, self.optimizer_step)

    def _log_train(self) -> None:
        """Write the metrics of the updates since the last time."""
        self._read_outcomes()
        window = self.window
        self._open_window()
        window.sums.reduce()
        elapsed = self.window.start - window.start
        self.progress.gpu_seconds += elapsed * self.world_size
        self.progress.audio_seconds += window.sums.seconds
        metrics = window.sums.metrics()
        self.shown_loss = metrics["loss"]
        metrics |= {
            "gradient_norm": self.gradient_norm,
            **window.part_norms_by_name(),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "temperature": self.temperature(),
            "audio_hours_per_hour": window.sums.seconds / elapsed,
            "seconds_training": elapsed,
            "processes": self.world_size,
            **self._cost(window, elapsed),
            **self.progress.metrics(),
            "negatives": self.model.num_negatives,
        }
        if self.hparams.expected_hours_per_hour is not None:
            metrics["expected_hours_per_hour"] = (
                self.hparams.expected_hours_per_hour
            )
        self.run_log.write("train", self.optimizer_step, metrics)
        self.health.read(
            {"stage": "train", "update": self.optimizer_step, **metrics}
        )

    def _cost(self, window: LoggingWindow, elapsed: float) -> dict[str, float]:
        """Return what the updates of a window cost; a collective."""
        by_rank = of_each_process(
            {
                "seconds_waited_for_data": window.seconds_waited,
                "minutes_unsaved": (time.monotonic() - self.saved_at) / 60,
                "own_work": self.own_work.take_seconds(),
                **peak_memory(self.device_type),
            },
            self.device,
        )
        self.minutes_unsaved = max(by_rank["minutes_unsaved"])
        cost = {
            **slowest_rank(by_rank.pop("own_work")),
            **{name: max(values) for name, values in by_rank.items()},
            **disk_space(self.folder, self.model),
            "seconds_saving": window.seconds_saving,
            "seconds_compiling": window.seconds_compiling,
        }
        if self.operations is not None:
            # One multiply-add is two floating-point operations.
            multiply_adds = window.sums.counts["multiply_adds"]
            flops = 2 * multiply_adds / elapsed / self.world_size
            cost["tflops_per_gpu"] = flops / 1e12
            peak = peak_flops(torch.cuda.get_device_name())
            if peak is not None:
                cost["share_of_peak"] = flops / peak
        return cost

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Start the sums of a stage."""
        super().on_stage_start(stage, epoch)
        self.stage_start = self.window.idle_since = time.perf_counter()
        if stage == sb.Stage.VALID:
            self.valid_sums = MetricSums(self.model, self.device)
            self.layer_statistics = LayerStatistics(self.model.encoder)

    def evaluate_batch(
        self, batch: PretrainingBatch, stage: sb.Stage
    ) -> Tensor:
        """Add a validation batch, whose masks and negatives are fixed.

        After a failure of this process the rest is passed over: the others
        learn of it where the sums are made.
        """
        peers.mark(self.hparams.stalled_after_seconds)
        if self.failure is None:
            try:
                if batch.error is not None:
                    raise batch.error
                self._list_unreadable(batch)
                with torch.no_grad(), self.evaluation_ctx:
                    output = self._forward(batch)
                    if not self.layer_statistics.is_complete:
                        self.layer_statistics.add(batch.to(self.device))
                self.valid_sums.add(output, batch)
                return output.loss
            except Exception as error:
                self._fail(error)
        return torch.zeros(())

    def on_stage_end(
        self, stage: sb.Stage, stage_loss: float, epoch: int | None = None
    ) -> None:
        """Log what is left and save; after validation: log, export."""
        peers.rest()
        self._read_outcomes()
        if stage != sb.Stage.VALID:
            self.trace.end_stage()
            if self.optimizer_step > self.window.update:
                self._log_train()
            self._stop_if_asked()
            if self.step:  # else this update is saved already
                self.save_checkpoint({}, beside=True)
            return
        failure = first_of_all(self.failure)
        if failure is not None:  # all is saved but the validation
            raise UserError(failure)
        self.valid_sums.reduce()
        self._check_validation(self.valid_sums)
        metrics = self.valid_sums.metrics()
        metrics |= self.valid_items.score(
            self.model.encoder, self.device, self.evaluation_ctx
        )
        of_layers = self.layer_statistics.metrics()
        seconds = time.perf_counter() - self.stage_start
        self.run_log.write(
            "valid",
            self.optimizer_step,
            {**metrics, **of_layers, "seconds_validating": seconds},
        )
        self.progress.validation = {"update": self.optimizer_step, **metrics}
        self._export()
        self.validation_due = False
        self._leave_out(time.perf_counter() - self.stage_start)
        is_complete = self.optimizer_step >= self.hparams.max_updates
        if not is_complete and stop_requested_anywhere():
            self._mark_stopped()
            raise Stopped

    def _leave_out(self, seconds: float) -> None:
        """Count validation and saving for the run, not for its speed."""
        self.window.start += seconds
        self.progress.gpu_seconds += seconds * self.world_size

    def _check_validation(self, sums: MetricSums) -> None:
        """Raise UserError, on all processes, if audio is missing.

        The numbers of two validations can be compared only over the same
        utterances, and over none at all the loss is 0.
        """
        total, unreadable = (
            round(sums.counts[name]) for name in ("utterances", "unreadable")
        )
        if not unreadable:
            return
        lost = (
            f"{unreadable} of {total} utterances of the "
            f"validation could not be read; {self.folder} lists them in "
            "unreadable_audio.RANK.txt."
        )
        limit = max(1, MAX_UNREADABLE_SHARE * total)
        if unreadable == total or unreadable > limit:
            raise UserError(
                f"{lost} Is a disk gone? Leave out files that are broken by "
                "--exclude (see `recipes/prepare.py verify`) and start again."
            )
        logger.warning("%s Its loss is that of the others.", lost)

    def save_checkpoint(
        self, metrics: dict[str, Any], beside: bool = False
    ) -> None:
        """Write a checkpoint, and count the time that the training waits."""
        start = time.perf_counter()
        sampler = self.data.sampler
        self.progress.batches_taken = sampler.first_batch(self.optimizer_step)
        self.progress.batches_made_for = sampler.plan.world_size
        super().save_checkpoint(metrics, beside)
        self.saved_at = time.monotonic()
        seconds = time.perf_counter() - start
        self.window.seconds_saving += seconds
        self._leave_out(seconds)

    def _export(self) -> None:
        """Write the encoder, then metrics.json, which speaks of it.

        Not before its checkpoint is there.
        """
        start = time.perf_counter()
        self.checkpointer.finish_saving()
        state = {
            "update": self.optimizer_step,
            "max_updates": self.hparams.max_updates,
            "parameters": count_parameters(self.model),
            "train_hours": self.data.hours,
            **self.progress.metrics(),
            "valid": self.progress.validation,
        }
        encoder, folder = self.model.encoder, self.folder / ENCODER_NAME
        quantiser = self.model.quantiser
        # The other processes wait: one that ended would take this one along.
        on_main_process(lambda: save_encoder(encoder, folder, state, quantiser))
        self.run_log.write_metrics(state)
        self.window.seconds_saving += time.perf_counter() - start


def exported_facts(output_folder: Path) -> dict[str, Any]:
    """Return what the encoder of a run was trained on, by its encoder.json.

    Arguments
    ---------
    output_folder : Path
        The folder of the run.

    Returns
    -------
    dict
        Empty where there is no encoder yet, or none that can be read.
    """
    try:
        config = read_config(output_folder / ENCODER_NAME)
    except UserError:
        return {}
    return dict(config.get("trained_on") or {})


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Separate what weight decay shrinks, first, from what it must not.

    Norms, biases and the mask embedding are no maps between features;
    pulling them to zero only fights their purpose. Biases of head-wise
    layers have more than one dimension, so the name decides.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_map = parameter.dim() > 1 and "bias" not in name.split(".")[-1]
        (decayed if is_map else kept).append(parameter)
    return [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]


def make_fingerprint(hparams: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a run keeps, with their values."""
    own = {name: hparams[name] for name in FIXED}
    return {**hparams["encoder"].config, **own}
