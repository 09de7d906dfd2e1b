"""Speakers: settings of the synthesiser, not people.

A speaker is a voice (accent or language), a variant (timbre), a pitch and a
speed. As with sentences, train, dev and test share no voice and variant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from summarymixing.miniature.espeak import Voice
from summarymixing.miniature.text import Part, listed, part_of

Sex = Literal["F", "M"]

ENGLISH = (
    "en",
    "en-us",
    "en-us-nyc",
    "en-029",
    "en-gb-scotland",
    "en-gb-x-rp",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
)

# Variants that sound like people. Left out: robots, whispers, those that change
# the speed by a quarter, and one that saturates.
WOMEN = listed(
    "f1, f2, f3, f4, f5, Alicia, Annie, aunty, belinda, grandma, linda, steph, "
    "shelby"
)
MEN = listed(
    "m1, m2, m3, m5, m8, Alex, Andy, Denis, Diogo, Gene, Henrique, Lee, "
    "Michael, Mike, Storm, adam, boris, david, ed, grandpa, gustave, max, "
    "pablo, rob, robert, sandro, travis, victor"
)

PITCHES = (30, 71)  # of 0 to 100, 50 is the variant's own
WORDS_PER_MINUTE = (135, 186)


@dataclass(frozen=True, slots=True)
class Speaker:
    """A voice under the number that a corpus gives it.

    Arguments
    ---------
    number : int
        Unique in its corpus.
    sex : str
        "F" or "M", of the variant.
    voice : Voice
        Settings of the synthesiser.
    """

    number: int
    sex: Sex
    voice: Voice


def cast_speakers(
    rng: np.random.Generator,
    count: int,
    *,
    part: Part | None = None,
    languages: Sequence[str] = ENGLISH,
) -> list[Speaker]:
    """Draw speakers, women and men alternating.

    Arguments
    ---------
    rng : numpy.random.Generator
        Advanced by this call.
    count : int
        How many. When they outnumber the voices and variants, these repeat
        with another pitch and speed.
    part : str, optional
        "train", "dev" or "test": voices and variants of this part only. By
        default all.
    languages : sequence of str
        Voices of espeak-ng, without variants.

    Returns
    -------
    list of Speaker
        Numbered from 0.

    Example
    -------
    >>> cast = cast_speakers(np.random.default_rng(0), 4, part="test")
    >>> [(speaker.number, speaker.sex) for speaker in cast]
    [(0, 'F'), (1, 'M'), (2, 'F'), (3, 'M')]
    """
    women = _shuffled_names(rng, languages, WOMEN, part)
    men = _shuffled_names(rng, languages, MEN, part)
    casts: tuple[tuple[Sex, list[str]], ...] = (("F", women), ("M", men))
    speakers = []
    for number in range(count):
        sex, names = casts[number % len(casts)]
        voice = Voice(
            names[number // len(casts) % len(names)],
            pitch=int(rng.integers(*PITCHES)),
            words_per_minute=int(rng.integers(*WORDS_PER_MINUTE)),
        )
        speakers.append(Speaker(number, sex, voice))
    return speakers


def _shuffled_names(
    rng: np.random.Generator,
    languages: Sequence[str],
    variants: Sequence[str],
    part: Part | None,
) -> list[str]:
    """Return "language+variant" for all pairs of a part, in random order."""
    names = [f"{lang}+{variant}" for lang in languages for variant in variants]
    names = [name for name in names if part is None or part_of(name) == part]
    return [names[index] for index in rng.permutation(len(names))]
