"""What lies below all adapters is computed once for a token, and sharing it changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny_models import Zoo, assert_same
from tiny_worlds import settings
from torch import Tensor

from poad.learn.train import Trainer
from poad.lm import lower
from poad.lm.model import LanguageModel, computed_twice
from poad.lm.packing import pack
from poad.turns import Position

pytestmark = pytest.mark.usefixtures("float64")

KINDS = ("llama", "gpt2", "qwen_window")
PROMPT = tuple(range(3, 23))
# A tree with branches, a short row beside it (which is padded), and a row that shares nothing.
TREE: list[Position] = [(PROMPT, ()), (PROMPT, (4,)), (PROMPT, (4, 5)), (PROMPT, (9, 5))]
FIRST: list[Position] = [*TREE, ((7, 8), ()), (tuple(range(60, 80)), ())]
MIXED: list[Position] = [(PROMPT, (4, 6)), ((7, 8, 9), ()), ((*PROMPT, 4, 5, 6), ())]
"""Some of these tokens stand in `FIRST` behind the same ones, others do not."""


def load(zoo: Zoo, kind: str = "llama", **rest: Any) -> LanguageModel:
    """Two layers without adapters below one with them, unless `lora_layers` says otherwise."""
    return zoo.load(kind, **{"tuning": "lora", "layers": 3, "lora_layers": 1, **rest})


def runs(model: LanguageModel) -> list[int]:
    """Grows by the index of each layer that computes."""
    found: list[int] = []
    body: Any = model._body
    for i, layer in enumerate(getattr(body, "layers", None) or body.h):
        # A layer that is skipped is still called, but its attention is not.
        attention = getattr(layer, "self_attn", None) or layer.attn
        attention.register_forward_pre_hook(lambda *_, i=i: found.append(i))
    return found


def learned(
    model: LanguageModel, batches: Iterable[Sequence[Position]], twice: bool = False
) -> list[Tensor]:
    """States, frozen states and gradients of several passes, one gradient step after each."""
    found: list[Tensor] = []
    for positions in batches:
        packed = pack(positions, model.codec.pad_id)
        model.module.zero_grad()
        if twice:
            hidden = computed_twice(lambda packed=packed: model.read(packed), model.device)
        else:
            hidden = model.read(packed)
        (hidden * torch.arange(hidden.numel()).view_as(hidden).sin()).sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert len(gradients) == len(model.parameters())
        found += [hidden.detach(), model.read_frozen(packed), *(g.clone() for g in gradients)]
        with torch.no_grad():
            for weight, gradient in zip(model.parameters(), gradients, strict=True):
                weight -= 1e-3 * gradient
    return found


# --- the same numbers -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["plain", "twice", "checkpointed", "one row each"])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_states_and_gradients_are_those_of_whole_passes(
    zoo: Zoo, kind: str, blocks: int, how: str
) -> None:
    batches, found = [FIRST, FIRST, MIXED, FIRST[::-1], TREE[1:3]], []
    for remembers in (False, True):
        checkpointing = how == "checkpointed"
        model = load(zoo, kind, lora_layers=blocks, gradient_checkpointing=checkpointing)
        model.branching = how != "one row each"
        with model.lower.remembered() if remembers else nullcontext():
            found.append(learned(model, batches, how == "twice"))
    for remembered, expected in zip(*reversed(found), strict=True):
        assert_same(remembered, expected)


def test_a_backward_pass_may_follow_when_all_is_forgotten(zoo: Zoo) -> None:
    gradients = []
    for remembers in (False, True):
        model = load(zoo)
        packed = pack(FIRST, model.codec.pad_id)
        with model.lower.remembered() if remembers else nullcontext():
            model.read(packed)
            hidden = computed_twice(lambda m=model, p=packed: m.read(p), model.device)
        gradients.append(torch.autograd.grad(hidden.square().sum(), model.parameters()))
    for found, expected in zip(*gradients, strict=True):
        assert_same(found, expected)


def test_what_pads_a_row_is_finite_whatever_lay_in_the_memory(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that is not yet in use holds anything, and attention multiplies padding by zero."""
    plain = torch.empty

    def dirty(*size: Any, **rest: Any) -> Tensor:
        return plain(*size, **rest).fill_(torch.nan)

    model = load(zoo)
    packed = pack(FIRST, model.codec.pad_id)
    assert not packed.mask.all(), "nothing is padded"
    expected = model.read(packed)
    with model.lower.remembered():
        monkeypatch.setattr(torch, "empty", dirty)
        for _ in range(2):
            assert_same(model.read(packed), expected)


def test_a_run_learns_the_same_with_and_without_it(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"name": str(zoo.path("llama", "bytes", 3)), "tuning": "lora", "lora_layers": 1}
    config = settings("Prefixes", model=model, steps=45, ppo={"epochs": 2, "kl_reference": 0.1})

    def metrics() -> list[dict[str, float]]:
        rows = Trainer(config).train()
        return [{k: v for k, v in row.items() if "second" not in k} for row in rows]

    found = metrics()
    monkeypatch.setattr(lower.LowerLayers, "remembered", lambda self: nullcontext())
    for one, other in zip(found, metrics(), strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-9, nan_ok=True)


# --- and less work ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_pass_leaves_the_lower_layers_out(zoo: Zoo, kind: str) -> None:
    model = load(zoo, kind)
    computed = runs(model)
    with model.lower.remembered():
        learned(model, [FIRST])
        assert computed == [0, 1, 2, 2]  # the frozen pass uses what the first one computed
        computed.clear()
        learned(model, [FIRST, FIRST[::-1], TREE[2:]])
        assert computed == [2] * 6
        computed.clear()
        model.read(pack(MIXED, model.codec.pad_id))
        assert computed == [0, 1, 2]  # some tokens are new
        model.read(pack(MIXED, model.codec.pad_id))
        assert computed == [0, 1, 2, 2]


def test_the_same_token_behind_other_tokens_is_another(zoo: Zoo) -> None:
    model = load(zoo)
    rows: list[list[Position]] = [[((5, 6, 7), ())], [((6, 6, 7), ())], [((6, 7), ())]]
    packed = [pack(row, model.codec.pad_id) for row in rows]
    expected = [model.read(each) for each in packed]
    computed = runs(model)
    with model.lower.remembered():
        for each, state in zip(packed, expected, strict=True):
            assert_same(model.read(each), state)
    assert computed == [0, 1, 2] * 3


def test_nothing_is_remembered_when_the_context_ends(zoo: Zoo) -> None:
    model = load(zoo)
    packed = pack(FIRST, model.codec.pad_id)
    computed = runs(model)
    with model.lower.remembered():
        model.read(packed)
    assert model.lower._states is None
    assert not model.lower._numbers
    for _ in range(2):
        model.read(packed)
    with model.lower.remembered():
        model.read(packed)
        with model.lower.remembered():  # an inner context ends nothing
            model.read(packed)
        model.read(packed)
    assert computed == [*[0, 1, 2] * 4, 2, 2]


def test_nothing_is_remembered_where_every_layer_learns(zoo: Zoo) -> None:
    ways: list[dict[str, Any]] = [{"tuning": "full"}, {"lora_layers": None}, {"lora_layers": 3}]
    for rest in ways:
        model = load(zoo, **rest)
        assert len(model.lower) == 0
        computed = runs(model)
        packed = pack(FIRST, model.codec.pad_id)
        with model.lower.remembered():
            for _ in range(2):
                model.read(packed)
        assert computed == [0, 1, 2] * 2


def test_nothing_is_remembered_above_embeddings_that_learn(zoo: Zoo) -> None:
    targets = ("embed_tokens", "layers.2.self_attn.q_proj")
    model = load(zoo, lora_layers=None, lora_targets=targets)
    assert len(model.lower) == 0
    found = []
    for remembers in (False, True):
        model = load(zoo, lora_layers=None, lora_targets=targets)
        with model.lower.remembered() if remembers else nullcontext():
            found.append(learned(model, [FIRST, FIRST]))
    for remembered, expected in zip(*found, strict=True):
        assert_same(remembered, expected)


def test_a_full_memory_is_emptied_and_the_states_stay_right(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [[(tuple(range(k, k + 9)), (5,))] for k in (3, 30, 60, 3, 60)]
    expected = learned(load(zoo), batches)
    one = 2 * 10 * 32 * 8  # bytes: twice the ten states of 32 numbers
    monkeypatch.setattr(lower, "_MOST_BYTES", one - 1)
    model = load(zoo)
    computed, most = runs(model), 0
    with model.lower.remembered():
        for found, right in zip(learned(model, batches), expected, strict=True):
            assert_same(found, right)
        assert model.lower._states is not None
        most = model.lower._states.nbytes
    assert most <= one
    assert computed.count(0) == 10, "every pass begins with an empty memory"
