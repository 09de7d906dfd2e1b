"""What the tests of several processes share."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from summarymixing.data.manifest import Row, write_manifest


@pytest.fixture(scope="session")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return manifests of half a minute of noise in pieces of 1 to 2 s."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(20):
        path = folder / f"{number}.flac"
        seconds = 1 + number / 20
        wav = 0.1 * rng.standard_normal(int(seconds * 16_000))
        soundfile.write(path, wav, 16_000)
        rows.append(Row(str(number), str(path), (), seconds))
    write_manifest(folder / "train.csv", rows[3:])
    write_manifest(folder / "valid.csv", rows[:3])
    return folder
