"""Evaluations: every episode by itself, every turn on record, and nothing disturbed."""

from __future__ import annotations

import json
import math
from dataclasses import is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_worlds import TWO, name, settings
from tolerance import EXACT, float64

from poad.agent.build import Agent, load_agent
from poad.envs.registry import make
from poad.learn.evaluate import evaluate
from poad.learn.train import Trainer
from poad.runs import EpisodeRecord, Evaluation, decode, encode, plain, summarize
from poad.stats import wilson_interval
from poad.trie import Form
from poad.turns import Episode

pytestmark = pytest.mark.usefixtures("float64")

KITCHEN = "poad/TomatoSalad-v0"


@pytest.fixture(scope="module")
def agent() -> Agent:
    """Untrained, but with a critic that has something to say."""
    with float64(), torch.no_grad():
        agent = load_agent(settings("Chain", acting={"temperature": 3.0, "max_action_tokens": 6}))
        last = list(agent.critic.parameters())[-2]
        last.copy_(torch.randn(last.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    return agent


def played(agent: Agent, world: str, **changes: Any) -> list[EpisodeRecord]:
    arguments = {"episodes": 7, "seed": 100, "greedy": False, "streams": 3, "env": name(world)}
    return list(evaluate(agent, **(arguments | changes)))


def assert_same(found: Any, expected: Any) -> None:
    """Equal, with numbers to the precision that another batch leaves them."""
    assert type(found) is type(expected)
    if is_dataclass(found):
        assert_same(encode(found), encode(expected))
    elif isinstance(found, dict):
        assert found.keys() == expected.keys()
        for key, value in found.items():
            assert_same(value, expected[key])
    elif isinstance(found, tuple | list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(found, float):
        assert found == pytest.approx(expected, abs=EXACT)
    else:
        assert found == expected


WORLDS = ["Chain", "Lottery", "Diary", "Corridor", "Novel", "Mixed", "Prefixes", "Forms"]


@pytest.mark.parametrize("world", WORLDS)
def test_an_episode_depends_on_its_seed_alone(agent: Agent, world: str) -> None:
    together = played(agent, world)
    assert [record.seed for record in together] == list(range(100, 107))
    assert_same(played(agent, world, streams=64), together)
    assert_same(played(agent, world, streams=1, episodes=3), together[:3])
    assert_same(played(agent, world, seed=105, episodes=1), together[5:6])
    assert len({json.dumps(plain(record.turns)) for record in together}) > 1


@pytest.mark.parametrize("world", WORLDS)
def test_a_record_tells_what_happened(agent: Agent, world: str) -> None:
    for record in played(agent, world):
        line = json.dumps(encode(record), allow_nan=False)
        assert decode(EpisodeRecord, json.loads(line), "a line") == record
        env = make(name(world))
        prompt, info = env.reset(seed=record.seed)
        terminated = truncated = False
        for turn in record.turns:
            offered = info.get("admissible_actions")
            assert turn.prompt == prompt
            assert (turn.offered is None) == (offered is None or isinstance(offered, Form))
            assert turn.form == (str(offered) if isinstance(offered, Form) else "")
            assert offered is None or turn.action in offered
            if offered is not None and turn.offered is not None:
                assert tuple(action for action, _ in turn.offered) == offered
            prompt, reward, terminated, truncated, info = env.step(turn.action)
            assert (turn.reward, turn.duration) == (reward, info["duration"])
            assert turn.invalid is ("invalid_action" in info)
        assert terminated or truncated
        episode = info["episode"]
        assert record.ending == ("terminated" if terminated else "truncated")
        assert (record.episode_return, record.length) == (episode["r"], episode["l"])
        assert record.success is episode["success"]
        assert record.env == name(world)
        assert (record.mode, record.checkpoint) == ("sampled", None)
        assert record.versions["torch"] == torch.__version__


@pytest.mark.parametrize("world", WORLDS)
def test_a_turn_tells_what_the_agent_thought(agent: Agent, world: str) -> None:
    codec = agent.model.codec
    for turn in (turn for record in played(agent, world) for turn in record.turns):
        tokens = turn.token_ids
        for field in ("pieces", "choice", "logprob", "value"):
            assert len(getattr(turn, field)) == len(tokens)
        prompt = codec.prompt(turn.prompt)
        values = agent.values([(prompt, tokens[:j]) for j in range(len(tokens))])
        assert turn.value == pytest.approx(values, abs=EXACT)
        assert turn.root_value == turn.value[0] != 0.0
        forced = [x for x, choice in zip(turn.logprob, turn.choice, strict=True) if not choice]
        assert not any(forced)
        if turn.offered is None:
            assert all(turn.choice) or sum(turn.choice) == 20 * bool(turn.form)
            continue
        assert "".join(turn.pieces[:-1]).strip() == turn.action
        chances = dict(turn.offered)
        assert sum(chances.values()) == pytest.approx(1, abs=EXACT)
        assert chances[turn.action] == pytest.approx(math.exp(sum(turn.logprob)), abs=EXACT)
        assert any(turn.choice) == (len(chances) > 1)


@pytest.mark.parametrize("scheme", ["score", "published"])
def test_chances_are_those_the_action_was_drawn_with(scheme: str) -> None:
    """Over many draws at one prompt, whatever the scheme."""
    acting = {"scheme": scheme, "temperature": 3.0}
    agent = load_agent(settings("Chain", credit={"method": "turn_ppo"}, acting=acting))
    firsts = [r.turns[0] for r in played(agent, "Prefixes", episodes=400, streams=50)]
    chances = dict(firsts[0].offered or ())
    assert sum(chances.values()) == pytest.approx(1, abs=EXACT)
    assert len(chances) == 3
    for action, chance in chances.items():
        drawn = sum(turn.action == action for turn in firsts) / len(firsts)
        assert drawn == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / 400))


def test_the_same_prompt_may_offer_something_else(agent: Agent) -> None:
    for record in played(agent, "Aliased"):
        for day, turn in enumerate(record.turns):
            assert turn.offered is not None
            assert [action for action, _ in turn.offered] == ["walk on", f"wait {day} days"]


@pytest.mark.parametrize("world", ["Chain", "Diary", "Prefixes"])
def test_greedy_takes_the_likeliest_and_no_chances(agent: Agent, world: str) -> None:
    records = played(agent, world, greedy=True, episodes=4)
    assert {record.mode for record in records} == {"greedy"}
    for record in records:
        assert_same(record.turns, records[0].turns)
    if world == "Chain":  # one choice of two: what is likeliest token by token is so as a whole
        for turn in records[0].turns:
            chances = dict(turn.offered or ())
            assert turn.action == max(TWO, key=chances.__getitem__)


def test_examining_leaves_the_agent_and_the_dice_alone(agent: Agent) -> None:
    def everything() -> list[Any]:
        tensors = [t.clone() for group in agent.tensors().values() for t in group.values()]
        return [*tensors, torch.get_rng_state()]

    before, numpy_state = everything(), np.random.get_state()[1].tolist()  # pyright: ignore
    played(agent, "Corridor")
    assert all(map(torch.equal, everything(), before))
    assert np.random.get_state()[1].tolist() == numpy_state  # pyright: ignore
    assert all(p.grad is None for p in agent.model.parameters())


@pytest.mark.parametrize("greedy", [False, True])
def test_discounted_by_duration_the_rewards_are_the_kitchens_return(
    agent: Agent, greedy: bool
) -> None:
    records = list(
        evaluate(agent, episodes=5, seed=0, greedy=greedy, env=KITCHEN, env_args={"max_steps": 60})
    )
    for record in records:
        total, weight, steps = 0.0, 1.0, 0
        for turn in record.turns:
            total += weight * turn.reward
            weight *= 0.99**turn.duration
            steps += turn.duration
        assert total == pytest.approx(record.episode_return, abs=1e-12)
        assert steps == record.length
    assert any(len(record.turns) > 8 for record in records)


def test_without_another_world_it_is_the_agents_own() -> None:
    agent = load_agent(settings(KITCHEN, env_args={"max_steps": 5}))
    (record,) = evaluate(agent, episodes=1, seed=0, greedy=False, checkpoint=12)
    assert (record.env, record.checkpoint) == (KITCHEN, 12)
    assert record.length < 15


def test_a_summary_counts() -> None:
    episodes = [Episode(1.0, 10, True), Episode(-0.5, 40, False), Episode(0.25, 13, True)]
    assert summarize(episodes) == Evaluation(3, 2 / 3, wilson_interval(2, 3), 0.25, 21.0)
    nothing = encode(summarize(iter(())))
    assert nothing.pop("episodes") == 0
    assert set(nothing.values()) == {None}
    assert list(evaluate(load_agent(settings("Chain")), episodes=0, seed=0, greedy=True)) == []


@pytest.mark.parametrize("world", ["Chain", "Diary"])
def test_without_turns_an_episode_ends_the_same(agent: Agent, world: str) -> None:
    whole = played(agent, world)
    brief = played(agent, world, turns=False)
    assert all(record.turns for record in whole)
    assert brief == [replace(record, turns=()) for record in whole]


def test_prompts_that_are_too_long_are_said_once() -> None:
    """By training, and not again by its evaluations; by an evaluation on its own as well."""
    config = settings("Quest", acting={"max_action_tokens": 430}, eval={"every": 1, "episodes": 3})
    trainer = Trainer(config)
    with pytest.warns(UserWarning, match="Kept: the goal and both ends of the obs") as told:
        for _ in trainer.train():
            pass
    assert len(told) == 1
    playing = {"episodes": 2, "seed": 0, "greedy": False}
    with pytest.warns(UserWarning, match=r"reads at most \d+ before an action") as told:
        list(evaluate(trainer.agent, **playing))
    assert len(told) == 1
    list(evaluate(trainer.agent, **playing, remark=False))  # a warning would be an error


def test_what_the_model_did_not_read_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = load_agent(settings("Chain", prompt={"history": "episode"}))
    (whole,) = played(agent, "Chain", episodes=1)
    assert len(whole.turns) > 2
    assert all(turn.cut is None for turn in whole.turns)
    longest = len(agent.model.codec.prompt(whole.turns[0].prompt))
    room = longest + agent.policy.acting.max_action_tokens + 3
    monkeypatch.setattr(agent.model, "context_length", room)
    with pytest.warns(UserWarning, match="is too long"):
        (cut,) = played(agent, "Chain", episodes=1)
    assert cut.turns[0].cut is None
    assert cut.turns[1].cut is not None
    assert cut.turns[1].cut.turns > 0
    line = plain(encode(cut))
    assert line["turns"][1]["cut"] == {"turns": cut.turns[1].cut.turns}
    assert "cut" not in line["turns"][0]
    assert decode(EpisodeRecord, line, "here") == cut
