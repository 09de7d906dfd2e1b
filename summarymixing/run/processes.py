"""The processes of a run: ranks, devices, and failures told once."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from speechbrain.utils.distributed import MainProcessContext, ddp_broadcast
from speechbrain.utils.logger import get_logger

from summarymixing.errors import STOPPED_STATUS, UserError
from summarymixing.files import describe_os_error

Result = TypeVar("Result")

logger = get_logger(__name__)

# The longest that one rank may keep the others waiting in a collective.
# SpeechBrain's two hours would hide a dead rank for as long.
COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=30)


def local_rank() -> int:
    """Return the index of this process on its machine; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world_size() -> int:
    """Return the number of processes on this machine; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def is_under_torchrun() -> bool:
    """Return whether this process is one that torchrun has started."""
    return {"RANK", "LOCAL_RANK"} <= os.environ.keys()


def rank() -> int:
    """Return the number of this process among all; 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes that run together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the other ranks for the duration of a run.

    Arguments
    ---------
    device : str
        ``cpu`` joins by gloo, ``cuda:INDEX`` by nccl; nothing is joined
        without torchrun.
    """
    if not is_under_torchrun():
        yield
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        _use_all_cores()
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", timeout=COLLECTIVE_TIMEOUT
    )
    yield
    # Only after success: a rank that failed would wait here for the others.
    dist.destroy_process_group()


def leave(status: int) -> NoReturn:
    """End this process as Python would, but for Python's own end.

    A thread of gloo frees the tensors of a collective when it is next
    scheduled. If Python has ended by then, it finds no interpreter and the
    process aborts. Destroying the group joins its threads only where that was
    the last reference to it, and torch keeps others: in a Brain, which is a
    reference cycle with DDP in it, and in default values of its functions.

    Arguments
    ---------
    status : int
        Exit status. A run that is done or stopped waits for its threads and
        calls what is registered with `atexit`; another one does not, since
        what that waits for may be gone.
    """
    for child in multiprocessing.active_children():
        if child.daemon:  # loads data, and ignores SIGTERM
            child.kill()
    if status in (0, STOPPED_STATUS):
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def choose_device(requested: str | None) -> str:
    """Return the device of this rank; UserError if the machine has too few.

    Arguments
    ---------
    requested : str or None
        ``--device`` as typed; None takes a GPU where there is one.

    Returns
    -------
    str
        ``cpu`` or ``cuda:INDEX``.
    """
    if requested is None:
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(requested)
    except RuntimeError as error:
        raise UserError(
            f"--device={requested} is not a device; give cpu, cuda or "
            "cuda:INDEX, or leave it out"
        ) from error
    if not requested.startswith("cuda"):
        return requested
    present = torch.cuda.device_count()
    if local_world_size() > present:
        raise UserError(
            f"{local_world_size()} processes on this machine need as many "
            f"GPUs, but it has {present}; lower --nproc_per_node"
            + ("" if present else " or add --device=cpu")
        )
    if requested == "cuda":
        return f"cuda:{local_rank()}"
    if local_world_size() > 1:
        raise UserError(
            f"--device={requested} would give one GPU to "
            f"{local_world_size()} processes; leave it out"
        )
    return requested


def check_precision(precision: str, device: str) -> None:
    """Raise UserError for fp16 without a GPU; warn of bf16 on an old one."""
    on_gpu = device.startswith("cuda")
    if precision == "fp16" and not on_gpu:
        raise UserError(
            f"--precision=fp16 needs a GPU, and this runs on {device}; give "
            "bf16 or fp32"
        )
    if (
        precision == "bf16"
        and on_gpu
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        logger.warning(
            "this GPU only emulates bf16, which is slow: give --precision=fp16"
        )


def on_main_process(function: Callable[[], Result]) -> Result:
    """Run a function on rank 0; every rank returns its value or raises.

    SpeechBrain's `run_on_main` leaves the other ranks waiting when rank 0
    raises. Here they raise the same UserError. Every rank must call this.

    Arguments
    ---------
    function : Callable
        Runs on rank 0 only; an OSError in it becomes a UserError.

    Returns
    -------
    Result
        What the function returned on rank 0.
    """
    result: Result | None = None
    failure: str | None = "the main process failed; see its message"
    try:
        if rank() == 0:
            with MainProcessContext():
                result = function()
            failure = None
    except UserError as error:
        failure = str(error)
    except OSError as error:
        failure = describe_os_error(error)
    finally:
        # Also on the way out of any other exception, or the others would hang.
        result, failure = ddp_broadcast((result, failure))
    if failure is not None:
        raise UserError(failure)
    return result


def gather_objects(mine: Result) -> list[Result]:
    """Return what each process hands over, by rank; a collective."""
    if not dist.is_initialized():
        return [mine]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def _use_all_cores() -> None:
    """Undo torchrun's default of one thread, where the user chose none."""
    try:
        # The environment that torchrun was started with, not what it added.
        environment = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return
    chosen = b"\0OMP_NUM_THREADS=" in b"\0" + environment
    if os.environ.get("OMP_NUM_THREADS") == "1" and not chosen:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // local_world_size()))
