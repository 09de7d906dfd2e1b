"""A miniature of Libri-Light: long recordings with voice activity.

`<split>/<speaker>/<book>/<chapter>.flac`, and `<chapter>.json` beside it with
the speaker, the book, the speech-to-noise ratio and the voice activity.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from summarymixing.data.audio import SAMPLE_RATE_HZ
from summarymixing.miniature.espeak import Voice, synthesise
from summarymixing.miniature.folder import Job, build_once
from summarymixing.miniature.sound import (
    Background,
    Samples,
    silence,
    to_rate,
    write_audio,
)
from summarymixing.miniature.speakers import Speaker, cast_speakers, check_hours
from summarymixing.miniature.text import (
    MANY_WORDS,
    make_clause,
    make_story_sentence,
    pick,
)

Passage = tuple[str, ...]  # sentences without a pause between them
Activity = list[list[float]]

MEAN_RECORDING_S = 150.0
RECORDING_SPREAD = (0.5, 1.5)  # 75 to 225 s
RECORDINGS_PER_SPEAKER = 2

# Voice activity of the real corpus: median 6.8 s, mean 10.4 s, 1 % over 60 s.
# Here one clip is over 60 s, the others stay well below.
CLIP_MEDIAN_S = 6.8
CLIP_LOG_SIGMA = 0.92  # sqrt(2 ln(10.4 / 6.8))
CLIP_MAX_S = 45.0  # a sentence more than that, and 60 s is still far
HALF_SENTENCE_S = 2.2
LONG_CLIP_S = 75.0  # estimated; voices differ by 10 %
MIN_AROUND_LONG_CLIP_S = 10.0

# The real detector works in frames of 80 ms and bridges pauses up to 6.
ACTIVITY_FRAME_S = 0.08
PAUSES_INSIDE_S = (0.08, 0.35)
PAUSES_AT_COMMAS = 1.08  # time that the words per minute do not contain
PAUSES_BETWEEN_S = (0.7, 2.5)
ACTIVITY_DECIMALS = 4

GENRES = {
    "Literature": ["Short Stories", "Children's Fiction"],
    "Science, Craft & Essay": ["*Non-fiction", "Nature"],
    "Poetry": ["Narratives", "Anthologies"],
}
FIRST_SPEAKER, FIRST_BOOK = 200, 5000


@dataclass(frozen=True, slots=True)
class Chapter:
    """One chapter, read by one speaker: the work of one process."""

    path: Path  # below the split, without suffix
    speaker: Speaker
    book_meta: dict[str, Any]  # what the JSON file says about the book
    clips: Sequence[Passage]  # what is read, with a pause after each clip


def build_librilight(
    dest: Path,
    *,
    hours: float = 0.5,
    seed: int = 1,
    split: str = "small",
    long_clip: bool = True,
) -> Path:
    """Build a miniature Libri-Light, or find it built.

    Arguments
    ---------
    dest : Path
        Folder of the corpus; holds `<split>/` afterwards.
    hours : float
        Approximate audio, pauses included: recordings of 75 to 225 s, or two
        shorter ones where this is under 5 minutes.
    seed : int
        Another seed gives other speakers, books and noise.
    split : str
        Name of the folder under `dest`.
    long_clip : bool
        Whether the first recording holds a stretch of over 60 s without a
        pause, such as the paper's rule drops. It may exceed `hours`.

    Returns
    -------
    Path
        `dest`; see `build_once` for the errors.
    """
    check_hours(hours)

    def make_jobs(root: Path) -> Iterator[Job]:
        chapters = _plan_chapters(hours, seed, long_clip)
        for index, chapter in enumerate(chapters):
            yield partial(_write_chapter, root / split, chapter, [seed, index])

    arguments: dict[str, object] = {"hours": hours, "seed": seed}
    arguments |= {"split": split, "long_clip": long_clip}
    return build_once(dest, "Libri-Light", arguments, make_jobs)


def _plan_chapters(
    hours: float, seed: int, long_clip: bool
) -> Iterator[Chapter]:
    """Yield who reads what, for about that many hours in all."""
    rng = np.random.default_rng(seed)
    count = max(2, round(hours * 3600 / MEAN_RECORDING_S))
    lengths = rng.uniform(*RECORDING_SPREAD, size=count)
    lengths *= hours * 3600 / lengths.sum()
    num_speakers = max(2, math.ceil(count / RECORDINGS_PER_SPEAKER))
    speakers = cast_speakers(rng, num_speakers, part="train")
    books = [_make_book(rng, FIRST_BOOK + index) for index in range(count)]
    for index, seconds in enumerate(lengths):
        reader, nth = index % num_speakers, index // num_speakers
        # Every second speaker goes on with the same book.
        chapter = nth + 1 if reader % 2 else 1
        book = books[reader if reader % 2 else index]
        speaker = replace(speakers[reader], number=FIRST_SPEAKER + reader)
        plan_clips = _plan_clips
        if long_clip and index == 0:
            plan_clips = _plan_clips_around_long_one
        clips = list(plan_clips(rng, speaker.voice, seconds))
        path = _path_of(speaker, book, chapter)
        yield Chapter(path, speaker, book, clips)


def _make_book(rng: np.random.Generator, number: int) -> dict[str, Any]:
    """Draw the `book_meta` of a book, with the fields of the real one."""
    meta_genre = pick(rng, list(GENRES))
    return {
        "id": str(number),
        "title": make_clause(rng, "train", MANY_WORDS).title(),
        "genre": GENRES[meta_genre],
        "Dramatic Readings": False,
        "meta_genre": meta_genre,
    }


def _path_of(speaker: Speaker, book: dict[str, Any], chapter: int) -> Path:
    words = book["title"].lower().split()
    folder = "_".join([*words, book["id"], "librivox_64kb_mp3"])
    name = f"{''.join(words[:2])}_{chapter:02d}_64kb"
    return Path(str(speaker.number)) / folder / name


def _plan_clips(
    rng: np.random.Generator, voice: Voice, seconds: float
) -> Iterator[Passage]:
    """Yield clips, at least one, until they fill the recording."""
    while True:
        wanted = rng.lognormal(math.log(CLIP_MEDIAN_S), CLIP_LOG_SIGMA)
        clip = _fill_clip(rng, voice, min(wanted, CLIP_MAX_S, seconds))
        yield clip
        seconds -= sum(_speaking_seconds(text, voice) for text in clip)
        seconds -= sum(PAUSES_BETWEEN_S) / 2
        if seconds < HALF_SENTENCE_S:
            return


def _plan_clips_around_long_one(
    rng: np.random.Generator, voice: Voice, seconds: float
) -> Iterator[Passage]:
    """Yield clips with one over 60 s between others."""
    around = max(seconds - LONG_CLIP_S, MIN_AROUND_LONG_CLIP_S)
    yield from _plan_clips(rng, voice, around / 2)
    yield _fill_clip(rng, voice, LONG_CLIP_S)
    yield from _plan_clips(rng, voice, around / 2)


def _fill_clip(
    rng: np.random.Generator, voice: Voice, seconds: float
) -> Passage:
    """Draw at least one sentence, until they last about so long."""
    sentences: list[str] = []
    while not sentences or seconds > HALF_SENTENCE_S:
        sentences.append(make_story_sentence(rng))
        seconds -= _speaking_seconds(sentences[-1], voice)
    return tuple(sentences)


def _speaking_seconds(text: str, voice: Voice) -> float:
    """Estimate, to 10 %, how long a sentence and the pause after it last."""
    spoken = 60 * len(text.split()) / voice.words_per_minute
    return spoken * PAUSES_AT_COMMAS + sum(PAUSES_INSIDE_S) / 2


def _write_chapter(root: Path, chapter: Chapter, seed: Sequence[int]) -> None:
    """Write the .flac and the .json of one chapter."""
    rng = np.random.default_rng(seed)
    speech, activity = _read_aloud(chapter, rng)
    background = Background.draw(rng)
    audio = root / chapter.path.with_suffix(".flac")
    write_audio(audio, background.record(speech, rng))
    about = {
        "speaker": str(chapter.speaker.number),
        "book_meta": chapter.book_meta,
        "snr": round(background.snr_db, ACTIVITY_DECIMALS),
        "voice_activity": activity,
    }
    text = json.dumps(about, indent=1)
    audio.with_suffix(".json").write_text(text, encoding="utf-8")


def _read_aloud(
    chapter: Chapter, rng: np.random.Generator
) -> tuple[Samples, Activity]:
    """Return speech with its pauses, and where it is, in seconds."""
    texts = [text for clip in chapter.clips for text in clip]
    spoken = iter(synthesise(chapter.speaker.voice, texts))
    pieces = [silence(rng.uniform(*PAUSES_BETWEEN_S))]
    position = len(pieces[0])
    activity = []
    for clip in chapter.clips:
        sentences = []
        for _ in clip:
            sentences.append(to_rate(next(spoken)))
            sentences.append(silence(rng.uniform(*PAUSES_INSIDE_S)))
        speech = np.concatenate(sentences[:-1])
        activity.append(_to_activity(position, position + len(speech)))
        pause = silence(rng.uniform(*PAUSES_BETWEEN_S))
        pieces += [speech, pause]
        position += len(speech) + len(pause)
    return np.concatenate(pieces), activity


def _to_activity(start: int, stop: int) -> list[float]:
    """Widen samples to whole frames of the detector, in seconds."""
    first = math.floor(start / SAMPLE_RATE_HZ / ACTIVITY_FRAME_S)
    after = math.ceil(stop / SAMPLE_RATE_HZ / ACTIVITY_FRAME_S)
    return [
        round(frame * ACTIVITY_FRAME_S, ACTIVITY_DECIMALS)
        for frame in (first, after)
    ]
