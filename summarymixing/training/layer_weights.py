"""How much a probe uses each layer: a file of weights and a drawing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from summarymixing import html_page
from summarymixing.files import write_json
from summarymixing.run.records import read_log

STAGE = "layer_weights"  # in log.jsonl


def as_numbers(weights: Sequence[float]) -> dict[str, float]:
    """Name the weights, as an entry of the log.

    Example
    -------
    >>> as_numbers([0.25, 0.75])
    {'layer_0': 0.25, 'layer_1': 0.75}
    """
    return {f"layer_{layer}": weight for layer, weight in enumerate(weights)}


def write_layer_weights(output_folder: Path) -> None:
    """Write `layer_weights.json`: the weights after each epoch of the log.

    Arguments
    ---------
    output_folder : Path
        The folder of a run; layer 0 is the input of the first layer.
    """
    epochs = [
        {
            "epoch": entry["epoch"],
            "weights": [v for k, v in entry.items() if k.startswith("layer_")],
        }
        for entry in read_log(output_folder)
        if entry["stage"] == STAGE
    ]
    write_json(output_folder / "layer_weights.json", {"epochs": epochs})


def draw_layer_weights(
    weights: Sequence[float], folder: Path, title: str
) -> None:
    """Draw the weights into `layer_weights.png` and `.svg`.

    Arguments
    ---------
    weights : sequence of L + 1 floats
        They sum to one.
    folder : Path
        Where the two files are written.
    title : str
        What stands above the drawing.
    """
    figure = html_page.draw_layer_weights({title: {"": weights}})
    html_page.save_figure(figure, folder / "layer_weights")
