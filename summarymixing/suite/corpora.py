"""The file that says where each corpus is.

    manifests: /scratch/manifests       # optional; here MANIFESTS/CORPUS
    librispeech: /corpora/LibriSpeech
    iemocap:
      source: /corpora/IEMOCAP_improvised
      options: [--expected_utterances=0]
    voxceleb1:
      manifests: /scratch/manifests/vox # prepared already: needs no source

Paths are relative to the file.
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
CORPORA = {
    "librispeech": "librispeech",
    "commonvoice_cy": "commonvoice",
    "commonvoice_eu": "commonvoice",
    "slurp": "slurp",
    "iemocap": "iemocap",
    "voxceleb1": "voxceleb1",
    "fsdd": "fsdd",
}
MANIFESTS = "manifests"
PARTS = ("source", MANIFESTS, "options")


@dataclass(frozen=True)
class Corpus:
    """One corpus of the file.

    Arguments
    ---------
    name : str
        Key of `CORPORA`.
    manifests : Path
        Folder of its manifests.
    source : Path, optional
        Folder of the corpus; without, the manifests are there already.
    options : tuple of str
        For recipes/prepare.py.
    """

    name: str
    manifests: Path
    source: Path | None = None
    options: tuple[str, ...] = ()


def read_corpora(path: Path, default_manifests: Path) -> dict[str, Corpus]:
    """Read and check the file.

    Arguments
    ---------
    path : Path
        The YAML file.
    default_manifests : Path
        Where manifests go, a folder for each corpus, if the file does not
        say it.

    Returns
    -------
    dict
        Corpora by name; one UserError that has everything that is wrong.

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
    place = default_manifests
    if MANIFESTS in content:
        where = content.pop(MANIFESTS)
        if isinstance(where, str):
            place = parent / Path(where).expanduser()
        else:
            problems.append(f"{MANIFESTS}: not a folder: {where!r}")
    corpora = {}
    for name, value in content.items():
        if name not in CORPORA:
            hint = nearest(str(name), [*CORPORA, MANIFESTS])
            problems.append(f"{name}: no such corpus; {hint}")
            continue
        corpus = _read_corpus(name, value, parent, place, problems)
        if corpus is not None:
            corpora[name] = corpus
    if not content:
        problems.append(f"no corpus in it; one or more of {', '.join(CORPORA)}")
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


def _read_corpus(
    name: str, value: Any, parent: Path, place: Path, problems: list[str]
) -> Corpus | None:
    """Read one entry; what is wrong is added to `problems`."""
    parts = value if isinstance(value, Mapping) else {"source": value}
    wrong = _find_problem(parts)
    if wrong:
        problems.append(f"{name}: {wrong}")
        return None
    manifests = place / name
    if MANIFESTS in parts:
        manifests = parent / Path(parts[MANIFESTS]).expanduser()
    source = None
    if "source" in parts:
        source = parent / Path(parts["source"]).expanduser()
    if source is not None and not source.is_dir():
        problems.append(f"{name}: there is no folder {source}")
    if source is None and not any(manifests.glob("*.csv")):
        problems.append(
            f"{name}: there are no manifests in {manifests}; give the source "
            "to have them prepared"
        )
    return Corpus(name, manifests, source, tuple(parts.get("options", ())))


def _find_problem(parts: Mapping[Any, Any]) -> str | None:
    """Return what is wrong with the shape of an entry."""
    for key, value in parts.items():
        if key not in PARTS:
            return f"no such key '{key}'; {nearest(str(key), PARTS)}"
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
