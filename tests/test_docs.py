"""The documentation says what the package does, and its commands run."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from forked import Forked

import poad
from poad.cli.main import main
from poad.envs import RULES
from poad.learn.meters import LEARNED

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
YOUR_OWN_WORLD = ROOT / "docs" / "your-own-world.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]

# Commands are run as printed, with these options after them where they would take long.
SHORTER = {
    "train": "--steps 512 --eval.episodes 2 --quiet",
    "eval": "--episodes 2",
    "pretrain": "--turns 300 --steps 20",
    "study": "--only poad tokens_2 --jobs 1",
}


def script(name: str) -> dict:
    return runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language, top to bottom."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(block: str) -> list[list[str]]:
    """The command lines of a block, without comments."""
    return [words for line in block.splitlines() if (words := shlex.split(line, comments=True))]


def run(words: list[str]) -> None:
    """Run a `poad` command here; only its budget may differ from what is printed."""
    assert words[0] == "poad", f"only poad commands are fenced as sh: {words}"
    shorter = SHORTER.get(words[1], "").split()
    assert main([*words[1:], *shorter]) == 0, words


def test_the_worlds_manual_is_up_to_date() -> None:
    text = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
    assert text == script("build_docs")["page"](), "run `make docs`"


def test_the_api_reference_is_up_to_date() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert text == script("build_api")["page"](), "run `make docs`"


def test_the_api_reference_describes_every_public_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in poad.__all__ if f"| [`{name}`]" not in text] == []
    headings = set(re.findall(r"^### (\S+)$", text, re.M))
    anchors = {heading.lower().replace(".", "") for heading in headings}
    assert set(re.findall(r"\(#(\w+)\)", text)) <= anchors


def test_the_page_of_results_shows_every_shipped_study_and_is_up_to_date() -> None:
    build = script("build_results")
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == build["page"]()
    assert set(build["ORDER"]) == {path.stem for path in (ROOT / "studies").glob("*.yaml")}
    assert f"STUDIES := {' '.join(build['ORDER'])}\n" in (ROOT / "Makefile").read_text()


def test_the_tables_in_the_readme_are_those_of_the_studies() -> None:
    text = README.read_text(encoding="utf-8")
    assert "<!-- study main -->\n| success" in text
    assert script("build_results")["readme"](text) == text


def test_every_metric_of_an_update_is_explained() -> None:
    text = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    assert [name for name in LEARNED if f"`{name}`" not in text] == []


def test_the_map_in_the_readme_names_every_room() -> None:
    tree = README.read_text(encoding="utf-8").split("## Map")[1].split("```")[1]
    source = ROOT / "src" / "poad"
    rooms = [path.parent.name for path in source.glob("*/__init__.py")]
    rooms += [path.stem for path in source.glob("[a-z]*.py")]
    assert [room for room in rooms if not re.search(rf"\b{room}\b", tree)] == []


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)\)", text)
    missing = [to for to in targets if "://" not in to and not (page.parent / to).exists()]
    named = re.findall(r"(?<![\w/-])(?:configs|studies|examples|scripts)/[\w./-]+\.\w+", text)
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_the_python_of_a_page_imports_exists(page: Path) -> None:
    for code in blocks(page, "python") if page.name != "api.md" else ():
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("poad"):
                room = importlib.import_module(node.module or "")
                assert [name.name for name in node.names if not hasattr(room, name.name)] == []


def test_the_make_commands_of_the_readme_exist() -> None:
    make = (ROOT / "Makefile").read_text()
    named = re.findall(r"make ([\w-]+)", README.read_text(encoding="utf-8"))
    assert {"demo", "test"} <= set(named)
    assert [name for name in named if f"\n{name}:" not in make] == []


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_order_in_an_empty_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    anywhere, repository = blocks(README, "sh")
    for words in commands(anywhere):
        run(words)
    for folder in ("configs", "studies"):  # "these use the files of this repository"
        Path(folder).symlink_to(ROOT / folder)
    for words in commands(repository):
        run(words)


def test_the_python_of_the_readme_trains_an_agent(tmp_path: Path) -> None:
    (code,) = blocks(README, "python")
    shorter = code.replace("steps=8192", "steps=512")
    assert shorter != code
    done = Forked(exec, shorter, {"__name__": "__main__"}, folder=tmp_path)
    assert done.wait() == 0, done.stderr
    assert done.stdout.startswith("512 ")


def test_the_page_about_worlds_lists_every_rule() -> None:
    text = YOUR_OWN_WORLD.read_text(encoding="utf-8")
    assert [rule for rule in RULES if f"\n| {rule} | " not in text] == []


@pytest.mark.slow
def test_the_code_of_the_page_about_worlds_runs_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Python block whose first line is `# NAME.py` is that file; the others run as they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    monkeypatch.setattr("builtins.input", lambda *_: "")  # an empty line leaves
    text = YOUR_OWN_WORLD.read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(python|sh)\n(.*?)^```", text, re.M | re.S):
        if language == "sh":
            for words in commands(block):
                run(words)
        elif named := re.match(r"# (\w+\.py)\n", block):
            Path(named[1]).write_text(block, encoding="utf-8")
        else:
            exec(compile(block, YOUR_OWN_WORLD.name, "exec"), {"__name__": "__main__"})
