"""Trees of YAML files: reading, joining and checking, before any object.

A file is joined to its bases before HyperPyYAML builds the objects, because
HyperPyYAML itself accepts misspelt keys inside an ``!include:`` and, where an
override carries a tag of its own, keeps the old tag with the new arguments.

Rules of an override:

- every key must exist in what it overrides; an empty slot ``{}`` takes any,
  and a file may add a root key to its base if it refers to it with ``!ref``
  (a misspelt key is referred to by nobody);
- a plain mapping is merged, key by key;
- a text replaces neither a number, nor True or False, nor a list;
- everything else (a number, a list, a tagged value) replaces what was there.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ruamel.yaml
from ruamel.yaml.comments import CommentedMap, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError

from summarymixing.errors import UserError

INCLUDE = "!include:"
COMMAND_LINE = "command line"
OUTPUT_FOLDER = "output_folder"
# "key: value   # comment", for keys at the root of a file
ROOT_KEY_WITH_COMMENT = re.compile(
    r"^(\w+):.*?[ \t]#[ \t]*(.*?)[ \t]*$", re.MULTILINE
)
# What stands for a number, as in `--fold=all`.
NAMED_NUMBERS = frozenset({"all"})
REFERENCE = re.compile(r"<([^>\[.]+)([^>]*)>")


class RootKey(NamedTuple):
    """What a file says beside the value of a root key."""

    file: Path  # the last one that gives the value
    comment: str  # behind the value, without its sign


def read_tree(
    path: Path, readers: tuple[Path, ...] = ()
) -> tuple[CommentedMap, dict[str, RootKey]]:
    """Read one file, joined to its base.

    Arguments
    ---------
    path : Path
        The file.
    readers : tuple of Path
        The files that have it as their base, directly or not.

    Returns
    -------
    CommentedMap
        All keys.
    dict
        Where each root key comes from. UserError for files that do not
        exist, are not YAML, or override what is not there.
    """
    path = path.resolve()
    if path in readers:
        circle = " -> ".join(str(file) for file in (*readers, path))
        raise UserError(f"files that are each other's base: {circle}")
    if not path.is_file():
        raise UserError(f"{readers[-1]} names {path}, which does not exist")
    text = path.read_text(encoding="utf-8")
    if INCLUDE in text:
        raise UserError(
            f"{path}: {INCLUDE} is not supported, since misspelt keys inside "
            "it would pass. Begin the file with 'base: OTHER.yaml' and state "
            "only what differs."
        )
    tree = parse(text, path)
    base = tree.pop("base", None)
    comments = dict(ROOT_KEY_WITH_COMMENT.findall(text))
    if base is None:
        return tree, {k: RootKey(path, comments.get(k, "")) for k in tree}
    joined, keys = read_tree(path.parent / str(base), (*readers, path))
    for key in tree:
        inherited = keys[key].comment if key in keys else ""
        keys[key] = RootKey(path, comments.get(key, inherited))
    referred_to = {name for name, _ in REFERENCE.findall(text)}
    for key in [k for k in tree if k not in joined and k in referred_to]:
        joined[key] = tree.pop(key)
    merge(joined, tree, str(path))
    return joined, keys


def round_trip_yaml() -> ruamel.yaml.YAML:
    """Return a reader and writer that keeps tags, references and comments."""
    round_trip = ruamel.yaml.YAML()
    round_trip.width = 4096  # long values stay on their line
    return round_trip


def parse(text: str, source: Path | str) -> CommentedMap:
    """Parse YAML text whose root must be a mapping."""
    try:
        tree = round_trip_yaml().load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        problem = " ".join((error.problem or "not YAML").split())
        raise UserError(f"{source}, line {line}: {problem}") from error
    if not isinstance(tree, CommentedMap):
        raise UserError(f"{source} must hold 'key: value' lines")
    return tree


def merge(
    target: CommentedMap,
    overrides: CommentedMap,
    source: str,
    place: tuple[str | int, ...] = (),
) -> None:
    """Apply overrides to a tree in place, checking every key."""
    for key, new in overrides.items():
        name = ".".join(str(part) for part in (*place, key))
        if key not in target:
            raise UserError(
                f"{_where(source, overrides, key)}: unknown key '{name}'; "
                + nearest(str(key), target)
            )
        old = target[key]
        if misfit := _misfit(old, new):
            raise UserError(
                f"{_where(source, overrides, key)}: '{name}' {misfit}"
            )
        merged = old and isinstance(old, CommentedMap) and not _tag(new)
        if merged and new is not None:
            merge(old, new, source, (*place, key))
        else:
            target[key] = new


def _misfit(old: Any, new: Any) -> str | None:
    """Return why a value may not stand where another one stood, if so."""
    if _tag(new) or new is None or old is None or _tag(old) == "!PLACEHOLDER":
        return None
    if isinstance(old, CommentedMap) != isinstance(new, CommentedMap):
        return (
            f"is {one_line(old)}, so {one_line(new)} cannot replace it; "
            "a mapping overrides a mapping, a value overrides a value"
        )
    kind = _kind(old) if isinstance(new, str) else None
    if kind is None or new in NAMED_NUMBERS:
        return None
    return f"must be {kind} (it is {one_line(old)}), not {one_line(new)!r}"


def _kind(old: Any) -> str | None:
    """Return what a value is that no text may replace."""
    if isinstance(old, bool):
        return "True or False"
    if isinstance(old, int | float):
        return "a number"
    return "a list" if isinstance(old, list) and not _tag(old) else None


def nearest(key: str, valid: Iterable[str]) -> str:
    """Return a hint for a misspelt key: the nearest one, or all of them.

    A folder that is written to is proposed to nobody who did not mean one.
    """
    names = [str(name) for name in valid]
    if not key.startswith(("out", "-out")):
        names = [name for name in names if name != OUTPUT_FOLDER]
    matches = difflib.get_close_matches(key, names, n=1)
    if matches:
        return f"did you mean '{matches[0]}'?"
    return f"the keys there are: {', '.join(names)}"


def _where(source: str, overrides: CommentedMap, key: str) -> str:
    """Return the file and, where it is known, the line of a key."""
    positions = getattr(overrides.lc, "data", None) or {}
    return (
        f"{source}, line {positions[key][0] + 1}"
        if key in positions and not source.startswith(COMMAND_LINE)
        else source
    )


def placeholders(node: Any, place: str = "") -> Iterator[str]:
    """Yield the names of values that the user still has to give."""
    if _tag(node) == "!PLACEHOLDER":
        yield place
    for key, child in _children(node):
        yield from placeholders(child, f"{place}.{key}" if place else str(key))


def _children(node: Any) -> list[tuple[Any, Any]]:
    if isinstance(node, dict):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, list) else []


def _tag(node: Any) -> str:
    """Return a node's explicit tag, such as ``!name:a.B``, or ''."""
    tag = getattr(node, "tag", None)
    return str(tag.value or "") if tag is not None else ""


def one_line(node: Any) -> str:
    """Return a value as a user would type it; arguments of objects as '...'."""
    tag = _tag(node)
    if tag == "!PLACEHOLDER":
        return "(required)"
    if isinstance(node, TaggedScalar):
        return f"{tag} {node.value}".strip()
    if isinstance(node, dict) and (tag or node):
        return f"{tag} {{...}}".strip()
    return "null" if node is None else str(copy.copy(node))


def flatten(node: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted names and values as a user would type them."""
    if isinstance(node, dict) and node:
        if tag := _tag(node):
            yield place, tag
        for key, child in node.items():
            yield from flatten(child, f"{place}.{key}" if place else str(key))
    else:
        yield place, one_line(node)
