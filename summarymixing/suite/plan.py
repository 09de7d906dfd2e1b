"""What is to be run: every task for every encoder and seed, as commands."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from summarymixing.errors import UserError
from summarymixing.run.yaml_trees import nearest
from summarymixing.suite.command_runner import TORCHRUN
from summarymixing.suite.commands import Command, ProbeRun
from summarymixing.suite.corpora import PREPARE_NAMES, CorpusEntry
from summarymixing.suite.encoders import EncoderSource
from summarymixing.suite.tasks import BenchmarkTask

SHOWN_CONFLICTS = 5
STATES = "states"  # the folder for what encoders have given
# Keys of probes that have an option of their own.
OPTIONS_OF_KEYS = {
    "encoder": "--encoder",
    "random_encoder": "--random",
    "manifests": "--corpora",
    "output_folder": "--output_folder",
    "seed": "--seeds",
    "fold": "--iemocap_fold",
    "reproduce_mp3s": "--as_mp3s",
}


@dataclass(frozen=True)
class Override:
    """A value of `--override`, which probes get as --key=value."""

    key: str
    value: str
    task: str | None = None  # the name of the one task that it is for

    @classmethod
    def parse(cls, text: str) -> Override:
        """Read one value of --override.

        Example
        -------
        >>> Override.parse("slurp_lstm:learning_rate=1e-3")
        Override(key='learning_rate', value='1e-3', task='slurp_lstm')
        """
        left, equals, value = text.partition("=")
        task, colon, key = left.rpartition(":")
        if not equals or not key:
            raise UserError(f"--override={text} is not [TASK:]key=value")
        if key in OPTIONS_OF_KEYS:
            raise UserError(
                f"--override={text}: use {OPTIONS_OF_KEYS[key]}, which sets it"
            )
        return cls(key, value, task if colon else None)


@dataclass(frozen=True)
class Settings:
    """How tasks are run."""

    repository: Path  # absolute, as the next one
    output_folder: Path
    num_seeds: int = 1  # of each task and encoder; the first is of its YAML
    processes: int = 1  # of each run; more than one are started by torchrun
    fold: str = "all"  # for tasks with that key; or the number of a speaker
    as_mp3s: bool = False  # reproduce what MP3S does by mistake
    overrides: tuple[Override, ...] = ()

    def path(self, path: Path) -> str:
        """Return a path as commands in the repository name it."""
        path = path.resolve()
        if path.is_relative_to(self.repository):
            return str(path.relative_to(self.repository))
        return str(path)

    def words_for(self, task: BenchmarkTask) -> list[str]:
        """Return --key=value for a task; overrides that name it win."""
        words = ["--reproduce_mp3s=True"] if self.as_mp3s else []
        general = {o.key: o for o in self.overrides if o.task is None}
        own = {o.key: o for o in self.overrides if o.task == task.name}
        chosen = {**general, **own}.values()
        return [*words, *(f"--{o.key}={o.value}" for o in chosen)]


@dataclass(frozen=True)
class Plan:
    """What is to be run."""

    preparations: tuple[Command, ...]  # of each corpus that a run still needs
    runs: tuple[ProbeRun, ...]  # all, in their order

    @property
    def to_do(self) -> list[ProbeRun]:
        """The runs without results."""
        return [run for run in self.runs if not run.is_done()]


def make_plan(
    settings: Settings,
    encoders: Sequence[EncoderSource],
    tasks: Sequence[BenchmarkTask],
    corpora: Mapping[str, CorpusEntry],
) -> Plan:
    """Make the commands, and check all that can be checked at once.

    UserError for a script that is not there, for an override that no task
    takes, and for results that another command has made.

    Arguments
    ---------
    settings : Settings
        What holds for all runs.
    encoders : sequence of EncoderSource
        The encoders to be probed.
    tasks : sequence of BenchmarkTask
        The tasks to be learned.
    corpora : mapping
        The corpora by name, with those of all tasks among them.
    """
    _check_overrides(settings, tasks)
    for task in tasks:
        if not (settings.repository / task.script).is_file():
            raise UserError(
                f"{task.name}: there is no {task.script}, which its file "
                "names under table: script"
            )
    runs = tuple(
        _make_run(settings, encoder, task, number, corpora[task.corpus])
        # Seeds last: the table is full, if without deviations, early on.
        for number in range(settings.num_seeds)
        for task in tasks
        for encoder in encoders
    )
    _refuse_conflicts(runs, settings)
    needed = dict.fromkeys(run.corpus for run in runs if not run.is_done())
    preparations = (_prepare(settings, corpora[name]) for name in needed)
    return Plan(tuple(filter(None, preparations)), runs)


def _check_overrides(
    settings: Settings, tasks: Sequence[BenchmarkTask]
) -> None:
    """Raise a UserError for a value that no chosen task takes."""
    names = [task.name for task in tasks]
    for override in settings.overrides:
        if override.task not in (None, *names):
            raise UserError(
                f"--override={override.task}:{override.key}=...: "
                f"'{override.task}' is not among the chosen tasks; "
                + nearest(str(override.task), names)
            )
    for task in tasks:
        for word in settings.words_for(task):
            # Imported late: SpeechBrain takes seconds to import.
            from summarymixing.run.launch import RUN_OPTIONS

            key = word.removeprefix("--").partition("=")[0]
            if key not in task.hparams.tree and key not in RUN_OPTIONS:
                raise UserError(
                    f"{word}: not a key of {task.hparams.path}; "
                    + nearest(key, task.hparams.tree)
                )


def _make_run(
    settings: Settings,
    encoder: EncoderSource,
    task: BenchmarkTask,
    number: int,
    corpus: CorpusEntry,
) -> ProbeRun:
    tree = task.hparams.tree
    seed = int(tree["seed"]) + number
    folder = settings.output_folder / encoder.name / task.name / f"seed_{seed}"
    source = Path(encoder.source)
    torchrun = [*TORCHRUN, f"--nproc_per_node={settings.processes}"]
    words = [
        *(torchrun if settings.processes > 1 else [sys.executable]),
        task.script,
        settings.path(task.hparams.path),
        f"--encoder={settings.path(source) if source.is_dir() else source}",
        *_data_words(settings, corpus),
        f"--output_folder={settings.path(folder)}",
        f"--seed={seed}",
    ]
    if encoder.random:
        words.append("--random_encoder=True")
    if "fold" in tree:
        words.append(f"--fold={settings.fold}")
    chosen = settings.words_for(task)
    is_chosen = any(word.startswith("--cache_folder=") for word in chosen)
    if "cache_folder" in tree and not is_chosen:
        # One for all runs: seeds, folds, heads and tasks share its states.
        states = settings.path(settings.output_folder / STATES)
        words.append(f"--cache_folder={states}")
    words += chosen
    words.append("--noprogressbar")  # the output goes to a file
    made_from = str(corpus.source or corpus.items or "manifests")
    text = task.hparams.as_text().encode()
    provenance = {
        "corpus": " ".join([made_from, *corpus.options]),
        "YAML file": hashlib.blake2b(text, digest_size=8).hexdigest(),
    }
    return ProbeRun(
        folder, tuple(words), task.corpus, encoder, task, seed, provenance
    )


def _data_words(settings: Settings, corpus: CorpusEntry) -> list[str]:
    """Return what a script is told of its data."""
    if corpus.items is None or corpus.audio is None:
        return [f"--manifests={settings.path(corpus.manifests)}"]
    return [
        f"--items={settings.path(corpus.items)}",
        f"--audio={settings.path(corpus.audio)}",
    ]


def _prepare(settings: Settings, corpus: CorpusEntry) -> Command | None:
    """Return the preparation; one that is finished does nothing."""
    if corpus.source is None:
        return None
    words = (
        sys.executable,
        "recipes/prepare.py",
        PREPARE_NAMES[corpus.name],
        settings.path(corpus.source),
        settings.path(corpus.manifests),
        *corpus.options,
    )
    folder = settings.output_folder / "preparation" / corpus.name
    return Command(folder, words, corpus.name)


def _refuse_conflicts(runs: Sequence[ProbeRun], settings: Settings) -> None:
    """Raise a UserError where a folder belongs to another command."""
    conflicts = [
        f"{settings.path(run.folder)}: {conflict}"
        for run in runs
        if (conflict := run.conflict_with_earlier())
    ]
    if conflicts:
        shown = conflicts[:SHOWN_CONFLICTS]
        if more := conflicts[SHOWN_CONFLICTS:]:
            shown.append(f"and {len(more)} more")
        raise UserError(
            "\n  ".join(["these runs were made with other commands:", *shown])
            + "\nRepeat the earlier command, or give another --output_folder "
            "or name (--encoder=NAME=FOLDER), or remove these folders to have "
            "them run again."
        )
