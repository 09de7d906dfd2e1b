"""A miniature of LibriSpeech: 48 words, other voices in every split.

`LibriSpeech/<split>/<speaker>/<chapter>/<speaker>-<chapter>-<utterance>.flac`
with `<speaker>-<chapter>.trans.txt`, and `LibriSpeech/SPEAKERS.TXT`. Beside it,
`abx/<split>.item` says which phoneme is where, as the synthesiser knows.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from itertools import count
from pathlib import Path
from typing import get_args

import numpy as np

from summarymixing.data.items import Item, write_items
from summarymixing.errors import UserError
from summarymixing.miniature.espeak import (
    ESPEAK_RATE_HZ,
    Phoneme,
    synthesise_phonemes,
)
from summarymixing.miniature.folder import Job, build_once
from summarymixing.miniature.sound import (
    EDGE_SILENCES_S,
    NOISY_SNRS_DB,
    Background,
    put_silences,
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

ITEMS = "abx"  # folder of the item files
TIME_STEP = Decimal("0.0001")  # of items; a frame has 0.02 s
PAUSE = "SIL"  # as a context


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
        Folder of the corpus; holds `LibriSpeech/` and `abx/` afterwards.
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

    def make_jobs(corpus: Path) -> Iterator[Job]:
        root = corpus / "LibriSpeech"
        root.mkdir()
        readings = list(_plan_readings(counts, seed))
        _write_speaker_table(root / "SPEAKERS.TXT", readings)
        items = _ItemFiles(corpus / ITEMS, readings)
        for reading in readings:
            yield partial(_write_reading, root, reading, seed, items)

    # The items too: a corpus of version 0.1.0 has none, and is to be deleted.
    arguments = {"seed": seed, "utterances": dict(counts), "items": ITEMS}
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


class _ItemFiles:
    """Writes the items of each split as soon as all its readings are there."""

    def __init__(self, folder: Path, readings: Sequence[Reading[str]]) -> None:
        folder.mkdir()
        self.folder = folder
        self.missing = Counter(reading.split for reading in readings)
        self.items: dict[str, list[Item]] = {s: [] for s in self.missing}
        self.lock = threading.Lock()

    def add(self, split: str, items: Sequence[Item]) -> None:
        """Take the items of one reading; threads may call it."""
        with self.lock:
            self.items[split] += items
            self.missing[split] -= 1
            is_complete = not self.missing[split]
        if is_complete:
            path = self.folder / f"{split}.item"
            write_items(path, sorted(self.items[split]))


def _write_reading(
    root: Path, reading: Reading[str], seed: int, items: _ItemFiles
) -> None:
    """Write the chapters of one speaker, and hand over its items."""
    number = reading.speaker.number
    rng = np.random.default_rng([seed, number])
    spoken = synthesise_phonemes(reading.speaker.voice, reading.items)
    step = UTTERANCES_PER_CHAPTER
    found: list[Item] = []
    for index, first in enumerate(range(0, len(spoken), step)):
        chapter = FIRST_CHAPTER + 100 * (number - FIRST_SPEAKER) + index
        folder = root / reading.split / f"{number}" / f"{chapter}"
        background = Background.draw(rng, SPLITS[reading.split].snrs_db)
        lines = []
        for utterance, speech in enumerate(spoken[first : first + step]):
            name = f"{number}-{chapter}-{utterance:04d}"
            before_s, after_s = rng.uniform(*EDGE_SILENCES_S, size=2)
            framed = put_silences(speech.samples, before_s, after_s)
            write_audio(folder / f"{name}.flac", background.record(framed, rng))
            lines.append(f"{name} {reading.items[first + utterance].upper()}\n")
            found += _make_items(name, number, speech.phonemes, before_s)
        transcript = folder / f"{number}-{chapter}.trans.txt"
        transcript.write_text("".join(lines), encoding="utf-8")
    items.add(reading.split, found)


def _make_items(
    name: str, speaker: int, phonemes: Sequence[Phoneme], before_s: float
) -> Iterator[Item]:
    """Yield the phonemes of an utterance, but the pauses."""

    def time(sample: int) -> Decimal:
        seconds = Decimal(before_s + sample / ESPEAK_RATE_HZ)
        return seconds.quantize(TIME_STEP)

    names = [PAUSE if p.is_pause else p.name for p in phonemes]
    contexts = zip([PAUSE, *names], [*names[1:], PAUSE], strict=False)
    for phoneme, (previous, following) in zip(phonemes, contexts, strict=True):
        onset, offset = time(phoneme.start), time(phoneme.stop)
        if not phoneme.is_pause and onset < offset:
            about = phoneme.name, previous, following
            yield Item(name, onset, offset, *about, str(speaker))


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
