"""Measure what it takes to encode long recordings, block by block.

python recipes/benchmark/long_audio.py [--model=base] [--minutes=60] \
    [--ways=blocks,six_minutes,attention,difference] [--memory=2GB] ...

Each way is a process of its own with random weights and synthetic audio, read
from a file of 16 bits:

blocks        the whole recording through `encode_long`, the last layer kept
six_minutes   forward passes over six minutes each, as many as make the length
attention     the same model with attention, the whole recording at once, under
              --limit_gib of address space
difference    the largest difference of blocks of 5 and of 60 s to one forward
              pass, in deviations of each hidden state, at odd lengths

CPU time is that of the process; memory is the peak beyond what the process
took when the weights were loaded. OUT.json has everything, OUT.md the table.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from summarymixing.cli.feature_folder import read_memory
from summarymixing.cost.timing import describe_machine
from summarymixing.errors import exit_on_user_error
from summarymixing.files import write_json
from summarymixing.lobes.features import SAMPLE_RATE_HZ
from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
from summarymixing.nnet.attention import MultiHeadAttention
from summarymixing.nnet.summary_mixing import SummaryMixing

# As in hparams/pretraining.
MODELS: dict[str, dict[str, int]] = {
    "base": {"num_layers": 12, "d_model": 768, "d_ffn": 3072},
    "tiny": {
        "num_layers": 3,
        "d_model": 144,
        "d_ffn": 576,
        "front_end_channels": 256,
    },
}
MODES = ("full", "lite")
ODD_SAMPLES = (1, 399, 80_000, 80_320, 1_000_003)
PASS_SECONDS = 360
OUT_OF_MEMORY = 3  # exit status of a way


def main() -> None:
    """Measure all ways, or the one that the command line names."""
    options = read_options()
    if options.way:
        print(json.dumps(WAYS[options.way](options)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        audio = Path(folder) / "recording.wav"
        write_audio(audio, round(60 * options.minutes))
        for way in options.ways:
            for mode in options.modes if way != "attention" else ["-"]:
                row = {"way": way, "mode": mode}
                row |= run_way(way, mode, audio)
                print(json.dumps(row), file=sys.stderr, flush=True)
                rows.append(row)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": describe_machine(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "model": options.model,
        "layers": options.layers or MODELS[options.model]["num_layers"],
        "minutes": options.minutes,
        "memory": options.memory,
        "rows": rows,
    }
    write_json(options.out.with_suffix(".json"), report)
    text = as_markdown(report)
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def read_options() -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(description="Measure encoding of long recordings.")
    parser.add_argument("--model", choices=[*MODELS], default="base")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--modes", type=_names, default=["full"])
    parser.add_argument("--ways", type=_names, default=[*WAYS])
    parser.add_argument("--memory", default="2GB", help="of the blocks")
    parser.add_argument(
        "--passes", type=int, help="of six minutes, then scaled up (all)"
    )
    parser.add_argument("--limit_gib", type=float, default=12)
    parser.add_argument("--out", type=Path, default=Path("results/long_audio"))
    parser.add_argument(
        "--layers", type=int, help="fewer than the model has: same memory"
    )
    for name in ("way", "mode", "audio"):
        parser.add_argument(f"--{name}", help="of the process of one way")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    return text.split(",")


def write_audio(path: Path, seconds: int) -> None:
    """Write noise of changing loudness, minute by minute."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE_HZ, 1) as file:
        for start in range(0, seconds, 60):
            size = min(60, seconds - start) * SAMPLE_RATE_HZ
            loudness = 0.05 * (1 + np.sin(np.arange(size) / 4000))
            file.write(loudness * rng.standard_normal(size))


def make_encoder(options: Namespace) -> Wav2Vec2Encoder:
    """Build an encoder with random weights; mode "-" is attention."""
    torch.manual_seed(1)
    mixer: Any = partial(SummaryMixing, mode=options.mode)
    if options.mode == "-":
        mixer = MultiHeadAttention
    sizes = dict(MODELS[options.model])
    sizes["num_layers"] = options.layers or sizes["num_layers"]
    return Wav2Vec2Encoder(mixer=mixer, **sizes).eval()


def run_way(way: str, mode: str, audio: Path) -> dict[str, Any]:
    """Measure a way in a process of its own."""
    own = [f"--way={way}", f"--mode={mode}", f"--audio={audio}"]
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], *own],
        capture_output=True,
        text=True,
    )
    if done.returncode in (OUT_OF_MEMORY, -6, -9):
        return {"ended": done.stderr.strip().splitlines()[-1:]}
    done.check_returncode()
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(work: Any) -> dict[str, float]:
    """Run work; return its times in seconds and its memory in GiB."""
    before = Path("/proc/self/statm").read_text().split()[1]
    resident = int(before) * resource.getpagesize()
    wall, cpu = time.monotonic(), time.process_time()
    work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "wall_s": round(time.monotonic() - wall, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "gib": round((peak - resident) / 2**30, 3),
    }


def by_blocks(options: Namespace) -> dict[str, Any]:
    """Encode the recording by `encode_long`."""
    encoder = make_encoder(options)

    def work() -> None:
        for _ in encoder.encode_long(
            options.audio,
            [encoder.num_layers],
            memory=read_memory(options.memory),
        ):
            pass

    return measure(work)


def by_passes(options: Namespace) -> dict[str, Any]:
    """Encode the recording six minutes at a time."""
    encoder = make_encoder(options)
    needed = 60 * options.minutes / PASS_SECONDS
    passes = options.passes or round(needed)

    @torch.no_grad()
    def work() -> None:
        with soundfile.SoundFile(options.audio) as file:
            for _ in range(passes):
                wav = file.read(PASS_SECONDS * SAMPLE_RATE_HZ, dtype="float32")
                encoder(torch.from_numpy(wav)[None], torch.ones(1))

    result: dict[str, Any] = measure(work)
    for name in ("wall_s", "cpu_s"):
        result[name] = round(result[name] * needed / passes, 1)
    return {**result, "passes": passes}


@torch.no_grad()
def by_attention(options: Namespace) -> dict[str, Any]:
    """Encode the recording at once with attention, as far as memory goes."""
    encoder = make_encoder(options)
    limit = int(options.limit_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        wav, _ = soundfile.read(options.audio, dtype="float32")
        return measure(
            lambda: encoder(torch.from_numpy(wav)[None], torch.ones(1))
        )
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error):
            raise
        print(str(error).splitlines()[0], file=sys.stderr)
        sys.exit(OUT_OF_MEMORY)


@torch.no_grad()
def differences(options: Namespace) -> dict[str, Any]:
    """Compare blocks with one forward pass."""
    encoder = make_encoder(options)
    largest = 0.0
    for size in ODD_SAMPLES:
        wav = torch.randn(size)
        whole = encoder(wav[None], torch.ones(1)).hidden_states
        for seconds in (5, 60):
            pieces = list(encoder.encode_long(wav, block_seconds=seconds))
            for layer, state in enumerate(whole):
                joined = torch.cat([p.hidden_states[layer] for p in pieces])
                error = (joined - state[0]).abs().max() / state.std()
                largest = max(largest, float(error))
    return {"difference": largest, "samples": ODD_SAMPLES}


WAYS = {
    "blocks": by_blocks,
    "six_minutes": by_passes,
    "attention": by_attention,
    "difference": differences,
}


def as_markdown(report: dict[str, Any]) -> str:
    """Write the table of a report."""
    lines = [
        f"# Encoding {report['minutes']:g} minutes ({report['machine']}, "
        f"{report['threads']} thread(s))",
        "",
        f"Model `{report['model']}`, {report['layers']} layers, random "
        "weights, float32, "
        f"memory {report['memory']}.",
        "",
        "| way | mode | CPU time | time | memory beyond weights | remarks |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        cells = [row["way"], row["mode"]]
        if "cpu_s" in row:
            cells += [f"{row['cpu_s']:,.0f} s", f"{row['wall_s']:,.0f} s"]
            cells += [f"{row['gib']:.2f} GiB"]
        else:
            cells += ["", "", ""]
        remarks = {k: row[k] for k in ("difference", "ended") if k in row}
        cells.append(", ".join(f"{k}: {v}" for k, v in remarks.items()))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    exit_on_user_error(main)
