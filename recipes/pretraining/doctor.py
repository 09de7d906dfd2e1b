r"""Look over a pre-training on the processes it will run on, before it starts.

torchrun --nproc_per_node=N recipes/pretraining/doctor.py \
    hparams/pretraining/summarymixing_base.yaml \
    --manifests=MANIFESTS --output_folder=results/my_run [--key=value ...]

The same words as for train.py. It takes seconds and prints a line for what is
in order and a message for each problem; with a problem it ends with status 2
(torchrun: 1).
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import platform
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
import speechbrain
import torch
import torch.distributed as dist

import summarymixing
from summarymixing.cost.memory import UpdateMemory
from summarymixing.data.audio import read_audio
from summarymixing.data.audit import leave_out
from summarymixing.data.manifest import Manifest
from summarymixing.errors import UserError
from summarymixing.files import describe_os_error, sha256_of
from summarymixing.run import processes
from summarymixing.run.brain import count_parameters
from summarymixing.run.checkpoints import AtomicCheckpointer
from summarymixing.run.hparams_file import HparamsFile
from summarymixing.run.launch import RunOptions, run
from summarymixing.training.worst_update import WorstUpdate

FIRST_ROWS = 3  # whose audio is read, of each manifest
MOST_REDUCED_BYTES = 100e6  # enough for a rate, and seconds over Ethernet
REPETITIONS = 3
# Of a GPU's free memory: the rest goes to pieces that nothing fits in.
USABLE_SHARE = 0.95
GIB = 2**30
GREEN, RED, PLAIN = "\033[32m", "\033[31m", "\033[0m"


class Outcome(NamedTuple):
    """What one process has found out in one check."""

    host: str
    line: str = ""  # what is in order
    same: str = ""  # what must be the same for all
    problem: str = ""


@dataclass
class Doctor:
    """The checks of a process. Each is called by all processes together.

    Arguments
    ---------
    hparams : dict
        The objects and values of a file of hparams/pretraining/.
    device : str
        The device of this process.
    """

    hparams: dict[str, Any]
    device: str

    def __post_init__(self) -> None:
        self.folder = Path(self.hparams["output_folder"])
        self.manifests = [
            Path(self.hparams["manifests"]) / name
            for name in ("train.csv", "valid.csv")
        ]
        self.memory: UpdateMemory | None = None

    @functools.cached_property
    def opened(self) -> list[Manifest]:
        """The manifests, read once; UserError where they cannot be."""
        return [Manifest.read(path) for path in self.manifests]

    def checks(self) -> dict[str, Callable[[], tuple[str, str]]]:
        """Return the checks: a line, and what must be the same for all."""
        return {
            "code": self.check_code,
            "versions": self.check_versions,
            "manifests": self.check_manifests,
            "audio": self.check_audio,
            "all-reduce": self.check_reduce,
            "folder": self.check_folder,
            "memory": self.check_memory,
            "disk": self.check_disk,
        }

    def check_code(self) -> tuple[str, str]:
        """Compare the source files of the package."""
        root = Path(summarymixing.__path__[0])
        digest = digest_of(root.rglob("*.py"))
        return f"{digest} in {root}", digest

    def check_versions(self) -> tuple[str, str]:
        """Compare what the results may depend on."""
        versions = (
            f"Python {platform.python_version()}, torch {torch.__version__}, "
            f"CUDA {torch.version.cuda}, SpeechBrain "
            f"{speechbrain.__version__}, libsndfile "
            f"{soundfile.__libsndfile_version__}"
        )
        return versions, versions

    def check_manifests(self) -> tuple[str, str]:
        """Compare the manifests, and the list of what is excluded."""
        exclude = self.hparams.get("exclude")
        files = [*self.manifests, *([Path(exclude)] if exclude else [])]
        rows = [len(manifest) for manifest in self.opened]
        digest = digest_of(files)
        return f"{rows[0]:,} and {rows[1]:,} rows, {digest}", digest

    def check_audio(self) -> tuple[str, str]:
        """Read some audio: the disks may not be there on all machines."""
        digest = hashlib.sha256()
        for opened in self.opened:
            manifest = leave_out(opened, self.hparams.get("exclude"))
            for index in range(min(FIRST_ROWS, len(manifest))):
                digest.update(read_audio(manifest[index]).numpy().tobytes())
        text = digest.hexdigest()[:12]
        return f"the first rows of both manifests, {text}", text

    def check_reduce(self) -> tuple[str, str]:
        """Sum over processes, right and how fast."""
        size = processes.world_size()
        if size == 1:
            return "one process, nothing to sum", ""
        gradients = 4 * count_parameters(self.hparams["model"])
        num_bytes = min(gradients, MOST_REDUCED_BYTES)
        seconds = []
        for _ in range(1 + REPETITIONS):  # the first one makes connections
            x = torch.full((int(num_bytes / 4),), processes.rank() + 1.0)
            x = x.to(self.device)
            wait_for(self.device)
            start = time.perf_counter()
            dist.all_reduce(x)
            wait_for(self.device)
            seconds.append(time.perf_counter() - start)
            if not (x == size * (size + 1) / 2).all():
                raise UserError(
                    "the sum over processes is wrong. Try NCCL_P2P_DISABLE=1 "
                    "(some machines corrupt copies between GPUs), and "
                    "NCCL_DEBUG=INFO to see the paths that NCCL takes"
                )
        median = sorted(seconds[1:])[REPETITIONS // 2]
        rate = num_bytes / median
        return (
            f"{num_bytes / 1e6:.1f} MB over {size} processes in "
            f"{1e3 * median:.1f} ms ({rate / 1e9:.2f} GB/s); the gradients of "
            f"an update in {gradients / rate:.2f} s, most of it beside the "
            "backward pass",
            "",
        )

    def check_folder(self) -> tuple[str, str]:
        """Save and delete a few bytes, and let all machines see a file."""
        AtomicCheckpointer(self.folder / "checkpoints").try_saving()
        token = self.folder / f".doctor.{secrets.token_hex(8)}"
        path, has_locks = processes.on_main_process(lambda: _try_lock(token))
        seen = path.is_file()
        processes.gather_objects(seen)  # all have looked
        processes.on_main_process(lambda: path.unlink())
        if not seen:
            raise UserError(
                f"{self.folder} is another folder on this machine; give "
                "--output_folder on a file system that all machines share"
            )
        locks = "locks" if has_locks else "has no locks, which costs minutes"
        return f"{self.folder} {locks}, flushes, renames", ""

    def check_memory(self) -> tuple[str, str]:
        """Compare the worst update with what this device has."""
        self.memory = processes.on_main_process(self._trace)
        needed, free = self.memory.peak / GIB, free_memory(self.device) / GIB
        text = (
            f"the worst update takes {needed:.2f} GiB (traced without "
            f"compilation); {free:.1f} GiB are there"
        )
        if needed > free * USABLE_SHARE:
            raise UserError(
                f"{text}. Lower --max_batch_seconds or --memory_budget "
                "(recipes/plan.py chooses both), or end what else runs on "
                f"{self.device}"
            )
        return text, ""

    def _trace(self) -> UpdateMemory:
        longest = float(self.opened[0].durations.max())
        worst = WorstUpdate(
            # Built anew, of tensors without values.
            HparamsFile.read(self.folder / "hyperparams.yaml"),
            longest,
            processes.world_size(),
        )
        return worst.trace(
            self.hparams["memory_budget"],
            max(1, int(self.hparams["max_batch_seconds"] / longest)),
            self.hparams["accumulation"],
            torch.device(self.device).type,
        )

    def check_disk(self) -> tuple[str, str]:
        """Compare the checkpoints with what is left of the disk."""
        if self.memory is None:
            return "not known, since the worst update could not be traced", ""
        # Weights and states of the optimiser are what a checkpoint holds.
        each = self.memory.at_rest
        keep = self.hparams["checkpoints_to_keep"] + 1
        encoder = 4 * count_parameters(self.hparams["encoder"])
        needed = keep * each + 2 * encoder  # one is written aside
        free = processes.on_main_process(
            lambda: shutil.disk_usage(self.folder).free
        )
        text = (
            f"{keep} checkpoints of {each / 1e9:.2f} GB and the encoder take "
            f"{needed / 1e9:.2f} GB; {free / 1e9:.1f} GB are free (a quota is "
            "not seen)"
        )
        if needed > free:
            raise UserError(
                f"{text}. Free some space, lower --checkpoints_to_keep or "
                "choose another --output_folder"
            )
        return text, ""


def examine(hparams: dict[str, Any], run_opts: RunOptions) -> None:
    """Make all checks; UserError on every process if there is a problem."""
    doctor = Doctor(hparams, str(run_opts.device))
    num_problems = 0
    for name, check in doctor.checks().items():
        outcomes = processes.gather_objects(attempt(check))
        problems = list(problems_of(outcomes))
        num_problems += len(problems)
        if processes.rank() == 0:
            show(name, problems or [outcomes[0].line], bool(problems))
    if num_problems:
        raise UserError(f"problems: {num_problems}, see above")


def attempt(check: Callable[[], tuple[str, str]]) -> Outcome:
    """Make a check and return what came of it."""
    host = socket.gethostname()
    try:
        line, same = check()
    except UserError as error:
        return Outcome(host, problem=str(error))
    except OSError as error:
        return Outcome(host, problem=describe_os_error(error))
    return Outcome(host, line, same)


def problems_of(outcomes: list[Outcome]) -> Iterable[str]:
    """Yield a message for each problem, and for what differs."""
    for problem in dict.fromkeys(o.problem for o in outcomes if o.problem):
        having = [o.problem == problem for o in outcomes]
        yield problem if all(having) else f"{_who(having, outcomes)}: {problem}"
    found = dict.fromkeys(o.same for o in outcomes if not o.problem)
    if len(found) > 1:
        yield "not the same for all processes: " + "; ".join(
            f"{same} on {_who([o.same == same for o in outcomes], outcomes)}"
            for same in found
        )


def _who(having: list[bool], outcomes: list[Outcome]) -> str:
    ranks = [rank for rank, has in enumerate(having) if has]
    more = f" and {len(ranks) - 1} more" if len(ranks) > 1 else ""
    return f"rank {ranks[0]}{more} ({outcomes[ranks[0]].host})"


def show(name: str, lines: Iterable[str], is_problem: bool) -> None:
    """Print the lines of a check, in colour on a terminal."""
    colour, word = (RED, "PROBLEM") if is_problem else (GREEN, "ok")
    if not sys.stdout.isatty():
        colour = ""
    for line in lines:
        print(
            f"{colour}{word:<8}{PLAIN if colour else ''}{name:<11}{line}",
            flush=True,
        )


def digest_of(files: Iterable[Path]) -> str:
    """Return a short digest of the content of files, in order."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.name}\0{sha256_of(path)}".encode())
    return digest.hexdigest()[:12]


def free_memory(device: str) -> float:
    """Return the bytes that a process may take on its device."""
    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info(device)[0])
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total / processes.local_world_size()


def wait_for(device: str) -> None:
    """Wait until a GPU has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _try_lock(path: Path) -> tuple[Path, bool]:
    """Make and lock a file; not that of the run, which would lose its lock."""
    with path.open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return path, False
    return path, True


if __name__ == "__main__":
    run(examine)
