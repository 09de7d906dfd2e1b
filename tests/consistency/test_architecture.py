"""Imports point downwards, and never in a circle.

The table is that of summarymixing/README.md. Imports inside functions count.
"""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the ground up: what each part may import, itself aside.
GROUND = {"errors", "files"}
MAY_IMPORT = {
    "errors": set(),
    "model_card": set(),
    "html_page": set(),
    "options": set(),
    "files": {"errors"},
    "hub": {"errors"},
    "nnet": {"errors"},
    "data": GROUND | {"nnet", "options"},
    "pretrained": GROUND | {"nnet", "model_card", "hub"},
    "lobes": GROUND | {"nnet", "data", "pretrained", "hub"},
    "cost": GROUND | {"nnet", "data", "lobes"},
    "evaluation": GROUND | {"nnet", "data", "pretrained", "lobes"},
    "miniature": GROUND | {"data"},
    "run": GROUND | {"data", "nnet"},
    "suite": GROUND | {"run", "data", "html_page"},
}
MAY_IMPORT["integrations"] = GROUND | {"nnet", "data", "lobes"}
MAY_IMPORT["cli"] = {*MAY_IMPORT, "training"} - {
    "suite",
    "miniature",
    "integrations",
}
MAY_IMPORT["__main__"] = {"cli"}
MAY_IMPORT["training"] = set(MAY_IMPORT) - {
    "suite",
    "miniature",
    "cli",
    "__main__",
    "integrations",
}
MAY_IMPORT["recipes"] = set(MAY_IMPORT)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


FILES = {
    name_of(path): path
    for folder in ("summarymixing", "recipes")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


@cache
def imports_of(name: str) -> frozenset[str]:
    """Names of the files that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & FILES.keys() or {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    # The package itself only says what it is called.
    return frozenset(found & FILES.keys()) - {"summarymixing"}


def part_of(name: str) -> str:
    return name.removeprefix("summarymixing.").split(".")[0]


def test_parts_stand_above_what_they_import():
    TopologicalSorter(MAY_IMPORT).prepare()
    assert MAY_IMPORT.keys() | {"summarymixing"} == set(map(part_of, FILES))


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"summarymixing"}))
def test_imports_point_downwards(name):
    part = part_of(name)
    for imported in imports_of(name):
        allowed = MAY_IMPORT[part] | {part}
        assert part_of(imported) in allowed, f"{name} imports {imported}"


def test_no_imports_in_a_circle():
    try:
        TopologicalSorter({name: imports_of(name) for name in FILES}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")
