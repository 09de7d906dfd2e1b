"""A miniature of LibriSpeech: 48 words, other voices in every split.

`LibriSpeech/<split>/<speaker>/<chapter>/<speaker>-<chapter>-<utterance>.flac`
with `<speaker>-<chapter>.trans.txt`, and `LibriSpeech/SPEAKERS.TXT`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import get_args

import numpy as np

from summarymixing.errors import UserError
from summarymixing.miniature.espeak import synthesise
from summarymixing.miniature.folder import Job, build_once
from summarymixing.miniature.sound import (
    NOISY_SNRS_DB,
    Background,
    frame_utterance,
    write_audio,
)
from summarymixing.miniature.speakers import (
    Reading,
    Split,
    cast_speakers,
    count_utterances,
    share_out,
)
from summarymixing.miniature.text import Part, make_clause

SPLITS = {
    "train-clean-100": Split("train", 0.7, 40),
    "dev-clean": Split("dev", 0.1, 8),
    "test-clean": Split("test", 0.1, 8),
    "test-other": Split("test", 0.1, 8, NOISY_SNRS_DB),
}

SECONDS_PER_UTTERANCE = 2.5  # mean, silence at both ends included
UTTERANCES_PER_SPEAKER = 12  # until a split has all its speakers
UTTERANCES_PER_CHAPTER = 8

FIRST_SPEAKER, FIRST_CHAPTER = 1000, 100_000


def build_librispeech(
    dest: Path,
    *,
    hours: float = 0.2,
    seed: int = 1,
    utterances: Mapping[str, int] | None = None,
) -> Path:
    """Build a miniature LibriSpeech, or find it built.

    Arguments
    ---------
    dest : Path
        Folder of the corpus; holds `LibriSpeech/` afterwards.
    hours : float
        Approximate audio of all splits: 70 % train-clean-100, 10 % each
        dev-clean, test-clean and test-other (noisy). At least 2 utterances
        in each.
    seed : int
        Another seed gives other speakers, sentences and noise.
    utterances : mapping of str to int, optional
        Utterances of each split, instead of `hours`; a split that is not
        named is left out.

    Returns
    -------
    Path
        `dest`; see `build_once` for the errors.
    """
    counts = utterances or count_utterances(
        hours, SPLITS, SECONDS_PER_UTTERANCE
    )
    if unknown := sorted(set(counts) - set(SPLITS)):
        raise UserError(
            f"LibriSpeech has no split {unknown} here; choose among "
            f"{list(SPLITS)}."
        )

    def make_jobs(root: Path) -> Iterator[Job]:
        root = root / "LibriSpeech"
        root.mkdir()
        readings = list(_plan_readings(counts, seed))
        _write_speaker_table(root / "SPEAKERS.TXT", readings)
        for reading in readings:
            yield partial(_write_reading, root, reading, seed)

    arguments = {"seed": seed, "utterances": dict(counts)}
    return build_once(dest, "LibriSpeech", arguments, make_jobs)


def _plan_readings(
    counts: Mapping[str, int], seed: int
) -> Iterator[Reading[str]]:
    """Yield who reads what; no voice reads in two splits."""
    rng = np.random.default_rng(seed)
    most = max(split.max_speakers for split in SPLITS.values())
    casts = {
        part: iter(cast_speakers(rng, most, part=part))
        for part in get_args(Part)
    }
    numbers = count(FIRST_SPEAKER)
    for name, num_texts in counts.items():
        split = SPLITS[name]
        texts = [make_clause(rng, split.part) for _ in range(num_texts)]
        for mine in share_out(
            texts, UTTERANCES_PER_SPEAKER, split.max_speakers
        ):
            speaker = next(casts[split.part])
            yield Reading(replace(speaker, number=next(numbers)), name, mine)


def _write_reading(root: Path, reading: Reading[str], seed: int) -> None:
    """Write the chapters of one speaker."""
    number = reading.speaker.number
    rng = np.random.default_rng([seed, number])
    spoken = synthesise(reading.speaker.voice, reading.items)
    step = UTTERANCES_PER_CHAPTER
    for index, first in enumerate(range(0, len(spoken), step)):
        chapter = FIRST_CHAPTER + 100 * (number - FIRST_SPEAKER) + index
        folder = root / reading.split / f"{number}" / f"{chapter}"
        background = Background.draw(rng, SPLITS[reading.split].snrs_db)
        lines = []
        for utterance, speech in enumerate(spoken[first : first + step]):
            name = f"{number}-{chapter}-{utterance:04d}"
            framed = frame_utterance(speech, rng)
            write_audio(folder / f"{name}.flac", background.record(framed, rng))
            lines.append(f"{name} {reading.items[first + utterance].upper()}\n")
        transcript = folder / f"{number}-{chapter}.trans.txt"
        transcript.write_text("".join(lines), encoding="utf-8")


def _write_speaker_table(path: Path, readings: Sequence[Reading[str]]) -> None:
    """Write SPEAKERS.TXT; a speaker's "name" is the voice."""
    lines = [";ID  |SEX| SUBSET           |MINUTES| NAME\n"]
    for reading in readings:
        speaker = reading.speaker
        minutes = len(reading.items) * SECONDS_PER_UTTERANCE / 60
        lines.append(
            f"{speaker.number:<5}| {speaker.sex} | {reading.split:<16} | "
            f"{minutes:5.2f} | {speaker.voice.name}\n"
        )
    path.write_text("".join(lines), encoding="utf-8")
