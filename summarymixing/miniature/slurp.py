"""A miniature of SLURP: 18 scenarios, two microphones.

`slurp_real/audio-<n>-headset.flac` and, of the same reading, the noisier
`slurp_real/audio-<n>.flac`; `train.jsonl`, `devel.jsonl` and `test.jsonl`
hold one prompt per line with its recordings.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from summarymixing.miniature.espeak import synthesise
from summarymixing.miniature.folder import Job, build_once
from summarymixing.miniature.sound import (
    CLEAN_SNRS_DB,
    NOISY_SNRS_DB,
    Background,
    frame_utterance,
    write_audio,
)
from summarymixing.miniature.speakers import (
    Reading,
    Speaker,
    Split,
    cast_speakers,
    count_utterances,
    share_out,
)
from summarymixing.miniature.text import OFTEN, Part, Slot, listed, make_clause

# What is asked for in each scenario; the first word labels the action.
SCENARIOS = {
    "alarm": listed("set an alarm, set the alarm for six"),
    "audio": listed("mute the speakers, mute everything now"),
    "calendar": listed("add a meeting, add an appointment with Nora"),
    "cooking": listed("find a soup recipe, find out how to boil potatoes"),
    "datetime": listed("tell me the time, tell me the date"),
    "email": listed("send an email to Anna, send mail to my office"),
    "general": listed("joke with me, joke about elephants"),
    "iot": listed("switch the lamp off, switch on the coffee machine"),
    "lists": listed("delete the shopping list, delete milk from the list"),
    "music": listed("like this song, like whatever the band does"),
    "news": listed("read the headlines, read out the sports news"),
    "play": listed("start some jazz, start the next podcast"),
    "qa": listed("define the word river, define gravity"),
    "recommendation": listed("suggest a restaurant, suggest a cinema nearby"),
    "social": listed("post a message for my friends, post this picture"),
    "takeaway": listed("order a pizza, order two portions of rice"),
    "transport": listed("book a train ticket, book a taxi to the airport"),
    "weather": listed("check whether it rains, check how hot it will be"),
}
OPENING = Slot(listed("please, could you, I want you to, now"), OFTEN)
ENDING = Slot(listed("today, tomorrow, this evening, quickly, again"), OFTEN)

SPLITS = {
    "train": Split("train", 0.7, 30),
    "devel": Split("dev", 0.15, 8),
    "test": Split("test", 0.15, 8),
}
MICROPHONES = {"-headset": CLEAN_SNRS_DB, "": NOISY_SNRS_DB}
SECONDS_PER_PROMPT = 2 * 2.6  # both microphones
PROMPTS_PER_SPEAKER = 9

FIRST_PROMPT, FIRST_AUDIO = 1, 1_490_000_000


@dataclass(frozen=True, slots=True)
class Prompt:
    """A sentence and its label."""

    number: int
    scenario: str
    sentence: str

    @property
    def recordings(self) -> dict[str, tuple[float, float]]:
        """File names, with bounds of the speech-to-noise ratio in dB."""
        name = f"audio-{FIRST_AUDIO + self.number}"
        return {
            f"{name}{microphone}.flac": snrs_db
            for microphone, snrs_db in MICROPHONES.items()
        }

    def describe(self) -> dict[str, Any]:
        """Return the line of the table, with the fields of the real one."""
        action = SCENARIOS[self.scenario][0].split()[0]
        tokens = self.sentence.split()
        return {
            "slurp_id": self.number,
            "sentence": self.sentence,
            "sentence_annotation": self.sentence,
            "intent": f"{self.scenario}_{action}",
            "action": action,
            "tokens": [
                {"surface": token, "id": index}
                for index, token in enumerate(tokens)
            ],
            "scenario": self.scenario,
            "entities": [],
            "recordings": [
                {"file": name, "wer": 0.0, "ent_wer": 0.0, "status": "correct"}
                for name in self.recordings
            ],
        }

    def describe_speaker(self, speaker: Speaker) -> dict[str, Any]:
        """Return the entry of the metadata, as far as it names the speaker."""
        about = {"usrid": f"{speaker.sex}O-{speaker.number:03d}"}
        return {"recordings": dict.fromkeys(self.recordings, about)}


def build_slurp(dest: Path, *, hours: float = 0.2, seed: int = 1) -> Path:
    """Build a miniature SLURP, or find it built.

    Arguments
    ---------
    dest : Path
        Folder of the corpus; holds `slurp_real/`, three tables and
        metadata.json afterwards.
    hours : float
        Approximate audio of both microphones: 70 % train, 15 % devel, 15 %
        test. At least 18 prompts in each, so that all scenarios occur.
    seed : int
        Another seed gives other speakers, sentences and noise.

    Returns
    -------
    Path
        `dest`; see `build_once` for the errors.
    """
    counts = count_utterances(hours, SPLITS, SECONDS_PER_PROMPT)
    counts = {name: max(n, len(SCENARIOS)) for name, n in counts.items()}

    def make_jobs(root: Path) -> Iterator[Job]:
        readings = list(plan_readings(counts, seed))
        for split in SPLITS:
            mine = (reading for reading in readings if reading.split == split)
            _write_table(root / f"{split}.jsonl", mine)
        metadata = {
            str(prompt.number): prompt.describe_speaker(reading.speaker)
            for reading in readings
            for prompt in reading.items
        }
        (root / "metadata.json").write_text(json.dumps(metadata), "utf-8")
        for reading in readings:
            yield partial(_write_reading, root / "slurp_real", reading, seed)

    arguments = {"prompts": counts, "seed": seed}
    return build_once(dest, "SLURP", arguments, make_jobs)


def plan_readings(
    counts: dict[str, int], seed: int
) -> Iterator[Reading[Prompt]]:
    """Yield what each speaker reads; no voice reads in two splits."""
    rng = np.random.default_rng(seed)
    prompt_numbers, speaker_numbers = count(FIRST_PROMPT), count(1)
    for name, split in SPLITS.items():
        prompts = [
            _make_prompt(rng, next(prompt_numbers), split.part)
            for _ in range(counts[name])
        ]
        speakers = cast_speakers(rng, split.max_speakers, part=split.part)
        # In turn, a speaker would get the same few scenarios again and again.
        shares = share_out(
            [prompts[index] for index in rng.permutation(len(prompts))],
            PROMPTS_PER_SPEAKER,
            split.max_speakers,
        )
        for speaker, mine in zip(speakers, shares, strict=False):
            speaker = replace(speaker, number=next(speaker_numbers))
            yield Reading(speaker, name, mine)


def _make_prompt(rng: np.random.Generator, number: int, part: Part) -> Prompt:
    """Draw a prompt; the scenarios take turns."""
    scenario = list(SCENARIOS)[number % len(SCENARIOS)]
    grammar = (OPENING, Slot(SCENARIOS[scenario]), ENDING)
    return Prompt(number, scenario, make_clause(rng, part, grammar))


def _write_table(path: Path, readings: Iterable[Reading[Prompt]]) -> None:
    lines = [
        json.dumps(prompt.describe()) + "\n"
        for reading in readings
        for prompt in reading.items
    ]
    path.write_text("".join(lines), encoding="utf-8")


def _write_reading(folder: Path, reading: Reading[Prompt], seed: int) -> None:
    """Write all recordings of one speaker."""
    rng = np.random.default_rng([seed, reading.speaker.number])
    sentences = [prompt.sentence for prompt in reading.items]
    spoken = synthesise(reading.speaker.voice, sentences)
    for prompt, speech in zip(reading.items, spoken, strict=True):
        framed = frame_utterance(speech, rng)
        for name, snrs_db in prompt.recordings.items():
            samples = Background.draw(rng, snrs_db).record(framed, rng)
            write_audio(folder / name, samples)
