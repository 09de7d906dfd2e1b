r"""Measure and compute what a run on hundreds of processes needs.

python recipes/benchmark/at_scale.py [--hours=60000] [--machines=32] \
    [--output=NAME]

Rows with the lengths of Libri-Light, whose recordings are not there, make a
manifest. As in a run it is read, planned for all processes and taken in shares,
on the cores that are here; what this means for all machines is computed. Each
figure says which of both it is.

A Markdown report is printed, and written with a JSON file as NAME.md and
NAME.json.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore

from summarymixing.cost.manifests import (
    MIB,
    PROCESSES,
    WORKERS,
    measure_manifest,
)
from summarymixing.cost.timing import describe_machine
from summarymixing.data.batching import (
    BatchPlan,
    UpdateBatchSampler,
    Utterance,
)
from summarymixing.data.manifest import Manifest, Row, write_manifest
from summarymixing.errors import exit_on_user_error
from summarymixing.files import sha256_of, write_report
from summarymixing.lobes.features import SAMPLE_RATE_HZ
from summarymixing.miniature.librilight_rows import make_rows
from summarymixing.nnet.span_mask import MASK_SCHEMES
from summarymixing.run.brain import count_parameters
from summarymixing.run.checkpoints import AtomicCheckpointer
from summarymixing.run.hparams_file import HPARAMS_FOLDER, HparamsFile
from summarymixing.training.pretraining import PretrainingBrain
from summarymixing.training.pretraining_data import MaskingCollate

BASE = HPARAMS_FOLDER / "pretraining" / "summarymixing_base.yaml"
GB = 1e9
BATCH_SECONDS = (360, 90)
STEPS = 200  # of all processes, for the shares of processes
RESUMED_AT = 100_000  # updates
# Hours of audio per hour of one GPU, the aim of recipes/benchmark/feed.py, and
# what a parallel file system takes and gives.
GPU_SPEED = 5000
ACCUMULATIONS = (1, 4)
FILE_SYSTEM_GB_PER_S = 5.0
DAY_S = 86_400


def main() -> None:
    """Measure, print and write."""
    parser = ArgumentParser(description="What hundreds of processes need.")
    add = parser.add_argument
    add("--hours", type=float, default=60_000, help="of audio (60000)")
    add("--machines", type=int, default=32, help=f"of {PROCESSES} GPUs (32)")
    add("--model", type=Path, default=BASE, help="a file of pre-training")
    add("--override", default="", metavar="YAML_TEXT", help="of the model")
    add("--output", type=Path, metavar="NAME", help="for NAME.json, NAME.md")
    options = parser.parse_args()
    torch.set_num_threads(1)  # one core is one core
    with tempfile.TemporaryDirectory() as name:
        data = measure(options, Path(name))
    text = report(data)
    print(text)
    if options.output is not None:
        write_report(options.output, data, text)


def measure(options: Any, folder: Path) -> dict[str, Any]:
    """Take all measurements; returns what the JSON holds."""
    sample = [row.duration for row in make_rows(50_000)]
    num_rows = round(3600 * options.hours / float(np.mean(sample)))
    world_size = options.machines * PROCESSES
    path = write_manifest(folder / "train.csv", make_rows(num_rows))
    manifest = measure_manifest(
        path,
        ranks=2,
        workers=2,
        num_touched=min(num_rows, 100_000),
        world_size=world_size,
    )
    durations = Manifest.read(path).durations
    return {
        "machine": describe_machine(torch.device("cpu")),
        "hours": float(durations.sum()) / 3600,
        "machines": options.machines,
        "processes": world_size,
        "imports": measure_imports(),
        "manifest": manifest,
        "plans": [
            measure_plan(durations, seconds, world_size)
            for seconds in BATCH_SECONDS
        ],
        "shares": measure_shares(durations, world_size),
        "model": measure_model(options, folder, world_size),
    }


def measure_plan(
    durations: np.ndarray, max_batch_seconds: float, world_size: int
) -> dict[str, float]:
    """Compare the batches of an epoch, and what processes get of them.

    Arguments
    ---------
    durations : np.ndarray, (N,)
        Seconds of the utterances.
    max_batch_seconds : float
        The most seconds of a batch, padding included.
    world_size : int
        The number of processes.

    Returns
    -------
    dict
        Shares: `padding` of what is computed, `filled` of the budget with
        audio, `waiting` of the time in which processes wait for the longest
        batch of their step, and how far processes are apart in padded seconds
        over an `epoch`: largest minus smallest over the mean.
    """
    plan = BatchPlan(
        durations,
        seed=0,
        max_batch_seconds=max_batch_seconds,
        world_size=world_size,
    )
    batches = plan.batches(epoch=0)
    audio, padded = np.array(
        [
            (own.sum(), len(own) * own.max())
            for own in (durations[batches[i]] for i in range(len(batches)))
        ]
    ).T
    num_steps = len(padded) // world_size
    steps = padded[: num_steps * world_size].reshape(num_steps, world_size)
    of_ranks = steps.sum(axis=0)
    return {
        "max_batch_seconds": max_batch_seconds,
        "batches": len(padded),
        "updates_per_epoch": len(padded) / world_size,
        "padding": float(1 - audio.sum() / padded.sum()),
        "filled": float(audio.mean() / max_batch_seconds),
        "waiting": float(1 - steps.mean() / steps.max(axis=1).mean()),
        "epoch": float(np.ptp(of_ranks) / of_ranks.mean()),
    }


def measure_shares(durations: np.ndarray, world_size: int) -> dict[str, Any]:
    """Take the shares of some processes, from the first update and a later.

    Returns
    -------
    dict
        Seconds of the clock and the processor until the first batch is known,
        `start` and `resume`, and the utterances that were taken `twice` by
        the processes looked at.
    """
    plan = BatchPlan(
        durations, seed=0, max_batch_seconds=360, world_size=world_size
    )
    found: dict[str, Any] = {}
    ranks = sorted({0, 1, world_size // 2, world_size - 1})
    taken: Counter[Any] = Counter()
    for name, update in (("start", 0), ("resume", RESUMED_AT)):
        for rank in ranks:
            sampler = UpdateBatchSampler(plan, rank=rank, world_size=world_size)
            times = _Times()
            sampler.go_on(update, update * world_size)
            sampler.set_range(update, update + STEPS)
            batches = iter(sampler)
            first = next(batches)
            found[name] = times.read()
            for batch in (first, *batches):
                taken.update(batch)
    found["ranks"] = ranks
    found["batches_looked_at"] = 2 * STEPS * len(ranks)
    found["twice"] = sum(count > 1 for count in taken.values())
    return found


def measure_imports() -> dict[str, float]:
    """Return the seconds until a process knows its settings."""
    script = BASE.parents[2] / "recipes" / "pretraining" / "train.py"
    start, cpu_start = time.perf_counter(), sum(os.times()[2:4])
    subprocess.run(
        [sys.executable, str(script), str(BASE), "--help"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    clock_s = time.perf_counter() - start
    return {"s": clock_s, "cpu_s": sum(os.times()[2:4]) - cpu_start}


class _Times:
    """Seconds of the clock and of the processor since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        clock_s, cpu_s = time.perf_counter(), time.process_time()
        return {"s": clock_s - self.start[0], "cpu_s": cpu_s - self.start[1]}


def measure_model(
    options: Any, folder: Path, world_size: int
) -> dict[str, Any]:
    """Save, compare, load and train the real model, in the place of rank 0.

    The other processes are made up: their collectives do nothing.

    Returns
    -------
    dict
        `parameters`, those of the encoder too; `buckets` of gradients in an
        update, and its other `collectives` by name; `checkpoint_bytes`; times
        to `save`, to compare the checksums (`compare`) and to `load` it.
    """
    file = HparamsFile.read(options.model)
    # Gradients are float32 in any precision, and few CPUs are fast in bf16.
    settings = {"manifests": "unused", "precision": "fp32"}
    file.override({**settings, "output_folder": str(folder / "run")})
    if options.override:
        file.override(options.override)
    hparams = file.build()
    made_up = {"RANK": "0", "LOCAL_RANK": "0"}  # as torchrun says it
    os.environ |= made_up
    dist.init_process_group(
        "fake", store=FakeStore(), rank=0, world_size=world_size
    )
    try:
        return _measure_brain(hparams, world_size)
    finally:
        dist.destroy_process_group()
        for name in made_up:
            del os.environ[name]


def _measure_brain(hparams: dict[str, Any], world_size: int) -> dict[str, Any]:
    folder = Path(hparams["output_folder"])
    folder.mkdir(parents=True, exist_ok=True)
    model = hparams["model"]
    checkpointer = AtomicCheckpointer(folder / "checkpoints", {"model": model})
    # What a checkpoint says of the batches; none are loaded here.
    data: Any = SimpleNamespace(
        hours=0.0,
        sampler=UpdateBatchSampler(
            BatchPlan([1.0], seed=0, batch_size=1), world_size=world_size
        ),
    )
    brain = PretrainingBrain(
        data=data,
        modules={"model": model},
        hparams={**hparams, "grad_accumulation_factor": 1},
        run_opts={"device": "cpu", "noprogressbar": True},
        checkpointer=checkpointer,
    )
    brain.on_fit_start()
    brain.modules.train()
    batch = _make_batch(hparams)
    found: dict[str, Any] = {
        "parameters": count_parameters(model),
        "encoder_parameters": count_parameters(model.encoder),
        "updates_per_checkpoint": hparams["checkpoint_every_updates"],
    }
    buckets: list[int] = []

    def keep(_: None, bucket: Any) -> Any:
        """Stand for an all-reduce; the made-up group has none for DDP."""
        buckets.append(bucket.buffer().numel())
        future: Any = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    # DDP compares annotations, and those of this file are texts.
    keep.__annotations__.clear()
    brain.modules["model"].register_comm_hook(None, keep)
    for _ in range(3):  # the first two order the buckets of gradients
        buckets.clear()
        with profile(
            activities=[ProfilerActivity.CPU], acc_events=True
        ) as profiler:
            brain.step += 1
            brain.fit_batch(batch)
    found["buckets"], found["gradient_numbers"] = len(buckets), sum(buckets)
    found["collectives"] = Counter(
        event.name.removeprefix("c10d::").rstrip("_")
        for event in profiler.events()
        if event.name.startswith("c10d::")
    )
    times = _Times()
    checkpointer.save_checkpoint({"update": 2})
    found["save"] = times.read()
    checkpoint = checkpointer.find_checkpoint()
    files = [path for path in checkpoint.path.rglob("*") if path.is_file()]
    found["checkpoint_bytes"] = sum(path.stat().st_size for path in files)
    actions: dict[str, Callable[[], object]] = {
        "compare": lambda: [sha256_of(path) for path in files],
        "load": lambda: checkpointer.load_checkpoint(checkpoint),
    }
    for name, action in actions.items():
        times = _Times()
        action()
        found[name] = times.read()
    return found


def _make_batch(hparams: dict[str, Any]) -> Any:
    """Return two seconds of noise in two utterances."""
    wavs = 0.1 * torch.randn(2, SAMPLE_RATE_HZ)
    utterances = [
        Utterance(Row(str(i), "/none", (), 1.0), wav, 0, "")
        for i, wav in enumerate(wavs)
    ]

    scheme = partial(
        MASK_SCHEMES[hparams["mask_scheme"]],
        probability=hparams["mask_probability"],
        length=hparams["mask_length"],
    )
    return MaskingCollate(seed=0, scheme=scheme)(utterances)


def report(data: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    manifest, shares, model = data["manifest"], data["shares"], data["model"]
    warm = {
        key: max(rank[key] for rank in manifest["warm"])
        for key in manifest["cold"]
    }
    lines = [
        f"# {data['hours']:,.0f} hours on {data['processes']} processes",
        "",
        f"{data['machines']} machines of {PROCESSES} GPUs; measured on one "
        f"core of {data['machine']}. Times are those of the processor, with "
        "those of the clock behind them, which other work on a machine "
        "lengthens.",
        "",
        "| batches | updates an epoch | padding | audio in the budget | "
        "waiting for the longest batch | processes apart over an epoch |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {plan['max_batch_seconds']} s: {plan['batches']:,} | "
        f"{plan['updates_per_epoch']:,.0f} | {plan['padding']:.2%} | "
        f"{plan['filled']:.1%} | {plan['waiting']:.3%} | {plan['epoch']:.3%} |"
        for plan in data["plans"]
    ]
    start = data["imports"]["cpu_s"] + sum(
        warm[f"{name}_cpu_s"] for name in ("read", "plan", "epoch")
    )
    resume = [model["compare"], model["load"], shares["resume"]]
    network_gb = data["machines"] * (
        manifest["text_mib"] + manifest["index_mib"]
    )
    checkpoint_gb = model["checkpoint_bytes"] / GB
    encoder_gb = 4 * model["encoder_parameters"] / GB
    rows = [
        (
            f"manifest of {manifest['rows']:,} rows: text; index",
            f"{manifest['text_mib']:,.0f}; {manifest['index_mib']:,.0f} MiB",
            "measured",
        ),
        (
            f"memory of a machine for it ({PROCESSES} processes of {WORKERS} "
            "workers, the index once)",
            f"{manifest['machine_mib']:,.0f} MiB",
            "computed from 2 processes of 2 workers",
        ),
        (
            "read it: the first process of all, which makes the index; the "
            "others",
            f"{_seconds(manifest['cold'], 'read')}; {_seconds(warm, 'read')}",
            "measured",
        ),
        ("plan the batches", _seconds(warm, "plan"), "measured"),
        ("order an epoch", _seconds(warm, "epoch"), "measured"),
        ("Python and its imports", _seconds(data["imports"]), "measured"),
        (
            "start, up to the model",
            f"{start:.1f} s",
            "sum of the four lines above",
        ),
        (
            f"the place of update {RESUMED_AT:,}, an epoch ordered",
            _seconds(shares["resume"]),
            f"measured, the worst of processes {shares['ranks']}",
        ),
        (
            "utterances that these take twice in an epoch, in "
            f"{shares['batches_looked_at']:,} batches",
            f"{shares['twice']}",
            "measured",
        ),
        (
            f"compare the checksums of a checkpoint ({checkpoint_gb:.2f} GB); "
            "load it",
            f"{_seconds(model['compare'])}; {_seconds(model['load'])}",
            "measured, from memory",
        ),
        (
            "resume, beyond a start",
            f"{sum(times['cpu_s'] for times in resume):.1f} s",
            "sum of the three lines above",
        ),
        ("save a checkpoint", _seconds(model["save"]), "measured"),
        (
            "read from the file system at a start; at a resume",
            f"{network_gb * MIB / GB:,.0f}; "
            f"{data['machines'] * checkpoint_gb:,.0f} GB",
            "computed: once a machine",
        ),
        (
            f"collectives of an update: gradients of {model['parameters']:,} "
            "parameters; others",
            f"{model['buckets']} ({4 * model['gradient_numbers'] / GB:.2f} "
            f"GB); {_list(model['collectives'])}",
            "counted, in the place of process 0",
        ),
    ]
    for accumulation in ACCUMULATIONS:
        update_s = accumulation * BATCH_SECONDS[0] / GPU_SPEED
        interval_s = model["updates_per_checkpoint"] * update_s
        a_day_gb = (checkpoint_gb + encoder_gb) * DAY_S / interval_s
        network = 2 * 8 * 4 * model["gradient_numbers"] / GB / update_s
        rows.append(
            (
                f"accumulation {accumulation}, {GPU_SPEED:,} hours per hour of "
                "a GPU: an update; from checkpoint to checkpoint; written; "
                "gradients over the network of a machine",
                f"{1000 * update_s:.0f} ms; {interval_s / 60:.0f} min; "
                f"{a_day_gb:,.0f} GB a day, "
                f"{a_day_gb / DAY_S / FILE_SYSTEM_GB_PER_S:.2%} of "
                f"{FILE_SYSTEM_GB_PER_S:g} GB/s; {network:.0f} Gbit/s",
                "computed",
            )
        )
    lines += ["", "| what | figure | how |", "|---|---|---|"]
    lines += [f"| {what} | {figure} | {how} |" for what, figure, how in rows]
    return "\n".join([*lines, ""])


def _seconds(times: dict[str, Any], name: str = "") -> str:
    prefix = name and f"{name}_"
    cpu_s, clock_s = times[f"{prefix}cpu_s"], times[f"{prefix}s"]
    return f"{cpu_s:.2f} s ({clock_s:.2f})"


def _list(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


if __name__ == "__main__":
    exit_on_user_error(main)
