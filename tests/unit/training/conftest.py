"""What tests of probes share: splits of noise."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import soundfile
import torch

from summarymixing.data.manifest import Row, write_manifest


@pytest.fixture(scope="session")
def write_split() -> Callable[[Path, str, Sequence[dict[str, str]]], None]:
    """Return a function that writes a manifest with these labels."""

    def write(
        folder: Path, split: str, labels: Sequence[dict[str, str]]
    ) -> None:
        rows = []
        for i, label in enumerate(labels):
            path = folder / f"{split}-{i}.wav"
            duration = 0.5 + 0.1 * i
            audio = torch.randn(round(16_000 * duration)).mul(0.1).numpy()
            soundfile.write(path, audio, samplerate=16_000)
            rows.append(Row(f"{split}-{i}", str(path), (), duration, label))
        write_manifest(folder / f"{split}.csv", rows)

    return write
