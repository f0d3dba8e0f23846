"""Forward passes skip what is not read, recompute and drop as asked, and change nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import Zoo
from tolerance import EXACT
from torch import Tensor, nn

from poad.errors import ModelError
from poad.lm.model import LanguageModel, computed_twice
from poad.lm.packing import pack

pytestmark = pytest.mark.usefixtures("float64")

PROMPT = tuple(range(3, 23))
POSITIONS = [(PROMPT, ()), (PROMPT, (4,)), (PROMPT, (4, 5)), ((*PROMPT, 4), ())]
"""The second and the last are the same token sequence."""


def read(model: LanguageModel, skips: bool) -> tuple[Tensor, dict[str, Tensor | None], int]:
    """Return hidden states, gradients, and how many positions the last MLP computed."""
    model._skips_unread = skips
    blocks = getattr(model._body, "layers", None) or model._body.h
    computed: list[int] = []
    handle = blocks[-1].mlp.register_forward_hook(
        lambda layer, inputs, output: computed.append(inputs[0].shape[:-1].numel())
    )
    model.module.zero_grad()
    hidden = model.read(pack(POSITIONS, model.codec.pad_id))
    handle.remove()
    (hidden * torch.arange(hidden.numel()).view_as(hidden).sin()).sum().backward()
    gradients = {n: p.grad for n, p in model.module.named_parameters() if p.requires_grad}
    return hidden.detach(), gradients, computed[0]


@pytest.mark.parametrize("kind", ["llama", "qwen", "gpt2"])
def test_skipping_what_is_not_read_gives_the_same_states_and_gradients(zoo: Zoo, kind: str) -> None:
    model = zoo.load(kind)
    some, gradients, few = read(model, True)
    whole, expected, every = read(model, False)
    assert (few, every) == (3, len(PROMPT) + 2)
    torch.testing.assert_close(some, whole)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=EXACT, rtol=EXACT)


def test_rows_that_are_mostly_read_are_computed_whole(zoo: Zoo) -> None:
    model = zoo.load()
    positions = [(PROMPT[:j], ()) for j in range(1, 20)]
    computed: list[int] = []
    layer: nn.Module = model._body.layers[-1].mlp  # pyright: ignore
    layer.register_forward_hook(lambda _, inputs, __: computed.append(inputs[0].shape[1]))
    model.read(pack(positions, model.codec.pad_id))
    assert computed == [19]


def test_a_model_whose_layers_need_whole_rows_is_computed_whole(zoo: Zoo) -> None:
    class Whole(nn.Module):
        """A layer that needs whole rows, as a layer of experts may."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: Tensor) -> Tensor:
            if hidden.shape[1] == 3:
                raise RuntimeError("no whole rows")
            return self.inner(hidden)

    usual = zoo.load()
    packed = pack(POSITIONS, usual.codec.pad_id)
    expected = usual.read(packed)
    causal = usual.module
    causal.model.layers[-1].mlp = Whole(causal.model.layers[-1].mlp)  # pyright: ignore
    other = LanguageModel(causal, usual.codec)
    assert usual._skips_unread
    assert not other._skips_unread
    torch.testing.assert_close(other.read(packed), expected)


# --- the logits of few tokens -----------------------------------------------------------------


@pytest.mark.parametrize("large", [False, True], ids=["all computed", "few computed"])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("bias", [False, True])
def test_the_logits_of_some_tokens_are_those_among_all(
    zoo: Zoo,
    monkeypatch: pytest.MonkeyPatch,
    bias: bool,
    scale: float,
    softcap: float | None,
    large: bool,
) -> None:
    model = zoo.load(keep_reference=True)
    head: Any = model._head
    frozen: Any = model._frozen_head
    generator = torch.Generator().manual_seed(0)
    if bias:
        head.bias = nn.Parameter(torch.randn(model.vocabulary, generator=generator))
        frozen.bias = nn.Parameter(torch.randn(model.vocabulary, generator=generator))
    model._scale, model._softcap = scale, softcap
    model._unwritable = torch.tensor([4, model.vocabulary - 1])  # ids without a token
    monkeypatch.setattr("poad.lm.model.LARGE_VOCABULARY", 1 if large else 10**6)
    hidden = torch.randn(5, 3, 32, generator=generator, requires_grad=True)
    tokens = torch.randint(model.vocabulary, (5, 3, 7), generator=generator)
    tokens[0, 0, :3] = torch.tensor([4, 5, model.vocabulary - 1])
    whole, some = model.logits(hidden).gather(-1, tokens), model.logits(hidden, tokens)
    assert some.shape == tokens.shape
    assert whole.isinf().sum() >= 2
    torch.testing.assert_close(some, whole, atol=EXACT, rtol=EXACT)
    learned = [hidden, head.weight, *([head.bias] if bias else [])]
    weights = torch.randn(tokens.shape, generator=generator)
    gradients = [
        torch.autograd.grad((each.masked_fill(each.isinf(), 0.0) * weights).sum(), learned)
        for each in (some, whole)
    ]
    for found, expected in zip(*gradients, strict=True):
        assert float(expected.norm()) > 0.1
        torch.testing.assert_close(found, expected, atol=EXACT, rtol=EXACT)
    old = model.frozen_logits(hidden).gather(-1, tokens)
    torch.testing.assert_close(model.frozen_logits(hidden, tokens), old, atol=EXACT, rtol=EXACT)
    assert not old.requires_grad


@pytest.mark.parametrize("targets", [("lm_head",), ("q_proj", "lm_head")])
def test_a_head_with_adapters_gives_the_logits_of_some_tokens(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, targets: tuple[str, ...]
) -> None:
    monkeypatch.setattr("poad.lm.model.LARGE_VOCABULARY", 1)
    model = zoo.load(tuning="lora", lora_targets=targets)
    hidden, tokens = torch.linspace(-1, 1, 32)[None], torch.tensor([[3, 9, 3]])
    for logits in (model.logits, model.frozen_logits):
        torch.testing.assert_close(logits(hidden, tokens), logits(hidden)[:, [3, 9, 3]])
    assert not torch.allclose(model.logits(hidden, tokens), model.frozen_logits(hidden, tokens))


# --- less memory, other kernels ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "qwen", "gpt2", "neox", "mistral"])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_gradient_checkpointing_gives_the_same_gradients(zoo: Zoo, kind: str, tuning: Any) -> None:
    found = []
    for checkpointing in (False, True):
        model = zoo.load(kind, tuning=tuning, gradient_checkpointing=checkpointing)
        hidden = model.read(pack(POSITIONS, model.codec.pad_id))
        (hidden * torch.arange(hidden.numel()).view_as(hidden).sin()).sum().backward()
        gradients = {n: p.grad for n, p in model.module.named_parameters() if p.requires_grad}
        found.append((hidden.detach(), gradients))
    (kept, expected), (again, gradients) = found
    torch.testing.assert_close(again, kept)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=EXACT, rtol=EXACT)


def test_gradient_checkpointing_keeps_less(zoo: Zoo) -> None:
    """Count the numbers that autograd keeps between the forward and the backward pass."""
    held = []
    for checkpointing in (False, True):
        model, sizes = zoo.load(gradient_checkpointing=checkpointing), []
        packed = pack([(tuple(range(3, 60)), ())], model.codec.pad_id)

        def hold(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            model.read(packed)
        held.append(sum(sizes))
    assert held[1] < 0.7 * held[0]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen_window"])
def test_rows_without_branches_read_the_same(zoo: Zoo, kind: str) -> None:
    model = zoo.load(kind)
    tree = pack([*POSITIONS, (PROMPT, (7, 8))], model.codec.pad_id)
    assert tree.attention is not None
    expected = model.read(tree)
    model.branching = False
    torch.testing.assert_close(model.read(tree), expected, atol=EXACT, rtol=EXACT)


def test_a_window_and_a_kernel_without_masks_are_rejected(zoo: Zoo) -> None:
    model = zoo.load("mistral")
    with pytest.raises(ModelError, match=r"look back 6 tokens.*use sdpa"):
        LanguageModel(model.module, model.codec, branching=False)


# --- dropout and the untrained model ----------------------------------------------------------


def test_what_is_computed_twice_drops_the_same_inputs_again(zoo: Zoo) -> None:
    model = zoo.load(tuning="lora", lora_dropout=0.5)
    packed, gradients = pack([((1, 2, 3), ())], 0), []
    for call in (computed_twice, lambda compute, _: compute()):
        with model.dropout(torch.Generator().manual_seed(3)):
            logits = call(lambda: model.logits(model.read(packed)), model.device)
            gradient = torch.autograd.grad(logits.square().sum(), model.parameters())
        gradients.append(torch.cat([part.flatten() for part in gradient]))
    assert float(gradients[1].norm()) > 0
    torch.testing.assert_close(*gradients)


def test_adapters_have_dropout_in_gradient_steps_only_and_the_same_for_a_seed(zoo: Zoo) -> None:
    model = zoo.load(tuning="lora", lora_dropout=0.5)
    packed = pack(POSITIONS, model.codec.pad_id)
    quiet = model.read(packed)
    found = []
    for seed in (1, 1, 2):
        with model.dropout(torch.Generator().manual_seed(seed)):
            found.append(model.read(packed))
    assert model.has_dropout
    before = torch.get_rng_state()
    with model.dropout(torch.Generator()):
        model.read(packed)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random state is kept
    assert torch.equal(model.read(packed), quiet)
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], quiet)
    assert not torch.allclose(found[0], found[2])
    assert not zoo.load(tuning="lora").has_dropout


@pytest.mark.parametrize("kind", ["llama", "qwen"])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_untrained_model_is_kept_through_training(zoo: Zoo, kind: str, tuning: Any) -> None:
    """Its probabilities stay those of the loaded model, with tied embeddings (qwen) or without."""
    model = zoo.load(kind, tuning=tuning, keep_frozen=False, keep_reference=True)
    before = zoo.load(kind)
    packed = pack(POSITIONS, model.codec.pad_id)
    expected = before.logits(before.read(packed))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1)
    torch.testing.assert_close(model.frozen_logits(model.read_frozen(packed)), expected)
    assert not torch.allclose(model.logits(model.read(packed)), expected, atol=0.1)


def test_weights_that_are_no_numbers_are_named_when_a_model_is_loaded(zoo: Zoo) -> None:
    model = zoo.load()
    with torch.no_grad():
        model.module.get_parameter("model.layers.0.mlp.up_proj.weight")[3, 5] = torch.nan
    with pytest.raises(
        ModelError, match=r"1 of the 1536 weights in model\.layers\.0\.mlp\.up_proj"
    ):
        LanguageModel(model.module, model.codec)
