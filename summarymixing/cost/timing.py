"""Times of several steps that can be compared with each other."""

from __future__ import annotations

import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from summarymixing.nnet.layers import linear


class Times(NamedTuple):
    """Median of repeated measurements, and the middle half of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        """Summarise measurements.

        Example
        -------
        >>> Times.of([3.0, 1.0, 2.0])
        Times(median=2.0, low=1.5, high=2.5)
        """
        twice = seconds * 2 if len(seconds) == 1 else seconds
        low, median, high = statistics.quantiles(twice, method="inclusive")
        return cls(median, low, high)


def time_in_turns(
    steps: Mapping[str, Callable[[], object]],
    *,
    device: torch.device,
    repeats: int,
    warmup: int = 1,
) -> dict[str, Times]:
    """Time steps one after another, round after round.

    What disturbs the machine for a while then disturbs all of them. On a CPU
    the processor's time of this process is counted, which other processes
    hardly change; on a GPU the clock's, with the device's work done.

    Arguments
    ---------
    steps : mapping of str to callable
        The steps, by name.
    device : torch.device
        Where they compute.
    repeats, warmup : int
        Rounds that count, and rounds before them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warmup + repeats):
        for name, step in steps.items():
            elapsed = time_once(step, device)
            if turn >= warmup:
                seconds[name].append(elapsed)
    return {name: Times.of(values) for name, values in seconds.items()}


def time_once(step: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, see `time_in_turns`."""
    if device.type != "cuda":
        start = time.process_time()
        step()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure what a large matrix product reaches: FLOP per second."""
    size = 8192 if device.type == "cuda" else 1024
    x = torch.ones(size, size, device=device, dtype=dtype)
    # Two ways, of which either may be the faster one on a CPU.
    products = {"@": lambda: x @ x, "linear": lambda: linear(x[None], x)}
    times = time_in_turns(products, device=device, repeats=5)
    return 2 * size**3 / min(t.median for t in times.values())


def describe_machine(device: torch.device) -> str:
    """Name the processor or GPU, the threads and the version of torch."""
    if device.type == "cuda":
        return (
            f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
        )
    info = Path("/proc/cpuinfo")
    text = info.read_text("utf-8") if info.exists() else ""
    named = re.search(r"model name\s*: (.*)", text)
    processor = named[1] if named else platform.machine()
    threads = f"threads: {torch.get_num_threads()}"
    return f"{processor}, {threads}, torch {torch.__version__}"
