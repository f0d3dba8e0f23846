"""The engine of transformers samples the same policy that the learner computes."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from tiny_models import PROMPTS, Zoo
from tiny_worlds import settings
from tolerance import drift

from poad.agent.continuous_batching import TransformersEngine
from poad.agent.policy import Policy
from poad.agent.settings import Acting
from poad.errors import EngineError
from poad.learn.train import Trainer
from poad.turns import Observation, Turn

needs_batching = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"), reason="needs transformers 5.18"
)

ACTING = Acting(engine="transformers", max_action_tokens=9, stop=("\n", "door"))


@needs_batching
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_it_samples_what_the_learner_computes(zoo: Zoo, temperature: float, tuning: Any) -> None:
    model = zoo.load(tuning=tuning)
    policy = Policy(
        model, replace(ACTING, temperature=temperature), engine=TransformersEngine(model)
    )
    observations = [Observation(prompt) for prompt in PROMPTS * 3]
    actions = policy.act(observations, np.random.default_rng(0))
    turns = [Turn(policy.prompt_ids(o), a, 0.0) for o, a in zip(observations, actions, strict=True)]
    batch, decision, option = policy.decisions(turns)
    with torch.no_grad():
        logprob = policy.evaluate(batch).logprob
    found_each = logprob[decision, option].split([len(a.token_ids) for a in actions])
    for found, action in zip(found_each, actions, strict=True):
        torch.testing.assert_close(found, torch.tensor(action.logprob), atol=drift(), rtol=0)


@needs_batching
def test_the_same_seed_writes_the_same_actions(zoo: Zoo) -> None:
    model = zoo.load()
    prompts = [model.codec.prompt(prompt) for prompt in PROMPTS]
    one, again, other = (
        dict(TransformersEngine(model).write(ACTING, prompts, [np.random.default_rng(seed)]))
        for seed in (1, 1, 2)
    )
    assert list(one) == [0, 1, 2, 3]
    assert one == again
    assert one != other


@needs_batching
def test_actions_end_at_a_stop_text_the_end_token_or_the_budget(zoo: Zoo) -> None:
    model = zoo.load()
    prompts = [model.codec.prompt(prompt) for prompt in PROMPTS * 20]
    written = TransformersEngine(model).write(ACTING, prompts, [np.random.default_rng(0)])
    kinds = set()
    for _, action in written:
        text = model.codec.tokenizer.decode(list(action.token_ids))
        stopped = "\n" in text or "door" in text
        ended = action.token_ids[-1] == model.codec.end_id
        assert stopped or ended or len(action.token_ids) == 9
        assert "\n" not in action.text
        assert "door" not in action.text
        before = model.codec.tokenizer.decode(list(action.token_ids[:-1]))
        assert "\n" not in before
        kinds.add((stopped, ended))
    assert len(kinds) >= 2


@needs_batching
def test_it_trains() -> None:
    trainer = Trainer(settings("Diary", acting={"engine": "transformers"}))
    for _ in range(2):
        metrics = trainer.iterate()
        assert metrics["logprob_drift"] <= drift()
        assert metrics["passes"] >= 1


def of_another_age(**arguments: Any) -> None:
    raise TypeError(f"unexpected keyword arguments: {', '.join(arguments)}")


@pytest.mark.parametrize("known", [{}, {"ContinuousBatchingConfig": of_another_age}])
def test_an_older_transformers_is_rejected(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, known: dict[str, Any]
) -> None:
    """It has no continuous batching, or one without the settings that we need."""
    model = zoo.load()
    older = ModuleType("transformers")
    vars(older).update(known, GenerationConfig=transformers.GenerationConfig)
    monkeypatch.setitem(sys.modules, "transformers", older)
    with pytest.raises(EngineError, match=r"needs a transformers with continuous batching"):
        list(TransformersEngine(model).write(ACTING, [(5, 6)], [np.random.default_rng(0)]))
