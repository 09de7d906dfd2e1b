"""A miniature of VoxCeleb1: development speakers, test speakers, trials.

`wav/<speaker>/<video>/<utterance>.wav` for all speakers, and
`veri_test2.txt` with "label enrolment test" on each line, for the test
speakers alone. The recordings of one video share their background noise.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from summarymixing.miniature.espeak import synthesise
from summarymixing.miniature.folder import Job, build_once
from summarymixing.miniature.sound import (
    Background,
    frame_utterance,
    write_audio,
)
from summarymixing.miniature.speakers import Speaker, cast_speakers, check_hours
from summarymixing.miniature.text import Part, make_story_sentence, pick


@dataclass(frozen=True, slots=True)
class Cast:
    """The development speakers, or the test speakers."""

    part: Part  # whose voices they use
    share: float  # of the hours of the corpus
    fewest: int
    most: int  # with more test speakers, two would share a voice
    first_number: int  # as in the real corpus


DEV = Cast("train", 0.75, fewest=4, most=60, first_number=10_001)
TEST = Cast("test", 0.25, fewest=4, most=16, first_number=10_270)

MIN_WORDS_PER_UTTERANCE = 12  # four seconds, the shortest of the real corpus
SECONDS_PER_UTTERANCE = 8.0
UTTERANCES_PER_VIDEO = 3
MIN_VIDEOS_PER_SPEAKER = 2
TRIALS_PER_UTTERANCE = 4  # of each label
VIDEO_DIGITS = 11


@dataclass(frozen=True, slots=True)
class Appearances:
    """What one speaker says in each video: the work of one process."""

    speaker: Speaker
    videos: Mapping[str, Sequence[str]]

    @property
    def utterances(self) -> list[str]:
        """Paths below `wav`, in order."""
        return [
            f"id{self.speaker.number}/{video}/{index + 1:05d}.wav"
            for video, texts in self.videos.items()
            for index in range(len(texts))
        ]


def build_voxceleb1(dest: Path, *, hours: float = 0.3, seed: int = 1) -> Path:
    """Build a miniature VoxCeleb1, or find it built.

    Arguments
    ---------
    dest : Path
        Folder of the corpus; holds `wav/` and `veri_test2.txt` afterwards.
    hours : float
        Approximate audio: 75 % development speakers, 25 % test speakers. At
        least 4 of each, with 6 utterances.
    seed : int
        Another seed gives other speakers, sentences and noise.

    Returns
    -------
    Path
        `dest`; see `build_once` for the errors.
    """
    check_hours(hours)

    def make_jobs(root: Path) -> Iterator[Job]:
        rng = np.random.default_rng(seed)
        dev = list(_plan(rng, DEV, hours))
        test = list(_plan(rng, TEST, hours))
        _write_trials(root / "veri_test2.txt", test, rng)
        for one in dev + test:
            yield partial(_write_appearances, root / "wav", one, seed)

    arguments = {"hours": hours, "seed": seed}
    return build_once(dest, "VoxCeleb1", arguments, make_jobs)


def _plan(
    rng: np.random.Generator, cast: Cast, hours: float
) -> Iterator[Appearances]:
    """Yield who says what in which video."""
    seconds_per_video = UTTERANCES_PER_VIDEO * SECONDS_PER_UTTERANCE
    num_videos = round(hours * 3600 * cast.share / seconds_per_video)
    wanted = num_videos // MIN_VIDEOS_PER_SPEAKER
    num_speakers = min(max(wanted, cast.fewest), cast.most)
    each = max(MIN_VIDEOS_PER_SPEAKER, round(num_videos / num_speakers))
    for speaker in cast_speakers(rng, num_speakers, part=cast.part):
        number = cast.first_number + speaker.number
        videos = {
            _make_video_name(rng): [
                _make_speech(rng) for _ in range(UTTERANCES_PER_VIDEO)
            ]
            for _ in range(each)
        }
        yield Appearances(replace(speaker, number=number), videos)


def _make_video_name(rng: np.random.Generator) -> str:
    letters = string.ascii_letters + string.digits + "-_"
    return "".join(pick(rng, letters) for _ in range(VIDEO_DIGITS))


def _make_speech(rng: np.random.Generator) -> str:
    """Draw sentences until an utterance is long enough to crop from."""
    speech = make_story_sentence(rng)
    while len(speech.split()) < MIN_WORDS_PER_UTTERANCE:
        speech += " " + make_story_sentence(rng)
    return speech


def _write_trials(
    path: Path, test: Sequence[Appearances], rng: np.random.Generator
) -> None:
    """Compare each test utterance with some of its and of other speakers."""
    lines = []
    everyone = {name for one in test for name in one.utterances}
    for one in test:
        for enrolment in one.utterances:
            same = set(one.utterances) - {enrolment}
            others = everyone - set(one.utterances)
            for label, candidates in (("1", same), ("0", others)):
                chosen = rng.permutation(sorted(candidates))
                lines += [
                    f"{label} {enrolment} {name}\n"
                    for name in chosen[:TRIALS_PER_UTTERANCE]
                ]
    path.write_text("".join(lines), encoding="utf-8")


def _write_appearances(root: Path, one: Appearances, seed: int) -> None:
    """Write all utterances of one speaker."""
    rng = np.random.default_rng([seed, one.speaker.number])
    texts = [text for video in one.videos.values() for text in video]
    spoken = synthesise(one.speaker.voice, texts)
    background = Background.draw(rng)
    for index, speech in enumerate(spoken):
        if index % UTTERANCES_PER_VIDEO == 0:
            background = Background.draw(rng)
        samples = background.record(frame_utterance(speech, rng), rng)
        write_audio(root / one.utterances[index], samples)
