"""A model with more rows than its tokenizer has tokens: the rest is never written or learned from.

Brute force is the distribution of transformers over the tokens that there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from tiny_models import ACTIONS, PROMPTS, Zoo, assert_same, next_token_logits
from tolerance import drift, float32
from torch import Tensor

from poad.agent.continuous_batching import TransformersEngine
from poad.agent.likelihood import Evaluated
from poad.agent.policy import Policy
from poad.agent.settings import Acting
from poad.config import ModelConfig
from poad.lm.loading import load_model
from poad.lm.model import LanguageModel
from poad.lm.packing import pack
from poad.turns import Action, Observation, Turn

MORE = 64
"""Rows without a token."""
WAYS: dict[str, tuple[Acting, list[Observation]]] = {
    "free": (Acting(max_action_tokens=6, stop=("\n",)), [Observation(p) for p in PROMPTS] * 5),
    "published": (Acting(scheme="published"), [Observation(p, ACTIONS) for p in PROMPTS]),
    "score": (Acting(scheme="score", score="word"), [Observation(p, ACTIONS) for p in PROMPTS]),
}
Loader = Callable[..., LanguageModel]


@pytest.fixture
def padded(zoo: Zoo, tmp_path: Path) -> Loader:
    """Loads a model whose further rows are far likelier than its tokens."""
    with float32():
        causal: Any = transformers.AutoModelForCausalLM.from_pretrained(
            zoo.path(), dtype=torch.float32
        )
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(zoo.path())
        causal.resize_token_embeddings(len(tokenizer) + MORE, mean_resizing=False)
        generator = torch.Generator().manual_seed(3)
        rows = causal.get_output_embeddings().weight
        with torch.no_grad():
            rows[-MORE:] = torch.randn(rows[-MORE:].shape, generator=generator)
    causal.save_pretrained(tmp_path / "padded")
    tokenizer.save_pretrained(tmp_path / "padded")

    def load(**rest: Any) -> LanguageModel:
        keep = {k: rest.pop(k) for k in list(rest) if k.startswith("keep")}
        config = ModelConfig(name=str(tmp_path / "padded"), device="cpu", **rest)
        return load_model(config, **keep)

    return load


def played(
    policy: Policy, observations: list[Observation], greedy: bool = False
) -> tuple[list[Action], Evaluated, Tensor]:
    """Actions, what the learner computes, and the log-probability of each choice there."""
    actions = policy.act(observations, np.random.default_rng(0), greedy=greedy)
    turns = [Turn(policy.prompt_ids(o), a, 0.0) for o, a in zip(observations, actions, strict=True)]
    batch, decision, option = policy.decisions(turns)
    found = policy.evaluate(batch)
    chosen = decision >= 0
    return actions, found, found.logprob[decision[chosen], option[chosen]]


def known(model: LanguageModel, *ids: int) -> Tensor:
    """[tokens] the log-probabilities of transformers among the tokens that there are."""
    return next_token_logits(model, *ids)[: len(model.codec.tokenizer)].log_softmax(-1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("greedy", [False, True])
def test_what_is_no_token_is_never_written(padded: Loader, greedy: bool):
    model = padded()
    tokens = len(model.codec.tokenizer)
    prompts = [model.codec.prompt(prompt) for prompt in PROMPTS]
    for prompt in prompts:  # or else this would show nothing
        assert next_token_logits(model, *prompt).softmax(-1)[tokens:].sum() > 0.5
        assert next_token_logits(model, *prompt).argmax() >= tokens
    actions, _, _ = played(Policy(model, WAYS["free"][0]), WAYS["free"][1], greedy)
    assert max(max(action.token_ids) for action in actions) < tokens


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("way", ["free", "published"])
def test_recorded_and_learned_probabilities_are_those_among_tokens(padded: Loader, way: str):
    model = padded()
    acting, observations = WAYS[way]
    actions, found, chosen = played(Policy(model, acting), observations)
    expected = [
        known(model, *model.codec.prompt(o.prompt), *action.token_ids[:j])[token]
        for o, action in zip(observations, actions, strict=True)
        for j, token in enumerate(action.token_ids)
        if action.choice[j]
    ]
    recorded = [
        logprob
        for action in actions
        for logprob, choice in zip(action.logprob, action.choice, strict=True)
        if choice
    ]
    assert_same(chosen, torch.stack(expected))
    assert_same(recorded, torch.stack(expected))
    assert found.entropy.isfinite().all()


@pytest.mark.usefixtures("float64")
def test_whole_actions_are_scored_among_tokens(padded: Loader):
    model = padded()
    policy = Policy(model, WAYS["score"][0])
    for observation in WAYS["score"][1]:
        prompt, scores = model.codec.prompt(observation.prompt), []
        for text in ACTIONS:
            ids = model.codec.action(text)[:-1]
            each = [known(model, *prompt, *ids[:j])[token] for j, token in enumerate(ids)]
            scores.append(torch.stack(each).sum() / len(text.split()))
        assert_same(policy.probabilities(observation), torch.stack(scores).softmax(0))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_entropy_divergence_and_gradients_leave_out_what_is_no_token(padded: Loader, tuning: str):
    model = padded(tuning=tuning, keep_reference=True)
    policy = Policy(model, WAYS["free"][0])
    observations = WAYS["free"][1][:1]
    action = policy.act(observations, np.random.default_rng(0))[0]
    turn = Turn(policy.prompt_ids(observations[0]), action, 0.0)
    batch, _, _ = policy.decisions([turn])
    before = [
        known(model, *turn.prompt_ids, *action.token_ids[:j]).detach()
        for j in range(len(action.token_ids))
    ]
    old = model.read_frozen(pack(batch.positions, model.codec.pad_id, model.branching))
    with torch.no_grad():
        for i, weight in enumerate(model.parameters()):
            weight += 0.05 * torch.sin(torch.arange(weight.numel()).reshape(weight.shape) + i)
    found = policy.evaluate(replace(batch, reference=old))
    after = [
        known(model, *turn.prompt_ids, *action.token_ids[:j]) for j in range(len(action.token_ids))
    ]
    assert found.kl_reference is not None
    assert_same(found.entropy, torch.stack([-(p.exp() * p).sum() for p in after]))
    divergence = [(p.exp() * (p - q)).sum() for p, q in zip(after, before, strict=True)]
    assert_same(found.kl_reference, torch.stack(divergence))
    mine = torch.autograd.grad(
        (found.entropy + found.kl_reference).sum(), model.parameters(), allow_unused=True
    )
    total = torch.stack([-(p.exp() * p).sum() for p in after]).sum() + torch.stack(divergence).sum()
    theirs = torch.autograd.grad(total, model.parameters(), allow_unused=True)
    for one, other in zip(mine, theirs, strict=True):
        if other is not None:
            assert_same(one, other)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"), reason="needs transformers 5.18"
)
def test_the_engine_of_transformers_writes_none_either(padded: Loader):
    model = padded()
    acting, observations = WAYS["free"]
    policy = Policy(model, acting, engine=TransformersEngine(model))
    actions, _, chosen = played(policy, observations)
    assert max(max(action.token_ids) for action in actions) < len(model.codec.tokenizer)
    recorded = torch.tensor([logprob for action in actions for logprob in action.logprob])
    torch.testing.assert_close(chosen.detach(), recorded, atol=drift(), rtol=0)
