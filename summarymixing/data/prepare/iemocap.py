"""IEMOCAP: utterances of four emotions, by ten speakers in five sessions.

Layout: `Session1` to `Session5`, each with labels in
`dialog/EmoEvaluation/DIALOGUE.txt` and audio in
`sentences/wav/DIALOGUE/UTTERANCE.wav`. Lines with a label are
"[START - END] UTTERANCE EMOTION [V, A, D]", parted by tabs. Neutral, happy,
sad and angry are taken, and excited counts as happy.

There is one manifest; which speakers train and which test is for the
training to say.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from summarymixing.data.prepare.account import holds_miniature
from summarymixing.data.prepare.common import (
    FoundFile,
    check_holds,
    find_corpus,
    list_files,
    require,
)
from summarymixing.data.prepare.corpus import Corpus, option
from summarymixing.data.prepare.listing import Listing, Recording
from summarymixing.data.prepare.pipeline import Plan
from summarymixing.errors import UserError

SESSIONS = (1, 2, 3, 4, 5)
EMOTIONS = {
    "neu": "neu",
    "hap": "hap",
    "exc": "hap",
    "sad": "sad",
    "ang": "ang",
}

# Utterances in the release, of each emotion and in all.
RELEASED = {"neu": 1708, "hap": 1636, "sad": 1084, "ang": 1103}
EXPECTED_UTTERANCES = sum(RELEASED.values())  # 5531

LABELS, AUDIO = "dialog/EmoEvaluation", "sentences/wav"
LAYOUT = (
    f"SessionN/{AUDIO}/DIALOGUE/UTTERANCE.wav and "
    f"SessionN/{LABELS}/DIALOGUE.txt, for N = 1 to 5"
)
ADVICE = f"Give the folder IEMOCAP_full_release as SOURCE ({LAYOUT})."
MANIFEST = "utterances.csv"

LABEL_LINE = re.compile(
    r"\[(\d+\.\d+) - (\d+\.\d+)\]\t"
    r"(Ses\d\d[FM]_\w+_([FM])\w*)\t(\w+)\t\[.*\]"
)


@dataclass(frozen=True)
class IemocapOptions:
    """The options of `prepare.py iemocap`."""

    expected_utterances: int | None = option(
        None,
        "refuse a corpus with more or fewer usable utterances; 0 for any "
        f"number (default: {EXPECTED_UTTERANCES}, the whole release; 0 for a "
        "miniature corpus)",
        metavar="N",
    )


def plan_iemocap(source: Path, options: IemocapOptions) -> Plan:
    """Plan utterances.csv, with labels speaker, mp3s_speaker and emotion.

    Speakers are "1" to "10", women odd and men even; see `mp3s_speaker` for
    the other label. Emotions are "neu", "hap", "sad" and "ang". SOURCE is the
    folder `IEMOCAP_full_release`, which holds the sessions, or one above it.
    """
    names = [f"Session{session}" for session in SESSIONS]
    source = find_corpus(
        source, lambda folder: any((folder / name).is_dir() for name in names)
    )
    expected = options.expected_utterances
    if expected is None:
        expected = 0 if holds_miniature(source) else EXPECTED_UTTERANCES
    require(expected >= 0, "--expected_utterances must be 0 or more.")
    listing = Listing()
    files: list[FoundFile] = []
    for name in names:
        files += _list_session(source, name, listing)
    require(bool(files), f"{source} holds no sessions. {ADVICE}")
    return listing.plan(
        source,
        files,
        assign=partial(_check_utterances, expected=expected),
        replaces=[MANIFEST],
    )


def _list_session(
    source: Path, session: str, listing: Listing
) -> list[FoundFile]:
    """Read the labels of a session; return these files and its recordings."""
    if not (source / session).is_dir():
        listing.note("session is missing", session)
        return []
    check_holds(source / session, [LABELS, AUDIO], ADVICE)
    tables = [
        file
        for file in list_files(source, (".txt",), below=f"{session}/{LABELS}")
        # Folders beside them hold the votes of each rater.
        if file.relative.count("/") == LABELS.count("/") + 2
    ]
    labelled: set[str] = set()
    for table in tables:
        labelled |= _read_labels(source, session, table.relative, listing)
    audio = list_files(source, (".wav",), below=f"{session}/{AUDIO}")
    for file in audio:
        if file.relative not in labelled:
            listing.note("recording without a label", file.relative)
    return tables + audio


def mp3s_speaker(utterance: str) -> str:
    """Return the speaker that the MP3S benchmark takes an utterance for.

    It looks for the F of women at a fixed position of the name. Where the
    name of a dialogue ends in a letter, as in Ses03M_impro05a_F000, that
    position is off by one, and the women's turns (65 in the release) go to
    the man. The speakers are "1" to "10".

    Example
    -------
    >>> mp3s_speaker("Ses03M_impro05_F000")
    '5'
    >>> mp3s_speaker("Ses03M_impro05a_F000")
    '6'
    """
    position = 18 if "script" in utterance else 15
    return _number_speaker(utterance, utterance[position : position + 1])


def _check_utterances(
    group_seconds: Mapping[str, float], *, expected: int
) -> dict[str, str]:
    """Put all utterances into one manifest, if their number is as expected."""
    if expected not in (0, len(group_seconds)):
        found = Counter(group.split("/")[0] for group in group_seconds)
        counts = ", ".join(
            f"{emotion} {found[emotion]:,} (of {released:,} in the release)"
            for emotion, released in RELEASED.items()
        )
        raise UserError(
            f"{len(group_seconds):,} utterances are usable, expected "
            f"{expected:,}: {counts}. The account below lists what is missing "
            "or damaged. Copy it again, or take any number of utterances with "
            "--expected_utterances=0."
        )
    return dict.fromkeys(group_seconds, MANIFEST)


def _read_labels(
    source: Path, session: str, table: str, listing: Listing
) -> set[str]:
    """Return the paths of the recordings that have a label."""
    labelled = set()
    for place, line in listing.read_lines(source, table):
        match = LABEL_LINE.fullmatch(line.rstrip())
        if not match:
            if line.startswith("["):  # the others are votes and comments
                listing.note("malformed line", place)
            continue
        start, stop, name, sex, emotion = match.groups()
        path = f"{session}/{AUDIO}/{name.rpartition('_')[0]}/{name}.wav"
        labelled.add(path)
        if emotion not in EMOTIONS:
            reason = f"emotion {emotion} is not of the task"
            listing.drop(reason, float(stop) - float(start))
            continue
        labels = {
            "speaker": _number_speaker(name, sex),
            "mp3s_speaker": mp3s_speaker(name),
            "emotion": EMOTIONS[emotion],
        }
        group = f"{EMOTIONS[emotion]}/{name}"
        listing.add(Recording(group, name, path, labels), place)
    return labelled


def _number_speaker(utterance: str, sex: str) -> str:
    session = int(utterance[3:5])
    return str(2 * session - 1 if sex == "F" else 2 * session)


CORPUS = Corpus(
    name="iemocap",
    summary="IEMOCAP: neutral, happy, sad and angry utterances",
    layout=LAYOUT,
    list_work=plan_iemocap,
    options=IemocapOptions,
)
