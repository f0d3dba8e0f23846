"""Write docs/api.md from the docstrings of the public names: `make docs`.

The source is read, never imported, so the page is the same on every machine and takes no torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
TARGET = ROOT / "docs" / "api.md"
DOORS = ("config", "envs", "credit", "agent", "learn", "runs", "errors")
HEAD = """\
# API reference

This page lists the public names of `poad` and of the rooms a program is likely to import from. It
is generated from the docstrings by `make docs`, so edit those instead. The names in the table below
can be imported from `poad` itself, which loads torch only when a name that needs it is first used.
"""
SECTION = re.compile(r"(Args|Returns|Yields|Raises|Attributes):$")
ITEM = re.compile(r"([\w., *]+): (.*)")

Described = ast.ClassDef | ast.FunctionDef


class Found(NamedTuple):
    """Where a public name is defined: the statement, and the docstring of a plain value."""

    node: ast.stmt
    doc: str


def page() -> str:
    """The whole page: the top-level names as a table, then each room with its names."""
    homes = {name: f"poad.{door}" for door in reversed(DOORS) for name in offered(f"poad.{door}")}
    rows = ["| name | described in | |", "|---|---|---|"]
    parts = []
    for name in offered("poad"):
        home = homes.get(name, "poad")
        summary = docstring(find("poad", name)).partition("\n\n")[0].replace("\n", " ")
        rows.append(f"| [`{name}`](#{anchor(home, name)}) | `{home}` | {inline(summary)} |")
        parts += describe("poad", name) if home == "poad" else []
    for door in (f"poad.{door}" for door in DOORS):
        parts += [f"## {door}", inline(ast.get_docstring(tree(door)) or "")]
        for name in offered(door):
            parts += describe(door, name)
    return "\n\n".join([HEAD.rstrip(), "\n".join(rows), *filter(None, parts)]) + "\n"


@cache
def tree(module: str) -> ast.Module:
    """Parse a module, or the `__init__` of a package."""
    path = SOURCE.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def offered(module: str) -> list[str]:
    """List the names in `__all__`; without one, the public classes and functions."""
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    named = [node.name for node in tree(module).body if isinstance(node, Described)]
    return [name for name in named if not name.startswith("_")]


def find(module: str, name: str) -> Found:
    """Find the definition of a name, following imports from room to room."""
    body = tree(module).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, Described) and node.name == name:
            return Found(node, ast.get_docstring(node) or "")
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if name in map(ast.unparse, targets):
                return Found(node, string(after))
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return find(node.module or "", name)
    raise LookupError(f"{module} offers {name!r} but neither defines nor imports it")


def describe(module: str, name: str) -> Iterator[str]:
    """Describe one name: signature, docstring, fields and methods."""
    found = find(module, name)
    yield f"### {module}.{name}"
    if isinstance(found.node, ast.FunctionDef):
        yield code(signature(found.node))
    elif isinstance(found.node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, found.node.bases))
        yield code(f"class {name}({bases})" if bases else f"class {name}")
        yield from (code(signature(node, name)) for node in methods(found.node, "__init__"))
    else:
        value = ast.unparse(found.node)
        yield code(value if len(value) < 200 else value.partition(" = ")[0])
    yield prose(docstring(found))
    if isinstance(found.node, ast.ClassDef):
        yield "\n".join(fields(found.node))
        for node in methods(found.node):
            yield from (code(signature(node)), prose(ast.get_docstring(node) or ""))


def methods(node: ast.ClassDef, name: str = "") -> list[ast.FunctionDef]:
    """List the methods of that name, or all public ones."""
    named = [each for each in node.body if isinstance(each, ast.FunctionDef)]
    return [m for m in named if m.name == name or not (name or m.name.startswith("_"))]


def fields(node: ast.ClassDef) -> Iterator[str]:
    """List the annotated fields of a class, each with the docstring below it."""
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and not ast.unparse(field.target).startswith("_"):
            text = inline(string(after).replace("\n", " "))
            shown = re.sub(r"field\(default_factory=(\w+)\)", r"\1()", ast.unparse(field))
            yield f"* `{shown}`" + (f": {text}" if text else "")


def docstring(found: Found) -> str:
    """Return the cleaned docstring of a definition."""
    return cleandoc(found.doc)


def string(node: ast.stmt | None) -> str:
    """Return the text of a statement that is only a string, else nothing."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return cleandoc(node.value.value) if isinstance(node.value.value, str) else ""
    return ""


def signature(node: ast.FunctionDef, name: str = "") -> str:
    """Write a signature on one line, or with one argument per line where it is long.

    Args:
        node: the function; `self` and `cls` are left out.
        name: what to call it, and then without its result: the class of a constructor.
    """
    marks = [f"@{ast.unparse(mark)}\n" for mark in node.decorator_list]
    shown = "".join(mark for mark in marks if mark in ("@property\n", "@classmethod\n"))
    parts = [part for part in arguments(node.args) if part not in ("self", "cls")]
    result = f" -> {ast.unparse(node.returns)}" if node.returns and not name else ""
    short = f"{name or node.name}({', '.join(parts)}){result}"
    if len(short) <= 88:
        return shown + short
    lines = "".join(f"    {part},\n" for part in parts)
    return f"{shown}{name or node.name}(\n{lines}){result}"


def arguments(args: ast.arguments) -> Iterator[str]:
    """Write the arguments of a function one by one, as they stand in its signature."""
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    for argument, default in zip(plain, defaults, strict=True):
        yield ast.unparse(argument) + (f" = {ast.unparse(default)}" if default else "")
    if args.vararg or args.kwonlyargs:
        yield "*" + (ast.unparse(args.vararg) if args.vararg else "")
    for argument, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield ast.unparse(argument) + (f" = {ast.unparse(default)}" if default else "")
    if args.kwarg:
        yield "**" + ast.unparse(args.kwarg)


def prose(doc: str) -> str:
    """Turn a docstring into Markdown; sections such as `Args:` become lists."""
    lines: list[str] = []
    inside = False
    for line in doc.splitlines():
        section = SECTION.match(line)
        item = ITEM.match(line[4:]) if inside and re.match(r" {4}\S", line) else None
        inside = bool(section) or (inside and (not line or line.startswith("    ")))
        if section:
            lines += [f"*{section[1]}*", ""]
        elif item:
            lines.append(f"* `{item[1]}`: {item[2]}")
        elif inside and line:
            lines.append("  " + line.strip() if lines[-1] else line.strip())
        else:
            lines.append(line)
    return inline("\n".join(lines).strip())


def inline(text: str) -> str:
    """Write Sphinx roles and double backticks as Markdown code."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")


def code(text: str) -> str:
    """Fence a piece of Python."""
    return f"```python\n{text}\n```"


def anchor(module: str, name: str) -> str:
    """Name the heading of a name as GitHub links to it."""
    return f"{module}.{name}".lower().replace(".", "")


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    print(f"wrote {TARGET.name}")
