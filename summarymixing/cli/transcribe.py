r"""Turn recordings of any length into text, with a time for each word.

summarymixing transcribe talk.flac --model=results/mine_ft
summarymixing transcribe talk.flac --model=results/mine_ft --out=talk.srt
summarymixing transcribe my_recordings --model=results/mine_ft \
    --out=texts --format=json --kenlm=4-gram.arpa

AUDIO is an audio file, a folder (with its sub-folders) or a manifest of
recipes/prepare.py; MODEL is the output folder of recipes/finetuning/ctc.py.
Without --out the text comes to the screen: for several recordings one line
each, as `prepare.py folder --transcripts` takes them. With --out, one recording
becomes that file, and several become files in that folder. The ending of a
file, or --format, says what is written:

  text, .txt   the words
  json, .json  the words, each with its start and stop in seconds
  srt, .srt    subtitles
  ctm, .ctm    one line for each word: id, channel, start, duration, word

An hour is read in blocks and takes no more memory than a minute; encoders with
SummaryMixing hear all of it. Times have steps of 0.02 s and are where CTC is
sure of a letter. The same command again goes on where it was stopped. Exit
status: 0 done, 2 a mistake that you can repair, 65 done but for recordings that
cannot be read, 130 interrupted.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from summarymixing.options import argument, option


@dataclass(frozen=True)
class Options:
    """The options of `summarymixing transcribe`."""

    audio: Path = argument("audio file, folder or manifest", metavar="AUDIO")
    model: Path = option(
        MISSING, "the output folder of a fine-tuning, recipes/finetuning/ctc.py"
    )
    out: Path | None = option(
        None, "file for one recording, folder for several (default: the screen)"
    )
    format: str | None = option(
        None,
        "of the output (default: what the ending of --out says, else text)",
        choices=("text", "json", "srt", "ctm"),
    )
    kenlm: Path | None = option(
        None,
        "language model of words, for a beam search (default: the likeliest "
        "letter of each frame)",
    )
    memory: str = option(
        "2GB", "memory to take beyond that of the model, as in 500MB or 2GB"
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
    window_seconds: float | None = option(
        None,
        "hear long recordings in windows of this length, and 2 s more on each "
        "side, as utterances of training are (default: as a whole)",
    )
    mixer: str | None = option(
        None,
        "class of the mixers, if it is not one of this package: "
        "my_package.MyMixer",
    )


def run(options: Options) -> int:
    """Transcribe all recordings; returns the exit status."""
    from summarymixing.cli.transcripts import transcribe_all

    return transcribe_all(options)
