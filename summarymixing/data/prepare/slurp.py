"""SLURP: what is asked of an assistant, read near and far from microphones.

Layout: `slurp_real/NAME.flac` with `train.jsonl`, `devel.jsonl` and
`test.jsonl` beside it, or as in the public repository, `audio/slurp_real` and
`dataset/slurp`. A line describes one prompt and names its recordings;
`metadata.json`, where it stands beside the tables, says who speaks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from summarymixing.data.prepare.common import (
    assign_splits,
    check_holds,
    find_corpus,
    list_files,
)
from summarymixing.data.prepare.corpus import Corpus, NoOptions
from summarymixing.data.prepare.listing import Listing, Recording
from summarymixing.data.prepare.pipeline import Plan

SPLITS = ("train", "devel", "test")
PUBLIC_TABLES, PUBLIC_AUDIO = "dataset/slurp/", "audio/slurp_real"
METADATA = "metadata.json"
LAYOUT = (
    "slurp_real/NAME.flac and train.jsonl, devel.jsonl, test.jsonl (these "
    "perhaps below dataset/slurp)"
)
UNKNOWN_SPEAKER = "unknown"


def plan_slurp(source: Path, _: NoOptions) -> Plan:
    """Plan train.csv, devel.csv and test.csv: one row per recording.

    The labels are speaker (or "unknown"), scenario, action, intent (the two
    joined by "_") and transcript. SOURCE is the folder of the corpus, or a
    folder above it.
    """
    source = find_corpus(
        source,
        lambda folder: all((folder / n).exists() for n in _name_parts(folder)),
    )
    audio, *tables = _name_parts(source)
    check_holds(
        source,
        [audio, *tables],
        f"Give the folder that holds {LAYOUT} as SOURCE.",
    )
    listing = Listing()
    metadata = str(PurePosixPath(tables[0]).with_name(METADATA))
    speakers = _read_speakers(source, metadata, listing)
    for split, table in zip(SPLITS, tables, strict=True):
        for place, line in listing.read_lines(source, table):
            _add_prompt(listing, line, place, split, audio, speakers)
    files = list_files(source, (".flac",), below=audio)
    advice = f"Expected {LAYOUT}. Copy the tables and the audio again."
    return listing.plan(
        source,
        files + list_files(source, (".jsonl", METADATA)),
        assign=partial(assign_splits, splits=SPLITS, advice=advice),
        replaces=[f"{split}.csv" for split in SPLITS],
    )


def _add_prompt(
    listing: Listing,
    line: str,
    place: str,
    split: str,
    audio: str,
    speakers: Mapping[str, str],
) -> None:
    """Add all recordings of a prompt, which is one JSON object."""
    try:
        prompt = json.loads(line)
        scenario, action, sentence = (
            str(prompt.get(key) or "").strip()
            for key in ("scenario", "action", "sentence")
        )
        recordings = list(_name_recordings(prompt["recordings"]))
    except (ValueError, TypeError, KeyError, AttributeError):
        listing.note("malformed line", place)
        return
    if not recordings:
        listing.note("prompt without recordings", place)
    for name, speaker in recordings:
        labels = {
            "speaker": speaker or speakers.get(name, UNKNOWN_SPEAKER),
            "scenario": scenario,
            "action": action,
            "intent": f"{scenario}_{action}",
            "transcript": " ".join(sentence.split()),
        }
        stem = name.removesuffix(".flac")
        recording = Recording(split, stem, f"{audio}/{name}", labels)
        listing.add(recording, place)


def _name_recordings(recordings: Any) -> Iterator[tuple[str, str]]:
    """Yield the file and, where it is there, the user id of recordings.

    The tables hold a list of them, `metadata.json` a mapping by file.
    """
    if isinstance(recordings, dict):
        for name, about in recordings.items():
            yield name, str(about.get("usrid") or "")
    else:
        for about in recordings:
            yield str(about["file"]), str(about.get("usrid") or "")


def _read_speakers(source: Path, name: str, listing: Listing) -> dict[str, str]:
    """Return who speaks in each recording, if the corpus tells it."""
    path = source / name
    if not path.exists():
        return {}
    try:
        return {
            recording: speaker
            for prompt in json.loads(path.read_bytes()).values()
            for recording, speaker in _name_recordings(prompt["recordings"])
            if speaker
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        listing.note("unreadable: speakers are unknown", name)
        return {}


def _name_parts(folder: Path) -> list[str]:
    """Return the folder of the recordings, and the table of each split."""
    tables = PUBLIC_TABLES if (folder / PUBLIC_TABLES).is_dir() else ""
    is_public = (folder / PUBLIC_AUDIO).is_dir()
    audio = PUBLIC_AUDIO if is_public else "slurp_real"
    return [audio, *(f"{tables}{split}.jsonl" for split in SPLITS)]


CORPUS = Corpus(
    name="slurp",
    summary="SLURP: real recordings, near and far (train, devel, test)",
    layout=LAYOUT,
    list_work=plan_slurp,
)
