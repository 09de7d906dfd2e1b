"""One command of the suite, the folder it writes to and what is known of it.

Beside the files of a recipe, `run_all.json` says which command was run and
how it ended, and `run_all.log` has its output. Nothing else is remembered:
to have a run made again, remove its folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from summarymixing.files import open_atomically
from summarymixing.suite.encoders import Encoder, digest_of
from summarymixing.suite.steps import show
from summarymixing.suite.tasks import Task

RECORD_NAME = "run_all.json"
LOG_NAME = "run_all.log"
TAIL_LINES = 12
# Not part of what a result depends on.
PLACE = "--output_folder="


@dataclass(frozen=True)
class Job:
    """A command with a folder of its own.

    Arguments
    ---------
    folder : Path
        Of the record and the log.
    command : tuple of str
        Run in the repository.
    corpus : str
        What it needs or makes.
    """

    folder: Path
    command: tuple[str, ...]
    corpus: str

    @property
    def title(self) -> str:
        """Return what the screen calls it."""
        return f"prepare {self.corpus}"

    @property
    def log(self) -> Path:
        """Return the file for its output."""
        return self.folder / LOG_NAME

    def facts(self) -> dict[str, Any]:
        """Return what the record says beside how it ended."""
        return {"corpus": self.corpus, "command": show(self.command)}

    def lacks(self) -> str | None:
        """Say what is not there although the command went well."""
        return None

    def obstacle(self) -> str | None:
        """Say why it must not be run now."""
        return None

    def write_record(self, **outcome: Any) -> None:
        """Write the record."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open_atomically(self.folder / RECORD_NAME) as file:
            file.write(json.dumps({**self.facts(), **outcome}, indent=2) + "\n")


@dataclass(frozen=True)
class Run(Job):
    """One training of a probe, with its tests.

    Arguments
    ---------
    encoder : Encoder
    task : Task
    seed : int
    material : mapping
        What the command does not show: where the manifests come from, the
        content of the recipe file.
    """

    encoder: Encoder
    task: Task
    seed: int
    material: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def title(self) -> str:
        """Return what the screen calls it."""
        return f"{self.encoder.name}, {self.task.name}, seed {self.seed}"

    def facts(self) -> dict[str, Any]:
        """Return what the record says beside how it ended."""
        return {
            "encoder": self.encoder.name,
            "task": self.task.name,
            "seed": self.seed,
            "encoder_digest": self.encoder.digest,
            "material": dict(self.material),
            **super().facts(),
        }

    def obstacle(self) -> str | None:
        """Say whether the encoder has changed since the runs were planned."""
        is_folder = Path(self.encoder.source).is_dir()
        if (
            not is_folder
            or digest_of(self.encoder.source) == self.encoder.digest
        ):
            return None
        return (
            f"the files in {self.encoder.source} have changed; probe a copy "
            "while its pre-training goes on"
        )

    def is_done(self) -> bool:
        """Return whether its results are there; see also `difference`."""
        return read_metrics(self.folder) is not None

    def lacks(self) -> str | None:
        """Say what is not there although the command went well."""
        return None if self.is_done() else "it wrote no metrics.json"

    def difference(self) -> str | None:
        """Say how the command that made what is there differs from this one.

        Returns
        -------
        str or None
            None where it is the same, or where nothing was trained: a
            command that failed at once may be mended.
        """
        record = read_record(self.folder)
        is_begun = any(self.folder.rglob("checkpoints/*"))
        if not record or not (is_begun or self.is_done()):
            return None
        then = _identity(record.get("command", ()))
        now = _identity(show(self.command))
        if then != now:
            gone = [word for word in then if word not in now]
            new = [word for word in now if word not in then]
            return (
                f"then {' '.join(gone) or 'without'}, "
                f"now {' '.join(new) or 'without'}"
            )
        if record.get("encoder_digest") != self.encoder.digest:
            return f"the files in {self.encoder.source} were others then"
        for name, then_value in record.get("material", {}).items():
            if self.material.get(name) != then_value:
                return f"the {name} was another one then"
        return None


def _identity(command: list[str]) -> list[str]:
    """Return what a result depends on: not the order of --key=value."""
    return sorted(word for word in command if not word.startswith(PLACE))


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of a folder; empty where there is none."""
    return _read_json(folder / RECORD_NAME) or {}


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """Read the results of a run; None where there are none."""
    metrics = _read_json(folder / "metrics.json")
    if metrics is None or not isinstance(metrics.get("splits"), Mapping):
        return None
    return metrics


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_tail(log: Path, lines: int = TAIL_LINES) -> str:
    """Return the end of a log, and the last message of an error above it."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "(there is no log)"
    # A progress bar writes one line again and again.
    written = [line.rsplit("\r", 1)[-1] for line in text.splitlines()]
    tail = written[-lines:]
    errors = [line for line in written if line.startswith("error: ")]
    if errors and errors[-1] not in tail:
        tail = [errors[-1], "...", *tail]
    return "\n".join(tail)
