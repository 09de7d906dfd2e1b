"""ABX as a task of run_all: a score of one encoder, without a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from summarymixing.data.prepare.account import holds_miniature
from summarymixing.evaluation.abx import as_json, best_layer, evaluate
from summarymixing.evaluation.items import AbxSettings, ItemSet
from summarymixing.files import write_json
from summarymixing.lobes.encoders import load_frozen_encoder
from summarymixing.run.brain import count_parameters
from summarymixing.run.launch import RunOptions
from summarymixing.run.processes import on_main_process


def score_encoder(hparams: dict[str, Any], run_opts: RunOptions) -> None:
    """Write metrics.json; the main process does it, the others wait.

    Arguments
    ---------
    hparams : dict
        The values of hparams/mp3s/abx.yaml.
    run_opts : RunOptions
        SpeechBrain's options from the command line.
    """
    on_main_process(lambda: _score(hparams, str(run_opts.device)))


def _score(hparams: dict[str, Any], device: str) -> None:
    items = ItemSet.read(Path(hparams["items"]), Path(hparams["audio"]))
    encoder = load_frozen_encoder(hparams).to(device)
    settings = AbxSettings(
        hparams["pooled"],
        hparams["max_size_group"],
        hparams["max_x_across"],
        hparams["seed"],
    )
    errors = evaluate(
        encoder,
        items,
        settings=settings,
        device=device,
        memory=1e9 * hparams["memory_gb"],
    )
    best = {kind: best_layer(errors, kind) for kind in hparams["test_splits"]}
    splits = {
        kind: {
            "error": 100 * getattr(errors[layer], kind),
            "layer": layer,
            "items": len(items.items),
        }
        for kind, layer in best.items()
        if layer is not None
    }
    metrics = {
        "splits": splits,
        **as_json(errors, None),
        "parameters": {"encoder": count_parameters(encoder)},
        "miniature": holds_miniature(Path(hparams["audio"]).resolve()),
    }
    write_json(Path(hparams["output_folder"]) / "metrics.json", metrics)
