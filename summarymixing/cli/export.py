r"""Write an encoder as one file, for programs that do not have this package.

summarymixing export results/base/encoder base.onnx --layers=12
summarymixing export results/base/encoder base_int8.onnx --int8
summarymixing export results/base/encoder base.pt2

The ending of OUT says what it is: .onnx for ONNX Runtime and others, .pt2 for
torch.export.load. Both take a batch of any size and length,

  wavs          (batch, samples) float32, 16 kHz, padded with anything
  num_samples   (batch,) int64, samples of each utterance

and return layer_0, layer_1, ... of --layers, (batch, frames, width) float32,
zero on padding, and num_frames (batch,) int64. What is written is first
compared with PyTorch on three lengths. The metadata holds frames per second,
names of the layers, and the digest of the encoder as features.json has it.

--int8 stores the matrices of linear layers in 8 bits: the base model has then
a third of its size, and other numbers; the comparison shows how far they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from summarymixing.options import argument, option


@dataclass(frozen=True)
class Options:
    """The options of `summarymixing export`."""

    encoder: str = argument("the folder `encoder` of a run", metavar="ENCODER")
    out: Path = argument("file to write, .onnx or .pt2", metavar="OUT")
    layers: str = option(
        "all",
        "hidden states to return: all; some, as in 6,12 (0 is the input of "
        "the first layer); or mean, the average of all of them",
    )
    int8: bool = option(False, "store matrices in 8 bits (ONNX)")
    audio: Path | None = option(
        None, "recording to compare with PyTorch on (default: noise)"
    )
    mixer: str | None = option(
        None,
        "class of the mixers, if it is not one of this package: "
        "my_package.MyMixer",
    )


def run(options: Options) -> int:
    """Export, compare and write; returns the exit status."""
    from summarymixing.cli.graph_file import write_graph

    return write_graph(options)
