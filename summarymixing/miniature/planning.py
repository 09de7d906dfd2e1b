"""Sizes: hours to utterances, utterances to speakers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from summarymixing.errors import UserError

Item = TypeVar("Item")


def count_utterances(
    hours: float, shares: Mapping[str, float], seconds_each: float
) -> dict[str, int]:
    """Return how many utterances make up the hours of each split.

    Arguments
    ---------
    hours : float
        Of the corpus.
    shares : mapping of str to float
        Of each split in the hours.
    seconds_each : float
        Mean length of an utterance.

    Returns
    -------
    dict of str to int
        For each split, at least 2.

    Raises
    ------
    UserError
        The hours are not a positive number.

    Example
    -------
    >>> count_utterances(0.1, {"train": 0.9, "test": 0.1}, seconds_each=3.0)
    {'train': 108, 'test': 12}
    """
    check_hours(hours)
    return {
        split: max(2, round(hours * 3600 * share / seconds_each))
        for split, share in shares.items()
    }


def check_hours(hours: float) -> None:
    """Refuse a size that is no size.

    Arguments
    ---------
    hours : float
        Of a corpus.

    Raises
    ------
    UserError
        Zero, negative, infinite or not a number.
    """
    if not 0 < hours < math.inf:
        raise UserError(
            f"hours is {hours}; give a positive number, such as --hours=0.2."
        )


def share_out(
    items: Sequence[Item], *, per_speaker: int, max_speakers: int
) -> list[Sequence[Item]]:
    """Deal utterances to as many speakers as they keep busy.

    Arguments
    ---------
    items : sequence
        Utterances.
    per_speaker : int
        Utterances of each speaker, until there are enough for all speakers.
    max_speakers : int
        At most so many.

    Returns
    -------
    list of sequence
        What each speaker gets; none gets nothing.

    Example
    -------
    >>> share_out("abcdefg", per_speaker=2, max_speakers=3)
    ['adg', 'be', 'cf']
    """
    num_speakers = min(max_speakers, math.ceil(len(items) / per_speaker))
    return [items[index::num_speakers] for index in range(num_speakers)]
