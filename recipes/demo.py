"""The whole story on a laptop: prepare, pre-train, probe, report.

python recipes/demo.py FOLDER [--audio=MY_RECORDINGS] [--updates=N]

Builds miniature corpora with a speech synthesiser: Libri-Light (or takes
your own recordings in its place), LibriSpeech, SLURP and VoxCeleb1. Pre-trains
a small wav2vec 2.0 model on two processes, then probes it and the same encoder
with random weights: speech recognition, what a command is about, who speaks,
and, without any training, whether phonemes are told apart (ABX). The page says
for each task whether pre-training helps. Run again, it goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from summarymixing.errors import UserError, exit_on_user_error
from summarymixing.suite.command_runner import TORCHRUN, CommandRunner, as_typed
from summarymixing.suite.results import mean_layer_weights, read_results
from summarymixing.suite.table import LEAD, Table, TableCell

REPOSITORY = Path(__file__).resolve().parents[1]
PREPARE, MINIATURE = "recipes/prepare.py", "recipes/miniature.py"

UPDATES = 500
LIBRILIGHT_HOURS = 0.5
# Hours of each corpus of the probes: enough test utterances to tell a head on
# pre-trained features from one on random ones.
PROBED = {"librispeech": 0.5, "slurp": 0.4, "voxceleb1": 0.5}
# The tasks of MP3S, with heads and rates for minutes of speech and a CPU.
LSTM = {
    "number_of_epochs": 10,
    "batch_size": 8,
    "learning_rate": 2e-3,
    "num_workers": 1,
}
OVERRIDES: dict[str, dict[str, Any]] = {
    "librispeech_lstm": {
        **LSTM,
        "head": "{hidden_size: 96, num_layers: 1, dropout: 0.0}",
    },
    "slurp_lstm": {**LSTM, "head": "{hidden_size: 64, num_layers: 1}"},
    "voxceleb1_ecapa": {
        "head": "{channels: [64, 64, 64, 64, 192], embedding_size: 64}",
        "number_of_epochs": 6,
        "num_workers": 1,
    },
}
TASKS = (*OVERRIDES, "abx")
# Of all splits the one with most speakers; ABX learns from none.
ABX_SPLIT = "train-clean-100"
ENCODERS = ("pretrained", "pretrained_random")  # as run_all names them
NEXT_COMMANDS = (
    "python recipes/prepare.py librilight LIBRILIGHT/medium MANIFESTS",
    "torchrun --nproc_per_node=4 recipes/pretraining/train.py "
    "hparams/pretraining/summarymixing_base.yaml --manifests=MANIFESTS "
    "--output_folder=results/base",
    "python recipes/mp3s/run_all.py --encoder=results/base/encoder "
    "--corpora=CORPORA.yaml --seeds=3",
)


def run_step(runner: CommandRunner, title: str, *words: object) -> None:
    """Run a script, its output on the screen; UserError if it fails."""
    command = [sys.executable, *map(str, words)]
    shown = shlex.join(as_typed(command))
    print(f"\n{len(runner.done) + 1}. {title}\n   {shown}", flush=True)
    ended = runner.run(title, command)
    if ended.status:
        raise UserError(
            f"the step '{title}' ended with status {ended.status}; what went "
            "wrong stands above. The same command goes on from here."
        )


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, help="where everything goes")
    add("--audio", type=Path, help="your own recordings")
    add("--updates", type=int, default=UPDATES)
    add("--librilight_hours", type=float, default=LIBRILIGHT_HOURS)
    hours = "of each corpus of the probes (default: 0.4 or 0.5)"
    add("--probe_hours", type=float, help=hours)
    add("--probe_epochs", type=int, help="of every probe")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with CommandRunner(REPOSITORY) as runner:
        prepare(runner, folder, arguments)
        pretrain(runner, folder, arguments.updates)
        probe(runner, folder, arguments)
    page = write_report(folder, runner, arguments)
    print(f"\nDone. Open the report: {page}")


def prepare(
    runner: CommandRunner, folder: Path, arguments: argparse.Namespace
) -> None:
    """Make the manifests of pre-training."""
    manifests = folder / "manifests" / "pretraining"
    if arguments.audio:
        audio = arguments.audio.resolve()
        title = "Prepare your recordings"
        run_step(runner, title, PREPARE, "folder", audio, manifests)
        return
    corpus = folder / "corpora" / "librilight"
    hours = f"--hours={arguments.librilight_hours}"
    title = "Build a miniature Libri-Light"
    run_step(runner, title, MINIATURE, "librilight", corpus, hours)
    # The paper keeps clips of up to 60 s; a batch here has 30 s.
    limit = "--max_clip_seconds=30"
    title = "Prepare it: clips by voice activity, no audio rewritten"
    run_step(runner, title, PREPARE, "librilight", corpus, manifests, limit)


def pretrain(runner: CommandRunner, folder: Path, updates: int) -> None:
    """Pre-train on two processes."""
    run_step(
        runner,
        "Pre-train wav2vec 2.0 with a SummaryMixing Conformer, two processes",
        *TORCHRUN[1:],
        "--nproc_per_node=2",
        "recipes/pretraining/train.py",
        "hparams/pretraining/tiny.yaml",
        f"--manifests={folder / 'manifests' / 'pretraining'}",
        f"--output_folder={folder / 'pretraining'}",
        f"--max_updates={updates}",
        f"--checkpoint_every_updates={max(updates // 6, 1)}",
        f"--warmup_updates={max(updates // 6, 1)}",
    )


def probe(
    runner: CommandRunner, folder: Path, arguments: argparse.Namespace
) -> None:
    """Build the corpora of the probes, and run these with one command."""
    corpora: dict[str, Any] = {"manifests": "manifests"}
    for name, hours in PROBED.items():
        built = folder / "corpora" / name
        size = f"--hours={arguments.probe_hours or hours}"
        title = f"Build a miniature {name}"
        run_step(runner, title, MINIATURE, name, built, size)
        root = built / "LibriSpeech" if name == "librispeech" else built
        corpora[name] = str(root)
    spoken = folder / "corpora" / "librispeech"
    corpora["abx"] = {
        "items": str(spoken / "abx" / f"{ABX_SPLIT}.item"),
        "audio": str(spoken / "LibriSpeech" / ABX_SPLIT),
    }
    # JSON is YAML.
    (folder / "corpora.yaml").write_text(json.dumps(corpora, indent=2) + "\n")
    epochs = arguments.probe_epochs
    changes = {} if epochs is None else {"number_of_epochs": epochs}
    run_step(
        runner,
        "Prepare them and probe both encoders on frozen features",
        "recipes/mp3s/run_all.py",
        f"--encoder=pretrained={folder / 'pretraining' / 'encoder'}",
        "--random",
        f"--corpora={folder / 'corpora.yaml'}",
        f"--tasks={','.join(TASKS)}",
        "--seeds=1",
        *[
            f"--override={task}:{key}={value}"
            for task, values in OVERRIDES.items()
            for key, value in {**values, **changes}.items()
        ],
        f"--output_folder={folder / 'probes'}",
    )


def write_report(
    folder: Path, runner: CommandRunner, arguments: argparse.Namespace
) -> Path:
    """Write one page with the answer, the curves and the commands."""
    # Imported late: `--help` should not wait for torch.
    from summarymixing.html_page import Page, draw_curves, draw_layer_weights
    from summarymixing.run.records import read_metrics

    results = read_results(folder / "probes")
    metrics = (folder / "pretraining" / "metrics.json").read_text("utf-8")
    page = Page("summarymixing: from audio to a probed encoder")
    page.paragraph(introduce(json.loads(metrics), arguments))
    page.heading("Does pre-training help?")
    page.table(
        ["", "pre-trained\n%", "random weights\n%", "Does it help?"],
        answer(Table(results)),
    )
    page.paragraph(
        "In brackets: the 95 % interval, which is how far another test set of "
        "this size could move the number. Where the two intervals overlap, the "
        "test utterances are too few to decide. ABX has none, and trains "
        "nothing: it is the error of telling which of two phonemes a third "
        "one is, said by the same or by another speaker, in the layer that is "
        "best at it; a blind guess has 50 %. Tables, curves and every "
        f"command of the probes: {folder / 'probes' / 'report.html'}"
    )
    page.heading("Pre-training")
    page.figure(
        draw_curves(
            {"SummaryMixing": [read_metrics(folder / "pretraining")]},
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
    page.heading("Which layers do the probes use?")
    page.figure(
        draw_layer_weights(mean_layer_weights(results)),
        "Softmax weights of the hidden states; 0 is the input of the first "
        "layer.",
    )
    page.heading("What was run")
    page.table(
        ["step", "seconds"],
        [[ended.title, round(ended.seconds, 1)] for ended in runner.done],
    )
    page.commands([shlex.join(ended.command) for ended in runner.done])
    page.heading("How to go on")
    page.paragraph(
        "The same code with another file starts the paper's model of 155 "
        "million parameters on four GPUs and Libri-Light medium:"
    )
    page.commands(NEXT_COMMANDS)
    return page.write(folder / "report.html")


def introduce(metrics: Mapping[str, Any], arguments: argparse.Namespace) -> str:
    """Say what was done, from the metrics of the pre-training."""
    audio = "your recordings" if arguments.audio else "synthetic speech"
    return (
        f"A wav2vec 2.0 model of {metrics['parameters'] / 1e6:.1f} million "
        "parameters with a SummaryMixing Conformer was pre-trained on "
        f"{metrics['train_hours']:.2f} h of {audio} for {metrics['update']} "
        "updates, by two processes on the CPU. Then the same small heads were "
        "trained on its frozen features and on those of the same encoder with "
        "random weights. All speech of the probes comes from a synthesiser: "
        "the numbers compare these two encoders, and say nothing about the "
        "corpora that the miniatures are named after."
    )


def answer(table: Table) -> list[list[str]]:
    """Return a line for each task: both encoders, and whether it helps."""
    lines = []
    heads = table.header()[len(LEAD) :]
    for (task, split), head in zip(table.columns, heads, strict=True):
        ours, random = (table.cell(name, task, split) for name in ENCODERS)
        helps = does_it_help(ours, random, task.higher_is_better)
        lines.append([head, ours.text(), random.text(), helps])
    return lines


def does_it_help(
    pretrained: TableCell, random: TableCell, higher_is_better: bool
) -> str:
    """Compare the intervals of two encoders.

    Example
    -------
    >>> wer = TableCell((20.0,), ((18.0, 22.0),))
    >>> does_it_help(wer, TableCell((90.0,), ((85.0, 95.0),)), False)
    'yes'
    >>> does_it_help(wer, TableCell((23.0,), ((21.0, 25.0),)), False)
    'not decided by so few utterances'
    """
    if pretrained.mean is None or random.mean is None:
        return "not measured"
    if pretrained.interval is None or random.interval is None:
        better = (pretrained.mean > random.mean) == higher_is_better
        return f"{'yes' if better else 'no'}, without an interval"
    (low, high), (other_low, other_high) = pretrained.interval, random.interval
    if low <= other_high and other_low <= high:
        return "not decided by so few utterances"
    return "yes" if (low > other_high) == higher_is_better else "no"


if __name__ == "__main__":
    exit_on_user_error(main)
