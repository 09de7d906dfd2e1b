"""`make demo AUDIO=folder`, cut short: every step runs and the page is made."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Return a folder with two minutes of noise, stereo and at 8 kHz."""
    folder = tmp_path / "my recordings"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(30):
        noise = 0.1 * rng.standard_normal((4 * 8_000, 2))
        soundfile.write(folder / f"{number}.wav", noise, 8_000)
    return folder


def test_demo_on_own_recordings(recordings, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "recipes/demo.py"),
            str(tmp_path / "demo"),
            f"--audio={recordings}",
            "--updates=2",
            "--probe_epochs=1",
            "--probe_hours=0.02",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "demo" / "report.html").read_text("utf-8")
    assert "your recordings" in page
    assert page.count("<svg") == 2
    for task in ("LibriSpeech LSTM", "SLURP LSTM", "VoxCeleb1 ECAPA"):
        (line,) = re.findall(f"<tr><td>miniature {task}\n.*?</tr>", page, re.S)
        # Four updates of nothing decide nothing.
        assert line.count("[") == 2
        assert line.endswith("<td>not decided by so few utterances</td></tr>")
    assert not re.search("(?<!miniature )(LibriSpeech|SLURP|VoxCeleb1) ", page)
    assert (tmp_path / "demo" / "probes" / "report.html").is_file()
