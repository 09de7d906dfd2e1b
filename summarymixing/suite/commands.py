"""One command of the suite, the folder it writes to and what is known of it.

Beside the files of a script, `run_all.json` says which command was run and
how it ended, and `run_all.log` has its output. Nothing else is remembered:
to have a run made again, remove its folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from summarymixing.files import write_json
from summarymixing.suite.command_runner import as_typed
from summarymixing.suite.encoders import EncoderSource, digest_of
from summarymixing.suite.tasks import BenchmarkTask

RECORD_NAME = "run_all.json"
LOG_NAME = "run_all.log"
TAIL_LINES = 12


@dataclass(frozen=True)
class Command:
    """A command with a folder of its own; this one prepares a corpus."""

    folder: Path  # where the record and the log are written
    words: tuple[str, ...]  # the command, which is run in the repository
    corpus: str  # what it makes or needs

    @property
    def title(self) -> str:
        """What the screen calls it."""
        return f"prepare {self.corpus}"

    @property
    def log(self) -> Path:
        """The file for its output."""
        return self.folder / LOG_NAME

    def facts(self) -> dict[str, Any]:
        """Return what the record says beside how it ended."""
        return {"corpus": self.corpus, "command": as_typed(self.words)}

    def missing_output(self) -> str | None:
        """Say what is not there although the command went well."""
        return None

    def reason_not_to_run(self) -> str | None:
        """Say why it must not be run now."""
        return None

    def write_record(self, **outcome: Any) -> None:
        """Write the record."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / RECORD_NAME, {**self.facts(), **outcome})


@dataclass(frozen=True)
class ProbeRun(Command):
    """One training of a probe, with its tests."""

    encoder: EncoderSource  # the encoder that is probed
    task: BenchmarkTask  # what the probe learns
    seed: int
    # What the results depend on and the command does not show: where the
    # manifests come from, and the content of the YAML file.
    provenance: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def title(self) -> str:
        """What the screen calls it."""
        return f"{self.encoder.name}, {self.task.name}, seed {self.seed}"

    def facts(self) -> dict[str, Any]:
        """Return what the record says beside how it ended."""
        return {
            "encoder": self.encoder.name,
            "task": self.task.name,
            "file": str(self.task.hparams.path),
            "seed": self.seed,
            "encoder_digest": self.encoder.digest,
            "provenance": dict(self.provenance),
            **super().facts(),
        }

    def reason_not_to_run(self) -> str | None:
        """Say whether the encoder has changed since the runs were planned."""
        source, digest = self.encoder.source, self.encoder.digest
        if digest_of(source) in (
            source,
            digest,
        ):  # a name on the hub is its own
            return None
        return (
            f"the files in {source} have changed; probe a copy while its "
            "pre-training goes on"
        )

    def is_done(self) -> bool:
        """Return whether its results are there."""
        return read_metrics(self.folder) is not None

    def missing_output(self) -> str | None:
        """Say what is not there although the command went well."""
        return None if self.is_done() else "it wrote no metrics.json"

    def conflict_with_earlier(self) -> str | None:
        """Say how the command that made what is there differs from this one.

        None where it is the same, or where nothing was trained: a command that
        failed at once may be mended.
        """
        record = read_record(self.folder)
        is_begun = any(self.folder.rglob("checkpoints/*"))
        if not record or not (is_begun or self.is_done()):
            return None
        then = _identity(record.get("command", ()))
        now = _identity(as_typed(self.words))
        if then != now:
            gone = " ".join(word for word in then if word not in now)
            new = " ".join(word for word in now if word not in then)
            return f"then {gone or 'without'}, now {new or 'without'}"
        if record.get("encoder_digest") != self.encoder.digest:
            return f"the files in {self.encoder.source} were different then"
        for name, earlier in record.get("provenance", {}).items():
            if self.provenance.get(name) != earlier:
                return f"the {name} was different then"
        return None


# Where files lie, and whether states are stored, changes no result.
PLACES = ("--output_folder=", "--cache_folder=", "--cache_features=")


def _identity(command: list[str]) -> list[str]:
    """Return what a result depends on: not the place, nor the order."""
    return sorted(word for word in command if not word.startswith(PLACES))


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of a folder; empty where there is none."""
    return _read_json(folder / RECORD_NAME)


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """Read the results of a run; None where there are none."""
    metrics = _read_json(folder / "metrics.json")
    return metrics if isinstance(metrics.get("splits"), Mapping) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_tail(log: Path) -> str:
    """Return the end of a log, and the last message of an error above it."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "(there is no log)"
    # A progress bar writes one line again and again.
    written = [line.rsplit("\r", 1)[-1] for line in text.splitlines()]
    tail = written[-TAIL_LINES:]
    errors = [line for line in written if line.startswith("error: ")]
    if errors and errors[-1] not in tail:
        tail = [errors[-1], "...", *tail]
    return "\n".join(tail)
