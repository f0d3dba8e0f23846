"""Products in bfloat16, everything else in float32: nearly the same numbers, for half the time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import ACTIONS, CONFIGURATIONS, PROMPTS, Zoo
from tiny_worlds import settings
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from poad.agent import Acting, Policy, load_agent, resolve
from poad.config import from_dict
from poad.errors import ConfigError, ModelError
from poad.learn.train import Trainer
from poad.lm import mixed
from poad.lm.mixed import MixedConv1D, MixedLinear, use_mixed_products
from poad.lm.model import LanguageModel
from poad.lm.packing import pack
from poad.turns import Observation, Turn

ULP = float(torch.finfo(torch.bfloat16).eps)
"""The relative distance of neighbouring numbers in bfloat16. Rounding is off by half of it."""
LORA: dict[str, Any] = {"tuning": "lora"}
CROWD = [(tuple(range(3, 23)), ()), (tuple(range(3, 23)), (4, 5)), ((9, 8), (7,))]
OFFERS = [Observation(prompt, ACTIONS) for prompt in PROMPTS]


def load(zoo: Zoo, kind: str = "llama", precision: Any = "mixed", **rest: Any) -> LanguageModel:
    return zoo.load(kind, **LORA | {"precision": precision, "layers": 3, **rest})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_a_layer_takes_and_gives_float32_and_rounds_both_factors_once(
    kind: Any, bias: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(24, 40, bias=bias) if kind is nn.Linear else Conv1D(40, 24)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    weight = layer.weight if kind is nn.Linear else layer.weight.T
    rounded = weight.detach().to(torch.bfloat16).double()
    shift = 0.0 if layer.bias is None else layer.bias.detach().double()
    body = nn.Sequential(layer).requires_grad_(False)
    assert use_mixed_products(body) == 1
    assert type(layer) is (MixedLinear if kind is nn.Linear else MixedConv1D)
    states = torch.randn(3, 5, 24, generator=generator, requires_grad=True)
    found = body(states)
    assert found.dtype is torch.float32
    product = states.detach().to(torch.bfloat16).double() @ rounded.T
    apart = (found.detach().double() - shift - product).abs()
    assert float(apart.max()) <= ULP * float(product.abs().max())
    (gradient,) = torch.autograd.grad(found.sum(), states)
    assert gradient.dtype is torch.float32
    expected = rounded.sum(0).expand_as(gradient)
    assert float((gradient.double() - expected).norm()) <= ULP * float(expected.norm())


def test_layers_that_learn_are_not_rounded() -> None:
    body = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    body[1].requires_grad_(False)
    assert use_mixed_products(body) == 1
    assert [p.dtype for p in body.parameters()] == [
        *[torch.float32] * 2,
        torch.bfloat16,
        torch.float32,
    ]
    with pytest.raises(
        ModelError, match=r"Sequential has no linear layers.*model.precision = full"
    ):
        use_mixed_products(nn.Sequential(nn.LayerNorm(2)))


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_only_the_frozen_weights_of_products_are_rounded(zoo: Zoo, kind: str) -> None:
    model = load(zoo, kind)
    rounded = {n for n, p in model.module.named_parameters() if p.dtype is torch.bfloat16}
    products = {
        f"{name}.weight"
        for name, module in model.module.named_modules()
        if isinstance(module, MixedLinear | MixedConv1D)
    }
    assert rounded == products
    assert len(products) >= 3 * 4
    others = {n: p for n, p in model.module.named_parameters() if n not in rounded}
    assert {p.dtype for p in others.values()} == {torch.float32}
    for part in ("lora_", *(("ln_", "wte") if kind == "gpt2" else ("norm", "emb"))):
        assert any(part in name for name in others), part
    assert {weight.dtype for weight in model.state().values()} == {torch.float32}


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_states_and_gradients_are_close_to_those_in_full_precision(zoo: Zoo, kind: str) -> None:
    found: list[tuple[Tensor, Tensor]] = []
    for precision in ("full", "mixed"):
        model = load(zoo, kind, precision)
        packed = pack(CROWD, model.codec.pad_id)
        hidden, frozen = model.read(packed), model.read_frozen(packed)
        logits = model.logits(hidden)
        assert {part.dtype for part in (hidden, frozen, logits)} == {torch.float32}
        gradients = torch.autograd.grad(logits.log_softmax(-1)[:, 30].sum(), model.parameters())
        assert {part.dtype for part in gradients} == {torch.float32}
        assert all(float(part.norm()) > 0 for part in gradients)
        found.append((hidden.detach(), torch.cat([part.flatten() for part in gradients])))
    (full, slope), (rounded, gradient) = found
    # Each layer is off by half a unit a product or so; errors of several layers add up.
    assert 0 < float((rounded - full).norm()) <= 8 * ULP * float(full.norm())
    assert float(torch.cosine_similarity(gradient, slope, 0)) > 0.95


def drift_of(model: LanguageModel) -> Tensor:
    """[M] how far the learner's log-probabilities are from those that were recorded."""
    policy = Policy(model, Acting(max_action_tokens=8))
    asked = [o for o in (*OFFERS, *map(Observation, PROMPTS)) for _ in range(6)]
    actions = policy.act(asked, np.random.default_rng(0))
    turns = [Turn(policy.prompt_ids(o), a, 0.0) for o, a in zip(asked, actions, strict=True)]
    batch, decision, option = policy.decisions(turns)
    with torch.no_grad():
        found = policy.evaluate(batch).logprob[decision, option]
    recorded = torch.tensor([each for turn in turns for each in turn.action.logprob])
    return (found - recorded)[decision >= 0].abs()


def test_sampler_and_learner_hardly_differ(zoo: Zoo) -> None:
    """Much less than where all is in bfloat16, whose sums depend on the rows of a pass."""
    apart = drift_of(load(zoo))
    assert len(apart) > 100
    assert float(apart.mean()) < 0.01
    whole = drift_of(load(zoo, precision="full", dtype="bfloat16"))
    assert float(apart.mean()) < 0.5 * float(whole.mean())


def test_a_run_learns_with_it(zoo: Zoo) -> None:
    model = {"name": str(zoo.path()), **LORA, "precision": "mixed"}
    trainer = Trainer(settings("Chain", model=model, steps=30))
    before = {name: weight.clone() for name, weight in trainer.agent.model.state().items()}
    assert trainer.config.model.precision == "mixed"
    assert {p.dtype for p in trainer.agent.critic.parameters()} == {torch.float32}
    rows = list(trainer.train())
    assert all(np.isfinite(row["policy_loss"]) for row in rows)
    after = trainer.agent.model.state()
    assert any(not torch.equal(after[name], weight) for name, weight in before.items())


# --- when -------------------------------------------------------------------------------------


@pytest.mark.parametrize("faster", [False, True])
def test_auto_is_decided_where_the_run_begins(
    monkeypatch: pytest.MonkeyPatch, faster: bool
) -> None:
    monkeypatch.setattr(mixed, "products_are_faster", lambda device: faster)
    config = settings("Chain", model={**LORA, "precision": "auto"})
    decided = resolve(config).config
    assert decided.model.precision == ("mixed" if faster else "full")
    assert resolve(decided).config == decided
    agent = load_agent(config)
    assert agent.config.model.precision == decided.model.precision
    dtypes = {p.dtype for p in agent.model.module.parameters()}
    assert (torch.bfloat16 in dtypes) == faster


@pytest.mark.parametrize(
    "model", [{"tuning": "full"}, LORA | {"dtype": "bfloat16"}, LORA | {"quantize": "4bit"}]
)
def test_nothing_is_mixed_where_there_are_no_frozen_float32_weights(
    monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]
) -> None:
    monkeypatch.setattr(mixed, "products_are_faster", lambda device: True)
    config = settings("Chain", model={**model, "precision": "auto"})
    assert resolve(config).config.model.precision == "full"
    with pytest.raises(ConfigError, match=r"model\.precision = mixed.*float32.*lora"):
        from_dict({"model": {**model, "precision": "mixed"}})


@pytest.mark.parametrize(
    ("seconds", "faster"), [((2.0, 1.0), True), ((1.2, 1.0), False), ((1.0, 2.0), False)]
)
def test_the_measurement_compares_both_precisions(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], faster: bool
) -> None:
    asked: list[Any] = []

    def timed(dtypes: Any, device: torch.device) -> tuple[float, float]:
        asked.append(tuple(dtypes))
        return seconds

    monkeypatch.setattr(mixed, "_seconds", timed)
    assert mixed.products_are_faster.__wrapped__(torch.device("cpu")) is faster
    assert asked == [(torch.float32, torch.bfloat16)]
    monkeypatch.undo()
    monkeypatch.setattr(mixed, "_TRIALS", 1)
    found = mixed._seconds((torch.float32, torch.bfloat16), torch.device("cpu"))
    assert len(found) == 2
    assert all(0 < seconds < float("inf") for seconds in found)
