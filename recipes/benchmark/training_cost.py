r"""Measure what a training step costs, beside the baselines, in one run.

python recipes/benchmark/training_cost.py [YAML ...] [--full] \
    [--lengths=15,30] [--batch_seconds=60] [--override='d_model: 512'] ...

All contestants have the sizes of the first YAML and differ in what mixes the
frames; further YAMLs join with their own. They are timed in turns, on the
same audio (noise). The small model of the default ends in three minutes on a
CPU; --full takes the YAML as it is, in bf16, on a GPU. Nothing is reported
while the mixers differ from their slow references.

OUT.json has everything, OUT.md the tables, OUT.png the plot.
"""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from summarymixing.cost.memory import (
    fake_training,
    make_update,
    trace_update,
)
from summarymixing.cost.operations import (
    Operations,
    count_multiply_adds,
    peak_flops,
    training_operations,
)
from summarymixing.cost.stock import StockPretraining
from summarymixing.cost.timing import (
    Times,
    describe_machine,
    measured_flops,
    time_in_turns,
)
from summarymixing.cost.traffic import encoder_traffic, kept_per_frame
from summarymixing.data.batching import Utterance
from summarymixing.data.manifest import Row
from summarymixing.errors import UserError, exit_on_user_error
from summarymixing.files import write_json
from summarymixing.lobes.features import SAMPLE_RATE_HZ
from summarymixing.lobes.pretraining import Wav2Vec2Pretraining
from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
from summarymixing.nnet.span_mask import MASK_SCHEMES
from summarymixing.run.brain import count_parameters
from summarymixing.run.hparams_file import HPARAMS_FOLDER, HparamsFile
from summarymixing.training.compilation import compile_layers
from summarymixing.training.pretraining_data import (
    MaskingCollate,
    PretrainingBatch,
)

ROOT = Path(__file__).resolve().parents[2]
BASE = HPARAMS_FOLDER / "pretraining" / "summarymixing_base.yaml"
MIXERS = {
    "SummaryMixing": "nnet.summary_mixing.SummaryMixing",
    "fused attention": "nnet.attention.MultiHeadAttention",
    "rotary attention": "nnet.attention.RotaryAttention",
    "relative attention": "nnet.attention.RelativePositionAttention",
    "attention with weights": "cost.stock.AttentionWithWeights",
}
STOCK = "stock SpeechBrain"
# A model that a CPU can train: the defaults without --full.
SMALL = {"d_model": 256, "d_ffn": 1024, "num_heads": 4, "precision": "fp32"}
PARITY_TESTS = [
    f"tests/unit/nnet/test_{name}.py"
    for name in ("summary_mixing", "attention", "losses", "quantiser")
]
# Table 1 of the paper, 300,000 updates of 1.6 h. Its hours are hours of the
# clock on four A100 of 80 GB.
PAPER_HOURS_OF_AUDIO = 480_000
PAPER = {
    "SummaryMixing, 155 M": {"hours": 164, "gpu_hours": 656, "memory_gb": 54},
    "attention, 165 M": {"hours": 207, "gpu_hours": 828, "memory_gb": 76},
}


@dataclass
class Contestant:
    """A model in training, and its loss of a batch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[PretrainingBatch], Tensor]
    autocast: torch.dtype | None
    operations: Operations | None  # None: counted while it runs

    def update(self, batch: PretrainingBatch) -> None:
        """Make an update of one micro-batch."""
        make_update(
            self.model,
            self.optimizer,
            partial(self.loss, batch),
            autocast=self.autocast,
            device_type=batch.wavs.device.type,
        )

    def precision(self, device: torch.device) -> torch.autocast:
        """Return the context of the forward pass."""
        wanted = self.autocast is not None
        return torch.autocast(device.type, self.autocast, enabled=wanted)


def main() -> None:
    """Check, measure, write."""
    options = read_options()
    check_parity()
    report = measure(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out.with_suffix(".json"), report)
    text = as_markdown(report)
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    draw(report).savefig(options.out.with_suffix(".png"), dpi=150)
    print(text)


def read_options() -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(description="Measure what a training step costs.")
    parser.add_argument("yaml", nargs="*", type=Path, default=[BASE])
    parser.add_argument("--full", action="store_true", help="as in the YAML")
    parser.add_argument("--override", default="", metavar="YAML_TEXT")
    parser.add_argument(
        "--contestants",
        type=lambda text: text.split(","),
        default=[*MIXERS, STOCK],
        help=f"some of: {', '.join([*MIXERS, STOCK])}",
    )
    parser.add_argument(
        "--lengths",
        type=lambda text: [float(x) for x in text.split(",")],
        default=[15.0],
        help="seconds of an utterance",
    )
    parser.add_argument("--batch_seconds", type=float)
    parser.add_argument("--compile", action="store_true", help="the layers")
    parser.add_argument("--memory_budget", type=float, default=1.0)
    parser.add_argument(
        "--profile", action="store_true", help="write a trace of an update"
    )
    parser.add_argument("--repeats", type=int, default=5)
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=found)
    parser.add_argument(
        "--out", type=Path, default=Path("results/training_cost")
    )
    options = parser.parse_args()
    unknown = set(options.contestants) - {*MIXERS, STOCK}
    if unknown:
        raise UserError(
            f"--contestants: {', '.join(unknown)} is none of "
            f"{', '.join([*MIXERS, STOCK])}"
        )
    default_seconds = 360.0 if options.full else 30.0
    options.batch_seconds = options.batch_seconds or default_seconds
    if max(options.lengths) > options.batch_seconds:
        raise UserError(
            f"--lengths ({max(options.lengths):g} s) must fit into "
            f"--batch_seconds ({options.batch_seconds:g} s)"
        )
    return options


def check_parity() -> None:
    """Run the tests against slow references; UserError if one is red."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", *PARITY_TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(
            "a figure says nothing of a wrong model, and the tests against "
            f"the slow references do not pass: {' '.join(command)}\n"
            f"{(done.stdout + done.stderr)[-2000:]}"
        )


def measure(options: Namespace) -> dict[str, Any]:
    """Time all contestants at all lengths; returns what the JSON holds."""
    device = options.device
    contestants = make_contestants(options)
    # Where no data sheet is known: what a large matrix product reaches.
    is_gpu = device.type == "cuda"
    published = peak_flops(torch.cuda.get_device_name(device)) if is_gpu else 0
    dtype = next(iter(contestants.values())).autocast or torch.float32
    peak = published or measured_flops(device, dtype)
    report: dict[str, Any] = {
        "machine": describe_machine(device),
        "peak_flops": peak,
        "settings": {
            "yaml": [str(path) for path in options.yaml],
            "override": options.override,
            "full": options.full,
            "compile": options.compile,
            "memory_budget": options.memory_budget,
            "batch_seconds": options.batch_seconds,
            "repeats": options.repeats,
        },
        "rows": [],
    }
    for seconds in options.lengths:
        batch = make_batch(seconds, options.batch_seconds).to(device)
        # One at a time first: a GPU's peak is then that of one contestant.
        memory, failures = {}, {}
        for name, contestant in contestants.items():
            try:
                memory[name] = warm_up(contestant, batch)
            except torch.OutOfMemoryError as error:
                failures[name] = str(error).splitlines()[0]
        times = time_in_turns(
            {name: partial(contestants[name].update, batch) for name in memory},
            device=device,
            repeats=options.repeats,
            warmup=0,
        )
        for name, contestant in contestants.items():
            row = {"contestant": name, "seconds": seconds}
            row |= exact_figures(contestant, batch)
            if name in MIXERS and not options.compile:
                row["planned_gib"] = plan_memory(name, options, batch)
            if name in failures:
                row["failure"] = failures[name]
            else:
                row |= timed_figures(times[name], batch, row, peak)
                row |= memory[name]
            report["rows"].append(row)
        if options.profile:
            name = next(iter(times))
            report["kernels"] = profile(contestants[name], batch, options.out)
    return report


def profile(
    contestant: Contestant, batch: PretrainingBatch, out: Path
) -> list[str]:
    """Write a trace of an update; returns what takes most of its time."""
    kinds = torch.profiler.ProfilerActivity
    on_gpu = batch.wavs.is_cuda
    activities = [kinds.CPU, kinds.CUDA] if on_gpu else [kinds.CPU]
    with torch.profiler.profile(activities=activities) as trace:
        contestant.update(batch)
    out.parent.mkdir(parents=True, exist_ok=True)
    trace.export_chrome_trace(str(out.with_suffix(".trace.json.gz")))
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(
        trace.key_averages(), key=lambda e: getattr(e, key), reverse=True
    )
    return [
        f"{getattr(e, key) / 1000:.2f} ms in {e.count} of {e.key[:100]}"
        for e in events[:25]
    ]


def make_contestants(options: Namespace) -> dict[str, Contestant]:
    """Build every contestant with the same sizes and the same seed."""
    made = {}
    first, *others = options.yaml
    for name in options.contestants:
        values = read_values(first, options, MIXERS.get(name))
        made[name] = make_contestant(values, options, stock=name == STOCK)
    for path in others:
        made[path.stem] = make_contestant(read_values(path, options), options)
    return made


def read_values(
    path: Path, options: Namespace, mixer: str | None = None
) -> dict[str, Any]:
    """Build the objects of a YAML file with the options' changes."""
    file = HparamsFile.read(path)
    # Which layers are dropped is chance, and would be noise here.
    file.override({"manifests": "none", "output_folder": "none"})
    file.override({"layer_drop": 0.0, "seed": 1})
    if not options.full:
        file.override(SMALL)
    if options.override:
        file.override(options.override)
    if mixer is not None:
        keywords = "num_heads: !ref <num_heads>"
        if mixer != MIXERS["SummaryMixing"]:
            keywords += ", dropout: !ref <dropout>"
        file.override(f"mixer: !name:summarymixing.{mixer} {{{keywords}}}")
    return file.build()


def make_contestant(
    values: dict[str, Any], options: Namespace, stock: bool = False
) -> Contestant:
    """Make a model and its optimiser, on the device."""
    if stock:
        sizes = (
            "num_layers d_model d_ffn num_heads kernel_size dropout num_mels "
            "front_end_channels num_codes target_dim num_negatives"
        )
        model: nn.Module = StockPretraining(
            **{name: values[name] for name in sizes.split()}
        )
    else:
        model = values["model"]
    model.to(options.device).train()

    def loss(batch: PretrainingBatch) -> Tensor:
        if stock:
            return model(batch.wavs, batch.wav_lens, batch.masked.span_mask)
        return model(
            batch.wavs, batch.wav_lens, batch.masked, temperature=2.0
        ).loss

    optimizer = torch.optim.AdamW(  # the stock recipe asks for no kernel
        model.parameters(), lr=1e-5, fused=None if stock else True
    )
    is_bf16 = values["precision"] == "bf16"
    autocast = torch.bfloat16 if is_bf16 else None
    operations = None if stock else training_operations(values["model"])
    made = Contestant(model, optimizer, loss, autocast, operations)
    if not stock:
        save_memory(values["encoder"], made, options)
    return made


def save_memory(
    encoder: Wav2Vec2Encoder, contestant: Contestant, options: Namespace
) -> None:
    """Keep the memory budget, by compiled layers or without."""
    if not options.compile:
        encoder.conformer.recompute_share(1 - options.memory_budget)
        return
    precision = contestant.precision(options.device)
    compile_layers(
        encoder,
        memory_budget=options.memory_budget,
        max_batch_seconds=options.batch_seconds,
        device=options.device,
        contexts={True: precision, False: precision},
    )


def plan_memory(
    name: str, options: Namespace, batch: PretrainingBatch
) -> float:
    """Return the GiB that an eager update is predicted to allocate."""
    on_cpu = batch.to("cpu")
    with fake_training(options.device.type):
        values = read_values(options.yaml[0], options, MIXERS[name])
        model = values["model"].train()
        share = 1 - options.memory_budget
        values["encoder"].conformer.recompute_share(share)
        memory = trace_update(
            model,
            torch.optim.AdamW(model.parameters()),
            lambda: (
                model(
                    on_cpu.wavs, on_cpu.wav_lens, on_cpu.masked, temperature=2.0
                ).loss
            ),
            accumulation=1,
            autocast=torch.bfloat16 if values["precision"] == "bf16" else None,
        )
    return memory.peak / 2**30


def make_batch(seconds: float, batch_seconds: float) -> PretrainingBatch:
    """Make a batch of utterances of one length, of noise.

    As many frames of each are masked, for the stock step can do no other.
    """
    samples = round(seconds * SAMPLE_RATE_HZ)
    rng = torch.Generator().manual_seed(1)
    scheme = partial(MASK_SCHEMES["stock"], probability=0.65, length=10)
    utterances = [
        Utterance(
            Row(str(number), "noise", (), seconds),
            torch.randn(samples, generator=rng),
            0,
            "",
        )
        for number in range(int(batch_seconds / seconds))
    ]

    def masked_as_the_first(num_frames: int, _: Any) -> Any:
        return scheme(num_frames, np.random.default_rng(1))

    return MaskingCollate(seed=1, scheme=masked_as_the_first)(utterances)


def warm_up(
    contestant: Contestant, batch: PretrainingBatch
) -> dict[str, float]:
    """Make two updates; returns the peak of the second one on a GPU.

    What the other contestants hold meanwhile is not counted.
    """
    device = batch.wavs.device
    contestant.update(batch)
    if device.type != "cuda":
        return {}
    states = contestant.optimizer.state.values()
    held = [
        *contestant.model.parameters(),
        *contestant.model.buffers(),
        *(x for state in states for x in state.values()),
    ]
    own = sum(x.nbytes for x in held if x.is_cuda)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    allocated = torch.cuda.memory_allocated()
    reserved = torch.cuda.memory_reserved()
    contestant.update(batch)
    return {
        "allocated_gib": (torch.cuda.max_memory_allocated() - allocated + own)
        / 2**30,
        "reserved_gib": (torch.cuda.max_memory_reserved() - reserved + own)
        / 2**30,
    }


def exact_figures(
    contestant: Contestant, batch: PretrainingBatch
) -> dict[str, Any]:
    """Return what is counted and not timed, per frame of the batch."""
    model = contestant.model
    utterances, num_frames = batch.masked.span_mask.shape
    frames = utterances * num_frames
    figures: dict[str, Any] = {
        "parameters": count_parameters(model),
        "frames": frames,
    }
    if contestant.operations is None:
        count = count_multiply_adds(lambda: contestant.loss(batch).backward())
        contestant.optimizer.zero_grad()
    else:
        count = contestant.operations(
            utterances,
            num_frames,
            masked=len(batch.masked.frames),
            widest=batch.masked.widest,
        )
    if isinstance(model, Wav2Vec2Pretraining):
        traffic = encoder_traffic(model.encoder, utterances, num_frames)
        figures["kernels"] = traffic.kernels
        figures["bytes_per_frame"] = round(traffic.num_bytes / frames)
        figures["kept_bytes_per_frame_and_layer"] = round(
            kept_per_frame(model.encoder, num_frames)
        )
    figures["multiply_adds_per_frame"] = round(count / frames)
    return figures


def timed_figures(
    times: Times,
    batch: PretrainingBatch,
    row: dict[str, Any],
    peak_flops: float,
) -> dict[str, Any]:
    """Return what follows from the time of an update."""
    flops = 2 * row["multiply_adds_per_frame"] * row["frames"]
    speed = batch.seconds / times.median
    return {
        **times._asdict(),
        "audio_hours_per_hour": speed,
        "share_of_peak": flops / times.median / peak_flops,
        "projected_hours": PAPER_HOURS_OF_AUDIO / speed,
        "projected_days": PAPER_HOURS_OF_AUDIO / speed / 24,
    }


def as_markdown(report: dict[str, Any]) -> str:
    """Write the tables of a report."""
    settings = report["settings"]
    lines = [
        f"# Cost of a training step ({report['machine']})",
        "",
        f"{settings['batch_seconds']:g} s of audio in an update, "
        f"{settings['repeats']} updates of each in turns; median and middle "
        "half. Multiply-adds, and kernels and bytes of the encoder in eager "
        "bf16 on a GPU, are counted.",
        "",
        "| s | contestant | parameters | ms | middle half | audio h per h "
        "| share of peak | GiB planned, allocated, reserved "
        "| M multiply-adds per frame | kernels | kB moved per frame "
        "| kB kept per frame and layer |",
        "|---" * 12 + "|",
    ]
    for row in report["rows"]:
        cells = [f"{row['seconds']:g}", row["contestant"]]
        cells.append(f"{row['parameters'] / 1e6:.1f} M")
        if "failure" in row:
            cells += [row["failure"], *[""] * 4]
        else:
            cells.append(f"{1000 * row['median']:.0f}")
            low, high = (1000 * row[edge] for edge in ("low", "high"))
            cells.append(f"{low:.0f} to {high:.0f}")
            cells.append(f"{row['audio_hours_per_hour']:.0f}")
            cells.append(f"{100 * row['share_of_peak']:.0f} %")
            memory = [
                row.get(f"{key}_gib")
                for key in ("planned", "allocated", "reserved")
            ]
            cells.append(", ".join(f"{x:.1f}" for x in memory if x))
        cells.append(f"{row['multiply_adds_per_frame'] / 1e6:.1f}")
        cells.append(str(row.get("kernels", "")))
        for key in ("bytes_per_frame", "kept_bytes_per_frame_and_layer"):
            cells.append(f"{row[key] / 1000:.0f}" if key in row else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_table_1(report["rows"]), ""])


def _table_1(rows: list[dict[str, Any]]) -> list[str]:
    """Put the paper's Table 1 and our projection side by side."""
    lines = [
        f"## {PAPER_HOURS_OF_AUDIO:,} hours of audio (Table 1)",
        "",
        "| | device hours | days on one device | audio h per device h "
        "| memory |",
        "|---" * 5 + "|",
    ]
    for name, paper in PAPER.items():
        hours = paper["gpu_hours"]
        lines.append(
            f"| paper, {name} ({paper['hours']} h on 4 x A100) | {hours} | "
            f"{hours / 24:.1f} | {PAPER_HOURS_OF_AUDIO / hours:.0f} | "
            f"{paper['memory_gb']} GB |"
        )
    for row in rows:
        if "failure" in row:
            continue
        reserved = row.get("reserved_gib")
        lines.append(
            f"| {row['contestant']}, {row['parameters'] / 1e6:.0f} M, "
            f"{row['seconds']:g} s | {row['projected_hours']:,.0f} | "
            f"{row['projected_days']:,.1f} | "
            f"{row['audio_hours_per_hour']:,.0f} | "
            f"{'' if reserved is None else f'{reserved:.1f} GiB'} |"
        )
    return lines


def draw(report: dict[str, Any]) -> Figure:
    """Draw the time of an update against the length of its utterances."""
    figure = Figure(figsize=(8, 4.5), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    rows = [row for row in report["rows"] if "failure" not in row]
    lengths = sorted({row["seconds"] for row in rows})
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    height = 0.8 / len(lengths)
    for index, seconds in enumerate(lengths):
        found = [row for row in rows if row["seconds"] == seconds]
        bars = axes.barh(
            [names.index(row["contestant"]) + index * height for row in found],
            [1000 * row["median"] for row in found],
            height,
            xerr=[
                [1000 * (row["median"] - row["low"]) for row in found],
                [1000 * (row["high"] - row["median"]) for row in found],
            ],
            label=f"utterances of {seconds:g} s",
            color=f"C{index}",
        )
        axes.bar_label(bars, fmt="%.0f", padding=6, fontsize=8)
    middle = 0.4 - height / 2
    axes.set_yticks([i + middle for i in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlabel(
        f"ms for an update of {report['settings']['batch_seconds']:g} s of "
        f"audio\n{report['machine']}"
    )
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    exit_on_user_error(main)
