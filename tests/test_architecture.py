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
# Packages that one module knows, so that no other needs to.
FENCES = {
    "peft": {"models"},
    "matplotlib": {"figures"},
    "tyro": {"cli", "options"},
    "yaml": {"config", "cli"},
}


def modules() -> list[str]:
    """The rooms of the package: its modules, and its subpackages as one each."""
    files = [path.stem for path in SOURCE.glob("*.py") if not path.stem.startswith("__")]
    return sorted([*files, *(path.parent.name for path in SOURCE.glob("*/__init__.py"))])


def sources(module: str) -> list[Path]:
    folder = SOURCE / module
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [SOURCE / f"{module}.py"]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Full names of what is imported; ``from poad import x`` counts as ``poad.x``."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(module: str) -> set[str]:
    return {name for path in sources(module) for name in imported(ast.walk(tree(path)))}


def floors() -> tuple[list[list[str]], set[tuple[str, str]]]:
    """The table, top to bottom, and the pairs (user, used) it allows within a line."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = text.split(ROOMS)[1].split("```")[1]
    lines = [line for line in block.splitlines() if line.strip()]
    names = [re.split(r"\s{3,}", line.strip())[0].split() for line in lines]
    allowed = {pair for line in lines for pair in re.findall(r"(\w+) uses (\w+)", line)}
    return names, allowed


def test_every_module_has_its_place_in_the_table():
    names, _ = floors()
    listed = [name for line in names for name in line]
    assert sorted(listed) == modules(), f"docs/architecture.md, {ROOMS!r}: list each module once"


@pytest.mark.parametrize("module", modules())
def test_imports_point_strictly_down(module: str):
    names, allowed = floors()
    floor = {name: number for number, line in enumerate(names) for name in line}
    for name in imports(module):
        package, _, rest = name.partition(".")
        used = rest.partition(".")[0]
        if package != "poad" or used == module:
            continue
        assert used in floor, f"{module} imports {name}: import from the module that defines it"
        down = floor[used] > floor[module] or (module, used) in allowed
        assert down, f"{module} imports {name}, which is not below it in docs/architecture.md"


@pytest.mark.parametrize("package", FENCES)
def test_a_fenced_package_is_imported_only_where_it_belongs(package: str):
    users = {
        module
        for module in modules()
        if any(name.partition(".")[0] == package for name in imports(module))
    }
    assert users <= FENCES[package]


def outside_functions(path: Path) -> Iterator[ast.AST]:
    """Everything that runs when a module is imported."""
    waiting: list[ast.AST] = [tree(path)]
    while waiting:
        node = waiting.pop()
        yield node
        inner = ast.iter_child_nodes(node)
        waiting += [n for n in inner if not isinstance(n, ast.FunctionDef | ast.Lambda)]


def test_worlds_know_gymnasium_numpy_and_nothing_of_learning():
    known = sys.stdlib_module_names | {"gymnasium", "numpy"}
    for path in sources("envs"):
        for name in imported(outside_functions(path)):
            at_home = name.startswith("poad.envs.") or name.partition(".")[0] in known
            assert at_home, f"{path} imports {name}"
        for name in imported(ast.walk(tree(path))):
            assert name.partition(".")[0] not in {"torch", "transformers", "peft"}, str(path)


def test_nothing_is_ever_pickled():
    for path in SOURCE.rglob("*.py"):
        for name in imported(ast.walk(tree(path))):
            assert name.partition(".")[0] not in {"pickle", "shelve", "joblib", "dill"}, str(path)
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("torch", "save"), ("torch", "load")}


def test_functions_can_be_read_at_a_glance():
    long = [
        f"{path.name}: {node.name}"
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 80
    ]
    assert long == []
