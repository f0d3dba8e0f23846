"""The house keeps its shape: the table in docs/architecture.md is what the imports really do."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "poad"
ROOMS = "## Rooms, top to bottom"
# Packages that one room knows, so that no other needs to.
FENCES = {
    "peft": {"lm"},
    "matplotlib": {"display"},
    "tyro": {"cli"},
    "yaml": {"cli", "config"},
    "gymnasium": {"adapters", "envs", "learn"},
    "jinja2": {"lm", "pages"},
}
# Files that are started by path inside the sandbox, where there is no poad.
STANDALONE = {"envs/datasci/worker.py"}


def rooms() -> list[str]:
    """The rooms of the house: single files on the ground, packages above."""
    files = [path.stem for path in SOURCE.glob("*.py") if not path.stem.startswith("__")]
    return sorted([*files, *(path.parent.name for path in SOURCE.glob("*/__init__.py"))])


def sources(room: str) -> list[Path]:
    folder = SOURCE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [SOURCE / f"{room}.py"]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Full names of the modules that are imported."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""


def imports(path: Path) -> set[str]:
    return set(imported(ast.walk(tree(path))))


def table() -> list[tuple[set[str], str]]:
    """The floors, top to bottom: (rooms, the line that says what they are for)."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = text.split(ROOMS)[1].split("```")[1]
    floors: list[tuple[set[str], str]] = []
    for line in filter(str.strip, block.splitlines()):
        floor, room, purpose = line.split(None, 2)
        if len(floors) < int(floor):
            floors.append((set(), ""))
        assert len(floors) == int(floor), f"floors count up from 1, one room a line: {line!r}"
        floors[-1][0].add(room)
        assert purpose.strip()
    return floors


def test_every_room_has_its_line_in_the_table():
    listed = [room for floor, _ in table() for room in floor]
    assert sorted(listed) == rooms(), f"docs/architecture.md, {ROOMS!r}: list each room once"


def test_the_house_is_small():
    assert len(rooms()) <= 22
    assert len(table()) <= 10


@pytest.mark.parametrize("room", rooms())
def test_imports_point_strictly_down(room: str):
    floor = {name: number for number, (names, _) in enumerate(table()) for name in names}
    for path in sources(room):
        for name in imports(path):
            package, _, rest = name.partition(".")
            used = rest.partition(".")[0]
            if package != "poad" or used == room:
                continue
            where = path.relative_to(SOURCE)
            assert used in floor, f"{where} imports {name}: import from the room that defines it"
            assert floor[used] > floor[room], f"{where} imports {name}, which is not below it"


@pytest.mark.parametrize("room", rooms())
def test_others_come_in_by_the_door(room: str):
    """From outside, only ``poad.<room>`` is imported; its files are private to the room."""
    for other in rooms():
        for path in sources(other) if other != room else ():
            for name in imports(path):
                inside = name.startswith(f"poad.{room}.") and name != "poad.envs.datasci"
                assert not inside, f"{path.relative_to(SOURCE)} imports {name}; use poad.{room}"


@pytest.mark.parametrize(
    "door", list(SOURCE.glob("*/__init__.py")), ids=lambda path: path.parent.name
)
def test_a_door_offers_what_it_says_and_nothing_private(door: Path):
    offered = next(
        ast.literal_eval(node.value)
        for node in tree(door).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    names = {
        alias.asname or alias.name
        for node in tree(door).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(offered) == names
    assert not [name for name in names if name.startswith("_")]
    assert ast.get_docstring(tree(door))


@pytest.mark.parametrize("package", FENCES)
def test_a_fenced_package_is_imported_only_where_it_belongs(package: str):
    users = {
        room
        for room in rooms()
        for path in sources(room)
        if any(name.partition(".")[0] == package for name in imports(path))
    }
    assert users <= FENCES[package]


def test_one_iteration_is_read_in_six_files():
    """Their code and docstrings have at most 900 lines; comments and blank lines are free."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = text.split("## One iteration")[1].split("A test counts them")[0]
    files = re.findall(r"`((?:learn|credit)/\w+\.py)`", named)
    assert 4 <= len(files) <= 6
    lines = [line.strip() for file in files for line in (SOURCE / file).read_text().splitlines()]
    assert len([line for line in lines if line and not line.startswith("#")]) <= 900


def outside_functions(path: Path) -> Iterator[ast.AST]:
    """Everything that runs when a module is imported."""
    waiting: list[ast.AST] = [tree(path)]
    while waiting:
        node = waiting.pop()
        yield node
        inner = ast.iter_child_nodes(node)
        waiting += [n for n in inner if not isinstance(n, ast.FunctionDef | ast.Lambda)]


@pytest.mark.parametrize("room", ["envs", "adapters"])
def test_worlds_know_gymnasium_numpy_and_nothing_of_learning(room: str):
    known = sys.stdlib_module_names | {"gymnasium", "numpy"}
    for path in sources(room):
        for name in imported(outside_functions(path)):
            at_home = name.startswith((f"poad.{room}", "poad.envs", "poad.errors", "poad.trie"))
            assert at_home or name.partition(".")[0] in known, f"{path} imports {name}"
        for name in imports(path):
            assert name.partition(".")[0] not in {"torch", "transformers", "peft"}, str(path)


def test_credit_knows_torch_alone():
    """What other trainers import costs them nothing but torch."""
    known = sys.stdlib_module_names | {"torch"}
    for path in sources("credit"):
        for name in imports(path):
            at_home = name.startswith(("poad.credit", "poad.errors"))
            assert at_home or name.partition(".")[0] in known, f"{path} imports {name}"


@pytest.mark.parametrize("file", STANDALONE)
def test_what_runs_inside_the_sandbox_knows_nothing_of_poad(file: str):
    assert not [name for name in imports(SOURCE / file) if name.startswith("poad")]


def test_nothing_is_ever_pickled():
    for path in SOURCE.rglob("*.py"):
        for name in imports(path):
            assert name.partition(".")[0] not in {"pickle", "shelve", "joblib", "dill"}, str(path)
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("torch", "save"), ("torch", "load")}


def size(node: ast.AST) -> int:
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    return (node.end_lineno or 0) - node.lineno + 1


def definitions(kind: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(tree(path)):
            if isinstance(node, kind):
                assert isinstance(node, ast.FunctionDef | ast.ClassDef)
                yield f"{path.relative_to(SOURCE)}: {node.name}", node


def test_functions_can_be_read_at_a_glance():
    assert [name for name, node in definitions(ast.FunctionDef) if size(node) > 60] == []


def test_classes_can_be_held_in_the_head():
    assert [name for name, node in definitions(ast.ClassDef) if size(node) >= 250] == []
