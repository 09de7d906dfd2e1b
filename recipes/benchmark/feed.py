"""Measure how fast data reaches a GPU, and what a large manifest costs.

python recipes/benchmark/feed.py [MANIFESTS] [--rows=500000] [--output=NAME]

Audio: hours per hour through the loader of pre-training (reading, decoding,
masking, padding, pinning) for several numbers of workers, from `train.csv` and
`valid.csv` in MANIFESTS or, without, from synthetic FLAC recordings of ten
minutes. Files that were read before come from memory, so this is the work of
the processor; a disk may be slower.

Manifest: seconds and memory of reading one of `--rows` rows, of planning an
epoch, and of workers that parse rows, in several processes at once.

A Markdown report is printed, and written with a JSON file as NAME.md and
NAME.json.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from summarymixing.cost.manifests import PROCESSES, WORKERS, measure_manifest
from summarymixing.data.audio import SAMPLE_RATE_HZ
from summarymixing.data.manifest import Row, write_manifest
from summarymixing.errors import exit_on_user_error
from summarymixing.files import write_report
from summarymixing.miniature.librilight_rows import make_rows
from summarymixing.run.hparams_file import HparamsFile
from summarymixing.training.pretraining_data import load_pretraining_data

SETTINGS = Path(__file__).parents[2] / "hparams" / "shared" / "pretraining.yaml"

# Hours of audio per GPU hour. SpidR: 16 x 237.5 s x 400k updates in 48 h on
# four H100 (its table of speeds). The paper: 480,000 h in 164 h on four A100.
SPEEDS = {"our aim": 5000, "SpidR, H100": 2199, "the paper, A100": 732}

RECORDINGS, RECORDING_S = 6, 600


def write_recordings(
    folder: Path, *, count: int = RECORDINGS, seconds: int = RECORDING_S
) -> None:
    """Write FLAC files that are as hard to decode as speech, and manifests.

    Arguments
    ---------
    folder : Path
        Will hold the recordings, train.csv and valid.csv.
    count, seconds : int
        How many recordings, and how long.
    """
    size = seconds * SAMPLE_RATE_HZ
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(size))
    spectrum /= np.maximum(np.arange(len(spectrum)), size // 200)  # 1/f
    syllables = np.sin(np.arange(size) * (4 * math.pi / SAMPLE_RATE_HZ)) ** 2
    samples = np.fft.irfft(spectrum, size) * syllables
    samples *= 0.5 / np.abs(samples).max()
    rows = []
    for number in range(count):
        path = folder / f"{number}.flac"
        soundfile.write(path, samples, SAMPLE_RATE_HZ, subtype="PCM_16")
        # Two clips are joined to 30 s, as in Libri-Light.
        rows += [
            Row(
                f"{number}-{start}",
                str(path.absolute()),
                ((start, start + 14.5), (start + 15.0, start + 30.5)),
                30.0,
            )
            for start in range(0, seconds - 31, 31)
        ]
    for name in ("train.csv", "valid.csv"):
        write_manifest(folder / name, rows)


def measure_loader(
    manifests: Path, num_workers: int, num_batches: int
) -> dict[str, float]:
    """Return hours of audio per hour of the loader of pre-training.

    Arguments
    ---------
    manifests : Path
        The folder of train.csv and valid.csv.
    num_workers : int
        Worker processes; 0 loads in this process.
    num_batches : int
        Micro-batches to load; the first one is not timed.

    Returns
    -------
    dict
        workers, hours_per_hour, and hours_per_core_hour, which divides by the
        time of the processors instead of the clock's.
    """
    file = HparamsFile.read(SETTINGS)
    file.override(
        {
            "manifests": str(manifests),
            "output_folder": "unused",
            "num_workers": num_workers,
            "accumulation": 1,
        }
    )
    data = load_pretraining_data({key: file.value(key) for key in file.keys})
    data.sampler.set_range(0, num_batches)
    core_s = -_core_seconds()
    batches = iter(data.train)
    first_s = next(batches).seconds
    start = time.perf_counter()
    # All of them: what workers prepare in advance is used, too.
    audio_s = sum(batch.seconds for batch in batches)
    clock_s = time.perf_counter() - start
    del batches, data  # workers end and hand in their times
    core_s += _core_seconds()
    return {
        "workers": num_workers,
        "hours_per_hour": audio_s / clock_s,
        "hours_per_core_hour": (first_s + audio_s) / core_s,
    }


def _core_seconds() -> float:
    """Return the time that processors worked for us and ended children."""
    return sum(os.times()[:4])


def report(data: dict[str, Any]) -> str:
    """Return the measurements as Markdown."""
    loader, manifest = data["loader"], data["manifest"]
    lines = [
        f"# Feed ({data['cores']} cores)",
        "",
        f"Audio: {data['audio']}",
        "",
        "| workers | hours of audio per hour | per hour of one core |",
        "|---|---|---|",
    ]
    lines += [
        f"| {entry['workers']} | {entry['hours_per_hour']:,.0f} | "
        f"{entry['hours_per_core_hour']:,.0f} |"
        for entry in loader
    ]
    lines += [
        "",
        "| one GPU at | hours of audio per hour | cores it keeps busy | "
        "workers |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {entry['hours_per_hour']:,} | {entry['cores']:.2f} | "
        f"{entry['workers']} |"
        for name, entry in data["needed"].items()
    ]
    warm = {
        key: max(rank[key] for rank in manifest["warm"])
        for key in manifest["cold"]
    }
    columns = [manifest["cold"], warm]
    lines += [
        "",
        f"Manifest of {manifest['rows']:,} rows, {manifest['text_mib']:,.0f} "
        f"MiB, index {manifest['index_mib']:,.0f} MiB; the worst of "
        f"{len(manifest['warm'])} processes with {manifest['workers']} workers "
        "each",
        "",
        "| | first reading | later, at once |",
        "|---|---|---|",
    ]
    for key, words, digits in (
        ("read_s", "read, s", 2),
        ("plan_s", "plan of batches, s", 2),
        ("epoch_s", "order of an epoch, s", 2),
        ("row_us", "parse a row, µs", 1),
        ("read_mib", "own memory for the rows, MiB", 1),
        ("plan_mib", "... for the plan, MiB", 1),
        ("epoch_mib", "... for an epoch, MiB", 1),
        ("worker_mib", "... that a worker gains by use, MiB", 1),
    ):
        values = " | ".join(f"{column[key]:,.{digits}f}" for column in columns)
        lines.append(f"| {words} | {values} |")
    lines += [
        "",
        f"A machine of {PROCESSES} processes with {WORKERS} workers each needs "
        f"{manifest['machine_mib']:,.0f} MiB for these rows (computed: the "
        "index once, the rest as above), and caches the text.",
        "",
    ]
    return "\n".join(lines)


def measure(options: Any) -> dict[str, Any]:
    """Take all measurements that the command line asks for."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = measure_manifest(
            write_manifest(folder / "rows.csv", make_rows(options.rows)),
            ranks=options.ranks,
            workers=options.rank_workers,
            num_touched=options.touched,
        )
        audio = options.manifests
        if audio is None:
            write_recordings(folder)
            audio = folder
        loader = [
            measure_loader(audio, number, options.batches)
            for number in options.workers
        ]
    # As in a run: what workers hand over costs time, too.
    per_core = max(loader, key=_workers_of)["hours_per_core_hour"]
    speeds = dict(SPEEDS)
    if options.speed:
        speeds["--speed"] = options.speed
    return {
        "cores": len(os.sched_getaffinity(0)),
        "audio": str(options.manifests or "synthetic FLAC of ten minutes"),
        "loader": loader,
        "needed": {
            name: {
                "hours_per_hour": speed,
                "cores": speed / per_core,
                "workers": math.ceil(speed / per_core),
            }
            for name, speed in speeds.items()
        },
        "manifest": manifest,
    }


def main() -> None:
    """Measure, print and write."""
    parser = ArgumentParser(description="Measure the feed of a training run.")
    parser.add_argument("manifests", type=Path, nargs="?", metavar="MANIFESTS")
    add = parser.add_argument
    add("--rows", type=int, default=500_000, help="of the large manifest")
    add("--workers", type=_numbers, default=[0, 1, 2], help="0,1,2")
    add("--batches", type=int, default=100, help="for each of --workers")
    add("--speed", type=int, help="hours of audio per GPU hour to feed")
    add("--ranks", type=int, default=2, help="that read the manifest at once")
    add("--rank_workers", type=int, default=2, help="workers of each of them")
    add("--touched", type=int, default=100_000, help="rows that these parse")
    add("--output", type=Path, metavar="NAME", help="for NAME.json, NAME.md")
    options = parser.parse_args()
    torch.set_num_threads(1)  # one core is one core
    data = measure(options)
    text = report(data)
    print(text)
    if options.output is not None:
        write_report(options.output, data, text)


def _workers_of(entry: dict[str, float]) -> float:
    return entry["workers"]


def _numbers(text: str) -> Sequence[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    exit_on_user_error(main)
