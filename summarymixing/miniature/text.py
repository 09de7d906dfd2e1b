"""Sentences: short ones of few words to recognise, longer ones to listen to.

A clause fills the slots of a pattern (name, verb, number, adjective, noun,
ending), of which three are optional: 3 to 6 words. Train, dev and test share
the words but no clause: which part a clause belongs to is a function of its
text alone, hence the same for every seed and size.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

Part = Literal["train", "dev", "test"]


class Slot(NamedTuple):
    """A place in a clause."""

    words: tuple[str, ...]  # what may fill it; several words may stand for one
    probability: float = 1.0  # that it is filled


Grammar = tuple[Slot, ...]  # the slots of a clause, in speaking order

OFTEN = 0.55


def listed(text: str) -> tuple[str, ...]:
    """Split a list that is written with ", " between its items.

    Example
    -------
    >>> listed("soon, at midnight")
    ('soon', 'at midnight')
    """
    return tuple(text.split(", "))


# 48 words: a small CTC head learns them from minutes of speech.
FEW_WORDS: Grammar = (
    Slot(listed("Anna, Bruno, Clara, David, Emma, Oscar, Nora, Peter")),
    Slot(listed("finds, hides, wants, sells, paints, carries, buys, likes")),
    Slot(listed("two, three, four, five, six, seven, nine, ten"), OFTEN),
    Slot(listed("red, green, old, small, heavy, yellow, broken, quiet"), OFTEN),
    Slot(
        listed(
            "apples, boats, cups, dogs, houses, lamps, spoons, trees, "
            "windows, bells"
        )
    ),
    Slot(listed("today, again, soon, outside, tomorrow, upstairs"), OFTEN),
)

MORE_WORDS = (
    "Lucas, Marta, Simon, Julia, Victor, Helen, Thomas, Irene",
    "follows, draws, opens, watches, counts, borrows, throws",
    "eleven, twelve, twenty, many, several",
    "wooden, empty, bright, narrow, silver, purple, frozen",
    "gardens, letters, rivers, horses, bottles, candles, mountains, bridges, "
    "baskets, clocks",
    "quickly, together, at midnight, near the harbour, behind the mill, "
    "in the morning",
)
MANY_WORDS: Grammar = tuple(
    slot._replace(words=slot.words + listed(more))
    for slot, more in zip(FEW_WORDS, MORE_WORDS, strict=True)
)
CONNECTORS = listed("and, but, while, because, until")


def part_of(key: str) -> Part:
    """Assign a text, or the name of a voice, to train (80 %), dev or test.

    The answer is for ever the same; case counts.

    Example
    -------
    >>> part_of("Anna finds boats") == part_of("Anna finds boats")
    True
    """
    parts: tuple[Part, ...] = (*("train",) * 8, "dev", "test")
    return parts[zlib.crc32(key.encode()) % len(parts)]


def make_clause(
    rng: np.random.Generator, part: Part, grammar: Grammar = FEW_WORDS
) -> str:
    """Draw a clause that belongs to one part.

    Arguments
    ---------
    rng : numpy.random.Generator
        Advanced by this call.
    part : str
        "train", "dev" or "test".
    grammar : Grammar
        By default that of the 48 words. It must be able to form clauses of
        every part.

    Returns
    -------
    str
        The filled slots, such as "Anna finds two red apples today".

    Example
    -------
    >>> clause = make_clause(np.random.default_rng(0), "dev")
    >>> part_of(clause), 3 <= len(clause.split()) <= 6
    ('dev', True)
    """
    while True:
        filled = rng.random(len(grammar)) < [s.probability for s in grammar]
        slots = zip(grammar, filled, strict=True)
        clause = " ".join(pick(rng, slot.words) for slot, on in slots if on)
        if part_of(clause) == part:
            return clause


def make_story_sentence(rng: np.random.Generator) -> str:
    """Draw one to three train clauses of many words: 3 to 30 words."""
    sentence = make_clause(rng, "train", MANY_WORDS)
    for _ in range(rng.integers(0, 3)):
        clause = make_clause(rng, "train", MANY_WORDS)
        sentence += f", {pick(rng, CONNECTORS)} {clause}"
    return sentence + "."


def pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    """Draw one of several texts, all equally likely."""
    return choices[int(rng.integers(len(choices)))]
