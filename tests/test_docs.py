"""What the documentation says is what the package does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from poad.learn.train import LEARNED

ROOT = Path(__file__).parent.parent


def test_the_worlds_manual_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "build_docs.py"))["page"]
    assert (ROOT / "docs" / "environments.md").read_text(encoding="utf-8") == page()


def test_the_page_of_results_tells_every_shipped_study_and_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "build_results.py"))
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == script["page"]()
    assert set(script["ORDER"]) == {path.stem for path in (ROOT / "studies").glob("*.yaml")}
    assert f"STUDIES := {' '.join(script['ORDER'])}\n" in (ROOT / "Makefile").read_text()


def test_the_tables_in_the_readme_are_those_of_the_studies() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "build_results.py"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "<!-- study main -->\n| success" in text
    assert script["readme"](text) == text


def test_every_metric_of_an_update_is_explained() -> None:
    text = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    assert [name for name in LEARNED if f"`{name}`" not in text] == []


def test_the_map_in_the_readme_names_every_module() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    modules = [path.stem for path in (ROOT / "src" / "poad").glob("[a-z]*.py")]
    assert [name for name in modules if name not in text] == []


def test_every_shipped_configuration_and_page_named_in_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"(?:configs|docs|examples|benchmarks)/[\w./-]+\.\w+", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
