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
from pathlib import Path
from typing import Any

from summarymixing.data.prepare.common import (
    assign_splits,
    check_holds,
    check_source,
    list_files,
)
from summarymixing.data.prepare.listing import (
    Listing,
    Recording,
    process_recording,
)
from summarymixing.data.prepare.pipeline import (
    Corpus,
    Preparation,
    add_no_arguments,
)

SPLITS = ("train", "devel", "test")
PUBLIC_TABLES, PUBLIC_AUDIO = "dataset/slurp/", "audio/slurp_real"
METADATA = "metadata.json"
LAYOUT = (
    "slurp_real/NAME.flac and train.jsonl, devel.jsonl, test.jsonl (these "
    "perhaps below dataset/slurp)"
)
UNKNOWN_SPEAKER = "unknown"


def plan_slurp(
    corpus_dir: Path,
    manifest_dir: Path,
) -> Preparation:
    """Plan train.csv, devel.csv and test.csv: one row per recording.

    The labels are speaker (or "unknown"), scenario, action, intent (the two
    joined by "_") and transcript.

    Arguments
    ---------
    corpus_dir : Path
        The folder of the corpus.
    manifest_dir : Path
        Where the manifests and report.json are written.

    Returns
    -------
    Preparation
        Its report tells the hours kept, and the names of unusable recordings
        and lines.
    """
    corpus_dir = check_source(corpus_dir)
    tables, audio = _find_folders(corpus_dir)
    listing = Listing()
    speakers = _read_speakers(corpus_dir, f"{tables}{METADATA}", listing)
    for split in SPLITS:
        for place, line in listing.read_lines(
            corpus_dir, f"{tables}{split}.jsonl"
        ):
            _add_prompt(listing, line, place, split, audio, speakers)
    files = list_files(corpus_dir, (".flac",), below=audio)
    return Preparation(
        corpus="slurp",
        corpus_dir=corpus_dir,
        manifest_dir=manifest_dir,
        options={},
        files=files + list_files(corpus_dir, (".jsonl", METADATA)),
        tasks=listing.tasks,
        work=partial(process_recording, root=corpus_dir),
        assign=partial(
            assign_splits,
            splits=SPLITS,
            advice=f"Expected {LAYOUT}. Copy the tables and the audio again.",
        ),
        expected=LAYOUT,
        replaces=[f"{split}.csv" for split in SPLITS],
        listed=listing.outcome,
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


def _read_speakers(
    corpus_dir: Path, name: str, listing: Listing
) -> dict[str, str]:
    """Return who speaks in each recording, if the corpus tells it."""
    path = corpus_dir / name
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


def _find_folders(corpus_dir: Path) -> tuple[str, str]:
    """Return the folder of the tables, and that of the recordings."""
    has_tables = (corpus_dir / PUBLIC_TABLES).is_dir()
    has_audio = (corpus_dir / PUBLIC_AUDIO).is_dir()
    tables = PUBLIC_TABLES if has_tables else ""
    audio = PUBLIC_AUDIO if has_audio else "slurp_real"
    check_holds(
        corpus_dir,
        [audio, *(f"{tables}{split}.jsonl" for split in SPLITS)],
        f"Give the folder that holds {LAYOUT} as SOURCE.",
    )
    return tables, audio


CORPUS = Corpus(
    name="slurp",
    summary="SLURP: real recordings, near and far (train, devel, test)",
    add_arguments=add_no_arguments,
    plan=plan_slurp,
)
