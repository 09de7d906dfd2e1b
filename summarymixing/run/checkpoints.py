"""Checkpoints that exist or do not: written aside, flushed, then renamed.

SpeechBrain's checkpointer writes straight into the final folder, so that a
run killed meanwhile leaves a folder from which it cannot resume. It also lets
the training wait; here a thread may write what was copied to host memory.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from speechbrain.utils.checkpoints import (
    DEFAULT_SAVE_HOOKS,
    METAFNAME,
    PARAMFILE_EXT,
    Checkpoint,
    Checkpointer,
    ckpt_recency,
    get_default_hook,
    torch_save,
)
from speechbrain.utils.logger import get_logger
from torch import Tensor

from summarymixing.errors import UserError
from summarymixing.files import describe_os_error, flush
from summarymixing.run.checkpoint_files import (
    checkpoint_folders,
    damage_of,
    seal,
)
from summarymixing.run.processes import on_main_process

Writer = Callable[[Path], Any]  # writes one file of a checkpoint

logger = get_logger(__name__)

STAGING_NAME = ".saving"  # one writer for each folder, see locked_folder
TRASH_NAME = ".deleting"
TRIAL_NAME = ".trial"
PREVIOUS_SUFFIX = "+previous"
FINGERPRINT_KEY = "fingerprint"
# What torch says, as a RuntimeError, where a file cannot be written further.
WRITE_ERRORS = ("inline_container", "iostream error")
# A server that is busy, or a disk that somebody is clearing, need not cost the
# updates since the last checkpoint.
SAVE_PAUSES_S = (10.0, 60.0)
ROOM_NEEDED = "Saving needs room for one checkpoint more than are kept."
INSTEAD = "The training waits while the state of now is saved"
MESSAGE_CHARACTERS = 600


class AtomicCheckpointer(Checkpointer):
    """A SpeechBrain checkpointer whose checkpoints are always whole.

    A checkpoint is written to a hidden folder, its files are flushed to the
    disk, a manifest of sizes and checksums is added and the folder is renamed.
    Folders that do not match their manifest are reported in one line of the
    log and treated as absent. Rank 0 writes, also what has a saver with
    ``save_on_main_only=False``; as with SpeechBrain, every rank calls
    `save_checkpoint`, `save_and_keep_only`, `delete_checkpoints` and
    `recover_if_possible`, and all of them raise when rank 0 fails.

    Arguments
    ---------
    checkpoints_dir : Path or str
        Folder of the checkpoints, on a file system that all ranks see.
    recoverables : mapping, optional
        Name to object, as in SpeechBrain.
    fingerprint : mapping, optional
        What must stay the same when the run resumes; stored with every
        checkpoint and compared by `open_checkpoints`.
    options : Any
        SpeechBrain's ``custom_load_hooks``, ``custom_save_hooks`` and
        ``allow_partial_load``.

    Example
    -------
    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> folder = getfixture("tmp_path")
    >>> checkpointer = AtomicCheckpointer(folder, {"model": model})
    >>> checkpointer.save_and_keep_only(meta={"loss": 0.5})
    >>> checkpointer.recover_if_possible().meta["loss"]
    0.5
    """

    def __init__(
        self,
        checkpoints_dir: Path | str,
        recoverables: Mapping[str, Any] | None = None,
        fingerprint: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(checkpoints_dir, recoverables, **options)
        self.fingerprint = json.loads(json.dumps(dict(fingerprint or {})))
        self._reported: set[Path] = set()
        self._is_saving = False  # beside the training; alike on all ranks
        self._future: Future[None] | None = None  # of rank 0, while it saves
        self._is_leaving = threading.Event()
        # What was copied last time. Fresh memory costs several times the copy.
        self._copies: dict[str, Any] = {}

    def add_recoverables(self, recoverables: Mapping[str, Any]) -> None:
        """Add objects by name, each of which a checkpoint must hold.

        SpeechBrain forgets the last half, and a checkpoint that lacks one
        ends in a KeyError.
        """
        super().add_recoverables(recoverables)
        for name in recoverables:
            self.optional_recoverables.setdefault(name, False)

    def try_saving(self) -> None:
        """Save and delete a few bytes; every rank calls it.

        A folder where nothing can be saved is told before hours of training
        depend on it: UserError on every rank.
        """
        on_main_process(self._save_and_delete_trial)

    def _save_and_delete_trial(self) -> None:
        final = self.checkpoints_dir / TRIAL_NAME
        with self._staging_folder() as staging, self._explain_failure():
            staging.mkdir(parents=True)
            (staging / "trial").write_bytes(bytes(1024))
            seal(staging)
            self._publish(staging, final)
        self._delete(final)

    def save_checkpoint(
        self,
        meta: Mapping[str, Any] | None = None,
        end_of_epoch: bool = True,
        name: str | None = None,
        verbosity: int = logging.INFO,
    ) -> Checkpoint:
        """Save a checkpoint, whole or not at all; arguments as in SpeechBrain.

        Returns
        -------
        Checkpoint
            Path, meta and files, on every rank. UserError on every rank if it
            could not be written; the earlier checkpoints are then untouched.
        """
        full_meta = self._complete(meta)
        try:
            self.finish_saving()
        except UserError as error:
            logger.warning("%s. %s", error, INSTEAD)
        return on_main_process(
            lambda: self._save(
                full_meta, self._writers(), end_of_epoch, name, verbosity
            )
        )

    def begin_saving(
        self, meta: Mapping[str, Any] | None = None, **policy: Any
    ) -> None:
        """Copy what a checkpoint holds to host memory; write it meanwhile.

        The training goes on when rank 0 has made the copy, which takes as much
        memory as a checkpoint and is kept for the next one. One that was begun
        before is finished first. Where that could not be written, this one is
        waited for, as by `save_and_keep_only`.

        Arguments
        ---------
        meta : mapping, optional
            As in SpeechBrain.
        **policy : Any
            What to keep afterwards, as `delete_checkpoints` takes it.
        """
        full_meta = self._complete(meta)
        try:
            self.finish_saving()
            on_main_process(lambda: self._begin(full_meta, policy))
        except UserError as error:
            logger.warning("%s. %s", error, INSTEAD)
            self.save_and_keep_only(meta, **policy)
        else:
            self._is_saving = True

    @property
    def is_saving(self) -> bool:
        """Whether a checkpoint is being written beside; on rank 0."""
        return self._future is not None and not self._future.done()

    def finish_saving(self) -> None:
        """Wait until what `begin_saving` has begun is on the disk.

        UserError on every rank if it could not be written; the earlier
        checkpoints are then untouched.
        """
        if not self._is_saving:
            return
        self._is_saving = False
        on_main_process(self._result)

    def close(self) -> None:
        """Let a run end, for whatever reason, without leaving half a file.

        No collective: the others may have gone. Attempts after a failure come
        without a pause.
        """
        self._is_leaving.set()
        if self._future is not None:
            try:
                self._result()
            except (UserError, OSError) as error:
                logger.error("%s", error)
        self._is_saving = False

    def _result(self) -> None:
        """Wait for the thread and raise what it raised; rank 0 only."""
        assert self._future is not None
        future, self._future = self._future, None
        future.result()

    def _complete(self, meta: Mapping[str, Any] | None) -> dict[str, Any]:
        """Add the fingerprint; raise here for what could not be read back."""
        complete = {**(meta or {})}
        if self.fingerprint:
            complete.setdefault(FINGERPRINT_KEY, self.fingerprint)
        yaml.safe_dump(complete)
        return complete

    def save_and_keep_only(
        self,
        meta: Mapping[str, Any] | None = None,
        *args: Any,
        importance_keys: Iterable[Any] = (),
        **options: Any,
    ) -> None:
        """Save, then delete the least important; see SpeechBrain.

        SpeechBrain appends to its default list of importance keys at each
        call; here every call has its own.
        """
        super().save_and_keep_only(
            meta, *args, importance_keys=list(importance_keys), **options
        )

    def delete_checkpoints(self, **policy: Any) -> None:
        """Delete all but the most important checkpoints; see SpeechBrain.

        A checkpoint disappears by a rename before its files are removed, so
        that a kill in between leaves no torn one.
        """
        self.finish_saving()
        on_main_process(lambda: self._delete_all_but(**policy))

    def recover_if_possible(
        self,
        importance_key: Any = None,
        max_key: str | None = None,
        min_key: str | None = None,
        ckpt_predicate: Any = None,
    ) -> Checkpoint | None:
        """Load the best whole checkpoint, the same one on every rank.

        Arguments
        ---------
        importance_key, max_key, min_key, ckpt_predicate : optional
            Which one is best, as in SpeechBrain; by default the latest.

        Returns
        -------
        Checkpoint or None
            What was loaded; None if there are no checkpoints. UserError if
            all are damaged or the chosen one does not fit the objects.
        """
        self.finish_saving()
        order = importance_key, max_key, min_key, ckpt_predicate
        chosen = on_main_process(
            lambda: self._first_intact(self.find_checkpoints(*order))
        )
        if chosen is None:
            logger.info("No checkpoint in %s yet.", self.checkpoints_dir)
        else:
            self.load_checkpoint(chosen)
        return chosen

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint; UserError if it does not fit the objects.

        Of optimisers the moments and the learning rates.
        """
        if not checkpoint.path.is_dir():
            raise UserError(
                f"{checkpoint.path} is not visible on this machine; "
                "--output_folder must be on a file system that all share"
            )
        hooks = [
            optimizer.register_load_state_dict_pre_hook(_keep_settings)
            for optimizer in self.recoverables.values()
            if isinstance(optimizer, torch.optim.Optimizer)
        ]
        try:
            super().load_checkpoint(checkpoint)
        except RuntimeError as error:
            raise UserError(
                f"{checkpoint.path} does not fit this run; repeat the "
                "settings that saved it or choose another --output_folder. "
                + " ".join(str(error).split())[:MESSAGE_CHARACTERS]
            ) from error
        finally:
            for hook in hooks:
                hook.remove()

    def _list_checkpoint_dirs(self) -> list[Path]:
        """Return the folders of whole checkpoints; report the others once."""
        return [
            path
            for path in checkpoint_folders(self.checkpoints_dir)
            if not self._is_damaged(path)
        ]

    def _is_damaged(self, path: Path, compare_content: bool = False) -> bool:
        damage = damage_of(path, compare_content)
        if damage and path not in self._reported:
            self._reported.add(path)
            logger.warning(
                "Ignored the damaged checkpoint %s: %s", path, damage
            )
        return damage is not None

    def _first_intact(self, ranked: list[Checkpoint]) -> Checkpoint | None:
        """Return the first checkpoint whose content has its checksums."""
        for checkpoint in ranked:
            if not self._is_damaged(checkpoint.path, compare_content=True):
                return checkpoint
        damages = {
            path.name: damage_of(path, compare_content=True)
            for path in checkpoint_folders(self.checkpoints_dir)
        }
        if damages and all(damages.values()):
            raise UserError(
                f"all checkpoints in {self.checkpoints_dir} are damaged: "
                + "; ".join(f"{name}: {why}" for name, why in damages.items())
                + ". Delete them to start again, or choose another "
                "--output_folder"
            )
        return None

    def _writers(self, copied: bool = False) -> dict[str, Writer]:
        """Return what writes the file of each object, as it is or was now."""
        writers: dict[str, Writer] = {}
        for name, recoverable in self.recoverables.items():
            hook = self.custom_save_hooks.get(name) or get_default_hook(
                recoverable, DEFAULT_SAVE_HOOKS
            )
            if hook is torch_save:
                state = recoverable.state_dict()
                if copied:
                    state = copy_to_host(state, self._copies.get(name))
                    self._copies[name] = state
                writers[name] = partial(torch.save, state)
            elif copied:  # small, such as counters
                writers[name] = _written(hook, recoverable)
            else:
                writers[name] = partial(hook, recoverable)
        return writers

    def _begin(self, meta: dict[str, Any], policy: dict[str, Any]) -> None:
        """Copy, and start the thread; rank 0 only."""
        writers, copied = self._writers(copied=True), copies_made()
        # A thread of its own each time: idle ones do not survive a fork.
        executor = ThreadPoolExecutor(1, "checkpoint")
        self._future = executor.submit(
            self._save_copied, meta, writers, copied, policy
        )
        executor.shutdown(wait=False)  # which lets it finish

    def _save_copied(
        self,
        meta: dict[str, Any],
        writers: dict[str, Writer],
        copied: Callable[[], None],
        policy: dict[str, Any],
    ) -> None:
        """Save and delete beside the training: in this thread, no collective.

        Nor anything else of SpeechBrain's that knows of processes: that it is
        the main one alone which works is noted for all threads.
        """
        copied()
        self._save(meta, writers)
        self._delete_all_but(**policy)

    def _save(self, *what: Any) -> Checkpoint:
        """Save, more than once if need be; rank 0 only."""
        for pause in SAVE_PAUSES_S:
            try:
                return self._save_once(*what)
            except UserError as error:
                logger.warning("%s. Next attempt in %g s", error, pause)
                self._is_leaving.wait(pause)
        return self._save_once(*what)

    def _save_once(
        self,
        meta: dict[str, Any],
        writers: Mapping[str, Writer],
        end_of_epoch: bool = True,
        name: str | None = None,
        verbosity: int = logging.INFO,
    ) -> Checkpoint:
        """Write aside, seal, rename."""
        start = time.perf_counter()
        final = self._new_checkpoint_dirpath()
        if name is not None:
            final = self._custom_checkpoint_dirpath(name)
        with self._staging_folder() as staging, self._explain_failure():
            staging.mkdir(parents=True)
            self._save_checkpoint_metafile(
                staging / METAFNAME, meta, end_of_epoch
            )
            for file_name, write in writers.items():
                write(staging / f"{file_name}{PARAMFILE_EXT}")
            seal(staging)
            self._publish(staging, final)
        seconds = time.perf_counter() - start
        logger.log(
            verbosity, "Saved a checkpoint in %s (%.1f s)", final, seconds
        )
        return self._construct_checkpoint_objects([final])[0]

    def _delete_all_but(
        self,
        *,
        num_to_keep: int = 1,
        min_keys: Iterable[str] | None = None,
        max_keys: Iterable[str] | None = None,
        importance_keys: Iterable[Any] = (ckpt_recency,),
        ckpt_predicate: Any = None,
        verbosity: int = logging.INFO,
    ) -> None:
        """Delete as `delete_checkpoints` of SpeechBrain; rank 0 only."""
        orders = [
            *({"min_key": key} for key in min_keys or ()),
            *({"max_key": key} for key in max_keys or ()),
            *({"importance_key": key} for key in importance_keys),
        ]
        ranked = [
            self.find_checkpoints(**order, ckpt_predicate=ckpt_predicate)
            for order in orders
        ]
        kept = {c.path for order in ranked for c in order[:num_to_keep]}
        for path in {c.path for order in ranked for c in order} - kept:
            self._delete(path)
            logger.log(verbosity, "Deleted checkpoint in %s", path)

    @contextlib.contextmanager
    def _staging_folder(self) -> Iterator[Path]:
        """Yield an empty hidden folder; remove it and earlier leftovers."""
        staging = self.checkpoints_dir / STAGING_NAME
        for leftover in (staging, self.checkpoints_dir / TRASH_NAME):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _publish(self, staged: Path, final: Path) -> None:
        """Rename a sealed folder; one of the same name exists until then."""
        previous = final.with_name(final.name + PREVIOUS_SUFFIX)
        if final.exists():
            if previous.exists():  # left by a run killed between the renames
                self._delete(previous)
            final.rename(previous)
        staged.rename(final)
        flush(self.checkpoints_dir)
        if previous.exists():
            self._delete(previous)

    def _delete(self, path: Path) -> None:
        """Remove a checkpoint; one that cannot be removed stops no run."""
        trash = self.checkpoints_dir / TRASH_NAME
        shutil.rmtree(trash, ignore_errors=True)
        try:
            path.rename(trash)
        except OSError as error:
            logger.warning("Not deleted: %s", describe_os_error(error))
        shutil.rmtree(trash, ignore_errors=True)

    @contextlib.contextmanager
    def _explain_failure(self) -> Iterator[None]:
        """Turn what the system refuses into a UserError."""
        cause: Exception
        try:
            yield
        except OSError as error:
            reason, cause = f"{describe_os_error(error)}.", error
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                reason += f" {ROOM_NEEDED}"
        except RuntimeError as error:
            if not any(words in str(error) for words in WRITE_ERRORS):
                raise
            reason, cause = f"is the disk full? {ROOM_NEEDED}", error
        else:
            return
        raise UserError(
            f"could not save a checkpoint in {self.checkpoints_dir}: {reason} "
            "Earlier checkpoints are intact"
        ) from cause


def open_checkpoints(
    folder: Path | str,
    recoverables: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    reasons: Mapping[str, str],
) -> AtomicCheckpointer:
    """Open the checkpoints of a run, or refuse those of another one.

    Arguments
    ---------
    folder : Path or str
        The folder of the checkpoints.
    recoverables : mapping
        Names and objects, as in SpeechBrain.
    fingerprint : mapping
        What must stay the same, plain and possibly nested values.
    reasons : mapping
        Why, for names of the fingerprint where it needs saying.

    Returns
    -------
    AtomicCheckpointer
        UserError where the last whole checkpoint has another fingerprint, or
        where none can be saved.

    Example
    -------
    >>> folder, model = getfixture("tmp_path"), torch.nn.Linear(2, 1)
    >>> kept = {"seed": 1}, {"seed": "the batches are a function of it"}
    >>> open_checkpoints(folder, {"model": model}, *kept).save_and_keep_only()
    >>> _ = open_checkpoints(folder, {"model": model}, *kept)
    """
    checkpointer = AtomicCheckpointer(folder, recoverables, fingerprint)
    checkpointer.try_saving()
    last = checkpointer.find_checkpoint()
    if last is None:
        return checkpointer
    saved = _flatten(last.meta.get(FINGERPRINT_KEY, {}))
    wanted = _flatten(checkpointer.fingerprint)
    differences = [
        f"{key}: saved {saved.get(key, 'nothing')}, "
        f"requested {wanted.get(key, 'nothing')}"
        + (f" ({reasons[key]})" if key in reasons else "")
        for key in sorted({*saved, *wanted})
        if key not in saved or key not in wanted or saved[key] != wanted[key]
    ]
    if differences:
        raise UserError(
            f"{last.path} was saved with settings that cannot change while a "
            f"run lasts: {'; '.join(differences)}. Give the saved values to "
            "go on, or another --output_folder"
        )
    return checkpointer


def copy_to_host(value: Any, earlier: Any = None) -> Any:
    """Copy a state, such as a `state_dict`, with its tensors in host memory.

    Copies from a GPU are queued behind the work that it has: the host does not
    wait, and `copies_made` tells when they can be read.

    Arguments
    ---------
    value : Any
        Tensors in nested mappings, and anything plain.
    earlier : Any
        A copy made before, whose memory is used where it fits.

    Returns
    -------
    Any
        The copy. It shares nothing with `value`.

    Example
    -------
    >>> state = {"weight": torch.ones(2), "groups": [{"lr": 0.1}]}
    >>> copied = copy_to_host(state)
    >>> _ = state["weight"].zero_()
    >>> copied
    {'weight': tensor([1., 1.]), 'groups': [{'lr': 0.1}]}
    """
    if isinstance(value, Tensor):
        fits = isinstance(earlier, Tensor) and (
            (earlier.shape, earlier.dtype) == (value.shape, value.dtype)
        )
        if not fits:
            earlier = torch.empty(
                value.shape, dtype=value.dtype, pin_memory=value.is_cuda
            )
        return earlier.copy_(value.detach(), non_blocking=True)
    if isinstance(value, Mapping):
        known = earlier if isinstance(earlier, Mapping) else {}
        copied: Any = copy.copy(value)  # with torch's `_metadata`
        for key, part in value.items():
            copied[key] = copy_to_host(part, known.get(key))
        return copied
    return copy.deepcopy(value)


def _written(hook: Callable[[Any, Path], Any], recoverable: Any) -> Writer:
    """Let an object write its file now; return what writes the same later."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "written")
        hook(recoverable, path)
        content = path.read_bytes()
    return lambda path: path.write_bytes(content)


def copies_made() -> Callable[[], None]:
    """Return what waits, in any thread, for the copies queued so far."""
    if not torch.cuda.is_initialized():
        return lambda: None
    made = torch.cuda.Event(blocking=True)
    made.record()
    return made.synchronize


def _flatten(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Return nested values under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{place}{key}.")
        else:
            flat[f"{place}{key}"] = value
    return flat


def _keep_settings(
    optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> dict[str, Any]:
    """Let a checkpoint bring back the moments and rates of an optimiser only.

    PyTorch would silently prefer its weight decay and the like, too, to what
    the command asks for.
    """
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=True)
    groups = [
        {**given, "params": saved["params"], "lr": saved["lr"]}
        for saved, given in pairs
    ]
    return {**state, "param_groups": groups}
