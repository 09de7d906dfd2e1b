"""What a large manifest costs: time and memory of the processes that use it."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from summarymixing.data.batching import BatchPlan, start_worker
from summarymixing.data.manifest import Manifest
from summarymixing.data.manifest_index import SUFFIX

MIB = 2**20

# A machine of eight GPUs, for which memory is added up.
PROCESSES, WORKERS = 8, 8


class _Rows(Dataset[int]):
    """Rows that are parsed; an item is the process that did it."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def __getitem__(self, index: int) -> int:
        _ = self.manifest[index]
        return os.getpid()


def measure_rank(
    path: Path, *, num_workers: int, num_touched: int, world_size: int = 1
) -> dict[str, Any]:
    """Read a manifest as a training process does, and use it in workers.

    Arguments
    ---------
    path : Path
        The manifest.
    num_workers : int
        Worker processes of this process; at least 1.
    num_touched : int
        Rows that these parse, at random.
    world_size : int
        The number of processes that the plan is made for.

    Returns
    -------
    dict
        Seconds of the clock and of the processor to read, to plan and to
        order an epoch, and MiB of memory of its own (not shared, not a cached
        file) that this process takes for them, and that a worker takes between
        its first rows and its last.
    """
    result: dict[str, Any] = {}

    def measure(name: str, work: Callable[[], Any]) -> Any:
        memory = private_mib()
        start, cpu_start = time.perf_counter(), time.process_time()
        value = work()
        result[f"{name}_s"] = time.perf_counter() - start
        result[f"{name}_cpu_s"] = time.process_time() - cpu_start
        result[f"{name}_mib"] = private_mib() - memory
        return value

    manifest = measure("read", lambda: Manifest.read(path))
    plan = measure(
        "plan",
        lambda: BatchPlan(
            manifest.durations,
            seed=0,
            max_batch_seconds=360,
            world_size=world_size,
        ),
    )
    result["rows"], result["batches"] = len(manifest), len(plan)
    # Kept, since a run keeps its epoch too.
    _order = measure("epoch", lambda: plan.batches(epoch=1))
    touched = np.random.default_rng(0).integers(len(manifest), size=num_touched)
    loader = DataLoader(
        _Rows(manifest),
        sampler=touched.tolist(),
        batch_size=max(1, num_touched // 50),
        num_workers=num_workers,
        collate_fn=set,
        worker_init_fn=start_worker,
    )
    memory_of: dict[int, list[float]] = {}
    for pids in loader:
        for pid in pids:
            memory_of.setdefault(pid, []).append(private_mib(pid))
    # A worker may have ended when its last rows are looked at.
    seen = [[m for m in values if m > 0] for values in memory_of.values()]
    result["worker_mib"] = max(values[-1] - values[0] for values in seen)
    start = time.perf_counter()
    for index in touched:
        _ = manifest[index]
    result["row_us"] = 1e6 * (time.perf_counter() - start) / num_touched
    return result


def private_mib(pid: int | str = "self") -> float:
    """Return the memory that a process has for itself, in MiB; 0 if gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    except OSError:
        return 0.0
    fields = dict(line.split(":") for line in text.splitlines()[1:])
    return float(fields["Private_Dirty"].split()[0]) / 1024


def measure_manifest(
    path: Path,
    *,
    ranks: int,
    workers: int,
    num_touched: int,
    world_size: int = 1,
) -> dict[str, Any]:
    """Measure a manifest of many rows: the first reading, and later ones.

    Arguments
    ---------
    path : Path
        The manifest, without an index.
    ranks, workers : int
        Training processes that read it at once, and workers of each.
    num_touched : int
        Rows that the workers of a process parse.
    world_size : int
        The number of processes that the plan is made for.

    Returns
    -------
    dict
        cold: what `measure_rank` gives for a process that comes first; warm:
        the same for each of `ranks`, that come later and all at once.
    """

    def measure_at_once(number: int) -> list[dict[str, Any]]:
        context = multiprocessing.get_context("fork")
        ends = []
        for _ in range(number):
            here, there = context.Pipe(duplex=False)
            process = context.Process(
                target=lambda end=there: end.send(
                    measure_rank(
                        path,
                        num_workers=workers,
                        num_touched=num_touched,
                        world_size=world_size,
                    )
                )
            )
            process.start()
            there.close()  # so that a process that fails is noticed
            ends.append(here)
        return [end.recv() for end in ends]

    (cold,) = measure_at_once(1)
    warm = measure_at_once(ranks)
    index = path.with_name(path.name + SUFFIX)
    index_mib = index.stat().st_size / MIB if index.exists() else 0.0
    own = max(r["read_mib"] + r["plan_mib"] + r["epoch_mib"] for r in warm)
    worker_mib = max(r["worker_mib"] for r in warm)
    return {
        "rows": cold["rows"],
        "text_mib": path.stat().st_size / MIB,
        "index_mib": index_mib,
        "cold": cold,
        "warm": warm,
        "workers": workers,
        "machine_mib": index_mib + PROCESSES * (own + WORKERS * worker_mib),
    }
