"""Synthetic speech by espeak-ng, reproducible to the bit.

The same call twice in one espeak-ng process differs slightly, but two fresh
processes that speak the same texts in the same order agree exactly, once its
random numbers are seeded. So every order gets a process of its own
(`espeak_worker.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from summarymixing.errors import UserError
from summarymixing.miniature import espeak_worker

ESPEAK_RATE_HZ = espeak_worker.ESPEAK_RATE_HZ


@dataclass(frozen=True, slots=True)
class Voice:
    """Settings of the synthesiser that make one "speaker"."""

    name: str  # a language of espeak-ng and a variant, such as "en-us+f2"
    pitch: int = 50  # 0 to 100; 50 is the variant's own
    words_per_minute: int = 160  # 80 to 450


class Phoneme(NamedTuple):
    """A speech sound, or a pause, of synthetic speech."""

    name: str  # espeak-ng's mnemonic, the same in all voices of a language
    start: int  # its first sample, at 22,050 Hz
    stop: int  # the one after the last

    @property
    def is_pause(self) -> bool:
        """Whether nothing is said."""
        return self.name.startswith("_")


class Spoken(NamedTuple):
    """What the synthesiser said of one line."""

    samples: NDArray[np.float32]  # (samples,), 22,050 Hz, in [-1, 1]
    phonemes: list[Phoneme]  # where they were asked for


def synthesise(voice: Voice, texts: Iterable[str]) -> list[NDArray[np.float32]]:
    """Speak texts with one voice; see `synthesise_dialogue`."""
    return synthesise_dialogue([(voice, text) for text in texts])


def synthesise_dialogue(
    lines: Iterable[tuple[Voice, str]],
) -> list[NDArray[np.float32]]:
    """Speak texts, each with its voice, in a fresh process.

    Arguments
    ---------
    lines : iterable of (Voice, str)
        Who says what. The same lines in the same order give the same samples.

    Returns
    -------
    list of ndarray, float32, (samples,)
        One for each line, 22,050 Hz, in [-1, 1], without silence around it.

    Raises
    ------
    UserError
        espeak-ng is not installed, or does not start.
    """
    return [spoken.samples for spoken in _speak(lines, phonemes=False)]


def synthesise_phonemes(voice: Voice, texts: Iterable[str]) -> list[Spoken]:
    """Speak texts as `synthesise` does, the same samples, with phonemes."""
    return _speak([(voice, text) for text in texts], phonemes=True)


def _speak(
    lines: Iterable[tuple[Voice, str]], *, phonemes: bool
) -> list[Spoken]:
    """Have a fresh process speak."""
    library, data = _find_espeak()
    order = {
        "library": library,
        "data": data,
        "phonemes": phonemes,
        "lines": [asdict(voice) | {"text": text} for voice, text in lines],
    }
    # -I -S: the worker needs no packages, and starts in half the time.
    finished = subprocess.run(
        [sys.executable, "-I", "-S", espeak_worker.__file__],
        input=json.dumps(order).encode(),
        capture_output=True,
    )
    if finished.returncode != 0:
        raise UserError(
            f"espeak-ng ({library}) failed: "
            f"{finished.stderr.decode(errors='replace').strip()}. Install it "
            "again: pip install --force-reinstall espeakng-loader"
        )
    blocks = _split_blocks(finished.stdout)
    return [
        _read_spoken(samples, json.loads(begins))
        for samples, begins in zip(blocks, blocks, strict=True)
    ]


def _read_spoken(samples: bytes, begins: list[tuple[str, int]]) -> Spoken:
    values = np.frombuffer(samples, dtype=np.int16).astype(np.float32)
    stops = [*(start for _, start in begins), len(values)][1:]
    phonemes = [
        # Without the marks of stress, which speakers put in other places.
        Phoneme(name.lstrip("',"), start, stop)
        for (name, start), stop in zip(begins, stops, strict=True)
    ]
    return Spoken(values / np.float32(2**15), phonemes)


def _split_blocks(stdout: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(stdout):
        start = position + 4
        position = start + int.from_bytes(stdout[position:start], "little")
        yield stdout[start:position]


def _find_espeak() -> tuple[str, str]:
    """Return the paths of the library and of its data."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(
            "The miniature corpora are spoken by espeak-ng, and the package "
            "espeakng_loader is not installed. Install it: "
            "pip install 'summarymixing[demo]'"
        ) from error
    library = Path(espeakng_loader.get_library_path())
    return str(library), str(library.parent / "espeak-ng-data")
