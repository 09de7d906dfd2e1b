"""The encoders of a comparison: a name for each, and what is in its files."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from summarymixing.errors import UserError

NAME = re.compile(r"\w[\w.+-]*")
# Folders that stand beside those of the encoders.
RESERVED = ("manifests", "preparation", "states")
CONFIGS = ("encoder.json", "config.json")  # ours, Hugging Face's
DIGESTED_SUFFIXES = (".json", ".safetensors", ".bin", ".pt", ".ckpt")
LOG_MEL = "log_mel"  # as probes take it: features without a model
CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class EncoderSource:
    """An encoder that is probed."""

    name: str  # in tables; also the name of its folder
    source: str  # what a probe gets: an absolute folder, a hub's name, log_mel
    random: bool = False  # take its architecture with random weights
    # A fingerprint of its files. A pre-training run renews its encoder at
    # every checkpoint: what was measured with an earlier one is not a result
    # of this one.
    digest: str = ""


def read_encoders(words: Sequence[str], *, random: bool) -> list[EncoderSource]:
    """Read the values of --encoder.

    Arguments
    ---------
    words : sequence of str
        "[NAME=]FOLDER", "[NAME=]HUB/NAME" or "[NAME=]log_mel".
    random : bool
        Add the first one again with random weights.

    Returns
    -------
    list of EncoderSource
        With distinct names. UserError for a folder without an encoder.
    """
    if not words:
        raise UserError("which encoder? --encoder=[NAME=]FOLDER")
    found = [(name, _find(source)) for name, source in map(_split, words)]
    derived = _name([source for _, source in found])
    encoders = [
        EncoderSource(name or derived[source], source, digest=digest_of(source))
        for name, source in found
    ]
    if random:
        first = encoders[0]
        if first.source == LOG_MEL:
            raise UserError(
                f"--random draws the weights of the first encoder anew, and "
                f"{LOG_MEL} has none; name another one first"
            )
        twin = replace(first, name=f"{first.name}_random", random=True)
        encoders.append(twin)
    _check_names(encoders)
    return encoders


def _split(word: str) -> tuple[str | None, str]:
    """Split "NAME=SOURCE"; a folder may hold "=" in its own name."""
    name, equals, source = word.partition("=")
    if not equals or "/" in name or Path(word).exists():
        return None, word
    return name, source


def _find(source: str) -> str:
    """Return an absolute folder, or what is not a folder as it is."""
    folder = Path(source).expanduser()
    if source == LOG_MEL:
        return source
    if folder.is_dir():
        if not any((folder / name).is_file() for name in CONFIGS):
            inside = folder / "encoder"
            raise UserError(
                f"--encoder={source} holds no encoder"
                + (f"; did you mean {inside}?" if inside.is_dir() else "")
            )
        return str(folder.resolve())
    owner, slash, name = source.partition("/")
    is_hub_name = slash and NAME.fullmatch(owner) and NAME.fullmatch(name)
    # Where there is a folder of that name, it is a path with a mistake.
    if not is_hub_name or Path(owner).exists():
        raise UserError(
            f"--encoder={source}: there is no such folder; give OUTPUT/encoder "
            "of a pre-training run"
        )
    return source


def _name(sources: Sequence[str]) -> dict[str, str]:
    """Name sources by their last folder, and by more where that is shared."""
    parts = {}
    for source in sources:
        path = re.sub(r"[^\w.+/-]+", "_", source).strip("/")
        parts[source] = path.removesuffix("/encoder").split("/")
    names = {source: folders[-1] for source, folders in parts.items()}
    for depth in range(2, max(map(len, parts.values())) + 1):
        counts = Counter(names.values())
        for source, name in names.items():
            if counts[name] > 1:
                names[source] = "_".join(parts[source][-depth:])
    return names


def _check_names(encoders: Sequence[EncoderSource]) -> None:
    for name, count in Counter(e.name for e in encoders).items():
        if count > 1:
            raise UserError(
                f"{count} encoders are called '{name}'; give each its own: "
                "--encoder=NAME=FOLDER"
            )
        if not NAME.fullmatch(name) or name in RESERVED:
            raise UserError(
                f"'{name}' cannot name an encoder: use letters, digits and "
                f"'_.+-', but not {' or '.join(RESERVED)}"
            )


def digest_of(source: str) -> str:
    """Return a fingerprint of the files; of a hub's name, the name."""
    folder = Path(source)
    if not folder.is_dir():
        return source
    summary = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.iterdir()):
        if path.suffix not in DIGESTED_SUFFIXES or path.name.startswith("."):
            continue
        summary.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                summary.update(chunk)
    return summary.hexdigest()
