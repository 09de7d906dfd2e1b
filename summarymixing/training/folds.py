"""A probe on every fold of a corpus: one run each, then mean and deviation."""

from __future__ import annotations

import gc
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from summarymixing.files import write_json
from summarymixing.run.hparams_file import load_hparams
from summarymixing.run.processes import on_main_process
from summarymixing.run.stopping import Stopped, stop_requested_anywhere
from summarymixing.training import layer_weights
from summarymixing.training.classification import ALL, SPEAKERS
from summarymixing.training.probe import probe


def probe_folds(hparams: dict[str, Any], run_opts: Any) -> None:
    """Run a probe, or one for each fold where `fold` is "all".

    Arguments
    ---------
    hparams, run_opts
        See `summarymixing.training.probe.make_brain`. The folds run in
        `output_folder/fold_N`; each goes on from its own checkpoint.
    """
    if hparams.get("fold") != ALL:
        probe(hparams, run_opts)
        return
    folder = Path(hparams["output_folder"])
    folders = {fold: folder / f"fold_{fold}" for fold in SPEAKERS}
    for fold, output_folder in folders.items():
        overrides = {"fold": fold, "output_folder": str(output_folder)}
        # Schedules and the like have a state, so each fold needs its own.
        probe(load_hparams(folder / "hyperparams.yaml", overrides), run_opts)
        if stop_requested_anywhere():
            raise Stopped
        _forget_brain()
    on_main_process(lambda: _write_results(folder, folders))


def _forget_brain() -> None:
    """Free the memory of a fold: its Brain, in hooks, refers to itself."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _write_results(folder: Path, folders: Mapping[int, Path]) -> None:
    folds = {
        fold: json.loads((path / "metrics.json").read_text("utf-8"))
        for fold, path in folders.items()
    }
    metrics = join_folds(list(folds.values()))
    write_json(folder / "metrics.json", {**metrics, "folds": folds})
    layer_weights.draw_layer_weights(
        metrics["layer_weights"], folder, f"{metrics['task']}, mean of folds"
    )


def join_folds(folds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the metrics of folds: means, and NAME_std beside each.

    Arguments
    ---------
    folds : sequence of dict
        Contents of their metrics.json.

    Returns
    -------
    dict
        Of the same layout; `utterances` is the sum over the folds.

    Example
    -------
    >>> common = {"task": "x", "valid": {}, "layer_weights": [1.0]}
    >>> join_folds(
    ...     [
    ...         {**common, "splits": {"test": {"accuracy": 60.0}}},
    ...         {**common, "splits": {"test": {"accuracy": 70.0}}},
    ...     ]
    ... )["splits"]
    {'test': {'accuracy': 65.0, 'accuracy_std': 7.0710678118654755}}
    """
    splits = {
        split: _join([fold["splits"][split] for fold in folds])
        for split in folds[0]["splits"]
    }
    weights = zip(*(fold["layer_weights"] for fold in folds), strict=True)
    return {
        **folds[0],
        "splits": splits,
        "valid": _join([fold["valid"] for fold in folds]),
        "layer_weights": [statistics.fmean(column) for column in weights],
    }


def _join(numbers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    joined: dict[str, float] = {}
    for name in numbers[0]:
        values = [one[name] for one in numbers]
        if name == "utterances":
            joined[name] = sum(values)
        else:
            joined[name] = statistics.fmean(values)
            joined[f"{name}_std"] = statistics.stdev(values)
    return joined
