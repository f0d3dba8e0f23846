"""How an agent acts before any training, beside a uniform one, and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from tiny_models import Zoo
from tiny_worlds import GOAL, MANY, TWO, Outcome, Rules, TinyWorld, at_place, name, settings

from poad.agent.build import load_agent
from poad.cli.main import main
from poad.config import Config, preset
from poad.learn.evaluate import evaluate
from poad.runs import Evaluation, summarize
from poad.stats import wilson_interval
from poad.trie import Form
from poad.workflows import prior
from poad.workflows.prior import (
    Prior,
    describe_prior,
    model_prior,
    remarks_on_prior,
    show_prior,
    uniform_prior,
)

HUGE = Form((("take",), *((f" red{i}", f" blue{i}") for i in range(70))))
"""2⁷⁰ actions, more than an int64 counts."""
WORLDS = {
    "Endless": Rules(at_place, lambda s: TWO, lambda s, a: Outcome(0, -0.25), limit=10**9),
    "Huge": Rules(at_place, lambda s: HUGE, lambda s, a: Outcome(0, 1.0, s.turn == 1)),
    "Costly": Rules(at_place, lambda s: TWO, lambda s, a: Outcome(0, -0.1, s.turn == 3)),
}


@pytest.fixture(scope="module", autouse=True)
def worlds() -> None:
    kind: Any = TinyWorld
    for world, rules in WORLDS.items():
        gymnasium.register(f"tiny/{world}-v0", entry_point=kind, kwargs={"rules": rules})


def outcome(wins: int, episodes: int = 100, mean_return: float = 0.0) -> Evaluation:
    interval = wilson_interval(wins, episodes)
    return Evaluation(episodes, wins / episodes, interval, mean_return, 5.0)


def at(config: Config, **acting: Any) -> Config:
    return replace(config, acting=replace(config.acting, **acting))


# --- a uniform agent --------------------------------------------------------------------------


@cache
def chance(place: int = 0, turn: int = 0) -> float:
    """Of reaching the goal of the chain in six turns, by dynamic programming."""
    if place == GOAL or turn == 6:
        return float(place == GOAL)
    return sum(chance(to, turn + 1) for to in (place + 1, max(0, place - 1))) / 2


def assert_plausible(wins: int, episodes: int, chance: float, odds: float = 1e-4) -> None:
    """Neither tail of the exact binomial distribution is as rare as the odds."""
    mass = [
        math.comb(episodes, k) * chance**k * (1 - chance) ** (episodes - k)
        for k in range(episodes + 1)
    ]
    assert sum(mass[: wins + 1]) > odds
    assert sum(mass[wins:]) > odds


def test_uniform_success_is_what_chance_gives() -> None:
    assert chance() == 22 / 64
    found = uniform_prior(settings("Chain"), 400)
    assert found is not None
    assert found.outcome.episodes == 400
    assert_plausible(round(400 * found.outcome.success_rate), 400, chance())
    assert found.outcome.mean_return == pytest.approx(found.outcome.success_rate)
    assert found.entropy == pytest.approx(math.log(2))
    assert found.step_cost == 0
    assert uniform_prior(settings("Chain"), 400) == found
    other = replace(settings("Chain"), eval=replace(settings("Chain").eval, seed=5))
    assert uniform_prior(other, 400) != found


@pytest.mark.parametrize(
    ("world", "actions"), [("Rail", 1), ("Prefixes", 3), ("Novel", 4), ("Forms", len(MANY))]
)
def test_the_entropy_of_a_uniform_choice_is_the_logarithm_of_its_actions(
    world: str, actions: int
) -> None:
    found = uniform_prior(settings(world), 8)
    assert found is not None
    assert found.entropy == pytest.approx(math.log(actions))
    assert found.outcome.success_rate == 1 or world != "Rail"


def test_forms_of_any_size_are_filled_in_uniformly() -> None:
    found = uniform_prior(settings("Huge"), 5)
    assert found is not None
    assert found.entropy == pytest.approx(70 * math.log(2))
    assert found.outcome.mean_return == 2


@pytest.mark.parametrize("world", ["Diary", "Mixed"])
def test_no_agent_writes_uniformly(world: str) -> None:
    assert uniform_prior(settings(world), 3) is None


def test_what_most_turns_cost_is_found() -> None:
    found = uniform_prior(settings("Costly"), 5)
    assert found is not None
    assert found.step_cost == pytest.approx(0.1)
    assert found.outcome.mean_return == pytest.approx(-0.4)


def test_an_episode_that_does_not_end_is_given_up_and_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prior, "_MOST_TURNS", 12)
    config = settings("Endless")
    uniform = uniform_prior(config, 3)
    mine, states = model_prior(load_agent(config).policy, config, 6)
    assert uniform is not None
    for found, episodes in ((uniform, 3), (mine, 6)):
        assert found.outcome.episodes == episodes
        assert found.outcome.success_rate == 0
        assert found.outcome.mean_length == 12
        assert found.outcome.mean_return == pytest.approx(12 * -0.25)
    assert sum(state.count for state in states) == 6 * 12


# --- a model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("world", ["Chain", "Aliased", "Corridor", "Novel"])
def test_a_models_prior_is_that_of_its_evaluation(world: str) -> None:
    """The same episodes, and the mean entropy of all their choices."""
    config = settings(world)
    agent = load_agent(config)
    found, states = model_prior(agent.policy, config, 9)
    seed = config.eval.seed
    records = list(evaluate(agent, episodes=9, seed=seed, greedy=False, streams=4))
    assert found.outcome == summarize(records)
    offers = [turn.offered for record in records for turn in record.turns]
    entropies = [-sum(p * math.log(p) for _, p in offer if p > 0) for offer in offers if offer]
    assert found.entropy == pytest.approx(np.mean(entropies), rel=1e-5)
    assert [state.count for state in states] == sorted((s.count for s in states), reverse=True)
    assert sum(state.count for state in states) == len(offers)
    for state in states:
        assert state.actions == state.observation.admissible_actions
        assert sum(state.chances) == pytest.approx(1)


def test_at_a_high_temperature_a_model_is_a_uniform_agent() -> None:
    config = at(settings("Chain"), temperature=1e6)
    found, _ = model_prior(load_agent(config).policy, config, 200)
    assert found.entropy == pytest.approx(math.log(2), abs=1e-4)
    assert_plausible(round(200 * found.outcome.success_rate), 200, chance())


@pytest.mark.parametrize("world", ["Diary", "Forms"])
def test_without_a_list_of_actions_there_is_no_entropy(world: str) -> None:
    config = settings(world)
    found, states = model_prior(load_agent(config).policy, config, 4)
    assert math.isnan(found.entropy)
    assert states == []
    assert found.outcome.episodes == 4
    assert "nan" not in describe_prior(found, None)


# --- what is said -----------------------------------------------------------------------------


def test_a_prior_that_excludes_what_is_rewarded_names_the_temperature() -> None:
    config = at(settings("Chain"), temperature=1.5)
    (remark,) = remarks_on_prior(config, Prior(outcome(2), 1.0), Prior(outcome(44), 1.6))
    assert "succeeds in 2.0% of the episodes" in remark
    assert "uniformly random agent in 44.0%" in remark
    assert "Raise acting.temperature (now 1.5)" in remark
    assert "poad eval MODEL --untrained" in remark


@pytest.mark.parametrize("mine", [30, 44, 60, 100])
def test_a_prior_that_is_as_good_as_chance_is_met_with_silence(mine: int) -> None:
    config = settings("Chain")
    assert [*remarks_on_prior(config, Prior(outcome(mine), 1.0), Prior(outcome(44), 1.6))] == []


def test_a_bonus_that_is_worth_less_than_a_turn_costs_is_told_with_what_suffices() -> None:
    config = settings("Chain", ppo={"entropy": 0.05, "std_floor": 0.1})
    model = Prior(outcome(44), 1.0)
    uniform = Prior(outcome(44), 1.6, step_cost=0.01)
    (remark,) = remarks_on_prior(config, model, uniform)
    assert "A nat of entropy is worth 0.005 of reward" in remark
    assert "than a turn costs (0.01)" in remark
    assert "Use ppo.entropy = 0.2 or more" in remark
    for ppo in ({"entropy": 0.2}, {"entropy": 0.0}, {"entropy": 0.05, "std_floor": 1.0}):
        better = settings("Chain", ppo={"std_floor": 0.1, **ppo})
        assert [*remarks_on_prior(better, model, uniform)] == [], ppo
    assert [*remarks_on_prior(config, model, replace(uniform, step_cost=0.0))] == []


def test_what_is_written_freely_has_to_earn_something() -> None:
    config = settings("Diary")
    (remark,) = remarks_on_prior(config, Prior(outcome(0), math.nan), None)
    assert "prompt.examples" in remark
    assert "prompt.format = chat" in remark
    for better in (outcome(1), outcome(0, mean_return=0.3)):
        assert [*remarks_on_prior(config, Prior(better, math.nan), None)] == []


def test_it_is_said_in_a_sentence() -> None:
    model, uniform = Prior(outcome(2), 1.234), Prior(outcome(44), math.log(5))
    assert describe_prior(model, uniform) == (
        "Untrained, it succeeds in 2.0% of 100 episodes (entropy 1.23 nats an action); a uniformly "
        "random agent in 44.0% (1.61 nats)."
    )
    assert describe_prior(replace(model, entropy=math.nan), None) == (
        "Untrained, it succeeds in 2.0% of 100 episodes."
    )


# --- what is shown ----------------------------------------------------------------------------

Shown = Callable[..., str]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Shown:
    """What a look at a model prints, in one line."""

    def look(model: str, world: str, *rest: str) -> str:
        given = ("--untrained", "--env", name(world), "--episodes", "6", *rest)
        assert main(["eval", model, *given]) == 0
        return " ".join(capsys.readouterr().out.split())

    return look


def test_a_look_shows_success_states_and_a_verdict(shown: Shown) -> None:
    said = shown("tiny-kitchen", "Chain")
    assert "tiny-kitchen before any training, in tiny_worlds:tiny/Chain-v0" in said
    assert "uniformly random" in said
    assert "You stand at place 0. What now?" in said
    for action in TWO:
        assert f"% {action}" in said
    assert "Preset plain, temperature 1: There is reward to learn from." in said


def test_both_prompt_formats_and_temperatures_are_compared(
    zoo: Zoo, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(zoo.path("llama", "marked"))
    small = preset("small")
    config = settings("Chain", model={"name": path})
    config = replace(config, acting=small.acting)
    assert show_prior(config, "small", episodes=3, quiet=True) == 0
    rows = capsys.readouterr().out.splitlines()
    ways = [row.split()[:2] for row in rows]
    assert ways == [["plain", "1"], ["plain", "5"], ["chat", "1"], ["chat", "5"]]


def test_a_format_without_a_template_is_refused_in_a_sentence(zoo: Zoo) -> None:
    config = settings("Chain", model={"name": str(zoo.path())}, prompt={"format": "chat"})
    with pytest.raises(ValueError, match="chat template"):
        show_prior(config, "plain", episodes=2, quiet=True)


@pytest.mark.parametrize("world", ["Diary", "Forms", "Mixed", "Novel"])
def test_a_look_at_any_kind_of_world(shown: Shown, world: str) -> None:
    said = shown("tiny-kitchen", world)
    assert "Preset plain, temperature 1: " in said
    assert ("uniformly random" in said) == (world in ("Forms", "Novel"))
    assert "nan" not in said
    assert shown("tiny-kitchen", world, "--quiet").startswith("plain 1 ")


def test_auto_is_the_model_of_the_world(capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--untrained", "--env-args", "max_steps=5", "--episodes", "2")
    assert main(["eval", "auto", *few]) == 0
    assert "tiny-kitchen before any training, in poad/TomatoSalad-v0" in " ".join(
        capsys.readouterr().out.split()
    )


def test_what_is_neither_a_run_nor_a_model_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "runs/nowhere", "--untrained"]) == 2
    assert "Cannot load the model 'runs/nowhere'" in " ".join(capsys.readouterr().err.split())
