r"""Measure how time and memory grow with the length of an utterance.

python recipes/benchmark/scaling.py [--full] [--seconds=10,30,...] \
    [--memory_gib=8] [--minutes=10] ...

Each point, a mixer at a length, is a process of its own, so that a point
without memory or time ends only itself; longer ones of that mixer are then
left out. A point is one forward pass (inference), or forward and backward
(training), of Conformer layers over one utterance.

OUT.json has everything, OUT.md the tables, OUT.png the plot. The exponent is
the slope of log time over log length, by least squares, over all lengths that
are named beside it; the fixed costs of an operator lower it at short lengths,
so the slope between the two longest ones is given, too.
"""

from __future__ import annotations

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from summarymixing.cost.memory import measure_peak
from summarymixing.cost.stock import AttentionWithWeights
from summarymixing.cost.timing import describe_machine, time_once
from summarymixing.errors import UserError, exit_on_user_error
from summarymixing.files import write_json
from summarymixing.lobes.conformer import ConformerEncoder
from summarymixing.lobes.features import FRAMES_PER_SECOND
from summarymixing.nnet.attention import (
    MultiHeadAttention,
    RelativePositionAttention,
    RotaryAttention,
)
from summarymixing.nnet.summary_mixing import SummaryMixing
from summarymixing.run.brain import count_parameters

MIXERS: dict[str, Any] = {
    "SummaryMixing": SummaryMixing,
    "SummaryMixing lite": partial(SummaryMixing, mode="lite"),
    "fused attention": MultiHeadAttention,
    "rotary attention": RotaryAttention,
    "relative attention": RelativePositionAttention,
    "attention with weights": AttentionWithWeights,
}
SECONDS = (10, 30, 100, 300, 900, 1800, 3600)
STAGES = ("inference", "training")
OUT_OF_MEMORY = 3  # exit status of a point
# The C library then keeps freed memory, as the allocator of a GPU does. Without
# this, the kernel clears the pages of every large tensor anew, a third of the
# time of a long utterance and nothing of a short one.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}


def main() -> None:
    """Measure all points, or the one that the command line names."""
    options = read_options()
    if options.point:
        print(json.dumps(measure_point(options)))
        return
    report = measure(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out.with_suffix(".json"), report)
    text = as_markdown(report)
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    draw(report).savefig(options.out.with_suffix(".png"), dpi=150)
    print(text)


def read_options() -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(description="Measure time and memory by length.")
    parser.add_argument("--full", action="store_true", help="width 768, bf16")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--seconds", type=_numbers, default=[*SECONDS])
    parser.add_argument("--mixers", type=_names, default=[*MIXERS])
    parser.add_argument("--stages", type=_names, default=[*STAGES])
    parser.add_argument(
        "--memory_gib", type=float, default=8, help="of a CPU's point"
    )
    parser.add_argument(
        "--point_seconds", type=float, default=60, help="limit of a point"
    )
    parser.add_argument(
        "--minutes", type=float, default=30, help="limit of the whole"
    )
    parser.add_argument(
        "--equal_parameters",
        action="store_true",
        help="widen the feed-forward modules to the largest contestant",
    )
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=found)
    parser.add_argument("--out", type=Path, default=Path("results/scaling"))
    parser.add_argument("--point", nargs=3, help="mixer, stage, seconds")
    options = parser.parse_args()
    for given, known in (
        (options.mixers, MIXERS),
        (options.stages, STAGES),
    ):
        if unknown := set(given) - set(known):
            raise UserError(
                f"{', '.join(unknown)} is none of {', '.join(known)}"
            )
    options.width, options.d_ffn = (768, 3072) if options.full else (256, 1024)
    return options


def _numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",")]


def _names(text: str) -> list[str]:
    return text.split(",")


def make_layers(name: str, options: Namespace) -> ConformerEncoder:
    """Build the layers of a mixer, at equal width or at equal parameters."""
    make = partial(
        ConformerEncoder, num_layers=options.layers, d_model=options.width
    )
    encoder = make(mixer=MIXERS[name], d_ffn=options.d_ffn)
    if not options.equal_parameters:
        return encoder
    largest = max(
        count_parameters(make(mixer=mixer, d_ffn=options.d_ffn))
        for mixer in (MIXERS[other] for other in options.mixers)
    )
    # A hidden unit has weights in and out and a bias, in two modules.
    per_unit = options.layers * 2 * (2 * options.width + 1)
    missing = round((largest - count_parameters(encoder)) / per_unit)
    return make(mixer=MIXERS[name], d_ffn=options.d_ffn + missing)


def measure_point(options: Namespace) -> dict[str, float]:
    """Time one mixer at one length; exits if there is no memory for it."""
    name, stage, seconds = options.point
    device = options.device
    if device.type == "cpu":
        limit = int(options.memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.manual_seed(1)
    layers: nn.Module = make_layers(name, options).to(device)
    layers.train(stage == "training")
    frames = int(seconds) * FRAMES_PER_SECOND
    x = torch.randn(1, frames, options.width, device=device)
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=options.full)

    def step() -> None:
        training = stage == "training"
        with bf16, torch.set_grad_enabled(training):
            output = layers(x).output
        if training:
            output.float().sum().backward()

    try:
        peak = measure_peak(step, device)
        times = [time_once(step, device)]
        # Short steps are repeated more often; two at least, one to warm up.
        until = time.monotonic() + min(options.point_seconds / 4, 3.0)
        while len(times) < 2 or (time.monotonic() < until and len(times) < 30):
            times.append(time_once(step, device))
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        print(str(error).splitlines()[0], file=sys.stderr)
        sys.exit(OUT_OF_MEMORY)
    return {
        "time": statistics.median(times[1:]),
        "gib": peak / 2**30,
        "parameters": count_parameters(layers),
    }


def _is_out_of_memory(error: Exception) -> bool:
    # torch raises a plain RuntimeError where the CPU has no memory.
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "allocate memory" in str(error)


def measure(options: Namespace) -> dict[str, Any]:
    """Measure every mixer from short to long; returns what the JSON holds."""
    end = time.monotonic() + 60 * options.minutes
    curves = []
    for stage in options.stages:
        for name in options.mixers:
            points: list[dict[str, float]] = []
            ended_by = ""
            for seconds in sorted(options.seconds):
                left = min(options.point_seconds, end - time.monotonic())
                point, ended_by = run_point(name, stage, seconds, left)
                if ended_by:
                    break
                points.append({"seconds": seconds, **point})
            curve = {"mixer": name, "stage": stage, "points": points}
            curve |= {"ended_by": ended_by, **fit(points)}
            curves.append(curve)
            print(_line(curve), file=sys.stderr, flush=True)
    return {
        "machine": describe_machine(options.device),
        "width": options.width,
        "layers": options.layers,
        "equal_parameters": options.equal_parameters,
        "memory_gib": options.memory_gib,
        "curves": curves,
    }


def run_point(
    name: str, stage: str, seconds: int, limit: float
) -> tuple[dict[str, float], str]:
    """Measure a point in a process of its own.

    Returns
    -------
    dict
        Time, memory and parameters, see `measure_point`; empty if it ended.
    str
        What ended it: "memory", "time", or "" if nothing did.
    """
    if limit <= 0:
        return {}, "time"
    given = [arg for arg in sys.argv[1:] if not arg.startswith("--out")]
    point = ["--point", name, stage, str(seconds)]
    try:
        done = subprocess.run(
            [sys.executable, __file__, *given, *point],
            capture_output=True,
            text=True,
            env=os.environ | KEEP_FREED_MEMORY,
            # Python and torch take some seconds to start.
            timeout=limit + 30,
        )
    except subprocess.TimeoutExpired:
        return {}, "time"
    if done.returncode in (OUT_OF_MEMORY, -6, -9):
        return {}, "memory"
    if done.returncode != 0:
        raise UserError(
            f"{name} at {seconds} s ({stage}) failed:\n{done.stderr[-2000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1]), ""


def fit(points: list[dict[str, float]]) -> dict[str, float]:
    """Fit time = c * length ** exponent.

    Example
    -------
    >>> fit([{"seconds": n, "time": n**2} for n in (1, 2, 4)])
    {'exponent': 2.0, 'last_exponent': 2.0}
    """
    if len(points) < 2:
        return {}
    x = [math.log(point["seconds"]) for point in points]
    y = [math.log(point["time"]) for point in points]
    slope, _ = statistics.linear_regression(x, y)
    last = (y[-1] - y[-2]) / (x[-1] - x[-2])
    return {"exponent": round(slope, 3), "last_exponent": round(last, 3)}


def _line(curve: dict[str, Any]) -> str:
    times = ", ".join(
        f"{p['seconds']:g} s: {1000 * p['time']:.0f} ms {p['gib']:.2f} GiB"
        for p in curve["points"]
    )
    return (
        f"{curve['stage']}, {curve['mixer']}: {times}; exponent "
        f"{curve.get('exponent')}; {curve['ended_by']}"
    )


def as_markdown(report: dict[str, Any]) -> str:
    """Write the tables of a report."""
    equal = "parameters" if report["equal_parameters"] else "width"
    lines = [
        f"# Time and memory by length ({report['machine']})",
        "",
        f"{report['layers']} Conformer layer(s) of width {report['width']}, "
        f"equal {equal}, one utterance.",
        "",
        "| stage | mixer | parameters | exponent (range) | last two lengths "
        "| longest: time, memory | ended by |",
        "|---" * 7 + "|",
    ]
    for curve in report["curves"]:
        cells = [curve["stage"], curve["mixer"]]
        if points := curve["points"]:
            first, last = points[0], points[-1]
            lengths = f"{first['seconds']} to {last['seconds']} s"
            cells.append(f"{last['parameters'] / 1e6:.2f} M")
            cells.append(f"{curve.get('exponent')} ({lengths})")
            cells.append(str(curve.get("last_exponent")))
            cells.append(
                f"{last['seconds']} s: {last['time']:.2f} s, "
                f"{last['gib']:.2f} GiB"
            )
        else:
            cells += [""] * 4
        lines.append(f"| {' | '.join([*cells, curve['ended_by']])} |")
    return "\n".join([*lines, ""])


def draw(report: dict[str, Any]) -> Figure:
    """Draw time and memory over length, training and inference apart."""
    stages = list(dict.fromkeys(curve["stage"] for curve in report["curves"]))
    names = list(dict.fromkeys(curve["mixer"] for curve in report["curves"]))
    figure = Figure(
        figsize=(4.5 * len(stages), 7), facecolor="white", layout="constrained"
    )
    axes = figure.subplots(2, len(stages), sharex=True, squeeze=False)
    for curve in report["curves"]:
        column = stages.index(curve["stage"])
        index = names.index(curve["mixer"])
        for row, key in enumerate(("time", "gib")):
            axes[row, column].plot(
                [point["seconds"] for point in curve["points"]],
                [point[key] for point in curve["points"]],
                label=curve["mixer"],
                color=f"C{index}",
                marker="os^Dvx"[index % 6],
                ms=4,
            )
    for column, stage in enumerate(stages):
        axes[0, column].set_title(stage)
        axes[1, column].set_xlabel("seconds of audio")
    lengths = sorted(
        {p["seconds"] for curve in report["curves"] for p in curve["points"]}
    )
    for panel in axes.flat:
        panel.set(xscale="log", yscale="log")
        panel.set_xticks(lengths, [f"{n:g}" for n in lengths])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("GiB of tensors")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"{report['layers']} layer(s) of width {report['width']}\n"
        f"{report['machine']}",
        fontsize=9,
    )
    return figure


if __name__ == "__main__":
    exit_on_user_error(main)
