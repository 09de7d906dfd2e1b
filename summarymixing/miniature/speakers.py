"""Who speaks how much: speakers are settings of the synthesiser, not people.

A speaker is a voice (accent or language), a variant (timbre), a pitch and a
speed. As with sentences, train, dev and test share no voice and variant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np

from summarymixing.errors import UserError
from summarymixing.miniature.espeak import Voice
from summarymixing.miniature.sound import CLEAN_SNRS_DB
from summarymixing.miniature.text import Part, listed, part_of

Item = TypeVar("Item")
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
    """A voice under the number that a corpus gives it."""

    number: int  # unique in its corpus
    sex: Sex  # of the variant
    voice: Voice


@dataclass(frozen=True)
class Reading(Generic[Item]):
    """What one speaker reads: the work of one process."""

    speaker: Speaker
    split: str  # where the recordings go
    items: Sequence[Item]  # the utterances, with what the corpus says of each


@dataclass(frozen=True, slots=True)
class Split:
    """What one split takes of the corpus, and how it sounds."""

    part: Part  # whose sentences and voices it uses
    share: float  # of the hours of the corpus
    max_speakers: int  # all splits of a part must not use up its voices
    snrs_db: tuple[float, float] = CLEAN_SNRS_DB  # lowest and highest


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


def count_utterances(
    hours: float, splits: Mapping[str, Split], seconds_each: float
) -> dict[str, int]:
    """Return how many utterances make up the hours of each split.

    Arguments
    ---------
    hours : float
        Audio of the whole corpus; UserError unless positive and finite.
    splits : mapping of str to Split
        The splits, with their shares of the hours.
    seconds_each : float
        Mean length of an utterance.

    Returns
    -------
    dict of str to int
        The number for each split, at least 2.

    Example
    -------
    >>> splits = {"dev-clean": Split("dev", share=0.1, max_speakers=8)}
    >>> count_utterances(0.1, splits, seconds_each=3.0)
    {'dev-clean': 12}
    """
    check_hours(hours)
    return {
        name: max(2, round(hours * 3600 * split.share / seconds_each))
        for name, split in splits.items()
    }


def check_hours(hours: float) -> None:
    """Raise `UserError` unless the hours are positive and finite."""
    if not 0 < hours < math.inf:
        raise UserError(
            f"hours is {hours}; give a positive number, such as --hours=0.2."
        )


def share_out(
    items: Sequence[Item], per_speaker: int, max_speakers: int
) -> list[Sequence[Item]]:
    """Deal utterances to as many speakers as they keep busy, at least one each.

    Each speaker gets `per_speaker` of them, until there are enough for
    `max_speakers`, and more from then on.

    Example
    -------
    >>> share_out("abcdefg", per_speaker=2, max_speakers=3)
    ['adg', 'be', 'cf']
    """
    num_speakers = min(max_speakers, math.ceil(len(items) / per_speaker))
    return [items[index::num_speakers] for index in range(num_speakers)]
