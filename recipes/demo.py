"""The whole story on a laptop: prepare, pre-train, probe, report.

python recipes/demo.py FOLDER [--audio=MY_RECORDINGS] [--updates=N]

Builds miniature corpora with a speech synthesiser: Libri-Light (or takes
your own recordings in its place), LibriSpeech, IEMOCAP and VoxCeleb1.
Pre-trains a small wav2vec 2.0 model on two processes, then probes it and an
encoder with random weights: speech recognition, classification, speaker
verification. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from summarymixing.errors import UserError, exit_on_user_error
from summarymixing.suite.command_runner import (
    TORCHRUN,
    CommandRunner,
    as_typed,
)

REPOSITORY = Path(__file__).resolve().parents[1]

UPDATES = 500
LIBRILIGHT_HOURS = 0.5
# Corpora of the probes: hours, options of their preparation.
PROBED: dict[str, tuple[float, list[str]]] = {
    "librispeech": (0.25, []),
    "iemocap": (0.2, ["--expected_utterances=0"]),
    "voxceleb1": (0.2, []),
}
# The tasks of MP3S, with heads and rates for minutes of speech and a CPU.
OVERRIDES: dict[str, dict[str, Any]] = {
    "librispeech_lstm": {
        "number_of_epochs": 10,
        "head": "{hidden_size: 96, num_layers: 1, dropout: 0.0}",
        "batch_size": 8,
        "learning_rate": 2e-3,
    },
    "iemocap_linear": {
        "number_of_epochs": 8,
        "batch_size": 8,
        "learning_rate": 5e-3,
    },
    "voxceleb1_ecapa": {
        "head": "{channels: [64, 64, 64, 64, 192], embedding_size: 64}",
        "number_of_epochs": 6,
    },
}
ENCODERS = {"pretrained": "pre-trained", "pretrained_random": "random weights"}
SEED = 1986


def run_step(steps: CommandRunner, title: str, command: list[str]) -> None:
    """Run a command, its output on the screen; UserError if it fails."""
    shown = shlex.join(as_typed(command))
    print(f"\n{len(steps.done) + 1}. {title}\n   {shown}", flush=True)
    step = steps.run(title, command)
    if step.status:
        raise UserError(
            f"the step '{title}' ended with status {step.status}; what went "
            f"wrong stands above. The same command goes on from here."
        )


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
        "--probe_hours",
        type=float,
        help="of each corpus of the probes (default: 0.2 or a little more)",
    )
    parser.add_argument("--probe_epochs", type=int, help="of every probe")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with CommandRunner(REPOSITORY) as steps:
        prepare(steps, folder, arguments)
        pretrain(steps, folder, arguments.updates)
        probe(steps, folder, arguments)
    page = write_report(folder, steps, arguments)
    print(f"\nDone. Open the report: {page}")


def prepare(
    steps: CommandRunner, folder: Path, arguments: argparse.Namespace
) -> None:
    """Make the manifests of pre-training."""
    build = [sys.executable, "recipes/miniature.py"]
    make = [sys.executable, "recipes/prepare.py"]
    librilight = folder / "corpora" / "librilight"
    target = str(folder / "manifests" / "pretraining")
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


def pretrain(steps: CommandRunner, folder: Path, updates: int) -> None:
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
    steps: CommandRunner, folder: Path, arguments: argparse.Namespace
) -> None:
    """Build the corpora of the probes, and run these with one command."""
    corpora: dict[str, Any] = {"manifests": "manifests"}
    for name, (hours, options) in PROBED.items():
        built = folder / "corpora" / name
        run_step(
            steps,
            f"Build a miniature {name}",
            [
                sys.executable,
                "recipes/miniature.py",
                name,
                str(built),
                f"--hours={arguments.probe_hours or hours}",
            ],
        )
        root = built / "LibriSpeech" if name == "librispeech" else built
        corpora[name] = {"source": str(root), "options": options}
    # JSON is YAML.
    (folder / "corpora.yaml").write_text(json.dumps(corpora, indent=2) + "\n")
    overrides = {task: dict(values) for task, values in OVERRIDES.items()}
    if arguments.probe_epochs is not None:
        for values in overrides.values():
            values["number_of_epochs"] = arguments.probe_epochs
    run_step(
        steps,
        "Prepare them and probe both encoders on frozen features",
        [
            sys.executable,
            "recipes/mp3s/run_all.py",
            f"--encoder=pretrained={folder / 'pretraining' / 'encoder'}",
            "--random",
            f"--corpora={folder / 'corpora.yaml'}",
            f"--tasks={','.join(OVERRIDES)}",
            "--seeds=1",
            "--iemocap_fold=1",
            "--override=num_workers=1",
            *[
                f"--override={task}:{key}={value}"
                for task, values in overrides.items()
                for key, value in values.items()
            ],
            f"--output_folder={folder / 'probes'}",
        ],
    )


def write_report(
    folder: Path, steps: CommandRunner, arguments: argparse.Namespace
) -> Path:
    """Write one page with the curves, the error rates and the commands."""
    # Imported late: `--help` should not wait for torch.
    from summarymixing.html_page import Page, draw_curves, draw_layer_weights
    from summarymixing.run.records import read_log

    run = read_metrics(folder / "pretraining")
    probes = {
        task: {
            name: read_metrics(folder / "probes" / name / task / f"seed_{SEED}")
            for name in ENCODERS
        }
        for task in OVERRIDES
    }
    report = Page("summarymixing: from audio to a probed encoder")
    report.paragraph(
        f"A wav2vec 2.0 model of {run['parameters'] / 1e6:.1f} million "
        f"parameters with a SummaryMixing Conformer was pre-trained on "
        f"{run['train_hours']:.2f} h of "
        f"{'your recordings' if arguments.audio else 'synthetic speech'} for "
        f"{run['update']} updates, by two processes on the CPU. Then the same "
        f"small heads were trained on its frozen features and on those of an "
        f"encoder with random weights: a recogniser, a classifier of four "
        f"ways of speaking in place of emotions, and embeddings of speakers. "
        f"The numbers show that every part works. All speech comes from a "
        f"synthesiser, so they say nothing about real corpora, and a handful "
        f"of test utterances tells little."
    )
    report.heading("Does pre-training help?")
    report.table(
        ["task", "split", "utterances", "%", *ENCODERS.values()],
        [
            [
                task,
                split,
                numbers["utterances"],
                metric,
                *[
                    round(by_encoder[name]["splits"][split][metric], 1)
                    for name in ENCODERS
                ],
            ]
            for task, by_encoder in probes.items()
            for split, numbers in by_encoder["pretrained"]["splits"].items()
            for metric in ("wer", "cer", "accuracy", "eer")
            if metric in numbers
        ],
    )
    report.paragraph(
        f"Accuracy: the higher the better; all others: the lower. Tables, "
        f"curves and every command of the probes: "
        f"{folder / 'probes' / 'report.html'}"
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
    report.heading("Which layers do the probes listen to?")
    report.figure(
        draw_layer_weights(
            {
                "pre-trained": {
                    task: by_encoder["pretrained"]["layer_weights"]
                    for task, by_encoder in probes.items()
                }
            }
        ),
        "Softmax weights of the hidden states of the pre-trained encoder; 0 "
        "is the input of the first layer.",
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
            "python recipes/mp3s/run_all.py --encoder=results/base/encoder "
            "--corpora=CORPORA.yaml --seeds=3",
        ]
    )
    return report.write(folder / "report.html")


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read `metrics.json` of a run."""
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    exit_on_user_error(main)
