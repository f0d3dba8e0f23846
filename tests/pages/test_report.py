"""The page of a run: whole by itself, safe with any text, honest about what it shows."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from chromium import opened
from synthetic_run import HOSTILE, episode, metrics, run_of, summary, turn

from poad.config import Config
from poad.display.html import Html, tag
from poad.errors import RunError
from poad.pages import LocalServer
from poad.pages.report import (
    MAX_POINTS,
    MAX_TURNS,
    live_data,
    live_page,
    report_page,
    sample_page,
    write_report,
)
from poad.runs import Mode, Run
from poad.turns import Cut

VOID = {"meta"}
WIDE: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}


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
        if not {"style", "script"} & {*self.open}:
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
    assert "20 sampled 90.0% 59.6% – 98.2%" in page.text
    assert "One episode: seed 1000000, sampled actions of checkpoint 20" in page.text
    assert "gamma: 0.99" in page.text
    assert '"transformers":' in page.text


def test_the_page_needs_nothing_but_itself(tmp_path: Path):
    page = page_of(run_of(tmp_path / "run"))
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert page.tags.count("script") == 2  # the data and our own
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
    assert page.tags.count("script") == 2
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
    # Before the first episode has ended there is no success to speak of.
    assert ("success, training –" in page.text) == (iterations == 1)


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


def test_a_page_of_samples_has_a_checkpoints_first_sampled_episodes(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    assert sample_page(run, 20) is None
    run.add_episodes([episode(1, checkpoint=20, turns=[])])
    assert sample_page(run, 20) is None  # no turn was recorded
    run.add_episodes(episode(seed, checkpoint=20, turns=[turn(HOSTILE)]) for seed in (5, 6, 7))
    run.add_episodes([episode(8, checkpoint=8), episode(9, checkpoint=20, mode="greedy")])
    shown = sample_page(run, 20, episodes=2)
    assert shown is not None
    assert re.findall(r"One episode: seed (\d+), (\w+) actions", shown) == [
        ("5", "sampled"),
        ("6", "sampled"),
    ]
    assert "<script" not in shown


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
    odd = replace(odd, value=(math.nan, 0.5, 0.6), root_value=math.nan, cut=Cut(examples=12))
    run.add_episodes([episode(turns=[turn(), odd])])
    page = page_of(run)
    first, second = page.text.split("Turn 1 ")[1].split("Turn 2 ")
    assert "value 0.41 You see a tomato." in first
    assert "▸ chop the tomato 70.0% get the tomato 25.0% wait 5.0%" in first
    assert "chop 80% V 0.41 ·the forced V (0.52) ·tomato 88% V 0.53" in first
    assert first.strip().endswith("reward +0.2 , 3 primitive steps")
    assert "value – Wait! The prompt was too long" in second
    assert "V – " in second
    assert "did not offer this action" in second
    assert "did not read 12 tokens: 12 of examples. dance" in second
    assert "did not read" not in first
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


# The curves, in a browser.


def curves(tab: Any, key: str) -> list[str]:
    """What the curves of a panel are drawn as."""
    return tab.evaluate(
        "key => [...document.querySelectorAll(`[data-key='${key}'] path.curve`)].map("
        "p => p.getAttribute('d'))",
        key,
    )


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (each.split() for each in re.split("[ML]", path)[1:])]


def readout(tab: Any, key: str) -> str:
    return re.sub(r"\s+", " ", tab.locator(f"[data-key='{key}'] .readout").inner_text()).strip()


def place(tab: Any, key: str) -> float:
    """Where the cursor of a panel stands."""
    text = readout(tab, key).partition(":")[0]
    return float(text.removesuffix("k")) * (1000 if text.endswith("k") else 1)


def hover(tab: Any, key: str, share: float) -> None:
    """Point at a place of a panel, from its left, 0, to its right, 1."""
    svg = tab.locator(f"[data-key='{key}'] svg")
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    left, right = box["x"] + 44, box["x"] + box["width"] - 10
    tab.mouse.move(left + share * (right - left), box["y"] + box["height"] / 2)


@pytest.fixture
def page(tmp_path: Path) -> str:
    return write_report(run_of(tmp_path / "run", iterations=8)).read_text(encoding="utf-8")


def test_a_curve_has_a_point_for_every_number_and_rises_as_they_do(
    browser: Any, tmp_path: Path, page: str
):
    with opened(browser, page, tmp_path, **WIDE) as tab:
        (path,) = curves(tab, "explained_variance")
        xs, ys = zip(*points(path), strict=True)
        assert len(xs) == 8
        assert list(xs) == sorted(xs)
        assert list(ys) == sorted(ys, reverse=True)


def test_means_are_dotted_before_the_hundredth_episode(browser: Any, tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    for i in range(1, 9):
        run.log(metrics(i) | {"episodes": 25 * i})
    with opened(browser, report_page([run]), tmp_path, **WIDE) as tab:
        early = tab.locator("[data-key='success'] path.early")
        assert early.count() == 1
        dotted = points(early.get_attribute("d"))
        (path,) = curves(tab, "success")
        assert dotted[-1] == points(path)[0]
        assert len(dotted) + len(points(path)) - 1 == 7, "the first iteration has no mean"
        assert tab.locator("[data-key='entropy'] path.early").count() == 0


def test_pointing_at_a_place_tells_the_numbers_there_in_every_panel(
    browser: Any, tmp_path: Path, page: str
):
    with opened(browser, page, tmp_path, **WIDE) as tab:
        hover(tab, "entropy", 0.5)  # of 4,096 steps
        assert place(tab, "entropy") == pytest.approx(2048, rel=0.02)
        assert readout(tab, "entropy").endswith(f"k: {metrics(4)['entropy']:.3g}")
        assert readout(tab, "value_loss").endswith(f"k: {metrics(4)['value_loss']:.3g}")
        tab.locator("[data-key='entropy'] svg").focus()
        tab.keyboard.press("ArrowRight")
        assert readout(tab, "entropy") == f"2.56k: {metrics(5)['entropy']:.3g}"


@pytest.mark.parametrize(
    ("kind", "total"), [("wall_seconds", 2.8), ("cpu_seconds", 2.4), ("iteration", 8)]
)
def test_curves_are_drawn_against_what_one_asks_for(
    browser: Any, tmp_path: Path, page: str, kind: str, total: float
):
    with opened(browser, page, tmp_path, **WIDE) as tab:
        tab.locator("#x").select_option(kind)
        hover(tab, "entropy", 1)
        assert place(tab, "entropy") == pytest.approx(total, rel=0.02)


def test_dragging_zooms_and_one_can_go_back(browser: Any, tmp_path: Path, page: str):
    with opened(browser, page, tmp_path, **WIDE) as tab:
        before = curves(tab, "entropy")
        hover(tab, "entropy", 0.4)
        tab.mouse.down()
        hover(tab, "entropy", 0.6)
        tab.mouse.up()
        assert curves(tab, "entropy") != before
        hover(tab, "entropy", 0)
        assert place(tab, "entropy") == pytest.approx(0.4 * 4096, rel=0.02)
        tab.locator("#zoom-out").click()
        assert curves(tab, "entropy") == before


def test_smoothing_is_the_moving_average_without_the_bias_of_its_start(
    browser: Any, tmp_path: Path, page: str
):
    with opened(browser, page, tmp_path, **WIDE) as tab:
        tab.locator("#smooth").fill("0.9")
        tab.locator("[data-key='value_loss'] svg").focus()
        for _ in range(3):
            tab.keyboard.press("ArrowRight")
        raw = [metrics(i)["value_loss"] for i in (1, 2, 3)]
        weights = [0.9**k for k in (2, 1, 0)]
        mean = sum(w * v for w, v in zip(weights, raw, strict=True)) / sum(weights)
        assert readout(tab, "value_loss") == f"1.54k: {mean:.3g}"


def test_on_a_logarithmic_axis_halving_is_the_same_step_everywhere(browser: Any, tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    for i in range(1, 6):
        run.log(metrics(i) | {"value_loss": 0.5**i, "kl": 0.0})
    with opened(browser, report_page([run]), tmp_path, **WIDE) as tab:
        tab.locator("#log").check()
        ys = [y for _, y in points(curves(tab, "value_loss")[0])]
        steps = [b - a for a, b in pairwise(ys)]
        assert max(steps) - min(steps) < 0.25
        assert "No value above 0" in tab.locator("[data-key='kl']").inner_text()


def test_curves_that_coincide_can_be_told_apart(browser: Any, tmp_path: Path):
    """They differ in width, dashes and colour, and the later ones lie on top."""
    runs = [run_of(tmp_path / f"run{i}", iterations=5, episodes=0) for i in range(3)]
    with opened(browser, report_page(runs, tmp_path / "x.html"), tmp_path, **WIDE) as tab:
        drawn = curves(tab, "entropy")
        assert len(drawn) == 3
        assert len(set(drawn)) == 1
        looks = tab.evaluate(
            "[...document.querySelectorAll(`[data-key='entropy'] path.curve`)].map(p => "
            "['stroke', 'stroke-width', 'stroke-dasharray'].map(a => p.getAttribute(a)))"
        )
        for column in zip(*looks, strict=True):
            assert len(set(column)) == 3
        widths = [float(width) for _, width, _ in looks]
        assert widths == sorted(widths, reverse=True)
        tab.locator("#runs [data-run='1']").click()
        assert len(curves(tab, "entropy")) == 2


def test_no_report_is_wider_than_its_window(browser: Any, tmp_path: Path):
    runs = [run_of(tmp_path / f"a-long-name-of-a-run-{i}" / "run") for i in range(3)]
    page = report_page(runs, tmp_path / "x.html")
    for width in (1280, 390):
        window = {"viewport": {"width": width, "height": 800}}
        with opened(browser, page, tmp_path, **window) as tab:
            assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_a_run_without_iterations_says_so_in_the_page(browser: Any, tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    with opened(browser, report_page([run]), tmp_path, **WIDE) as tab:
        assert "No training iteration" in tab.locator("#curves").inner_text()
    run.log(metrics(1))
    with opened(browser, report_page([run]), tmp_path, **WIDE) as tab:
        assert "Nothing to draw yet" in tab.locator("[data-key='success']").inner_text()


def test_text_of_others_in_curves_is_only_text(browser: Any, tmp_path: Path):
    run = Run.create(tmp_path / "<b>run<b>", Config())
    for i in (1, 2, 3):
        run.log(metrics(i) | {f"world/{HOSTILE}": 1.0})
    with opened(browser, report_page([run, run_of(tmp_path / "b")]), tmp_path, **WIDE) as tab:
        assert HOSTILE in tab.locator("#curves").inner_text()
        assert "<b>run<b>" in tab.locator("#runs").inner_text()
        assert tab.evaluate("document.scripts.length") == 2


def test_long_runs_are_thinned_evenly_and_keep_their_end(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    lines = [json.dumps(metrics(i)).replace("NaN", "null") for i in range(1, 4 * MAX_POINTS)]
    (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page = report_page([run])
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    steps = data["runs"][0]["x"]["iteration"]
    assert len(steps) <= MAX_POINTS + 1
    assert steps[-1] == 4 * MAX_POINTS - 1
    assert len(page) < 2_000_000


# A run that goes on.


def test_a_served_report_follows_the_training_to_its_end(browser: Any, tmp_path: Path):
    with Run.create(tmp_path / "run", Config()) as run:
        server = LocalServer(partial(live_page, run.path), 0, partial(live_data, run.path))
        with server:
            tab = browser.new_page()
            tab.goto(server.url)
            assert "No training iteration" in tab.locator("#curves").inner_text()
            for i in (1, 2, 3):
                run.log(metrics(i))
            tab.locator("[data-key='entropy'] path.curve").wait_for(state="attached")
            assert len(points(curves(tab, "entropy")[0])) == 3
            run.log(metrics(4))
            tab.get_by_text("2,048 of").wait_for()
            assert len(points(curves(tab, "entropy")[0])) == 4
        tab.get_by_text(f"The training has ended. Its report is {run.path}").wait_for()
        tab.close()


def test_files_that_are_just_being_written_do_not_end_a_live_page(browser: Any, tmp_path: Path):
    with Run.create(tmp_path / "run", Config()) as run:
        unreadable = 5

        def data() -> str:
            nonlocal unreadable
            if unreadable:
                unreadable -= 1
                raise RunError("metrics.jsonl is just being written.")
            return live_data(run.path)

        with LocalServer(partial(live_page, run.path), 0, data) as server:
            tab = browser.new_page()
            tab.add_init_script("const wait = setTimeout; setTimeout = (f, ms) => wait(f, ms / 20)")
            tab.goto(server.url)
            run.log(metrics(1))
            tab.get_by_text("512 of").wait_for(timeout=10_000)
            assert not unreadable
            tab.close()


def test_a_line_that_is_half_written_is_waited_for(tmp_path: Path):
    run = run_of(tmp_path / "run", iterations=2, episodes=0)
    assert json.loads(live_data(run.path))["runs"]
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, ')
    with pytest.raises(RunError, match="just being written"):
        live_data(run.path)


def test_only_a_served_page_may_ask_for_data(tmp_path: Path):
    run = run_of(tmp_path / "run", iterations=2, episodes=0)
    assert "connect-src" in live_page(run.path)
    assert "connect-src" not in report_page([run])


def test_a_served_page_links_to_no_file_because_only_the_page_is_served(tmp_path: Path):
    run = run_of(tmp_path / "run", iterations=2, episodes=0)
    (run.path / "inspect.html").write_text("x")
    assert page_of(run).links == ["inspect.html"]
    assert Page(live_page(run.path)).links == []


# Several runs.


def test_several_runs_say_what_differs_and_what_came_of_it(tmp_path: Path):
    first = run_of(tmp_path / "first", episodes=10)
    second = run_of(tmp_path / "second", method="ntpo", seed=3, episodes=10)
    page = Page(report_page([first, second], tmp_path / "x.html"))
    assert "2 runs in poad/TomatoSalad-v0" in page.text
    assert "seed 0 3 credit.method poad ntpo" in page.text
    assert "first poad 0 10,240 6 90.0% 59.6% – 98.2% 0.960" in page.text
    assert "first − second success 10 +0.000 [+0.000, +0.000] 1.000" in page.text
    assert "Configuration of first" in page.text


def test_a_report_leads_to_the_inspector_where_there_is_one(tmp_path: Path):
    run = run_of(tmp_path / "run", iterations=2, episodes=1)
    assert f"poad inspect {run.path}" in page_of(run).text
    (run.path / "inspect.html").write_text("x")
    assert page_of(run).links == ["inspect.html"]
    assert Page(report_page([run], tmp_path / "x.html")).links == ["run/inspect.html"]
