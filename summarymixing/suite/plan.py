"""What is to be run: every task for every encoder and seed, as commands."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from summarymixing.errors import UserError
from summarymixing.run.hparams_file import HparamsFile
from summarymixing.run.yaml_trees import nearest
from summarymixing.suite.corpora import CORPORA, Corpus
from summarymixing.suite.encoders import Encoder
from summarymixing.suite.jobs import Job, Run
from summarymixing.suite.overrides import Override, words_for
from summarymixing.suite.steps import TORCHRUN
from summarymixing.suite.tasks import Task

PREPARE = "recipes/prepare.py"
SHOWN_DIFFERENCES = 5


@dataclass(frozen=True)
class Settings:
    """How tasks are run.

    Arguments
    ---------
    repository, output_folder : Path
        Absolute.
    num_seeds : int
        Runs of each task and encoder; the first has the seed of its YAML.
    processes : int
        For each run; beyond one, by torchrun.
    iemocap_fold : str
        Number of the speaker that IEMOCAP is tested on, or "all".
    as_mp3s : bool
        Reproduce what MP3S does by mistake.
    overrides : tuple of Override
    """

    repository: Path
    output_folder: Path
    num_seeds: int = 1
    processes: int = 1
    iemocap_fold: str = "all"
    as_mp3s: bool = False
    overrides: tuple[Override, ...] = ()

    def path(self, path: Path) -> str:
        """Return a path as commands in the repository name it."""
        path = path.resolve()
        if path.is_relative_to(self.repository):
            return str(path.relative_to(self.repository))
        return str(path)


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Arguments
    ---------
    preparations : tuple of Job
        One for each corpus that a run still needs.
    runs : tuple of Run
        All of them, in the order of running.
    """

    preparations: tuple[Job, ...]
    runs: tuple[Run, ...]

    @property
    def to_do(self) -> list[Run]:
        """Return the runs without results."""
        return [run for run in self.runs if not run.is_done()]


def make_plan(
    settings: Settings,
    encoders: Sequence[Encoder],
    tasks: Sequence[Task],
    corpora: dict[str, Corpus],
) -> Plan:
    """Make the commands, and check all that can be checked at once.

    Arguments
    ---------
    settings : Settings
    encoders : sequence of Encoder
    tasks : sequence of Task
    corpora : dict
        Holds the corpora of the tasks.

    Returns
    -------
    Plan
        UserError for a recipe that is not there or lacks a key, and for
        results that another command has made.
    """
    recipes = {task: _read_recipe(task, settings) for task in tasks}
    material = {
        task: _describe_material(recipe, corpora[task.corpus])
        for task, recipe in recipes.items()
    }
    runs = tuple(
        _make_run(
            settings,
            encoder,
            task,
            int(recipes[task].tree["seed"]) + number,
            corpora[task.corpus],
            material[task],
        )
        # Seeds last: the table is full, if without deviations, early on.
        for number in range(settings.num_seeds)
        for task in tasks
        for encoder in encoders
    )
    _refuse_other_commands(runs, settings)
    needed = dict.fromkeys(run.corpus for run in runs if not run.is_done())
    return Plan(tuple(_prepare(settings, corpora, needed)), runs)


def _read_recipe(task: Task, settings: Settings) -> HparamsFile:
    """Read a recipe file, and see that keys are there."""
    if not (settings.repository / task.recipe).is_file():
        raise UserError(f"{task.name}: there is no {task.recipe}")
    recipe = HparamsFile.read(settings.repository / task.yaml)
    words = _free_words(settings, task)
    if words:
        # Imported late: SpeechBrain takes seconds to import.
        from summarymixing.run.launch import RUN_OPTIONS

        for word in words:
            key = word.removeprefix("--").partition("=")[0]
            if key not in recipe.tree and key not in RUN_OPTIONS:
                raise UserError(
                    f"{word}: not a key of {task.yaml}; "
                    + nearest(key, recipe.tree)
                )
    return recipe


def _free_words(settings: Settings, task: Task) -> list[str]:
    """Return the words that depend on what the user asks for."""
    words = ["--reproduce_mp3s=True"] if settings.as_mp3s else []
    return [*words, *words_for(task, settings.overrides)]


def _make_run(
    settings: Settings,
    encoder: Encoder,
    task: Task,
    seed: int,
    corpus: Corpus,
    material: dict[str, str],
) -> Run:
    folder = settings.output_folder / encoder.name / task.name / f"seed_{seed}"
    source = Path(encoder.source)
    command = [
        *_launcher(settings.processes),
        task.recipe,
        task.yaml,
        f"--encoder={settings.path(source) if source.is_dir() else source}",
        f"--manifests={settings.path(corpus.manifests)}",
        f"--output_folder={settings.path(folder)}",
        f"--seed={seed}",
    ]
    if encoder.random:
        command.append("--random_encoder=True")
    if task.corpus == "iemocap":
        command.append(f"--fold={settings.iemocap_fold}")
    command += _free_words(settings, task)
    command.append("--noprogressbar")  # the output goes to a file
    return Run(
        folder,
        tuple(command),
        task.corpus,
        encoder,
        task,
        seed,
        material,
    )


def _describe_material(recipe: HparamsFile, corpus: Corpus) -> dict[str, str]:
    """Return what makes results others, and is not in the command."""
    text = recipe.as_text()
    source = "prepared" if corpus.source is None else str(corpus.source)
    return {
        "corpus": " ".join([source, *corpus.options]),
        "recipe file": hashlib.blake2b(
            text.encode(), digest_size=8
        ).hexdigest(),
    }


def _launcher(processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable]
    return [*TORCHRUN, f"--nproc_per_node={processes}"]


def _prepare(
    settings: Settings, corpora: dict[str, Corpus], needed: dict[str, None]
) -> Iterator[Job]:
    """Yield the preparations; one that is finished does nothing."""
    for name in needed:
        corpus = corpora[name]
        if corpus.source is None:
            continue
        command = (
            sys.executable,
            PREPARE,
            CORPORA[name],
            settings.path(corpus.source),
            settings.path(corpus.manifests),
            *corpus.options,
        )
        yield Job(settings.output_folder / "preparation" / name, command, name)


def _refuse_other_commands(runs: Sequence[Run], settings: Settings) -> None:
    """Raise a UserError where a folder belongs to another command."""
    differences = [
        f"{settings.path(run.folder)}: {difference}"
        for run in runs
        if (difference := run.difference()) is not None
    ]
    if differences:
        shown = differences[:SHOWN_DIFFERENCES]
        if len(differences) > len(shown):
            shown.append(f"and {len(differences) - len(shown)} more")
        raise UserError(
            "\n  ".join(["these runs were made with other commands:", *shown])
            + "\nRepeat the command of then, or give another --output_folder "
            "or name (--encoder=NAME=FOLDER), or remove these folders to have "
            "them run again."
        )
