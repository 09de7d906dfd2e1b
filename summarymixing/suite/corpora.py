"""The file that says where each corpus is.

    manifests: /scratch/manifests       # optional; here MANIFESTS/CORPUS
    librispeech: /corpora/LibriSpeech
    iemocap:
      source: /corpora/IEMOCAP_improvised
      options: [--overwrite]
    my_corpus:
      manifests: /scratch/manifests/mine  # prepared already: needs no source
    abx: {items: /corpora/dev-clean.item, audio: /corpora/LibriSpeech/dev-clean}

Paths are relative to the file. A corpus that recipes/prepare.py does not know
may have any name, and needs manifests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from summarymixing.errors import UserError
from summarymixing.run.yaml_trees import nearest

# Key of the file -> what recipes/prepare.py calls the corpus.
PREPARE_NAMES = {
    "librispeech": "librispeech",
    "commonvoice_cy": "commonvoice",
    "commonvoice_eu": "commonvoice",
    "slurp": "slurp",
    "iemocap": "iemocap",
    "voxceleb1": "voxceleb1",
    "fsdd": "fsdd",
}
MANIFESTS = "manifests"
ITEMS, AUDIO = "items", "audio"  # of ABX, which takes recordings as they are
KEYS_OF_AN_ENTRY = ("source", MANIFESTS, "options", ITEMS, AUDIO)


@dataclass(frozen=True)
class CorpusEntry:
    """One corpus of the file."""

    name: str  # its key in the file
    manifests: Path  # where its manifests are
    source: Path | None = None  # its folder; None: prepared already
    options: tuple[str, ...] = ()  # what recipes/prepare.py gets
    items: Path | None = None  # an item file; then there are no manifests
    audio: Path | None = None  # the folder of its recordings


def read_corpora(path: Path, default_manifests: Path) -> dict[str, CorpusEntry]:
    """Read and check the file.

    Arguments
    ---------
    path : Path
        The YAML file; one UserError names everything that is wrong in it.
    default_manifests : Path
        Where a folder of manifests for each corpus goes by default.

    Returns
    -------
    dict
        The corpora by name.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "vox").mkdir()
    >>> path = folder / "corpora.yaml"
    >>> _ = path.write_text("voxceleb1: vox")
    >>> corpus = read_corpora(path, folder / "manifests")["voxceleb1"]
    >>> corpus.source == folder / "vox"
    True
    """
    content = _load(path)
    parent = path.resolve().parent
    problems: list[str] = []
    root = default_manifests
    if MANIFESTS in content:
        where = content.pop(MANIFESTS)
        if isinstance(where, str):
            root = parent / Path(where).expanduser()
        else:
            problems.append(f"{MANIFESTS}: not a folder: {where!r}")
    corpora = {}
    for name, value in content.items():
        parts = value if isinstance(value, Mapping) else {"source": value}
        problem = _find_problem(str(name), parts)
        if problem is None:
            folders = {
                key: parent / Path(parts[key]).expanduser()
                for key in ("source", MANIFESTS, ITEMS, AUDIO)
                if key in parts
            }
            corpora[name] = CorpusEntry(
                name,
                folders.get(MANIFESTS, root / name),
                folders.get("source"),
                tuple(parts.get("options", ())),
                folders.get(ITEMS),
                folders.get(AUDIO),
            )
            problem = _find_missing_folder(corpora[name])
        if problem is not None:
            problems.append(f"{name}: {problem}")
    if not content:
        known = ", ".join(PREPARE_NAMES)
        problems.append(f"it names no corpus; name one or more of {known}")
    if problems:
        raise UserError("\n  ".join([f"{path} is not right:", *problems]))
    return corpora


def _load(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"--corpora={path}: {error.strerror}; give a YAML file with lines "
            "like 'librispeech: FOLDER'"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} has no lines like 'librispeech: FOLDER'")
    return content


def _find_problem(name: str, parts: Mapping[Any, Any]) -> str | None:
    """Return what is wrong with the keys and values of an entry."""
    if {ITEMS, AUDIO} & set(parts):
        if set(parts) != {ITEMS, AUDIO}:
            return "items and audio go together, and with no other key"
        wrong = [v for v in parts.values() if not isinstance(v, str)]
        return f"not a path: {wrong[0]!r}" if wrong else None
    is_own = name not in PREPARE_NAMES
    if is_own and ("source" in parts or MANIFESTS not in parts):
        return (
            "recipes/prepare.py does not know this corpus; "
            f"{nearest(name, [*PREPARE_NAMES, MANIFESTS])} Your own needs "
            "{manifests: FOLDER}, and no source"
        )
    for key, value in parts.items():
        if key not in KEYS_OF_AN_ENTRY:
            return f"no such key '{key}'; {nearest(str(key), KEYS_OF_AN_ENTRY)}"
        if key == "options":
            if not isinstance(value, list) or not all(
                isinstance(option, str) and option.startswith("--")
                for option in value
            ):
                return f"options is a list like [--key=value], not {value!r}"
        elif not isinstance(value, str):
            return f"not a folder: {value!r}"
    if not {"source", MANIFESTS} & set(parts):
        return "neither a source nor manifests"
    return None


def _find_missing_folder(entry: CorpusEntry) -> str | None:
    if entry.items is not None and entry.audio is not None:
        if not entry.items.is_file():
            return f"there is no item file {entry.items}"
        return (
            None
            if entry.audio.is_dir()
            else f"there is no folder {entry.audio}"
        )
    if entry.source is not None and not entry.source.is_dir():
        return f"there is no folder {entry.source}"
    if entry.source is None and not any(entry.manifests.glob("*.csv")):
        return (
            f"there are no manifests in {entry.manifests}; give the source to "
            "have them prepared, or run recipes/prepare.py first"
        )
    return None
