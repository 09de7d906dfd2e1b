"""A miniature of Common Voice 11 in Welsh or Basque: mp3 clips and tables.

`cv-corpus-11.0-2022-09-21/<language>/clips/common_voice_<language>_<n>.mp3`
with `train.tsv`, `dev.tsv` and `test.tsv` beside `clips`. Some sentences have
fewer than three words. The sentences are simple patterns, in sentence case
and with a full stop; they claim no more grammar than that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np

from summarymixing.errors import UserError
from summarymixing.miniature.espeak import synthesise
from summarymixing.miniature.folder import Job, build_once
from summarymixing.miniature.sound import (
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
from summarymixing.miniature.text import (
    OFTEN,
    Grammar,
    Part,
    Slot,
    listed,
    make_clause,
    pick,
)

RELEASE = "cv-corpus-11.0-2022-09-21"
CLIP_RATE_HZ = 32_000  # as in the release

WELSH: Grammar = (
    Slot(("Mae",)),
    Slot(listed("Gwen, Dafydd, Siân, Rhys, Carys, Iwan, Mair, Huw")),
    Slot(
        listed(
            "yn gweld, yn prynu, yn gwerthu, yn peintio, yn cario, yn hoffi, "
            "yn cuddio"
        )
    ),
    Slot(
        listed(
            "afalau, cychod, cwpanau, cŵn, tai, lampau, llwyau, coed, clychau"
        )
    ),
    Slot(listed("coch, gwyrdd, bach, trwm, tawel, newydd"), OFTEN),
    Slot(listed("heddiw, weithiau, yfory, tu allan, yn y bore"), OFTEN),
)
BASQUE: Grammar = (
    Slot(listed("Anek, Mikelek, Jonek, Mirenek, Leirek, Peruk, Itziarrek")),
    Slot(listed("sagar, etxe, zakur, liho, katu, liburu, leiho, mahai")),
    Slot(listed("gorria, berdea, txikia, zaharra, polita, handia, beltza")),
    Slot(
        listed(
            "ikusten du, erosten du, saltzen du, margotzen du, maite du, "
            "nahi du"
        )
    ),
    Slot(listed("gaur, orain, hemen, bihar, berriro, etxean"), OFTEN),
)

# For each language, sentences of three words and more, and shorter ones.
LANGUAGES: dict[str, tuple[Grammar, tuple[str, ...]]] = {
    "cy": (WELSH, listed("Bore da, Diolch, Nos da")),
    "eu": (BASQUE, listed("Egun on, Kaixo, Gabon")),
}

# 26 speakers, half of them women: there are 13 variants of women.
SPLITS = {
    "train": Split("train", 0.7, 14),
    "dev": Split("dev", 0.15, 6),
    "test": Split("test", 0.15, 6),
}
UTTERANCES_PER_SPEAKER = 8  # until a split has all its speakers
SECONDS_PER_UTTERANCE = 2.8
SENTENCES_PER_GREETING = 12

FIRST_CLIP = 17_000_000
COLUMNS = listed(
    "client_id, path, sentence, up_votes, down_votes, age, gender, accents, "
    "locale, segment"
)
SEXES = {"F": "female", "M": "male"}
Clip = tuple[str, str]  # a file name and its sentence


def build_commonvoice(
    dest: Path, *, language: str = "cy", hours: float = 0.2, seed: int = 1
) -> Path:
    """Build a miniature Common Voice, or find it built.

    Arguments
    ---------
    dest : Path
        Folder of the corpus; holds `cv-corpus-11.0-2022-09-21/<language>/`
        afterwards.
    language : str
        "cy" (Welsh) or "eu" (Basque).
    hours : float
        Approximate audio: 70 % train, 15 % dev, 15 % test.
    seed : int
        Another seed gives other speakers, sentences and noise.

    Returns
    -------
    Path
        `dest`; see `build_once` for the errors.
    """
    if language not in LANGUAGES:
        raise UserError(
            f"No miniature of Common Voice in {language!r}; choose among "
            f"{list(LANGUAGES)}."
        )
    arguments = {"language": language, "hours": hours, "seed": seed}

    def make_jobs(root: Path) -> Iterator[Job]:
        root = root / RELEASE / language
        root.mkdir(parents=True)
        readings = list(_plan(language, hours, seed))
        for split in SPLITS:
            mine = [reading for reading in readings if reading.split == split]
            _write_table(root / f"{split}.tsv", mine, language)
        for reading in readings:
            yield partial(_write_clips, root / "clips", reading, seed)

    return build_once(dest, "Common Voice", arguments, make_jobs)


def _plan(language: str, hours: float, seed: int) -> Iterator[Reading[Clip]]:
    """Yield who reads what; no voice reads in two splits."""
    rng = np.random.default_rng(seed)
    most = sum(split.max_speakers for split in SPLITS.values())
    speakers = iter(cast_speakers(rng, most, languages=[language]))
    counts = count_utterances(hours, SPLITS, SECONDS_PER_UTTERANCE)
    numbers = count(FIRST_CLIP)
    for name, split in SPLITS.items():
        sentences = _make_sentences(rng, language, split.part, counts[name])
        clips = [
            (f"common_voice_{language}_{next(numbers)}.mp3", sentence)
            for sentence in sentences
        ]
        for mine in share_out(
            clips, UTTERANCES_PER_SPEAKER, split.max_speakers
        ):
            yield Reading(next(speakers), name, mine)


def _make_sentences(
    rng: np.random.Generator, language: str, part: Part, num_sentences: int
) -> list[str]:
    """Draw sentences; one in twelve, and not the first, is a greeting."""
    grammar, greetings = LANGUAGES[language]
    return [
        pick(rng, greetings) + "."
        if index % SENTENCES_PER_GREETING == SENTENCES_PER_GREETING - 1
        else make_clause(rng, part, grammar) + "."
        for index in range(num_sentences)
    ]


def _write_clips(folder: Path, reading: Reading[Clip], seed: int) -> None:
    """Write the clips of one client, each with a background of its own."""
    rng = np.random.default_rng([seed, reading.speaker.number])
    sentences = [sentence for _, sentence in reading.items]
    spoken = synthesise(reading.speaker.voice, sentences)
    for (name, _), speech in zip(reading.items, spoken, strict=True):
        framed = frame_utterance(speech, rng, CLIP_RATE_HZ)
        samples = Background.draw(rng).record(framed, rng)
        write_audio(folder / name, samples, CLIP_RATE_HZ)


def _write_table(
    path: Path, readings: Sequence[Reading[Clip]], language: str
) -> None:
    """Write a table as in the release: client, clip, sentence, votes ..."""
    rows = [
        [_client_id(reading.speaker.voice.name), clip, sentence, "2", "0"]
        + ["", SEXES[reading.speaker.sex], "", language, ""]
        for reading in readings
        for clip, sentence in reading.items
    ]
    lines = ["\t".join(cells) + "\n" for cells in [COLUMNS, *rows]]
    path.write_text("".join(lines), encoding="utf-8")


def _client_id(voice: str) -> str:
    """Return 128 hexadecimal digits."""
    return hashlib.sha512(voice.encode()).hexdigest()
