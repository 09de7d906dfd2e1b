"""Trials of speaker verification: pairs of utterances, one or two speakers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from summarymixing.errors import UserError
from summarymixing.files import write_csv

TRIALS_NAME = "trials.csv"


class Trial(NamedTuple):
    """Two utterances to compare; the fields are the columns of trials.csv.

    Arguments
    ---------
    target : str
        "1" for the same speaker, "0" for two.
    enrol, test : str
        Ids of rows of the test manifest.
    """

    target: str
    enrol: str
    test: str


def write_trials(path: Path, trials: Sequence[Trial]) -> None:
    """Write a list of trials, as `read_trials` reads it.

    Arguments
    ---------
    path : Path
        The file to write.
    trials : Sequence of Trial
        The trials, in the order of the file.
    """
    write_csv(path, [Trial._fields, *trials])


def read_trials(path: Path) -> list[Trial]:
    """Read a list of trials.

    Arguments
    ---------
    path : Path
        A CSV file with the columns target (0 or 1), enrol, test.

    Returns
    -------
    list of Trial
        Trials of one speaker and of two; UserError for anything else.
    """
    again = "Prepare the corpus again (recipes/prepare.py writes trials.csv)."
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}. {again}") from error
    if not lines or tuple(lines[0]) != Trial._fields:
        raise UserError(
            f"{path} does not begin with {','.join(Trial._fields)}. {again}"
        )
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(Trial._fields) or line[0] not in ("0", "1"):
            raise UserError(
                f"{path}, line {number}: {','.join(line)!r} is not a trial "
                f"(0 or 1, two ids). {again}"
            )
    trials = [Trial(*line) for line in lines[1:]]
    if len({trial.target for trial in trials}) < 2:
        raise UserError(
            f"{path} needs trials of one speaker and of two: error rates "
            f"compare both. {again}"
        )
    return trials
