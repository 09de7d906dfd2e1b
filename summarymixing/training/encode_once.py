"""Encode each utterance of a probe once: stored states in place of audio.

A frozen encoder gives the same states in every epoch, to every head, seed and
fold. Before a probe learns, its processes encode what no run has stored yet;
then none of them reads audio any more.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.logger import get_logger
from torch import Tensor
from torch.utils.data import DataLoader

from summarymixing.data.audio import SAMPLE_RATE_HZ, read_audio
from summarymixing.data.manifest import Manifest, Row
from summarymixing.data.state_store import (
    StateStore,
    free_bytes,
    groups,
    utterance_key,
)
from summarymixing.errors import UserError
from summarymixing.files import describe_os_error
from summarymixing.lobes.encoders import FrozenEncoder
from summarymixing.lobes.features import num_frames
from summarymixing.run.processes import (
    gather_objects,
    on_main_process,
    rank,
    world_size,
)
from summarymixing.run.stopping import Stopped, stop_requested
from summarymixing.training.probe_data import ProbeBatch, ProbeData, from_store
from summarymixing.training.probe_task import ProbeTask

logger = get_logger(__name__)

AUTO, ON, OFF = "auto", "on", "off"
DTYPES = {"float32": torch.float32, "float16": torch.float16}

# Under `auto`, of the free disk: checkpoints and other users need some, too.
LARGEST_SHARE = 0.5
# A file is what a kill loses, and is in memory twice while it is written.
FILE_BYTES = 2**27
FILE_UTTERANCES = 512
WAIT_S = 0.5  # between looks at what other processes encode
SAY_EVERY_S = 60.0

Loaders = dict[str, DataLoader[ProbeBatch]]


def encode_once(
    data: ProbeData,
    task: ProbeTask,
    encoder: FrozenEncoder,
    hparams: Mapping[str, Any],
    *,
    trains_an_epoch: bool,
) -> ProbeData:
    """Store the states of a probe's utterances, and load these.

    A collective: every process encodes a share.

    Arguments
    ---------
    data : ProbeData
        Loaders of audio.
    task : ProbeTask
        Where it adapts its training utterances, these are not stored.
    encoder : FrozenEncoder
        On the device of the run.
    hparams : mapping
        `cache_features`, `cache_folder`, `cache_dtype` and `num_workers` of
        hparams/shared/probe.yaml.
    trains_an_epoch : bool
        Whether training goes through all of its utterances.

    Returns
    -------
    ProbeData
        Loaders of the same batches; of audio where nothing is stored.
        UserError where `cache_features` is "on" and something prevents it.
    """
    mode = hparams["cache_features"]
    if mode == OFF:
        return data
    loaders: Loaders = {"training": data.train, "validation": data.valid}
    loaders |= {f"test {split}": x for split, x in data.tests.items()}
    if task.adapts():
        del loaders["training"]
        logger.info(
            "training utterances are encoded in every epoch: the task takes "
            "other windows of them each time"
        )
    elif mode == AUTO and not trains_an_epoch:
        del loaders["training"]
    folder = Path(hparams["cache_folder"])
    dtype = DTYPES[hparams["cache_dtype"]]
    problem = _obstacle(encoder)
    if not problem:
        plan = on_main_process(
            lambda: make_plan(loaders, encoder, folder, dtype, mode)
        )
        store = StateStore(folder, plan.identity)
        filling = _Filling(store, encoder, dtype, hparams["num_workers"])
        manifests = [utterances_of(loaders[name]) for name in plan.keys]
        problem = plan.problem or filling.run(plan, manifests)
    if problem:
        if mode == ON:
            raise UserError(f"cache_features is on, but {problem}")
        logger.warning("every epoch encodes anew: %s", problem)
        return data
    stored = {
        name: from_store(loaders[name], keys, store)
        for name, keys in plan.keys.items()
    }
    return replace(
        data,
        train=stored.get("training", data.train),
        valid=stored.get("validation", data.valid),
        tests={
            split: stored.get(f"test {split}", loader)
            for split, loader in data.tests.items()
        },
    )


def utterances_of(loader: DataLoader[ProbeBatch]) -> Manifest:
    """Return the manifest that a loader reads."""
    utterances: Any = loader.dataset
    manifest: Manifest = utterances.manifest
    return manifest


def _obstacle(encoder: FrozenEncoder) -> str:
    """Return why the states of an encoder cannot be stored, or nothing."""
    if encoder.train_mode:
        return (
            "encoder_train_mode lets dropout change the states each time; "
            "give --encoder_train_mode=False"
        )
    if not encoder.alone:
        return (
            "the states depend on the batch in their last bits; give "
            "--encode_alone=True"
        )
    return ""


@dataclass
class Plan:
    """What is to be stored; made by the main process for all.

    identity : see `StateStore`; keys : of each split that is stored, those
    of its utterances; missing : groups of keys, one file each; problem : why
    nothing is stored.
    """

    identity: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, list[str]] = field(default_factory=dict)
    missing: list[list[str]] = field(default_factory=list)
    problem: str = ""


def make_plan(
    loaders: Loaders,
    encoder: FrozenEncoder,
    folder: Path,
    dtype: torch.dtype,
    mode: str,
) -> Plan:
    """Choose the splits whose states fit, in their order, and say so.

    Arguments
    ---------
    loaders : dict
        Name of each split and its loader of audio.
    encoder : FrozenEncoder
        Gives the states.
    folder : Path
        `cache_folder`.
    dtype : torch.dtype
        Of the stored states.
    mode : str
        "auto": within a share of the free disk, some of the splits, perhaps
        none. "on": all of them.
    """
    store = StateStore(folder, {**encoder.identity(), "dtype": str(dtype)})
    try:
        store.prepare()
        free = free_bytes(folder)
    except OSError as error:
        return Plan(problem=_describe(error))
    plan = Plan(dict(store.identity))
    room = free * (LARGEST_SHARE if mode == AUTO else 1)
    seconds, sizes = 0.0, dict[str, int]()  # of what is chosen
    missing: dict[str, int] = {}
    left_out: list[str] = []
    for name, loader in loaders.items():
        manifest = utterances_of(loader)
        keys = [utterance_key(row) for row in manifest]
        found = dict(zip(keys, _sizes(manifest, encoder, dtype), strict=True))
        new = {key: size for key, size in found.items() if key not in store}
        if sum((missing | new).values()) > room:
            left_out.append(f"{name} ({_in_words(sum(new.values()))})")
            continue
        plan.keys[name] = keys
        missing |= new
        # IEMOCAP's splits and others may share utterances.
        seconds += sum(
            duration
            for key, duration in zip(keys, manifest.durations, strict=True)
            if key not in sizes
        )
        sizes |= found
    states = (
        f"{encoder.inner.num_layers + 1} states of width "
        f"{encoder.inner.d_model}, {str(dtype).removeprefix('torch.')}"
    )
    where = f"{_in_words(free)} free in {folder}"
    if left_out:
        share = "half of " if mode == AUTO else ""
        advice = "--cache_folder=FOLDER chooses another disk"
        if dtype == torch.float32:
            advice += ", and --cache_dtype=float16 halves them"
        problem = (
            f"{states}, of {', '.join(left_out)} take more than {share}the "
            f"{where}; {advice}"
        )
        if mode == ON or not plan.keys:
            return Plan(problem=problem)
        logger.warning("encoded in every epoch: %s", problem)
    needed = _in_words(sum(missing.values()))
    logger.info(
        "%s, of %d utterances (%.1f h): %s, of which %s are to be encoded; %s",
        *(states, len(sizes), seconds / 3600, _in_words(sum(sizes.values()))),
        *(needed if missing else "none", where),
    )
    # The same groups in every run, whatever of them is there already.
    plan.missing = [
        group
        for group in groups(sizes, FILE_BYTES, FILE_UTTERANCES)
        if not missing.keys().isdisjoint(group)
    ]
    return plan


def _sizes(
    manifest: Manifest, encoder: FrozenEncoder, dtype: torch.dtype
) -> list[int]:
    """Return the bytes of the states of each utterance, nearly."""
    samples = torch.from_numpy(manifest.durations) * SAMPLE_RATE_HZ
    inner = encoder.inner
    width = (inner.num_layers + 1) * inner.d_model * dtype.itemsize
    sizes: list[int] = (num_frames(samples.long()) * width).tolist()
    return sizes


def _describe(error: OSError) -> str:
    """Say what the system refused; another folder is wanted for states."""
    return describe_os_error(error).replace("--output_", "--cache_")


def _in_words(num_bytes: float) -> str:
    """Return bytes for people.

    Example
    -------
    >>> _in_words(14.2e9), _in_words(1.4e6)
    ('14.2 GB', '1.4 MB')
    """
    unit, name = (1e9, "GB") if num_bytes >= 1e9 else (1e6, "MB")
    return f"{num_bytes / unit:.1f} {name}"


class _Filling:
    """Encode what a store lacks, beside other processes and runs."""

    def __init__(
        self,
        store: StateStore,
        encoder: FrozenEncoder,
        dtype: torch.dtype,
        num_readers: int,
    ) -> None:
        self.store, self.encoder, self.dtype = store, encoder, dtype
        self.num_readers = max(1, num_readers)
        self.written: list[Path] = []
        self.num_encoded, self.said_at = 0, time.monotonic()

    def run(self, plan: Plan, manifests: Sequence[Manifest]) -> str:
        """Encode a share of a plan; return why it failed, or nothing.

        A collective. `Stopped` where a process was asked to stop; what is
        written by then serves the next run.
        """
        stopped, problem = False, ""
        try:
            self._encode_share(plan, manifests)
        except Stopped:
            stopped = True
        except OSError as error:
            problem = _describe(error)
        self.store.refresh()
        if not (stopped or problem) and any(
            key not in self.store for keys in plan.keys.values() for key in keys
        ):
            problem = f"files in {self.store.folder} were deleted"
        everywhere = gather_objects((stopped, problem))
        if any(stopped for stopped, _ in everywhere):
            raise Stopped
        problems = [problem for _, problem in everywhere if problem]
        if problems:
            for path in self.written:  # the run needs the disk itself
                path.unlink(missing_ok=True)
        return next(iter(problems), "")

    def _encode_share(self, plan: Plan, manifests: Sequence[Manifest]) -> None:
        """Encode group after group, last those that others have in hand."""
        wanted = set(chain.from_iterable(plan.missing))
        rows = {
            key: manifest[index]
            for manifest, keys in zip(
                manifests, plan.keys.values(), strict=True
            )
            for index, key in enumerate(keys)
            if key in wanted
        }
        to_do = deque(plan.missing)
        # Processes begin at different places, so that they seldom meet.
        to_do.rotate(-(rank() * len(to_do) // world_size()))
        num_held = 0  # by others, in a row
        while to_do:
            group = to_do.popleft()
            with self.store.claim(group) as is_mine:
                if is_mine:
                    self.store.refresh()
                    left = [key for key in group if key not in self.store]
                    self._encode({key: rows[key] for key in left})
            num_held = 0 if is_mine else num_held + 1
            if not is_mine:
                to_do.append(group)
            if num_held and num_held >= len(to_do):
                self._pause(len(to_do))

    def _encode(self, rows: Mapping[str, Row]) -> None:
        """Write the states of some utterances, by key, as one file."""
        states: dict[str, Tensor] = {}
        with ThreadPoolExecutor(self.num_readers) as readers:
            wavs = readers.map(read_audio, rows.values())
            for (key, row), wav in zip(rows.items(), wavs, strict=True):
                if stop_requested():
                    readers.shutdown(cancel_futures=True)
                    raise Stopped
                encoded = self.encoder.encode(wav.to(self.encoder.device))
                states[key] = self._rounded(encoded, row).cpu()
                self.num_encoded += 1
                self._say("%d utterances are encoded", self.num_encoded)
        if states:
            self.written.append(self.store.write(states))

    def _rounded(self, states: Tensor, row: Row) -> Tensor:
        largest = torch.finfo(self.dtype).max
        if states.abs().max() > largest:
            raise UserError(
                f"the states of {row.id} reach {states.abs().max():g}, but "
                f"float16 ends at {largest:g}; give --cache_dtype=float32"
            )
        return states.to(self.dtype)

    def _pause(self, num_groups: int) -> None:
        """Wait for others; `Stopped` where that is asked for."""
        if stop_requested():
            raise Stopped
        self._say("another process encodes the last %d files", num_groups)
        time.sleep(WAIT_S)

    def _say(self, message: str, number: int) -> None:
        if time.monotonic() > self.said_at + SAY_EVERY_S:
            logger.info(message, number)
            self.said_at = time.monotonic()
