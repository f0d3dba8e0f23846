"""The inspector's page in a browser: what it shows is what `poad.credit` says, and it is safe."""

from __future__ import annotations

import json
import math
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import opened
from synthetic_episodes import episode_view, turn_view
from synthetic_run import HOSTILE

from poad.credit import METHODS
from poad.pages import (
    Alternative,
    Dials,
    EpisodeView,
    Inspection,
    data_of,
    describe_episodes,
    inspector_page,
    judge,
    kinds,
)
from poad.pages.inspector import LONGEST_PIECE
from poad.pages.template import LARGEST, embed
from poad.turns import Cut

WIDE = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}


def some_episodes(count: int = 4, **changes: Any) -> list[EpisodeView]:
    return [episode_view(seed, [3, 5, 2], **changes) for seed in range(count)]


def page_of(*agents: list[EpisodeView], **changes: Any) -> str:
    named = {f"checkpoint {i}": each for i, each in enumerate(agents or (some_episodes(),))}
    return inspector_page(Inspection(**({"title": "An inspection", "agents": named} | changes)))


def shown_numbers(tab: Any) -> dict[tuple[int, int], str]:
    """The text of every token's cell, by method and token."""
    cells = tab.evaluate(
        "[...document.querySelectorAll('.cell')].map("
        "c => [Number(c.dataset.method), Number(c.dataset.token), c.textContent])"
    )
    return {(method, token): text for method, token, text in cells}


def expected_numbers(episode: EpisodeView, dials: Dials) -> dict[tuple[int, int], str]:
    choice = [c for turn in episode.turns for c in turn.choice]
    return {
        (m, i): _signed(token.advantage)
        if token.advantage is not None
        else "none"
        if choice[i]
        else "–"
        for m, method in enumerate(kinds().values())
        for i, token in enumerate(judge(episode, method, dials))
    }


def _signed(value: float) -> str:
    text = f"{value:.3f}"
    return (
        text.removeprefix("-") if float(text) == 0 else f"+{text}" if value > 0 else f"−{text[1:]}"
    )


def close(one: str, other: str) -> bool:
    """Equal, but for the last digit: two roundings of the same number."""
    if one == other:
        return True
    try:
        first, second = (float(t.replace("−", "-")) for t in (one, other))
    except ValueError:
        return False
    return abs(first - second) < 0.0011


def expect_numbers(tab: Any, episode: EpisodeView, dials: Dials) -> None:
    shown, expected = shown_numbers(tab), expected_numbers(episode, dials)
    assert shown.keys() == expected.keys()
    assert [key for key in shown if not close(shown[key], expected[key])] == []


def test_every_token_shows_its_credit_by_every_method(browser: Any, tmp_path: Path):
    episode = some_episodes()[0]
    with opened(browser, page_of([episode]), tmp_path, **WIDE) as tab:
        expect_numbers(tab, episode, Dials())


@pytest.mark.parametrize(
    ("slider", "value", "dials"),
    [
        ("gamma", 0.5, Dials(gamma=0.5)),
        ("lam", 0.3, Dials(lam=0.3)),
        ("gamma_token", 0.4, Dials(gamma_token=0.4)),
        ("lam_token", 0.2, Dials(lam_token=0.2)),
    ],
)
def test_sliders_recompute_everything(
    browser: Any, tmp_path: Path, slider: str, value: float, dials: Dials
):
    episode = some_episodes()[0]
    with opened(browser, page_of([episode]), tmp_path, **WIDE) as tab:
        if (own := tab.locator(f"#{slider}-own")).count():
            own.uncheck()
        tab.locator(f"#{slider}").fill(str(value))
        expect_numbers(tab, episode, dials)
        tab.locator("#reset").click()
        expect_numbers(tab, episode, Dials())


def test_sliders_begin_at_the_rates_of_the_run(browser: Any, tmp_path: Path):
    episode, dials = some_episodes()[0], Dials(0.9, 0.8, 0.7, 0.6, 0.5, 0.4, "bit", False)
    with opened(browser, page_of([episode], dials=dials), tmp_path, **WIDE) as tab:
        expect_numbers(tab, episode, dials)


def test_pointing_at_a_token_tells_all_that_is_known_of_it(browser: Any, tmp_path: Path):
    turn = turn_view(
        np.random.default_rng(0),
        2,
        pieces=(" chop", " it"),
        choice=(True, False),
        logprob=(math.log(0.6), 0.0),
        before=(math.log(0.2), 0.0),
        value=(0.25, 0.5),
        entropy=(0.61, 0.0),
        reward=1.0,
        alternatives=((Alternative(" chop", 0.6, 0.2), Alternative(" other", 0.4, 0.8)), ()),
    )
    episode = EpisodeView(7, 1.0, True, "terminated", (turn,))
    page = page_of([episode], before="the untrained model")
    with opened(browser, page, tmp_path, **WIDE) as tab:
        tab.locator(".cell[data-token='0']").first.hover()
        told = re.sub(r"\s+", " ", tab.locator("#token").inner_text())
        for fact in ("·chop", "60.0 %", "20.0 %", "0.250", "0.610 nats", "3.000", "0.80 to 1.20"):
            assert fact in told
        rows = {
            row.get_attribute("data-row"): row.inner_text().split("\t")[1:]
            for row in tab.locator("#token tbody tr").all()
        }
        assert rows["poad"] == ["+0.750", "+0.750", "1.000"]  # the only choice, then the end
        assert rows["ntpo"][0] == "+0.245"  # 0.99 · 0.5 − 0.25
        assert rows["reinforce"] == ["+1.000", "+1.000", "–"]
        assert "·other 80.0 % → 40.0 %" in told
        tab.locator(".cell[data-token='1']").first.hover()
        assert "forced" in tab.locator("#token").inner_text()
        tab.keyboard.press("Escape")
        assert "Point at a token" in tab.locator("#token").inner_text()


def test_forced_tokens_look_forced(browser: Any, tmp_path: Path):
    episode = some_episodes()[0]
    choice = [c for turn in episode.turns for c in turn.choice]
    with opened(browser, page_of([episode]), tmp_path, **WIDE) as tab:
        dashed = tab.evaluate(
            "[...document.querySelectorAll('.cell[data-method=\"0\"]')].map("
            "c => getComputedStyle(c).borderTopStyle === 'dashed')"
        )
        assert dashed == [not c for c in choice]


def test_keys_go_from_token_to_token_and_from_method_to_method(browser: Any, tmp_path: Path):
    with opened(browser, page_of(), tmp_path, **WIDE) as tab:
        first = tab.locator(".cell[tabindex='0']")
        assert first.count() == 1, "one token of the episode can be reached by Tab"
        first.focus()
        start = int(first.get_attribute("data-token"))
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("ArrowDown")
        here = tab.evaluate("({...document.activeElement.dataset})")
        assert here == {"token": str(start + 1), "method": "1"}
        assert tab.locator("#token h2").count() == 1


def test_a_tap_opens_a_token_on_a_phone(browser: Any, tmp_path: Path):
    with opened(browser, page_of(), tmp_path, **PHONE) as tab:
        assert not tab.locator("#token").is_visible()
        tab.locator(".cell").first.tap()
        assert tab.locator("#token").is_visible()
        tab.locator("#token .close").tap()
        assert not tab.locator("#token").is_visible()


@pytest.mark.parametrize("window", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("count", [1, 2])
def test_no_page_is_wider_than_its_window(
    browser: Any, tmp_path: Path, window: dict[str, Any], count: int
):
    long = [episode_view(seed, [30, 4]) for seed in range(2)]
    with opened(browser, page_of(*[long] * count), tmp_path, **window) as tab:
        tab.locator(".cell").nth(3).click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= window["viewport"]["width"]


def test_filters_choose_and_order_episodes(browser: Any, tmp_path: Path):
    def made(seed: int, success: bool, turns: int, reward: float) -> EpisodeView:
        rng = np.random.default_rng(seed)
        made = tuple(turn_view(rng, 1, value=(0.0,), reward=0.0) for _ in range(turns - 1))
        last = turn_view(rng, 1, value=(0.0,), reward=reward)
        return EpisodeView(seed, reward, success, "terminated", (*made, last))

    episodes = [made(1, True, 2, 1.0), made(2, False, 5, -9.0), made(3, False, 3, 0.0)]
    with opened(browser, page_of(episodes), tmp_path, **WIDE) as tab:

        def listed() -> list[str]:
            return tab.evaluate(
                "[...document.querySelectorAll('#episodes button')].map(b => b.dataset.seed)"
            )

        def pressed() -> list[str]:
            return tab.evaluate(
                "[...document.querySelectorAll('[aria-pressed=true]')].map("
                "b => b.dataset.filter ?? b.dataset.seed)"
            )

        assert listed() == ["1", "2", "3"]
        assert pressed() == ["all", "1"]
        tab.locator("[data-filter=failed]").click()
        assert pressed() == ["failed", "2"]
        assert listed() == ["2", "3"]
        assert "Seed 2" in tab.locator("#panes h2").inner_text()
        tab.locator("[data-filter=all]").click()
        tab.locator("#order").select_option("longest")
        assert listed() == ["2", "3", "1"]
        tab.locator("#order").select_option("surprising")
        assert listed() == ["2", "1", "3"]
        tab.locator("#order").select_option("return")
        assert listed() == ["2", "3", "1"]


def test_two_agents_stand_side_by_side_on_the_same_seed(browser: Any, tmp_path: Path):
    one, other = some_episodes(success=True), some_episodes(success=True)
    other[2] = episode_view(2, [4], success=False)
    with opened(browser, page_of(one, other), tmp_path, **WIDE) as tab:
        assert tab.locator("#panes > section").count() == 2
        tab.locator("[data-filter=differ]").click()
        headings = tab.locator("#panes h2").all_inner_texts()
        assert headings == ["Seed 2, checkpoint 0", "Seed 2, checkpoint 1"]
        boxes = [tab.locator("#panes > section").nth(i).bounding_box() for i in (0, 1)]
        assert boxes[0]["x"] < boxes[1]["x"]


ODD = (
    HOSTILE,
    "</script><script>alert(1)</script>",
    "\u202egnirts\u202c",
    "\x1b[31mred\x07",
    "\u2028",
    "a\x00b",
    "\ud800",
)


def test_text_of_others_is_shown_and_never_obeyed(browser: Any, tmp_path: Path):
    size = len(ODD)
    turn = turn_view(
        np.random.default_rng(0),
        size,
        prompt=" ".join(ODD),
        action=HOSTILE,
        pieces=ODD,
        offered=tuple((text, 1 / size) for text in ODD),
        form=HOSTILE,
        cut=Cut(turns=12),
    )
    episode = EpisodeView(0, 0.0, None, "unfinished", (turn,))
    named = {HOSTILE: [episode]}
    page = inspector_page(Inspection(HOSTILE, named, before=HOSTILE, notes=(HOSTILE,)))
    assert "\x1b" not in page
    assert "\u202e" not in page
    with opened(browser, page, tmp_path, **WIDE) as tab:
        assert tab.evaluate("document.scripts.length") == 2
        assert HOSTILE in tab.locator("article pre").first.inner_text()
        assert "did not read 12 tokens: 12 of earlier turns" in tab.locator("article").inner_text()
        assert tab.title() == HOSTILE
        for cell in tab.locator(".cell[data-method='0']").all():
            cell.click()


def test_a_token_of_a_hundred_thousand_characters_is_cut_and_says_so(browser: Any, tmp_path: Path):
    turn = turn_view(np.random.default_rng(0), 1, pieces=("x" * 100_000,), action="x" * 100_000)
    page = page_of([EpisodeView(0, 0.0, None, "terminated", (turn,))])
    assert len(page) < 150_000
    with opened(browser, page, tmp_path, **WIDE) as tab:
        tab.locator(".cell").first.click()
        told = tab.locator("#token h2").inner_text()
        assert "x" * LONGEST_PIECE in told
        assert "100,000" in told


def test_nothing_in_embedded_json_can_end_its_element():
    text = "</script><!-- & \u2028"
    written = embed([text])
    assert not set("<>&\u2028") & set(written)
    assert json.loads(written) == [text]


def test_a_page_never_exceeds_its_limit_and_says_what_it_leaves_out():
    rng = np.random.default_rng(0)
    episodes = [
        EpisodeView(
            seed,
            0.0,
            True,
            "terminated",
            tuple(turn_view(rng, 40, prompt=f"{seed} {t} " + "y" * 15_000) for t in range(20)),
        )
        for seed in range(30)
    ]
    page = page_of(episodes)
    assert len(page.encode()) < LARGEST
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    left_out = 30 - len(data["episodes"])
    assert left_out > 0
    assert f"leaves out {left_out} more episodes" in data["notes"][-1]


def test_episodes_are_counted_in_plain_english():
    one, two = some_episodes(1), some_episodes(2)
    assert describe_episodes(one).startswith("1 episode, ")
    assert describe_episodes(two).startswith("2 episodes, ")


def test_prompts_that_repeat_are_stored_once():
    page = page_of([episode_view(0, [2] * 50)])
    assert page.count("You see a tomato.") == 1


def test_light_and_dark_letters_can_be_read_on_every_shade(browser: Any, tmp_path: Path):
    """Contrast of text on coloured cells is at least 4.5 : 1 (WCAG 2.2, AA)."""
    episode = some_episodes()[0]
    for scheme in ("light", "dark"):
        with opened(browser, page_of([episode]), tmp_path, color_scheme=scheme, **WIDE) as tab:
            assert tab.evaluate(CONTRAST) >= 4.5, scheme


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const painted = (...colors) => {
    colors.forEach((c) => { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); });
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const card = getComputedStyle(document.querySelector("article")).backgroundColor;
  return Math.min(...[...document.querySelectorAll(".cell")].map((cell) => {
    const style = getComputedStyle(cell);
    const [a, b] = [light(painted(card, style.backgroundColor)), light(painted(style.color))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }));
}"""


def case_study() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "build_case_study.py"))


def test_the_shipped_case_study_is_what_a_page_reads_today():
    shipped = json.loads(case_study()["DATA"].read_text(encoding="utf-8"))
    today = json.loads(data_of(Inspection("x", {"one": some_episodes(1)})))
    assert shipped.keys() == today.keys()
    assert shipped["dials"].keys() == today["dials"].keys()
    assert shipped["methods"] == today["methods"], "run scripts/build_case_study.py"


def test_the_figures_of_the_documentation_are_those_of_the_shipped_data(
    browser: Any, tmp_path: Path
):
    """The four advantages that docs/inspect.md quotes."""
    with opened(browser, case_study()["page"](), tmp_path, **WIDE) as tab:
        tab.locator("[data-seed='1000004']").click()
        turns = [tab.locator("article", has_text=f"▸ {verb}").last for verb in VERBS]
        for method, expected in (("poad", POAD), ("ntpo", NTPO)):
            row = [turn.locator(f"tr:has(th:text-is('{method}')) .cell").first for turn in turns]
            assert [cell.inner_text() for cell in row] == expected


VERBS = ("open", "put", "close")
POAD, NTPO = ["+0.030", "+0.041", "+0.048"], ["−0.076", "−0.054", "+0.009"]


def test_methods_with_the_same_credit_share_a_row():
    names = [name for group in kinds() for name in group.split(", ")]
    alone = [name for name, method in METHODS.items() if method.compared == "none"]
    assert sorted(names) == sorted(alone)
    assert "twosome, glam, turn_ppo" in kinds()
