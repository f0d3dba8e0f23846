"""The page of a run: whole by itself, safe with any text, honest about what it shows."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_run import HOSTILE, episode, metrics, run_of, summary, turn

from poad.config import Config
from poad.display.html import Html, tag
from poad.display.report import MAX_TURNS, write_report
from poad.errors import RunError
from poad.runs import Mode, Run

VOID = {"meta"}


class Page(HTMLParser):
    """What a browser would see: elements properly nested, texts, and where they stand."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.classes: list[str] = []
        self.texts: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "data")]
        self.classes += [v or "" for k, v in attrs if k == "class"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "data")]

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def page_of(run: Run) -> Page:
    path = write_report(run)
    assert path == run.path / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_a_finished_run_is_told_from_top_to_bottom(tmp_path: Path):
    page = page_of(run_of(tmp_path / "first"))
    assert "poad/TomatoSalad-v0 by poad, seed 0" in page.text
    assert "Run first, finished." in page.text
    # 9 of 10 succeeded: Wilson's interval is .5958 to .9821.
    assert "success, sampled 90.0% 95 %: 59.6% – 98.2%, 10 episodes" in page.text
    assert "success, greedy 90.0%" in page.text
    assert "mean return 0.960" in page.text  # (9·1.1 − .3) / 10
    assert "env steps 10,240" in page.text
    assert "CPU seconds 6 " in page.text
    assert "wall seconds 7 " in page.text
    assert page.tags.count("svg") == 6
    assert "20 sampled 90.0% 59.6% – 98.2%" in page.text
    assert "One episode: seed 1000000, sampled actions of checkpoint 20" in page.text
    assert "gamma: 0.99" in page.text
    assert '"transformers":' in page.text


def test_the_page_needs_nothing_but_itself(tmp_path: Path):
    page = page_of(run_of(tmp_path / "run"))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert [link for link in page.links if not link.startswith("#")] == []
    source = (tmp_path / "run" / "report.html").read_text()
    assert "url(http" not in source
    assert "@import" not in source
    assert "default-src 'none'" in source


def test_light_dark_and_small_screens_are_provided_for(tmp_path: Path):
    write_report(run_of(tmp_path / "run", iterations=2, episodes=1))
    source = (tmp_path / "run" / "report.html").read_text()
    assert "prefers-color-scheme: dark" in source
    assert 'name="viewport"' in source
    assert re.search(r"#0[1-4]0[1-4]0[1-4]", source) is None  # every drawn colour follows the theme


def test_no_text_of_a_run_becomes_markup(tmp_path: Path):
    hostile = turn(
        HOSTILE,
        offered=((HOSTILE, 0.9), ('" onload="x', 0.1)),
        action=HOSTILE,
        pieces=(HOSTILE, "</span>", "&amp;"),
    )
    run = Run.create(tmp_path / "run", Config(env="<b>world</b>", env_args={"x": HOSTILE}))
    run.add_episodes([episode(turns=[hostile], env="<b>world</b>")])
    page = page_of(run)
    assert "script" not in page.tags
    assert "b" in page.tags  # our own
    assert page.texts.count(HOSTILE) >= 1  # the prompt, letter by letter
    assert "▸ " + HOSTILE in page.texts
    assert "&amp;" in page.texts  # shown as it was written, not as what it would mean
    assert any("<b>world</b>" in text for text in page.texts)


def test_nothing_that_is_hidden_or_obeyed_reaches_the_page(tmp_path: Path):
    name = "my\x1b[2J\u202eevil\u2066\u200b\xad\U000e0041World"
    hostile = turn(name, offered=((name, 0.9), ("b", 0.1)), action=name, pieces=(name, "b", "c"))
    run = Run.create(tmp_path / "run", Config(env=name, env_args={name: name}))
    run.log(metrics(1) | {f"world/{name}": 1.0})
    run.add_episodes([episode(turns=[hostile], env=name), episode(env="other", seed=3)])
    source = write_report(run).read_text(encoding="utf-8")
    assert (
        re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b-\u200f\u202a-\u202e\u2066]", source)
        == []
    )
    assert "\U000e0041" not in source
    assert "my␛[2J�evil" in source


def test_text_that_no_encoding_can_hold_is_written_all_the_same(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    run.add_episodes([episode(turns=[turn("lone \ud800 surrogate", pieces=("\x00", "é", "🍅"))])])
    assert "🍅" in page_of(run).text


def test_markup_is_only_what_was_made_as_markup():
    assert tag("p", "a < b", Html("<b>c</b>")) == "<p>a &lt; b<b>c</b></p>"
    assert tag("p", cls='"x"', title="<&") == '<p class="&quot;x&quot;" title="&lt;&amp;"></p>'


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_an_unfinished_run_is_told_as_far_as_it_went(iterations: int, tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    for i in range(1, iterations + 1):
        run.log(metrics(i))
    page = page_of(run)
    assert f"unfinished: {512 * iterations:,} of 12,288 environment steps" in page.text
    assert "Evaluation" not in page.text
    assert ("No training iteration" in page.text) == (iterations == 0)
    # Before the first episode has ended there is no success to speak of.
    assert ("success, training –" in page.text) == (iterations == 1)
    assert ("Nothing to draw yet" in page.text) == (iterations == 1)


def test_a_run_that_was_stopped_says_so(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    run.log(metrics(2))
    run.write_summary(summary(status="stopped"))
    assert "Run run, stopped: 1,024 of 12,288 environment steps." in page_of(run).text


def test_an_evaluation_that_was_repeated_counts_each_seed_once(tmp_path: Path):
    run = run_of(tmp_path / "run", episodes=10)
    run.add_episodes(episode(1_000_000 + i, success=True) for i in range(10))
    page = page_of(run)
    assert "20 sampled 100.0% 72.2% – 100.0%" in page.text
    assert "20 greedy 90.0% 59.6% – 98.2%" in page.text


def test_the_newest_checkpoints_first_sampled_episode_is_shown(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    modes: tuple[Mode, ...] = ("sampled", "greedy")
    run.add_episodes(
        episode(seed, checkpoint=checkpoint, mode=mode, success=seed != 5)
        for checkpoint in (None, 20, 8)
        for mode in modes
        for seed in (5, 6)
    )
    page = page_of(run)
    assert "One episode: seed 5, sampled actions of checkpoint 20" in page.text
    assert "No success: truncated after 2 turns" in page.text
    assert page.text.index("20 sampled") < page.text.index("8 sampled")
    assert page.text.index("8 greedy") < page.text.index("untrained sampled")


def test_another_world_has_its_own_rows_and_never_the_headline(tmp_path: Path):
    run = run_of(tmp_path / "run", episodes=10)
    run.add_episodes([episode(checkpoint=99, env="a/Other-v0", success=False)])
    page = page_of(run)
    assert "success, sampled 90.0%" in page.text
    assert page.text.index("poad/TomatoSalad-v0 20 greedy") < page.text.index(
        "a/Other-v0 99 sampled"
    )
    assert "One episode: seed 1000000, sampled actions of checkpoint 20" in page.text


def test_each_turn_shows_what_was_offered_written_and_thought(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    odd = turn("Wait!", 0.0, offered=None, action="dance", duration=1, invalid=True)
    odd = replace(odd, value=(math.nan, 0.5, 0.6), root_value=math.nan)
    run.add_episodes([episode(turns=[turn(), odd])])
    page = page_of(run)
    first, second = page.text.split("Turn 1 ")[1].split("Turn 2 ")
    assert "value 0.41 You see a tomato." in first
    assert "▸ chop the tomato 70.0% get the tomato 25.0% wait 5.0%" in first
    assert "chop 80% V 0.41 ·the forced V (0.52) ·tomato 88% V 0.53" in first
    assert first.strip().endswith("reward +0.2 , 3 primitive steps")
    assert "value – Wait! dance" in second
    assert "V – " in second
    assert "did not offer this action" in second
    assert page.classes.count("token") == 4
    assert page.classes.count("token forced") == 2


def test_a_form_is_shown_compactly_above_what_was_written(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    form = "(small|large)( rye| wheat) bread"
    shown = turn(offered=None, form=form, action="large rye bread")
    run.add_episodes([episode(turns=[shown])])
    text = page_of(run).text
    assert f"{form} large rye bread" in text.split("Turn 1 ")[1]


def test_many_offered_actions_fold_and_the_written_one_stays_in_sight(tmp_path: Path):
    offered = (*((f"go to room {i}", 0.033) for i in range(30)), ("chop the tomato", 0.01))
    run = Run.create(tmp_path / "run", Config())
    run.add_episodes([episode(turns=[turn(offered=offered)])])
    text = page_of(run).text
    before, folded = text.split("22 more offered actions, together 72.6%")
    assert "▸ chop the tomato 1.0%" in before
    assert folded.count("go to room") == 22


def test_a_long_episode_is_cut_with_a_word(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    run.add_episodes([episode(turns=[turn()] * (MAX_TURNS + 3))])
    page = page_of(run)
    assert page.classes.count("turn") == MAX_TURNS
    assert "… and 3 more turns." in page.text


def test_a_full_disk_leaves_the_earlier_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = run_of(tmp_path / "run", iterations=2, episodes=1)
    before = write_report(run).read_text()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(RunError, match=r"Cannot write .*report.html: No space left"):
        write_report(run)
    assert (run.path / "report.html").read_text() == before


def test_the_same_run_makes_the_same_page(tmp_path: Path):
    run = run_of(tmp_path / "run", iterations=3, episodes=2)
    assert write_report(run).read_bytes() == write_report(run).read_bytes()
