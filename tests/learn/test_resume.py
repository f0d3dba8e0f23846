"""A snapshot is all there is: whoever is restored from it goes on as if nothing had happened."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from tiny_worlds import settings
from torch import Tensor

from poad.config import Config
from poad.envs.registry import make
from poad.learn.ppo import PPO
from poad.learn.resume import restore_snapshot, take_snapshot
from poad.learn.rollout import Collector
from poad.learn.train import Trainer

Snapshot = tuple[dict[str, dict[str, Tensor]], dict[str, Any]]


def take(trainer: Trainer) -> Snapshot:
    """A snapshot as a run keeps it: tensors apart from the live ones, the rest as JSON."""
    tensors, state = take_snapshot(
        trainer.agent, trainer.learner, trainer.collector, trainer.generator
    )
    copied = {name: {k: t.clone() for k, t in group.items()} for name, group in tensors.items()}
    return copied, json.loads(json.dumps(state, allow_nan=False))


def restore(trainer: Trainer, taken: Snapshot) -> None:
    restore_snapshot(*taken, trainer.agent, trainer.learner, trainer.collector, trainer.generator)


CASES: dict[str, dict[str, Any]] = {
    "poad": {"world": "Novel"},
    "shared body": {"world": "Chain", "critic": {"body": "shared"}},
    "adapters": {"world": "Chain", "model": {"name": "tiny-kitchen", "tuning": "lora"}},
    "critic with an adapter": {
        "world": "Prefixes",
        "critic": {"body": "adapter", "root": True, "replay": 2, "adapter_epochs": 2},
    },
    "critic with an adapter beside the policy's": {
        "world": "Chain",
        "model": {"name": "tiny-kitchen", "tuning": "lora"},
        "critic": {"body": "adapter", "standardize": True},
    },
    "critic that reads more": {
        "world": "Novel",
        "critic": {"standardize": True, "root": True, "codes": 4},
    },
    "critic that remembers, credit that follows it": {
        "world": "Prefixes",
        "critic": {"replay": 3, "epochs": 2, "minibatches": 2, "warmup": 1},
        "credit": {"beta": 0.5, "lam_actor": "auto", "trace": "bit"},
        "ppo": {"return_floor": 1.0, "std_floor": 1e-3},
    },
    "a regression": {"world": "Novel", "credit": {"regress": 20}, "critic": {"body": "shared"}},
    "a rate that was lowered": {"world": "Novel", "ppo": {"kl_limit": 1e-9}},
    "twosome": {"world": "Corridor", "credit": {"method": "twosome"}},
    "reinforce": {"world": "Chain", "credit": {"method": "reinforce"}},
    "reinforce, forms": {"world": "Forms", "credit": {"method": "reinforce"}},
    "forms, history": {"world": "Forms", "prompt": {"history": "episode"}},
    "reinforce, forms and thoughts": {
        "world": "Forms",
        "credit": {"method": "reinforce"},
        "prompt": {"thinking": 3},
    },
    "reinforce, free": {"world": "Mixed", "credit": {"method": "reinforce"}},
    "reinforce, published": {
        "world": "Prefixes",
        "credit": {"method": "reinforce"},
        "acting": {"scheme": "published"},
    },
}


def config_of(case: str) -> Config:
    return settings(**CASES[case])


def advance(trainer: Trainer, progress: float) -> dict[str, float]:
    rollout = trainer.collector.collect(trainer.config.horizon, trainer.generator)
    return trainer.learner.update(rollout, progress=progress)


@pytest.mark.parametrize("case", CASES)
def test_the_restored_goes_on_as_the_original(case: str) -> None:
    original = Trainer(config_of(case))
    for k in range(2):
        advance(original, k / 4)
    taken = take(original)
    expected = [advance(original, k / 4) for k in (2, 3)]
    assert any(step.get("passes") for step in expected)

    other = Trainer(config_of(case))
    advance(other, 0.0)  # somewhere else, to be forgotten
    restore(other, taken)
    assert [advance(other, k / 4) for k in (2, 3)] == expected
    for group, tensors in take(original)[0].items():
        for name, tensor in tensors.items():
            assert torch.equal(take(other)[0][group][name], tensor)
    assert take(other)[1] == take(original)[1]


@pytest.mark.parametrize("case", CASES)
def test_taking_and_restoring_change_nothing(case: str) -> None:
    trainer = Trainer(config_of(case))
    advance(trainer, 0.0)
    taken = take(trainer)
    restore(trainer, taken)
    again = take(trainer)
    assert again[1] == taken[1]
    for group, tensors in taken[0].items():
        assert again[0][group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(again[0][group][name], tensor)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("reinforce")])
def test_turns_that_wait_come_back_as_they_were(case: str) -> None:
    trainer = Trainer(config_of(case))
    advance(trainer, 0.0)
    waiting = trainer.learner.waiting.turns
    assert sum(map(len, waiting)) > 3
    agent, config = trainer.agent, trainer.config
    # The same agent, so that equal means equal down to the trie.
    learner = PPO(agent)
    every = range(config.streams)
    worlds = Collector(lambda: make(config.env), agent.policy, config.streams, 0, every)
    restore_snapshot(*take(trainer), agent, learner, worlds, np.random.default_rng())
    assert learner.waiting.turns == waiting


def test_what_a_snapshot_holds() -> None:
    """Files of named tensors, and a state that needs no word that JSON has not."""
    trainer = Trainer(config_of("reinforce"))
    tensors, state = take(trainer)
    assert tensors.keys() == {
        *("policy", "critic", "optimizer", "random", "returns"),
        *("critic_optimizer", "critic_memory"),
    }
    assert not tensors["optimizer"]  # nothing was learned yet
    advance(trainer, 0.0)
    advance(trainer, 0.0)
    parameters = sum(len(group["params"]) for group in trainer.learner.optimizer.param_groups)
    assert len(take(trainer)[0]["optimizer"]) == 3 * parameters
    assert state.keys() == {
        *("generator", "collector", "updates", "lr_scale", "pass_tokens", "waiting", "model")
    }
