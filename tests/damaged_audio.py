"""A corpus with one row of each kind of bad audio that `verify` knows."""

from pathlib import Path

import numpy as np
import soundfile

from summarymixing.data.manifest import Row, write_manifest

RATE = 16_000


def speech(seed: int, seconds: float = 1.0, peak: float = 0.5) -> np.ndarray:
    """Return noise whose loudness rises and falls, at a peak."""
    rng = np.random.default_rng(seed)
    samples = rng.standard_normal(round(seconds * RATE))
    samples *= 1.1 + np.sin(np.arange(len(samples)) / 1000)
    return (samples / np.abs(samples).max() * peak).astype(np.float32)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write(folder: Path, name: str, samples, rate=RATE, **options) -> Path:
    path = folder / name
    if not options:  # exactly the same numbers in every format
        samples = np.round(samples * 32767).astype(np.int16)
    soundfile.write(path, samples, rate, **options)
    return path


def write_corpus(folder: Path) -> None:
    """Write manifests of sound rows, and of one row of each bad kind."""
    audio = folder / "audio"
    audio.mkdir()
    good = write(audio, "good.flac", speech(1))
    unreadable = write(audio, "unreadable.flac", speech(2))
    unreadable.write_bytes(b"no audio at all")
    torn_flac = write(audio, "torn.flac", speech(3))
    truncate(torn_flac)
    torn_wav = write(audio, "torn.wav", speech(4))
    truncate(torn_wav)
    nan = speech(5)
    nan[100] = np.nan
    holes = np.zeros(RATE, dtype=np.float32)
    holes[: RATE // 20] = speech(6, 0.05)
    files = {
        "good": good,
        "good-8k": write(audio, "8k.wav", speech(7, 0.5), 8_000),
        "missing": audio / "missing.flac",
        "unreadable": unreadable,
        "torn-flac": torn_flac,
        "torn-wav": torn_wav,
        "nan": write(audio, "nan.wav", nan, subtype="FLOAT"),
        "quiet": write(audio, "quiet.wav", speech(8, peak=0.0009)),
        "holes": write(audio, "holes.wav", holes),
        "clipped": write(audio, "clip.wav", np.clip(speech(9) * 8, -1, 1)),
        "long": write(audio, "long.wav", speech(10, 1.2)),
        "again": write(audio, "again.wav", speech(1)),
    }
    rows = [Row(name, str(path), (), 1.0) for name, path in files.items()]
    rows.append(Row("short", str(good), ((0.5, 0.65),), 0.15))
    rows.append(Row("part", str(good), ((0.5, 1.0),), 0.5))
    seen = write(audio, "seen.flac", speech(11))
    in_valid = Row("seen-in-valid", str(seen), (), 1.0)
    write_manifest(folder / "train.csv", [in_valid, *rows])
    write_manifest(folder / "valid.csv", [Row("valid", str(seen), (), 1.0)])


# The reason that `verify` gives, by the id of the row.
REASONS = {
    "seen-in-valid": "duplicate",
    "missing": "missing",
    "unreadable": "unreadable",
    "torn-flac": "unreadable",
    "torn-wav": "truncated",
    "nan": "NaN or infinite samples",
    "quiet": "silent",
    "holes": "silent",
    "clipped": "clipped",
    "long": "wrong length",
    "again": "duplicate",
    "short": "too short",
}
