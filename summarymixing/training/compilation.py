"""Compiled Conformer layers: where they pay, made before the first update."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from speechbrain.utils.logger import get_logger

from summarymixing.errors import UserError
from summarymixing.lobes.features import SAMPLE_RATE_HZ
from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder

logger = get_logger(__name__)

USUAL_SECONDS = 30  # of an utterance, where a batch has room for two


def should_compile(setting: bool | str, device_type: str) -> bool:
    """Return whether to compile, and say so where the user left it open.

    Arguments
    ---------
    setting : bool or str
        The key `compile` of the YAML: True, False or ``auto``.
    device_type : str
        ``cpu`` or ``cuda``.

    Raises
    ------
    UserError
        If the setting is none of the three.
    """
    if setting not in (True, False, "auto"):
        raise UserError(f"compile must be auto, True or False, not {setting!r}")
    if setting != "auto":
        return bool(setting)
    missing = _what_is_missing(device_type)
    if missing:
        logger.info("compile: auto: the layers are not compiled: %s", missing)
    else:
        logger.info("compile: auto: the layers are compiled")
    return not missing


def _what_is_missing(device_type: str) -> str:
    """Return why compiled layers would not pay or not work, or nothing."""
    if device_type != "cuda":
        return f"this runs on the {device_type.upper()}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    # As Triton looks for one.
    if not (
        os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    ):
        return "there is no C compiler (install gcc, or set CC)"
    return ""


def compile_layers(
    encoder: Wav2Vec2Encoder,
    *,
    memory_budget: float,
    max_batch_seconds: float,
    device: torch.device | str,
    contexts: Mapping[bool, AbstractContextManager[Any]],
) -> float | None:
    """Compile the layers of an encoder, all by the same few graphs.

    There are four: for training and evaluation, and for a batch of a single
    utterance, which torch does not take as any other number. A batch of each
    kind is run here, since a process that compiles during an update keeps all
    others waiting. Every process must call it.

    Arguments
    ---------
    encoder : Wav2Vec2Encoder
        Its layers are compiled in place; the names of its weights stay.
    memory_budget : float
        Share of the activations that a graph keeps for the backward pass.
    max_batch_seconds : float
        The batches that are run here are as large: kernels are chosen by it.
    device : torch.device or str
        Where the encoder is.
    contexts : mapping
        Context managers of the precision, of training under True and of
        evaluation under False.

    Returns
    -------
    float or None
        Seconds that it took; None where it failed, on any process, and the
        layers are not compiled.
    """
    # Imported here: torch loads them with its compiler, and that is slow.
    import torch._dynamo.config as dynamo
    import torch._functorch.config as partitioner

    start = time.perf_counter()
    partitioner.activation_memory_budget = memory_budget
    # It cuts the graph of a layer at the buckets of DDP, and keeps for the
    # backward pass what crosses a cut, whatever the budget.
    dynamo.optimize_ddp = False
    for layer in encoder.conformer.layers:
        layer.compile(dynamic=True)
    error: Exception | None = None
    try:
        _run_batches(encoder, max_batch_seconds, device, contexts)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ImportError, OSError) as failure:
        error = failure
        logger.warning("could not compile: %s", str(failure).strip())
    failed = torch.full((), float(error is not None), device=device)
    if dist.is_initialized():
        dist.all_reduce(failed)
    if failed.item():
        logger.warning("the layers are not compiled; the run goes on without")
        for layer in encoder.conformer.layers:
            layer._compiled_call_impl = None  # what `compile` has set
        return None
    seconds = time.perf_counter() - start
    logger.info("compiling the layers took %.0f s", seconds)
    return seconds


def _run_batches(
    encoder: Wav2Vec2Encoder,
    max_batch_seconds: float,
    device: torch.device | str,
    contexts: Mapping[bool, AbstractContextManager[Any]],
) -> None:
    """Run silence through the encoder, and backward in training."""
    seconds = min(USUAL_SECONDS, max_batch_seconds / 2)
    for size in (int(max_batch_seconds / seconds), 1):
        samples = int(seconds * SAMPLE_RATE_HZ)
        wavs = torch.zeros(size, samples, device=device)
        wav_lens = torch.ones(size, device=device)
        for training, precision in contexts.items():
            encoder.train(training)
            with torch.set_grad_enabled(training):
                with precision:
                    output = encoder(wavs, wav_lens).hidden_states[-1]
                if training:
                    output.sum().backward()
    encoder.zero_grad()
