"""Draw the figure of the README from two runs and from a timing.

python recipes/benchmark/figure.py --summarymixing=RUN --attention=RUN --time

RUN is the output folder of a pre-training run; --time measures one Conformer
layer here. `figure.json` keeps what is drawn: an option that is left out
leaves its part as it is, so the figure can be drawn again without the runs.
"""

import json
import statistics
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import torch
from matplotlib import rcParams
from matplotlib.figure import Figure

from summarymixing.cost.timing import describe_machine
from summarymixing.errors import UserError, exit_on_user_error
from summarymixing.files import write_json
from summarymixing.lobes.conformer import ConformerEncoderLayer
from summarymixing.nnet.attention import MultiHeadAttention
from summarymixing.nnet.summary_mixing import SummaryMixing
from summarymixing.run.hparams_file import HparamsFile
from summarymixing.run.records import read_log

STORED = Path(__file__).with_name("figure.json")
MIXERS = {"SummaryMixing": SummaryMixing, "attention": MultiHeadAttention}
# Colours of Okabe and Ito, which colour-blind readers can tell apart.
STYLES: dict[str, dict[str, Any]] = {
    "SummaryMixing": {"color": "#0072B2", "marker": "o", "ms": 4},
    "attention": {"color": "#D55E00", "marker": "s", "ms": 4, "ls": "--"},
}
FRAMES_PER_SECOND = 50
LENGTHS_SECONDS = (10, 30, 60, 120, 180, 240)
WIDTH, D_FFN, REPEATS = 256, 1024, 5


def read_run(folder: Path) -> dict[str, Any]:
    """Return the metrics of each validation of a run, as lists."""
    log = [entry for entry in read_log(folder) if entry["stage"] == "valid"]
    if not log:
        raise UserError(f"{folder}/log.jsonl has no validation; train longer")
    values = HparamsFile.read(folder / "hyperparams.yaml").tree
    return {
        "updates": [entry["update"] for entry in log],
        "accuracy": [round(entry["accuracy"], 4) for entry in log],
        "codes": [round(entry["code_perplexity"], 2) for entry in log],
        "codebook": values["num_groups"] * values["num_codes"],
    }


def time_layers() -> dict[str, Any]:
    """Return the median CPU seconds of a layer by mixer and length."""
    times: dict[str, dict[int, list[float]]] = {
        name: {seconds: [] for seconds in LENGTHS_SECONDS} for name in MIXERS
    }
    # CPU time, and in turns: other work on the machine counts little.
    for repeat in range(REPEATS + 1):
        for seconds in LENGTHS_SECONDS:
            x = torch.randn(1, seconds * FRAMES_PER_SECOND, WIDTH)
            for name, mixer in MIXERS.items():
                layer = ConformerEncoderLayer(WIDTH, mixer=mixer, d_ffn=D_FFN)
                start = time.process_time()
                layer(x).sum().backward()
                if repeat:  # the first one warms up
                    times[name][seconds].append(time.process_time() - start)
    return {
        "machine": f"{describe_machine(torch.device('cpu'))}, float32",
        "width": WIDTH,
        "lengths_seconds": LENGTHS_SECONDS,
        "seconds": {
            name: [round(statistics.median(t), 4) for t in by_length.values()]
            for name, by_length in times.items()
        },
    }


def draw(data: dict[str, Any]) -> Figure:
    """Draw the content of `figure.json`."""
    rcParams.update({"font.size": 10, "svg.hashsalt": "summarymixing"})
    # White, not transparent: the words stay readable on a dark page.
    figure = Figure(figsize=(9, 4), facecolor="white", layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.1, 1))
    accuracy = figure.add_subplot(grid[0, 0])
    codes = figure.add_subplot(grid[1, 0], sharex=accuracy)
    cost = figure.add_subplot(grid[:, 1])
    for name, curve in data.get("curves", {}).items():
        percent = [100 * share for share in curve["accuracy"]]
        accuracy.plot(curve["updates"], percent, label=name, **STYLES[name])
        codes.plot(curve["updates"], curve["codes"], **STYLES[name])
        codes.axhline(curve["codebook"], color="grey", ls=":", lw=1)
    timing = data["timing"]
    for name, seconds in timing["seconds"].items():
        lengths = timing["lengths_seconds"]
        ms = [1000 * s / n for s, n in zip(seconds, lengths, strict=True)]
        cost.plot(lengths, ms, label=name, **STYLES[name])
    accuracy.set_title("Validation of two small pre-training runs")
    accuracy.set_ylabel("accuracy, %")
    accuracy.tick_params(labelbottom=False)
    codes.set(ylabel="codes in use", xlabel="updates; dotted: all codes")
    cost.set_title(f"One layer of width {timing['width']}, forward + backward")
    cost.set_ylabel("CPU ms per second of audio")
    machine = timing["machine"].replace(", torch", "\ntorch")
    cost.set_xlabel(f"seconds of audio\n{machine}")
    accuracy.legend(frameon=False)
    cost.legend(frameon=False)
    for axes in (accuracy, codes, cost):
        axes.set(xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Renew what the options name, and draw."""
    parser = ArgumentParser(description="Draw the figure of the README.")
    for name in MIXERS:
        parser.add_argument(f"--{name.lower()}", type=Path, metavar="RUN")
    parser.add_argument("--time", action="store_true")
    options = vars(parser.parse_args())
    data = json.loads(STORED.read_text("utf-8")) if STORED.exists() else {}
    for name in MIXERS:
        if run := options[name.lower()]:
            data.setdefault("curves", {})[name] = read_run(run)
    if options["time"] or "timing" not in data:
        data["timing"] = time_layers()
    write_json(STORED, data)
    figure = draw(data)
    # No date inside: the same numbers give the same file.
    figure.savefig(STORED.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(STORED.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    exit_on_user_error(main)
