"""A second division of the rows of a corpus: by speaker, to verify them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from heapq import nsmallest
from itertools import combinations
from pathlib import Path

from summarymixing.data.manifest import Manifest, Row, write_manifest
from summarymixing.data.prepare.account import Account
from summarymixing.data.prepare.common import (
    TEST_NAME,
    TRAIN_NAME,
    VALID_NAME,
    add_trials,
    require,
    shuffling_key,
)
from summarymixing.data.trials import TRIALS_NAME, Trial

SPEAKERS_TRAIN = f"speakers_{TRAIN_NAME}"
SPEAKERS_VALID = f"speakers_{VALID_NAME}"
SPEAKERS_TEST = f"speakers_{TEST_NAME}"
BY_SPEAKER_NAMES = (SPEAKERS_TRAIN, SPEAKERS_VALID, SPEAKERS_TEST, TRIALS_NAME)

TRIALS_OF_EACH_KIND = 2000  # of the same speaker, and of two


def divide_by_speaker(
    account: Account, *, test_speakers: Collection[str]
) -> None:
    """Write speakers_train.csv, _valid.csv and _test.csv, and trials.csv.

    Their labels are speaker and recording_s (the seconds of the recording).
    speakers_valid.csv has what valid.csv and test.csv have of the speakers
    who train.

    Arguments
    ---------
    account : Account
        The account of a preparation with train.csv, valid.csv and test.csv,
        whose rows have the label speaker.
    test_speakers : Collection of str
        The speakers of the trials; all their rows are in speakers_test.csv.
    """
    folder = Path(account.manifests_folder)
    parts: dict[str, list[Row]] = {
        name: [] for name in (SPEAKERS_TRAIN, SPEAKERS_VALID, SPEAKERS_TEST)
    }
    for name in (TRAIN_NAME, VALID_NAME, TEST_NAME):
        for row in Manifest.read(folder / name):
            speaker = row.labels["speaker"]
            part = SPEAKERS_TRAIN if name == TRAIN_NAME else SPEAKERS_VALID
            if speaker in test_speakers:
                part = SPEAKERS_TEST
            labels = {"speaker": speaker, "recording_s": str(row.duration)}
            parts[part].append(replace(row, labels=labels))
    for name, rows in parts.items():
        require(bool(rows), f"No recording is usable for {name}.")
        write_manifest(folder / name, rows)
        account.other_files[name] = len(rows)
    add_trials(account, _draw_trials(parts[SPEAKERS_TEST]))


def _draw_trials(rows: Sequence[Row]) -> list[Trial]:
    """Draw as many trials of one speaker as of two, always the same ones."""
    pairs: dict[bool, list[Trial]] = {True: [], False: []}
    for one, other in combinations(rows, 2):
        same = one.labels["speaker"] == other.labels["speaker"]
        pairs[same].append(Trial(str(int(same)), one.id, other.id))
    number = min(TRIALS_OF_EACH_KIND, *map(len, pairs.values()))
    return [
        trial
        for kind in pairs.values()
        for trial in nsmallest(
            number, kind, key=lambda t: shuffling_key(f"{t.enrol} {t.test}")
        )
    ]
