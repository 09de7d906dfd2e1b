"""Probe encoders with every MP3S task: tables, figure 2 and one page.

python recipes/mp3s/run_all.py --encoder=results/base/encoder \
    --encoder=mhsa=results/mhsa/encoder --corpora=corpora.yaml --seeds=3

corpora.yaml says where the corpora are, relative to itself, with keys
librispeech, commonvoice_cy, commonvoice_eu, slurp, iemocap, voxceleb1:

    librispeech: /corpora/LibriSpeech
    slurp: {source: /corpora/slurp, options: [--overwrite]}
    my_corpus: {manifests: /manifests/mine}        # prepared already
    manifests: /scratch/manifests                  # where the others go

Prepares what is missing, runs every task for every encoder and seed, and
goes on after one that failed. Each utterance is encoded once for all runs;
OUTPUT_FOLDER/states holds the states and may be deleted afterwards. The same
command again runs only what is not done; Ctrl-C and SIGTERM stop it in good
order. Exit status: 0 all done, 1 some failed, 2 a mistake in the command, 75
or 130 stopped.
"""

from __future__ import annotations

import argparse
import io
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from summarymixing.errors import UserError, exit_on_user_error
from summarymixing.files import describe_os_error
from summarymixing.suite.command_runner import (
    CommandRunner,
    Interrupted,
    as_typed,
)
from summarymixing.suite.corpora import CorpusEntry, read_corpora
from summarymixing.suite.encoders import read_encoders
from summarymixing.suite.plan import Override, Plan, Settings, make_plan
from summarymixing.suite.runner import run_plan
from summarymixing.suite.tasks import (
    BenchmarkTask,
    benchmark_tasks,
    choose_tasks,
    describe_tasks,
)

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_IEMOCAP_FOLDS = 10


def main() -> None:
    """Parse the command line and do what it asks for."""
    arguments = make_parser().parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that lacks a sign must not end days of work.
        sys.stdout.reconfigure(errors="replace")
    output_folder = arguments.output_folder.resolve()
    if arguments.list:
        print(describe_tasks())
        return
    if arguments.report_only:
        # Imported late: matplotlib and SpeechBrain take seconds to import.
        from summarymixing.suite.page import write_outputs

        say_what_is_written(write_outputs(output_folder), output_folder)
        return
    if arguments.corpora is None:
        raise UserError("where are the corpora? --corpora=FILE.yaml")
    corpora = read_corpora(arguments.corpora, output_folder / "manifests")
    tasks = choose_tasks(arguments.tasks, corpora)
    notes = say_what_is_left_out(arguments, tasks, corpora)
    settings = Settings(
        repository=REPOSITORY,
        output_folder=output_folder,
        num_seeds=arguments.seeds,
        processes=arguments.nproc,
        fold=arguments.iemocap_fold,
        as_mp3s=arguments.as_mp3s,
        overrides=tuple(map(Override.parse, arguments.override)),
    )
    encoders = read_encoders(arguments.encoder, random=arguments.random)
    plan = make_plan(settings, encoders, tasks, corpora)
    if arguments.dry_run:
        print_commands(plan)
    else:
        sys.exit(run(plan, output_folder, notes))


def run(plan: Plan, output_folder: Path, notes: list[str]) -> int:
    """Run a plan and write the report, also when it is stopped."""
    # Imported late, as above.
    from summarymixing.run.output_folder import locked_folder
    from summarymixing.suite.page import write_outputs

    try:
        output_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(describe_os_error(error)) from error
    with locked_folder(output_folder), CommandRunner(REPOSITORY) as runner:
        try:
            failed = run_plan(plan, runner)
        except Interrupted:
            write_outputs(output_folder, plan.runs, notes)
            print("stopped; the same command goes on from here")
            raise
        files = write_outputs(output_folder, plan.runs, notes)
    say_what_is_written(files, output_folder)
    if failed:
        print(f"\n{len(failed)} failed; the same command tries them again:")
    for command in failed:
        log = f": {command.log}" if command.log.exists() else ""
        print(f"  {command.title}{log}")
    return 1 if failed else 0


def say_what_is_left_out(
    arguments: argparse.Namespace,
    tasks: Sequence[BenchmarkTask],
    corpora: Mapping[str, CorpusEntry],
) -> list[str]:
    """Name the paper's tasks that have no corpus; UserError if all."""
    if arguments.tasks is not None:
        return []
    if not tasks:
        raise UserError(
            f"{arguments.corpora} names no corpus of a task that is run by "
            "default; --list shows the tasks, and --tasks=NAME chooses one"
        )
    absent = ", ".join(
        task.name
        for task in benchmark_tasks().values()
        if task.in_paper and task.corpus not in corpora
    )
    if not absent:
        return []
    note = f"Left out, since the corpus is not there: {absent}."
    print(note, file=sys.stderr)
    return [note]


def print_commands(plan: Plan) -> None:
    """Print what would be run."""
    for command in (*plan.preparations, *plan.to_do):
        print(shlex.join(as_typed(command.words)))
    if done := len(plan.runs) - len(plan.to_do):
        print(f"# and {done} runs are done already")


def say_what_is_written(files: Sequence[Path], output_folder: Path) -> None:
    """Show the table and name the files."""
    if not files:
        raise UserError(
            f"{output_folder} has no results of this command; give the "
            "--output_folder of an earlier one"
        )
    table = output_folder / "table.md"
    print(f"\n{table.read_text(encoding='utf-8')}")
    print(*files, sep="\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--encoder",
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        help="OUTPUT_FOLDER/encoder of a pre-training run, or a name on the "
        "Hugging Face hub, or log_mel; give it again for each further encoder",
    )
    add("--corpora", type=Path, metavar="FILE.yaml", help="see above")
    add(
        "--tasks",
        metavar="NAME,NAME",
        help="names of --list, all, or YAML files of your own (default: the "
        "paper's seven, as far as their corpora are there)",
    )
    add(
        "--seeds",
        type=positive,
        default=3,
        metavar="N",
        help="runs of each task and encoder (default: %(default)s)",
    )
    add(
        "--nproc",
        type=positive,
        default=1,
        metavar="N",
        help="processes of a run (default: %(default)s, as MP3S; batch_size "
        "counts for each, so divide it for the same results)",
    )
    add(
        "--output_folder",
        type=Path,
        default=Path("results/mp3s"),
        metavar="FOLDER",
        help="default: %(default)s",
    )
    add(
        "--random",
        action="store_true",
        help="also the first encoder with random weights: what does "
        "pre-training bring?",
    )
    add(
        "--override",
        action="append",
        default=[],
        metavar="[TASK:]KEY=VALUE",
        help="a key of the YAML files, or of one; may be repeated",
    )
    add(
        "--iemocap_fold",
        default="all",
        choices=["all", *map(str, range(1, NUM_IEMOCAP_FOLDS + 1))],
        metavar="1..10|all",
        help="speaker that is tested (default: each in turn, and the mean)",
    )
    by_mistake = "reproduce what MP3S does by mistake"
    add("--as_mp3s", action="store_true", help=by_mistake)
    add("--list", action="store_true", help="show the tasks")
    add("--dry_run", action="store_true", help="print the commands")
    add(
        "--report_only",
        action="store_true",
        help="write the tables and the page from what is there, also while "
        "the runs go on",
    )
    return parser


def positive(text: str) -> int:
    """Read a number from one."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


if __name__ == "__main__":
    exit_on_user_error(main)
