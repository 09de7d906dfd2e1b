"""Two processes make the updates of one process with the joint batches.

Through PretrainingBrain itself, with gloo on the CPU: unequal numbers of
masked frames, a process without any loss, accumulation, layer drop, and the
diversity loss, whose gradient needs the code usage of all processes.
"""

import datetime
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import speechbrain as sb
import torch
import torch.distributed as dist
from torch.nn.utils.rnn import pad_sequence

from summarymixing import SummaryMixing, Wav2Vec2Encoder
from summarymixing.data.batching import (
    BatchPlan,
    UpdateBatchSampler,
    pad_wavs,
)
from summarymixing.lobes.features import num_frames
from summarymixing.lobes.pretraining import (
    Wav2Vec2Pretraining,
    gather_masked_frames,
)
from summarymixing.nnet.randomness import derive_seed
from summarymixing.run.checkpoints import AtomicCheckpointer
from summarymixing.training.pretraining import PretrainingBrain
from summarymixing.training.pretraining_data import PretrainingBatch

WORLD_SIZE = 2
ACCUMULATION = 2
UPDATES = 2

# Samples of the utterances of each process, for the micro-batches of an
# update. 100 samples are one frame, which has no negatives and no loss.
MICRO_BATCHES = [
    ([16_000, 3_000], [5_000]),
    ([7_000], [100]),
]
HPARAMS = {
    "seed": 3,
    "max_updates": 10,
    "max_batch_seconds": 2,
    "grad_accumulation_factor": ACCUMULATION,
    "schedule": "noam",
    "learning_rate": 1e-2,
    "warmup_updates": 1,
    # Not fused: that scales by a float32 number.
    "optimizer": partial(
        torch.optim.AdamW,
        betas=(0.9, 0.98),
        eps=1e-6,
        weight_decay=0.01,
        fused=False,
    ),
    "max_gradient_norm": 1e9,
    "patience_nonfinite": 0,
    "temperature_start": 2.0,
    "temperature_end": 0.5,
    "temperature_factor": 0.9,
    "log_every_updates": 1000,
    "compile": False,
    "profile_updates": 0,
    "memory_budget": 0.5,
    "stalled_after_seconds": 600,
    "on_bad_health": "warn",
    "health_patience_updates": 0,
    "valid_items": None,
    "valid_items_audio": None,
    "valid_items_layer": None,
}


class RecordingBrain(PretrainingBrain):
    """Remembers the gradients of every update as they are applied."""

    def _apply(self, optimizer, scale, skip):
        super()._apply(optimizer, scale, skip)
        self.updates.append(
            {n: p.grad.clone() for n, p in self.model.named_parameters()}
        )


def make_model(dropout=0.0, diversity_weight=2.0):
    torch.manual_seed(0)
    encoder = Wav2Vec2Encoder(
        mixer=partial(SummaryMixing, num_heads=2),
        num_layers=4,
        d_model=8,
        d_ffn=16,
        kernel_size=5,
        dropout=dropout,
        layer_drop=0.4,
        num_mels=20,
        front_end_channels=6,
    )
    model = Wav2Vec2Pretraining(
        encoder,
        num_codes=6,
        target_dim=8,
        num_negatives=10,
        diversity_weight=diversity_weight,
    ).double()
    front_end = encoder.front_end
    mel_features = front_end.mel_features

    def one_by_one(wavs, num_samples):
        """Mel features in float32, whose rounding the batch cannot change."""
        mels = [
            mel_features(wav[None, :n], n[None])[0].double()
            for wav, n in zip(wavs, num_samples, strict=True)
        ]
        return pad_sequence(mels, batch_first=True)

    front_end.mel_features = one_by_one
    return model


def make_batch(lengths, seeds):
    """A batch that holds the utterances of these seeds, in this order."""
    wavs, masked = [], []
    for num_samples, seed in zip(lengths, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        wavs.append(torch.randn(num_samples, generator=generator))
        frames = num_frames(num_samples)
        order = torch.randperm(frames, generator=generator)
        masked.append(order[: frames // 2 or 1].sort().values.tolist())
    padded, wav_lens = pad_wavs(wavs)
    return PretrainingBatch(
        padded,
        wav_lens,
        gather_masked_frames(masked, num_frames(padded.shape[1]), seeds),
        seconds=sum(lengths) / 16_000,
        frames=sum(map(num_frames, lengths)),
        utterances=len(lengths),
        unreadable=[],
    )


def make_batches(rank=None):
    """Batches of one process, or the joint ones of all (None)."""
    for update in range(UPDATES):
        for micro_step, of_ranks in enumerate(MICRO_BATCHES):
            lengths, seeds = [], []
            for r, own in enumerate(of_ranks):
                if rank in (None, r):
                    first = 100 * update + 10 * micro_step + 5 * r
                    lengths += own
                    seeds += range(first, first + len(own))
            yield make_batch(lengths, seeds)


def make_batches_of_all_in_turn():
    """Yield those of all processes, as one process takes them."""
    for of_ranks in zip(*map(make_batches, range(WORLD_SIZE)), strict=True):
        yield from of_ranks


def train(
    folder,
    loss_reduction,
    rank=None,
    *,
    model=None,
    batches=None,
    accumulation=ACCUMULATION,
):
    """Gradients of each update, and the parameters after the last one."""
    model = model or make_model()
    sampler = UpdateBatchSampler(
        BatchPlan([1.0], seed=0, batch_size=1),
        rank=rank or 0,
        world_size=1 if rank is None else WORLD_SIZE,
        accumulation=accumulation,
    )
    brain = RecordingBrain(
        data=SimpleNamespace(hours=0.0, sampler=sampler),
        modules={"model": model},
        hparams={
            **HPARAMS,
            "grad_accumulation_factor": accumulation,
            "loss_reduction": loss_reduction,
            "output_folder": str(folder),
        },
        run_opts={"device": "cpu"},
        checkpointer=AtomicCheckpointer(folder, {"model": model}),
    )
    brain.updates = []
    # Not PretrainingBrain's, which also opens the log.
    sb.Brain.on_fit_start(brain)
    brain.modules.train()
    for batch in batches or make_batches(rank):
        brain.step += 1
        brain.fit_batch(batch)
    brain.window.sums.reduce()
    return brain.updates, model.state_dict(), brain.window.sums.metrics()


REDUCTIONS = ("mean", "sum")
# The diversity loss is that of all batches which are computed at once.
DROPOUT = {"dropout": 0.3, "diversity_weight": 0.0}


def work(rank, folder):
    """One of the processes: train, leave the results in a file."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD_SIZE),
    }
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=WORLD_SIZE,
        timeout=datetime.timedelta(seconds=120),
    )
    results = {
        reduction: train(folder / reduction, reduction, rank)
        for reduction in REDUCTIONS
    }
    results["dropout"] = train(
        folder / "dropout", "mean", rank, model=make_model(**DROPOUT)
    )
    torch.save(results, folder / f"results{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def distributed(tmp_path_factory):
    """Results of both processes."""
    folder = Path(tmp_path_factory.mktemp("distributed"))
    torch.multiprocessing.spawn(work, (folder,), nprocs=WORLD_SIZE)
    return [
        torch.load(folder / f"results{rank}.pt") for rank in range(WORLD_SIZE)
    ]


every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


@every_reduction
def test_processes_agree_to_the_last_bit(reduction, distributed):
    first, second = (results[reduction] for results in distributed)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_the_mean_over_frames_is_that_of_the_joint_batch(distributed, tmp_path):
    updates, parameters, metrics = train(tmp_path, "mean")
    actual_updates, actual_parameters, logged = distributed[0]["mean"]
    assert len(updates) == len(actual_updates) == UPDATES
    torch.testing.assert_close(actual_updates, updates, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(
        actual_parameters, parameters, rtol=1e-6, atol=1e-8
    )
    # What is logged is what is trained, diversity included.
    assert logged["loss"] > logged["contrastive_loss"]
    assert logged == pytest.approx(metrics, rel=1e-6)


def test_dropout_and_layer_drop_are_those_of_one_process(distributed, tmp_path):
    """With as many micro-batches in an update as all processes have."""
    updates, parameters, _ = train(
        tmp_path,
        "mean",
        model=make_model(**DROPOUT),
        batches=make_batches_of_all_in_turn(),
        accumulation=WORLD_SIZE * ACCUMULATION,
    )
    actual_updates, actual_parameters, _ = distributed[0]["dropout"]
    torch.testing.assert_close(actual_updates, updates, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(
        actual_parameters, parameters, rtol=1e-6, atol=1e-8
    )


def test_the_sum_over_frames_is_averaged_over_processes(distributed, tmp_path):
    updates, *_ = train(tmp_path, "sum")
    actual = distributed[0]["sum"][0][0]
    expected = {n: g / WORLD_SIZE for n, g in updates[0].items()}
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-10)


def test_the_cases_are_what_this_file_promises():
    batches = list(make_batches(rank=1))
    assert [len(b.masked.frames) for b in batches[:2]] == [8, 1]
    model = make_model()
    patterns = {
        tuple(model.train().encoder.conformer._draw_layers(seed))
        for update in range(UPDATES)
        for seed in [derive_seed(HPARAMS["seed"], "layer drop", update)]
    }
    assert len(patterns) > 1
    assert not all(all(kept) for kept in patterns)
