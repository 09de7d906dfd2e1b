r"""Turn recordings of any length into features: an encoder's hidden states.

summarymixing encode talk.flac features/ --encoder=results/base/encoder
summarymixing encode my_recordings features/ --encoder=... --layers=6,12
summarymixing encode manifests/mine/train.csv features/ --encoder=... \
    --layers=mean --dtype=fp16

AUDIO is an audio file, a folder (with its sub-folders) or a manifest of
recipes/prepare.py; any rate, any number of channels. OUT gets one file for each
recording, named after it, and

  features.json      what the numbers are: layers, frames per second, encoder
  recordings.jsonl   one line for each recording: its file, frames, seconds
  unreadable.txt     recordings that could not be read, if there are any

Encoders with SummaryMixing are exact at any length: nothing is cut, and an
hour takes no more memory than a minute. Attention and HuggingFace encoders
take up to a minute at once and longer recordings in windows that overlap,
which is an approximation; features.json says which it was.

The same command again goes on where it was stopped. Exit status: 0 done, 2 a
mistake that you can repair, 65 done but for the recordings in unreadable.txt,
130 interrupted.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from summarymixing.options import argument, option


@dataclass(frozen=True)
class Options:
    """The options of `summarymixing encode`."""

    audio: Path = argument("audio file, folder or manifest", metavar="AUDIO")
    out: Path = argument("folder for the features", metavar="OUT")
    encoder: str = option(
        MISSING,
        "the folder `encoder` of a run, a folder or name for HuggingFace, or "
        "log_mel",
    )
    layers: str = option(
        "all",
        "hidden states to write: all; some, as in 6,12 (0 is the input of the "
        "first layer); or mean, the average of all of them",
    )
    dtype: str = option(
        "fp32", "type of the numbers in OUT", choices=("fp32", "fp16", "bf16")
    )
    format: str = option(
        "safetensors",
        "of the files: a tensor layer_N (frames, width) for each layer, or "
        "one npy array (layers, frames, width)",
        choices=("safetensors", "npy"),
    )
    memory: str = option(
        "2GB", "memory to take beyond that of the encoder, as in 500MB or 2GB"
    )
    device: str | None = option(
        None, "cpu, cuda or cuda:INDEX (default: a GPU where there is one)"
    )
    precision: str = option(
        "fp32", "of the computation", choices=("fp32", "bf16", "fp16")
    )
    block_seconds: float | None = option(
        None, "length of the blocks of long recordings (default: by --memory)"
    )
    num_workers: int = option(1, "processes that read short recordings")
    mixer: str | None = option(
        None,
        "class of the mixers, if it is not one of this package: "
        "my_package.MyMixer",
    )


def run(options: Options) -> int:
    """Encode all recordings; returns the exit status."""
    from summarymixing.cli.feature_folder import encode_all

    return encode_all(options)
