"""A miniature of IEMOCAP: five sessions of two speakers, labelled dialogues.

`Session<n>/sentences/wav/<dialogue>/<utterance>.wav`, labels in
`Session<n>/dialog/EmoEvaluation/<dialogue>.txt`, texts in
`Session<n>/dialog/transcriptions/<dialogue>.txt`.

The synthesiser has no emotions. Each label is a pitch and a speed, so that
there is something to classify; that says nothing about emotion.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, groupby
from pathlib import Path

import numpy as np

from summarymixing.data.audio import SAMPLE_RATE_HZ
from summarymixing.miniature.espeak import Voice, synthesise_dialogue
from summarymixing.miniature.folder import Job, build_once
from summarymixing.miniature.sound import (
    Background,
    Samples,
    frame_utterance,
    write_audio,
)
from summarymixing.miniature.speakers import Sex, cast_speakers, check_hours
from summarymixing.miniature.text import MANY_WORDS, make_clause

SESSIONS = (1, 2, 3, 4, 5)

# In every session. The names of a few real ones end in a letter, too.
DIALOGUES = ("F_impro01", "M_impro05a", "M_script01_1b")

# Added to the pitch; factor of the speed. The task takes exc for hap, and
# leaves out the last two.
EMOTIONS = {
    "neu": (0, 1.0),
    "hap": (25, 1.2),
    "ang": (-15, 1.4),
    "sad": (-20, 0.75),
    "exc": (25, 1.25),
    "fru": (10, 0.85),
    "xxx": (0, 1.1),
}

LABELS_HEAD = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"

SEXES: tuple[Sex, ...] = ("F", "M")  # who take turns
SECONDS_PER_TURN = 2.8
MIN_TURNS = 6  # of a dialogue; in three of them, both speakers have all labels
PAUSES_S = (0.3, 1.5)


@dataclass(frozen=True, slots=True)
class Turn:
    """One labelled utterance."""

    dialogue: str
    name: str
    sex: Sex
    emotion: str
    text: str


@dataclass(frozen=True, slots=True)
class Session:
    """What two speakers say: the work of one process."""

    number: int
    voices: dict[Sex, Voice]
    turns: Sequence[Turn]


def build_iemocap(dest: Path, *, hours: float = 0.2, seed: int = 1) -> Path:
    """Build a miniature IEMOCAP, or find it built.

    Arguments
    ---------
    dest : Path
        Folder of the corpus; holds `Session1` to `Session5` afterwards.
    hours : float
        Approximate audio, spread evenly. At least 90 utterances.
    seed : int
        Another seed gives other speakers, sentences and noise.

    Returns
    -------
    Path
        `dest`; see `build_once` for the errors.
    """
    check_hours(hours)
    num_dialogues = len(SESSIONS) * len(DIALOGUES)
    num_turns = max(
        MIN_TURNS, round(hours * 3600 / SECONDS_PER_TURN / num_dialogues)
    )

    def make_jobs(root: Path) -> Iterator[Job]:
        for session in _plan_sessions(num_turns, seed):
            yield partial(_write_session, root, session, seed)

    arguments = {"turns of a dialogue": num_turns, "seed": seed}
    return build_once(dest, "IEMOCAP", arguments, make_jobs)


def _plan_sessions(num_turns: int, seed: int) -> Iterator[Session]:
    """Yield who says what, in which session."""
    rng = np.random.default_rng(seed)
    speakers = cast_speakers(rng, len(SEXES) * len(SESSIONS))
    for index, number in enumerate(SESSIONS):
        pair = speakers[len(SEXES) * index :][: len(SEXES)]
        voices = {speaker.sex: speaker.voice for speaker in pair}
        emotions = cycle(EMOTIONS)
        turns = [
            turn
            for dialogue in DIALOGUES
            for turn in _plan_dialogue(
                rng, f"Ses{number:02d}{dialogue}", num_turns, emotions
            )
        ]
        yield Session(number, voices, turns)


def _plan_dialogue(
    rng: np.random.Generator,
    dialogue: str,
    num_turns: int,
    emotions: Iterator[str],
) -> Iterator[Turn]:
    """Yield turns: she, he, she ..., numbered for each of them."""
    for index in range(num_turns):
        nth, who = divmod(index, len(SEXES))
        name = f"{dialogue}_{SEXES[who]}{nth:03d}"
        text = make_clause(rng, "train", MANY_WORDS)
        yield Turn(dialogue, name, SEXES[who], next(emotions), text)


def _write_session(root: Path, session: Session, seed: int) -> None:
    """Write the audio, labels and texts of one session."""
    rng = np.random.default_rng([seed, session.number])
    folder = root / f"Session{session.number}"
    spoken = zip(session.turns, _speak(session), strict=True)
    for name, turns in groupby(spoken, key=lambda pair: pair[0].dialogue):
        _write_dialogue(folder, name, turns, rng)


def _write_dialogue(
    folder: Path,
    name: str,
    turns: Iterable[tuple[Turn, Samples]],
    rng: np.random.Generator,
) -> None:
    background = Background.draw(rng)
    clock_s = 0.0
    labels, texts = [LABELS_HEAD], []
    for turn, speech in turns:
        framed = frame_utterance(speech, rng)
        wav = folder / "sentences" / "wav" / name / f"{turn.name}.wav"
        write_audio(wav, background.record(framed, rng))
        start_s = clock_s + rng.uniform(*PAUSES_S)
        clock_s = start_s + len(framed) / SAMPLE_RATE_HZ
        labels.append(_describe_label(turn, start_s, clock_s))
        span = f"{start_s:08.4f}-{clock_s:08.4f}"
        texts.append(f"{turn.name} [{span}]: {turn.text}.\n")
    for kind, lines in (("EmoEvaluation", labels), ("transcriptions", texts)):
        table = folder / "dialog" / kind / f"{name}.txt"
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text("".join(lines), encoding="utf-8")


def _speak(session: Session) -> list[Samples]:
    """Return the speech of each turn."""
    lines = []
    for turn in session.turns:
        voice = session.voices[turn.sex]
        pitch, speed = EMOTIONS[turn.emotion]
        mood = replace(
            voice,
            pitch=voice.pitch + pitch,
            words_per_minute=round(voice.words_per_minute * speed),
        )
        lines.append((mood, turn.text))
    return synthesise_dialogue(lines)


def _describe_label(turn: Turn, start_s: float, stop_s: float) -> str:
    """Return the line of one turn, and that of one rater."""
    return (
        f"[{start_s:.4f} - {stop_s:.4f}]\t{turn.name}\t{turn.emotion}\t"
        "[2.5000, 2.5000, 2.5000]\n"
        "C-E1:\tOther;\t()\n\n"
    )
