"""Miniature corpora for the tests of preparation."""

import json
import shutil

import numpy as np
import pytest
import soundfile

RATE = 16_000


@pytest.fixture
def write_recording():
    """Write a recording of a given length; FLAC keeps silence tiny."""

    def write(path, seconds, rate=RATE, channels=1):
        path.parent.mkdir(parents=True, exist_ok=True)
        silence = np.zeros((round(seconds * rate), channels), dtype=np.int16)
        soundfile.write(path, silence, rate)
        return path

    return write


@pytest.fixture
def add_librilight(write_recording):
    """Add a recording with voice activity to a Libri-Light of one's own."""

    def add(stem, clips, seconds=100.0):
        path = write_recording(stem.with_name(f"{stem.name}.flac"), seconds)
        metadata = {"book_meta": {"id": "1"}, "voice_activity": clips}
        path.with_suffix(".json").write_text(json.dumps(metadata))
        return path

    return add


@pytest.fixture(params=["missing", "empty", "truncated"])
def damage(request):
    """Damage a recording; return the reason that the account should give."""

    def spoil(path):
        content = path.read_bytes()
        path.unlink()
        if request.param != "missing":
            kept = len(content) // 2 if request.param == "truncated" else 0
            path.write_bytes(content[:kept])
        reason = "unreadable" if request.param == "empty" else request.param
        return f"recording: {reason}"

    return spoil


@pytest.fixture
def corpus(built, tmp_path):
    """Copy the miniature that the module has built, to be damaged."""
    return shutil.copytree(built, tmp_path / "corpus")
