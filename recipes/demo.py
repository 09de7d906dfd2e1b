"""The whole story on a laptop: prepare, pre-train, probe, report.

python recipes/demo.py FOLDER [--audio=MY_RECORDINGS] [--updates=N]

Builds a miniature Libri-Light and a miniature LibriSpeech with a speech
synthesiser (or takes your own recordings for pre-training), prepares them,
pre-trains a small wav2vec 2.0 model on two processes, and trains the same
small recogniser on top of that encoder and of one with random weights. Run
again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from summarymixing.errors import UserError, exit_on_user_error
from summarymixing.suite.steps import TORCHRUN, Steps, show

REPOSITORY = Path(__file__).resolve().parents[1]

UPDATES = 600
LIBRILIGHT_HOURS = 0.5
LIBRISPEECH_HOURS = 0.25
PROBE_EPOCHS = 12


def run_step(steps: Steps, title: str, command: list[str]) -> None:
    """Run a command, its output on the screen; UserError if it fails."""
    shown = shlex.join(show(command))
    print(f"\n{len(steps.done) + 1}. {title}\n   {shown}", flush=True)
    step = steps.run(title, command)
    if step.status:
        raise UserError(
            f"the step '{title}' ended with status {step.status}; what went "
            f"wrong stands above. The same command goes on from here."
        )


def environment() -> dict[str, str]:
    """Return the environment of the steps: cores shared by two processes."""
    threads = max((os.cpu_count() or 2) // 2, 1)
    return {"OMP_NUM_THREADS": str(threads), **os.environ}


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where everything goes")
    parser.add_argument("--audio", type=Path, help="your own recordings")
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument(
        "--librilight_hours", type=float, default=LIBRILIGHT_HOURS
    )
    parser.add_argument(
        "--librispeech_hours", type=float, default=LIBRISPEECH_HOURS
    )
    parser.add_argument("--probe_epochs", type=int, default=PROBE_EPOCHS)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with Steps(REPOSITORY, environment()) as steps:
        prepare(steps, folder, arguments)
        pretrain(steps, folder, arguments.updates)
        for name, extra in (
            ("pretrained", []),
            ("random", ["--random_encoder=True"]),
        ):
            probe(steps, folder, name, arguments.probe_epochs, extra)
    page = write_report(folder, steps, arguments)
    print(f"\nDone. Open the report: {page}")


def prepare(steps: Steps, folder: Path, arguments: argparse.Namespace) -> None:
    """Build the corpora and turn them into manifests."""
    build = [sys.executable, "recipes/miniature.py"]
    make = [sys.executable, "recipes/prepare.py"]
    corpora, manifests = folder / "corpora", folder / "manifests"
    librilight, librispeech = corpora / "librilight", corpora / "librispeech"
    target = str(manifests / "pretraining")
    if arguments.audio:
        source = str(arguments.audio.resolve())
        run_step(
            steps, "Prepare your recordings", [*make, "folder", source, target]
        )
    else:
        hours = f"--hours={arguments.librilight_hours}"
        run_step(
            steps,
            "Build a miniature Libri-Light",
            [*build, "librilight", str(librilight), hours],
        )
        # The paper keeps clips of up to 60 s; a batch here has 30 s.
        run_step(
            steps,
            "Prepare it: clips by voice activity, no audio rewritten",
            [
                *make,
                "librilight",
                str(librilight),
                target,
                "--max_clip_seconds=30",
            ],
        )
    hours = f"--hours={arguments.librispeech_hours}"
    run_step(
        steps,
        "Build a miniature LibriSpeech",
        [*build, "librispeech", str(librispeech), hours],
    )
    run_step(
        steps,
        "Prepare it",
        [
            *make,
            "librispeech",
            str(librispeech / "LibriSpeech"),
            str(manifests / "librispeech"),
        ],
    )


def pretrain(steps: Steps, folder: Path, updates: int) -> None:
    """Pre-train on two processes."""
    run_step(
        steps,
        "Pre-train wav2vec 2.0 with a SummaryMixing Conformer, two processes",
        [
            *TORCHRUN,
            "--nproc_per_node=2",
            "recipes/pretraining/train.py",
            "hparams/pretraining/tiny.yaml",
            f"--manifests={folder / 'manifests' / 'pretraining'}",
            f"--output_folder={folder / 'pretraining'}",
            f"--max_updates={updates}",
            f"--checkpoint_every_updates={max(updates // 6, 1)}",
            f"--warmup_updates={max(updates // 6, 1)}",
        ],
    )


def probe(
    steps: Steps, folder: Path, name: str, epochs: int, extra: list[str]
) -> None:
    """Train a small recogniser on a frozen encoder."""
    run_step(
        steps,
        f"Probe the {name} encoder: speech recognition on frozen features",
        [
            sys.executable,
            "recipes/mp3s/asr.py",
            "hparams/mp3s/tiny_lstm.yaml",
            f"--encoder={folder / 'pretraining' / 'encoder'}",
            f"--manifests={folder / 'manifests' / 'librispeech'}",
            f"--output_folder={folder / f'probe_{name}'}",
            f"--number_of_epochs={epochs}",
            *extra,
        ],
    )


def write_report(
    folder: Path, steps: Steps, arguments: argparse.Namespace
) -> Path:
    """Write one page with the curves, the error rates and the commands."""
    # Imported late: `--help` should not wait for torch.
    from summarymixing.report import Report, draw_curves, draw_layer_columns
    from summarymixing.training.records import read_log

    run = read_metrics(folder / "pretraining")
    probes = {
        name: read_metrics(folder / f"probe_{name}")
        for name in ("pretrained", "random")
    }
    report = Report("summarymixing: from audio to a probed encoder")
    report.paragraph(
        f"A wav2vec 2.0 model of {run['parameters'] / 1e6:.1f} million "
        f"parameters with a SummaryMixing Conformer was pre-trained on "
        f"{run['train_hours']:.2f} h of "
        f"{'your recordings' if arguments.audio else 'synthetic speech'} for "
        f"{run['update']} updates, by two processes on the CPU. Then the same "
        f"small recogniser was trained on its frozen features and on those of "
        f"an encoder with random weights. The numbers show that every part "
        f"works; they say nothing about real corpora."
    )
    report.heading("Does pre-training help?")
    splits = list(probes["pretrained"]["splits"])
    report.table(
        ["encoder", *[f"{m}, {s} (%)" for s in splits for m in ("WER", "CER")]],
        [
            [
                name,
                *[
                    round(probe["splits"][s][m], 1)
                    for s in splits
                    for m in ("wer", "cer")
                ],
            ]
            for name, probe in probes.items()
        ],
    )
    report.heading("Pre-training")
    report.figure(
        draw_curves(
            {"SummaryMixing": read_log(folder / "pretraining")},
            {
                "loss": "loss",
                "accuracy": "contrastive accuracy",
                "code_perplexity": "code perplexity",
            },
        ),
        "On held-out audio with fixed masks and negatives. Accuracy means "
        "something only while the codebook stays in use: 128 is full use, "
        "and a blind guess among 100 negatives is right in 1 % of the cases.",
    )
    report.heading("Which layers does the probe listen to?")
    report.figure(
        draw_layer_columns({n: p["layer_weights"] for n, p in probes.items()}),
        "Softmax weights of the hidden states; 0 is the input of the first "
        "layer.",
    )
    report.heading("What was run")
    report.table(
        ["step", "seconds"],
        [[step.title, round(step.seconds, 1)] for step in steps.done],
    )
    report.commands([shlex.join(step.command) for step in steps.done])
    report.heading("How to go on")
    report.paragraph(
        "The same code with another file starts the paper's model of 155 "
        "million parameters on four GPUs and Libri-Light medium:"
    )
    report.commands(
        [
            "python recipes/prepare.py librilight LIBRILIGHT/medium MANIFESTS",
            "torchrun --nproc_per_node=4 recipes/pretraining/train.py "
            "hparams/pretraining/summarymixing_base.yaml "
            "--manifests=MANIFESTS --output_folder=results/base",
            "torchrun --nproc_per_node=1 recipes/mp3s/asr.py "
            "hparams/mp3s/librispeech_lstm.yaml "
            "--encoder=results/base/encoder --manifests=LIBRISPEECH_MANIFESTS "
            "--output_folder=results/base_librispeech",
        ]
    )
    return report.write(folder / "report.html")


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read `metrics.json` of a run."""
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    exit_on_user_error(main)
