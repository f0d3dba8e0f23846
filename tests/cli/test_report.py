"""`poad report` and `poad compare` as a stranger uses them."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_run import run_of

from poad.cli.main import main


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    made = [run_of(tmp_path / "one"), run_of(tmp_path / "two", method="ntpo", seed=1)]
    return [str(run.path) for run in made]


def test_one_run_gets_its_page_and_several_get_one_together(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["report", runs[0]]) == 0
    assert (tmp_path / "one" / "report.html").is_file()
    assert main(["report", *runs]) == 0
    assert "2 runs in" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_without_a_browser_the_address_is_told(
    runs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    assert main(["report", runs[0], "--open"]) == 0
    page = Path(runs[0]).resolve() / "report.html"
    assert f"Open {page.as_uri()} yourself" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ending", "begin"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_a_figure_for_a_paper(runs: list[str], tmp_path: Path, ending: str, begin: bytes):
    figure = tmp_path / f"figure.{ending}"
    assert main(["report", *runs, "--png", str(figure)]) == 0
    assert figure.read_bytes().startswith(begin)


def test_runs_are_compared_without_a_study_file(
    runs: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(["compare", *runs]) == 0
    told = capsys.readouterr().out
    for part in (
        "Settings that differ",
        "credit.method",
        "Results",
        "On the same seeds",
        "one − two",
    ):
        assert part in told
    assert max(map(len, told.splitlines())) <= 80


def test_a_comparison_can_be_markdown(runs: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["compare", *runs, "--markdown"]) == 0
    assert "| credit.method | poad | ntpo |" in capsys.readouterr().out


def test_the_same_settings_are_said_to_be_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pair = [str(run_of(tmp_path / name, episodes=0).path) for name in ("a", "b")]
    assert main(["compare", *pair]) == 0
    told = capsys.readouterr().out
    assert "All settings are the same." in told
    assert "`poad eval RUN` adds one" in told


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["report"], "Name a run"),
        (["compare", "{one}"], "Name at least 2 runs"),
        (["compare", "{one}", "{one}"], "is named twice"),
        (["report", "{one}/none"], "is not a run"),
        (["report", "{one}", "--png", "x.txt"], "must end in one of .png, .svg, .pdf"),
        (["report", "{one}", "--png", "x.png", "--open"], "--png writes a figure and no page"),
        (["report", "{one}", "--png", "/no/such/x.png"], "Cannot write /no/such/x.png"),
        (["report", "{one}", "--to", "/no/such/x.html"], "Cannot write /no/such/x.html"),
    ],
)
def test_mistakes_are_explained(
    runs: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
):
    assert main([a.format(one=runs[0]) for a in arguments]) == 2
    assert says in capsys.readouterr().err
