"""`poad plan` counts the tokens and forward passes that a real run computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from tiny_worlds import Outcome, Rules, TinyWorld, WorkshopWorld
from tiny_worlds import settings as world

from poad.agent import resolve, sampling
from poad.config import Config, from_dict, load
from poad.learn.train import Trainer
from poad.lm.cache import Decoder
from poad.lm.model import LanguageModel
from poad.lm.packing import Packed
from poad.plan.sample import load_codec, sample_world

CONFIGS = Path(__file__).parents[2] / "configs"
RESTRICTED = ("tomato_salad", "tomato_lettuce_salad", "food_preparation", "entertainment")
PAGE = "tiny/Page-v0"
if PAGE not in gymnasium.registry:
    # It goes on as `poad plan` assumes of free writing: nothing written changes what is shown.
    rules = Rules(lambda s: "Write.", lambda s: None, lambda s, a: Outcome(0), limit=1000)
    gymnasium.register(PAGE, entry_point=TinyWorld, kwargs={"rules": rules})  # pyright: ignore


Tally = Counter[tuple[str, bool]]
"""Tokens, forward passes, logits and values of a real model, without and with a gradient."""


@pytest.fixture
def tally(monkeypatch: pytest.MonkeyPatch) -> Tally:
    """Counts what every real model computes from now on."""
    found: Tally = Counter()

    def add(tokens: int, gradient: bool) -> None:
        found["tokens", gradient] += tokens
        found["passes", gradient] += 1

    read, frozen, grow = LanguageModel.read, LanguageModel.read_frozen, Decoder.read

    def counting_read(self: LanguageModel, packed: Packed) -> torch.Tensor:
        add(int(packed.mask.sum()), torch.is_grad_enabled())
        return read(self, packed)

    def counting_frozen(self: LanguageModel, packed: Packed) -> torch.Tensor:
        add(int(packed.mask.sum()), False)
        found["values", False] += len(packed.row)
        return frozen(self, packed)

    def counting_grow(self: Decoder, chunks: Any, parents: Any = None) -> torch.Tensor:
        add(sum(map(len, chunks)), False)
        return grow(self, chunks, parents)

    monkeypatch.setattr(LanguageModel, "read", counting_read)
    monkeypatch.setattr(LanguageModel, "read_frozen", counting_frozen)
    monkeypatch.setattr(Decoder, "read", counting_grow)
    return found


def once(config: Config, **ppo: Any) -> Config:
    """One pass of the update, which nothing stops and nobody checks."""
    bounds = {"kl_stop": None, "kl_limit": None}
    return replace(config, ppo=replace(config.ppo, epochs=1, **bounds, **ppo))


def shipped(name: str, **changes: Any) -> Config:
    return once(from_dict(changes, load(CONFIGS / f"{name}.yaml")))


def tiny(name: str, **changes: Any) -> Config:
    return once(world(name, **changes))


CASES: dict[str, Callable[[], Config]] = {
    **{name: lambda name=name: shipped(name) for name in RESTRICTED},
    "score": lambda: shipped("tomato_salad", credit={"method": "twosome"}),
    "published": lambda: shipped(
        "food_preparation", acting={"scheme": "published"}, credit={"slots": "tokens"}
    ),
    "shared critic": lambda: shipped("tomato_salad", critic={"body": "shared"}),
    "small batches": lambda: once(
        shipped("tomato_lettuce_salad", horizon=8), micro_batch_tokens=200, minibatches=3
    ),
    "history": lambda: tiny("Chain", prompt={"history": "episode"}, horizon=12),
    "long history": lambda: shipped(
        "tomato_salad", prompt={"history": "episode"}, streams=4, horizon=24
    ),
    "thinking": lambda: tiny("Lottery", prompt={"thinking": 6}),
    "whole turns": lambda: tiny("Prefixes", credit={"method": "turn_ppo"}, ppo={"ratio": "turn"}),
    "few choices": lambda: tiny("Corridor"),
    "forms": lambda: tiny("Forms"),
    "no choice": lambda: tiny("Rail"),
    "thinking and writing": lambda: tiny(
        PAGE, acting={"stop": []}, prompt={"thinking": 3, "history": "episode"}
    ),
    "free writing": lambda: tiny(PAGE, acting={"stop": []}, horizon=4),
    "free writing with history": lambda: tiny(
        PAGE, acting={"stop": []}, horizon=6, prompt={"history": "episode"}
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_counts_are_those_of_a_real_iteration(
    case: str, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = resolve(CASES[case]())
    config = settings.config
    predicted = sample_world(settings, *load_codec(config))
    trainer = Trainer(config)
    end = trainer.agent.policy.codec.end_id

    def uniform(
        self: LanguageModel, hidden: torch.Tensor, tokens: torch.Tensor | None = None
    ) -> torch.Tensor:
        tally["logits", torch.is_grad_enabled()] += len(hidden)
        tally["most logits", False] = max(tally["most logits", False], len(hidden))
        logits = 0.0 * self._head(hidden).float()
        if not predicted.offered:  # an agent that writes until its budget is spent
            logits[..., end] = -torch.inf
        return logits if tokens is None else logits.gather(-1, tokens)

    monkeypatch.setattr(LanguageModel, "logits", uniform)
    tally.clear()
    rollout = trainer.collector.collect(config.horizon, trainer.generator)
    acted = Counter(tally)
    tally.clear()
    trainer.learner.update(rollout)
    trainer.collector.close()
    turns = rollout.turns
    prompts = {turn.prompt_ids for turn in turns}
    real = {
        "turns": len(turns),
        "prompts": len(prompts),
        "prompt_tokens": sum(map(len, prompts)) / len(prompts),
        "action_tokens": sum(len(turn.action.token_ids) for turn in turns) / len(turns),
        "longest": max(len(turn.prompt_ids) + len(turn.action.token_ids) for turn in turns),
        "acting_tokens": acted["tokens", False],
        "acting_passes": acted["passes", False],
        "acting_logits": acted["most logits", False],
        "update_tokens": tally["tokens", True],
        "update_passes": tally["passes", True],
        "update_positions": tally["logits", True],
        "critic_tokens": tally["tokens", False],
    }
    if config.critic.body == "frozen":
        real["critic_positions"] = tally["values", False]
    assert real == {name: getattr(predicted, name) for name in real}


def test_a_long_rollout_is_played_in_part_and_scaled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = resolve(tiny("Novel", streams=8, horizon=16))  # a world where nothing repeats
    config = settings.config
    whole = sample_world(settings, *load_codec(config))
    monkeypatch.setattr("poad.plan.sample._TURNS", 32)
    part = sample_world(settings, *load_codec(config))
    assert (part.turns, part.acting_passes) == (whole.turns, whole.acting_passes)
    for name in ("prompts", "update_positions", "critic_positions"):
        assert getattr(part, name) == pytest.approx(getattr(whole, name), rel=0.2)
    # Fewer prompts have less in common.
    for name in ("acting_tokens", "update_tokens", "critic_tokens"):
        assert 0.9 * getattr(whole, name) < getattr(part, name) < 2 * getattr(whole, name)


def test_nothing_that_is_written_freely_reaches_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for call in ("step", "prepare"):
        monkeypatch.setattr(WorkshopWorld, call, lambda _, action: taken.append(action))
    settings = resolve(tiny("Workshop"))
    config = settings.config
    found = sample_world(settings, *load_codec(config))
    assert found.turns == config.streams * config.horizon
    assert not taken


def test_a_world_is_stepped_as_long_as_it_offers_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    step = TinyWorld.step

    def recording(self: TinyWorld, action: str) -> Any:
        taken.append(action)
        return step(self, action)

    monkeypatch.setattr(TinyWorld, "step", recording)
    settings = resolve(tiny("Mixed"))  # it offers actions in its first two turns
    config = settings.config
    found = sample_world(settings, *load_codec(config))
    assert not found.offered
    assert len(taken) == 2 * config.streams
    assert set(taken) <= {"walk on", "stay here"}


def test_planning_to_write_much_draws_little(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = 0
    draw = sampling._sample

    def counting(logprob: torch.Tensor, generators: Any) -> torch.Tensor:
        nonlocal drawn
        drawn += len(logprob)
        return draw(logprob, generators)

    monkeypatch.setattr(sampling, "_sample", counting)
    settings = resolve(tiny(PAGE, streams=64, horizon=64, acting={"max_action_tokens": 128}))
    config = settings.config
    found = sample_world(settings, *load_codec(config))
    assert found.turns == 64 * 64
    assert found.acting_passes == 64 * 128
    assert 0 < drawn <= 4096
