"""Files of hyper-parameters: inheritance, overrides, checks before building.

A file may begin with ``base: ../shared/pretraining.yaml``; its other
keys then override that file, and the command line overrides both. See
`yaml_trees` for the rules.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ruamel.yaml
import yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

import summarymixing
from summarymixing.errors import UserError
from summarymixing.run.yaml_trees import (
    COMMAND_LINE,
    RootKey,
    flatten,
    merge,
    one_line,
    parse,
    placeholders,
    read_tree,
    round_trip_yaml,
)

HPARAMS_FOLDER = Path(summarymixing.__path__[0]).resolve().parent / "hparams"


@dataclass
class HparamsFile:
    r"""A YAML file of hyper-parameters, joined with everything it inherits.

    Arguments
    ---------
    path : Path
        The file that the user named.
    tree : CommentedMap
        All keys, as one ruamel.yaml tree: tags and references unresolved.
    keys : dict of str to RootKey
        The file that gives each root key its value, and its comment.

    Example
    -------
    >>> path = getfixture("tmp_path") / "recipe.yaml"
    >>> _ = path.write_text("width: 8   # of a layer\ndouble: !ref <width> * 2")
    >>> file = HparamsFile.read(path)
    >>> file.override({"width": 5})
    >>> file.build()
    {'width': 5, 'double': 10}
    """

    path: Path
    tree: CommentedMap
    keys: dict[str, RootKey]

    @classmethod
    def read(cls, path: Path) -> HparamsFile:
        """Read a file with its bases; UserError if something is wrong."""
        path = find_hparams_file(path)
        return cls(path, *read_tree(path))

    def override(self, overrides: str | Mapping[str, Any]) -> None:
        """Replace values, as ``--key=value`` does; UserError on unknown keys.

        Arguments
        ---------
        overrides : str or mapping
            YAML text, or keys and values (values may be ruamel.yaml nodes).
        """
        if isinstance(overrides, str):
            overrides = parse(overrides, COMMAND_LINE)
        source = f"{COMMAND_LINE} for {self.path}"
        merge(self.tree, CommentedMap(overrides), source)

    def changes_since(self, earlier: str) -> list[str]:
        """Return what differs from an earlier text, as ``seed: 1 -> 2``."""
        old = dict(flatten(parse(earlier, "hyperparams.yaml")))
        new = dict(flatten(self.tree))
        return [
            f"{name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
            for name in {**old, **new}
            if old.get(name) != new.get(name)
        ]

    def as_text(self) -> str:
        """Return one self-contained YAML file that repeats this recipe."""
        stream = io.StringIO()
        round_trip_yaml().dump(self.tree, stream)
        return stream.getvalue()

    def value(self, key: str) -> Any:
        """Return a root value, or None, after references, without objects."""
        return round_trip_yaml().load(self._resolved_text()).get(key)

    def describe(self) -> str:
        """Return the root keys, with value and comment, below their files.

        Objects that are made of other keys are named only.
        """
        lines: dict[Path, list[str]] = {}
        objects: dict[Path, list[str]] = {}
        for key, (file, comment) in self.keys.items():
            value = one_line(self.tree[key])
            if value.startswith(("!new:", "!apply:")):
                objects.setdefault(file, []).append(key)
            else:
                line = f"  --{f'{key}={value}':<38}  {comment}"
                lines.setdefault(file, []).append(line.rstrip())
        for file, keys in objects.items():
            shown = ", ".join(key for key in keys if not key.startswith("_"))
            if shown:
                lines.setdefault(file, []).append(f"  objects: {shown}")
        bases_first = sorted(lines, key=self.path.resolve().__eq__)
        return "\n".join(
            line
            for file in bases_first
            for line in (f"{_short(file)}:", *lines[file])
        )

    def build(self) -> dict[str, Any]:
        """Build every object with HyperPyYAML.

        Returns
        -------
        dict
            Root keys and their values. UserError for a value that is still
            to be given, an invalid reference, or arguments that a constructor
            refuses.
        """
        text = self._resolved_text()
        try:
            return load_hyperpyyaml(text, loader=_loader_that_names_keys(self))
        except YAMLError as error:
            problem = getattr(error, "problem", None) or str(error)
            if "'!ref'" in problem:  # left over when references never end
                problem = "references that lead back to themselves"
            raise UserError(f"{self.path}: {problem}") from error
        finally:
            # HyperPyYAML changes these defaults for the whole process and
            # leaves them so when a constructor raises.
            for library in (yaml, ruamel.yaml):
                construct = library.constructor.BaseConstructor.construct_object
                construct.__defaults__ = (False,)

    def _resolved_text(self) -> str:
        missing = list(placeholders(self.tree))
        if missing:
            raise UserError(
                f"{self.path} needs "
                + ", ".join(self._explain_placeholder(key) for key in missing)
            )
        try:
            return resolve_references(self.as_text()).getvalue()
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{self.path}: {_message(error)}") from error

    def _explain_placeholder(self, key: str) -> str:
        comment = self.keys[key].comment if key in self.keys else ""
        return f"--{key}=..." + (f" ({comment})" if comment else "")


def _short(file: Path) -> str:
    """Return a path as users type it where it lies below `hparams`."""
    root = HPARAMS_FOLDER.parent
    return str(file.relative_to(root) if root in file.parents else file)


def load_hparams(
    path: Path, overrides: str | Mapping[str, Any] = ""
) -> dict[str, Any]:
    r"""Read a recipe YAML and build its objects.

    Arguments
    ---------
    path : Path
        The file; also relative to the repository's ``hparams`` folder.
    overrides : str or mapping
        YAML text (``"seed: 3\nprecision: bf16"``) or keys and values.

    Returns
    -------
    dict
        Root keys and their values.

    Example
    -------
    >>> path = getfixture("tmp_path") / "recipe.yaml"
    >>> _ = path.write_text("seed: 1\nfolder: !ref results/<seed>")
    >>> load_hparams(path, "seed: 2")
    {'seed': 2, 'folder': 'results/2'}
    """
    recipe = HparamsFile.read(path)
    if overrides:
        recipe.override(overrides)
    return recipe.build()


def read_value(text: str, source: str) -> Any:
    """Return what a user typed after ``--key=``: YAML, or else plain text.

    Arguments
    ---------
    text : str
        ``3``, ``[1, 2]``, ``True``, ``!name:a.B {c: 1}``, ``any text # x``.
    source : str
        Named in the UserError when a list, mapping or tag is malformed.

    Returns
    -------
    Any
        A value or a ruamel.yaml node.

    Example
    -------
    >>> read_value("[1, 2e-3]", "--lr"), read_value("a: b #1", "--note")
    ([1, 0.002], 'a: b #1')
    """
    if text[:1] and text[0] in "[{!\"'":
        return parse(f"value: {text}", source)["value"]
    try:
        value = round_trip_yaml().load(text)
    except YAMLError:
        return text
    return text if isinstance(value, str | dict | list) else value


def check_choices(
    hparams: Mapping[str, Any], choices: Mapping[str, Sequence[str]]
) -> None:
    """Raise UserError for a value that is not allowed for its key.

    Arguments
    ---------
    hparams : mapping
        Keys and values.
    choices : mapping
        The allowed values of each key that is checked.

    Example
    -------
    >>> check_choices({"order": "random"}, {"order": ("ascending", "random")})
    """
    for key, allowed in choices.items():
        if hparams[key] not in allowed:
            raise UserError(
                f"{key} must be one of {', '.join(allowed)}, not "
                f"{hparams[key]!r}."
            )


def check_minima(
    hparams: Mapping[str, Any], minima: Mapping[str, float]
) -> None:
    """Raise UserError for what is no number, or one below its minimum.

    Arguments
    ---------
    hparams : mapping
        Keys and values.
    minima : mapping
        The lowest allowed value of each key that is checked.

    Example
    -------
    >>> check_minima({"num_workers": 4}, {"num_workers": 0})
    """
    for key, minimum in minima.items():
        value = hparams[key]
        is_number = isinstance(value, int | float) and value is not True
        if not (is_number and value >= minimum):
            raise UserError(
                f"{key} must be at least {minimum:g}, not {value!r}."
            )


def find_hparams_file(path: Path) -> Path:
    """Return an existing file, or raise a UserError that lists those there.

    Arguments
    ---------
    path : Path
        Relative to the working folder, to ``hparams`` or to its parent.
    """
    places = (Path(), HPARAMS_FOLDER, HPARAMS_FOLDER.parent)
    candidates = [place / path for place in places]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    beside = (sorted(file.parent.glob("*.yaml")) for file in candidates)
    all_recipes = sorted(HPARAMS_FOLDER.rglob("*.yaml"))
    present = [str(file) for file in next(filter(None, beside), all_recipes)]
    raise UserError(
        f"there is no file {path}; "
        + (f"there are: {', '.join(present)}" if present else "give a YAML")
    )


def _message(error: BaseException) -> str:
    """Return the text of an exception, also where it has several arguments."""
    return ": ".join(str(part) for part in error.args) or type(error).__name__


def _loader_that_names_keys(recipe: HparamsFile) -> type[ruamel.yaml.Loader]:
    """Return a loader whose constructor errors name the file and root key."""

    class Loader(ruamel.yaml.Loader):
        """Turns what a constructor refuses into a UserError."""

        def construct_document(self, node: Any) -> Any:
            self.key_of_node: dict[int, str] = {}
            for key, value in node.value:
                self.key_of_node.setdefault(id(value), key.value)
            return super().construct_document(node)

        def construct_object(self, node: Any, deep: bool = True) -> Any:
            try:
                return super().construct_object(node, deep=deep)
            except (TypeError, ValueError, ImportError) as error:
                key = self.key_of_node.get(id(node))
                if key is None:  # an inner node: its root key is further up
                    raise
                raise UserError(
                    f"{recipe.path}, key '{key}': {_message(error)}"
                ) from error

    return Loader
