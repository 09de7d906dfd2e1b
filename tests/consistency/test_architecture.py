"""Imports point downwards, and never in a circle."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "summarymixing"

# From the ground up; the rooms of one floor know nothing of each other.
FLOORS = [
    {"errors", "files", "model_card"},
    {"nnet", "html_page"},
    {"data", "pretrained"},
    {"lobes"},
    {"run", "miniature"},
    {"training", "suite"},
    {"recipes"},
]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


FILES = {
    name_of(path): path
    for folder in (PACKAGE, ROOT / "recipes")
    for path in sorted(folder.rglob("*.py"))
}


@cache
def imports_of(name: str) -> frozenset[str]:
    """Names of the files that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & FILES.keys() or {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return frozenset(found & FILES.keys()) - {"summarymixing"}


def room_of(name: str) -> str:
    return name.removeprefix("summarymixing.").split(".")[0]


def floor_of(name: str) -> int:
    (floor,) = (i for i, rooms in enumerate(FLOORS) if room_of(name) in rooms)
    return floor


@pytest.mark.parametrize("name", FILES.keys() - {"summarymixing"})
def test_imports_point_downwards(name):
    for imported in imports_of(name):
        rooms = room_of(name), room_of(imported)
        downwards = floor_of(imported) < floor_of(name)
        assert rooms[0] == rooms[1] or downwards, f"{name} imports {imported}"


def test_no_imports_in_a_circle():
    graph = {name: imports_of(name) for name in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")
