"""`--override [TASK:]key=value`: checked before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from summarymixing.errors import UserError
from summarymixing.run.yaml_trees import nearest
from summarymixing.suite.tasks import TASKS, Task

# Key -> what sets it here.
TAKEN = {
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
    """One value that recipes get.

    Arguments
    ---------
    key, value : str
        As in --key=value.
    task : str, optional
        The one task that it is for.
    """

    key: str
    value: str
    task: str | None = None

    @classmethod
    def parse(cls, text: str) -> Override:
        """Read one value of --override.

        Example
        -------
        >>> Override.parse("slurp_lstm:learning_rate=1e-3")
        Override(key='learning_rate', value='1e-3', task='slurp_lstm')
        """
        place, equals, value = text.partition("=")
        task, colon, key = place.rpartition(":")
        if not equals or not key:
            raise UserError(f"--override={text} is not [TASK:]key=value")
        if colon and task not in TASKS:
            raise UserError(
                f"--override={text}: no task '{task}'; {nearest(task, TASKS)}"
            )
        if key in TAKEN:
            raise UserError(
                f"--override={text}: use {TAKEN[key]}, which sets it"
            )
        return cls(key, value, task if colon else None)

    @property
    def word(self) -> str:
        """Return the word of a recipe's command line."""
        return f"--{self.key}={self.value}"


def words_for(task: Task, overrides: Sequence[Override]) -> list[str]:
    """Return the words for one task; those that name it win.

    Example
    -------
    >>> given = ["slurp_lstm:seed_x=2", "seed_x=1", "device=cpu"]
    >>> overrides = [Override.parse(text) for text in given]
    >>> words_for(TASKS["slurp_lstm"], overrides)
    ['--seed_x=2', '--device=cpu']
    """
    general = [o for o in overrides if o.task is None]
    own = [o for o in overrides if o.task == task.name]
    return [o.word for o in {o.key: o for o in [*general, *own]}.values()]


def check_overrides(
    overrides: Sequence[Override], tasks: Sequence[Task]
) -> None:
    """Raise a UserError for a value that no chosen task gets."""
    chosen = [task.name for task in tasks]
    for override in overrides:
        if override.task is not None and override.task not in chosen:
            raise UserError(
                f"--override={override.task}:{override.key}=...: that task is "
                f"not among the chosen ones, {', '.join(chosen)}"
            )
