"""Rows that branch and exceed a window read as plain transformers reads them, whatever the family.

`make test-models` runs all of them, the default suite a handful.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from families import COMPOSITE, READ, REFUSED, WINDOWS, build, config_of
from tiny_models import byte_level
from tolerance import drift

from poad.config import ModelConfig
from poad.errors import ModelError
from poad.lm.adapters import with_adapters
from poad.lm.model import LanguageModel
from poad.lm.packing import Packed, pack
from poad.lm.tokenizer import TextCodec
from poad.turns import Position

EVERYTHING = bool(os.environ.get("POAD_ALL_FAMILIES"))
FEW = ("gemma2", "gemma3", "gpt_oss", "llama4_text", "bloom", "cohere2", "granite", "gptj")
FEW_REFUSED = ("gpt_neo", "mamba")


def loaded(kind: str) -> tuple[Any, LanguageModel]:
    words = byte_level()
    causal = build(config_of(kind, len(words)))
    return causal, LanguageModel(causal, TextCodec(words))


def drawn() -> list[Position]:
    """Positions behind shared prompts that are longer than every window here, and a short one."""
    generator = torch.Generator().manual_seed(3)

    def some(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 300, (count,), generator=generator).tolist())

    long, short = some(17), some(4)
    return [(long, some(3)), (long, some(1)), (long, ()), (long[:12], some(2)), (short, some(5))]


def plain(causal: Any, positions: list[Position]) -> torch.Tensor:
    """[Q, V] what transformers says about each row by itself."""
    with torch.no_grad():
        rows = [torch.tensor([[*prompt, *rest]]) for prompt, rest in positions]
        logits = [causal(input_ids=row, use_cache=False).logits[0, -1] for row in rows]
    return torch.stack(logits).log_softmax(-1)


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return float((found.log_softmax(-1) - expected).abs().max()) < drift()


@torch.no_grad()
def assert_reads_as_plain(causal: Any, model: LanguageModel) -> None:
    positions = drawn()
    expected = plain(causal, positions)
    assert close(model.logits(model.read(pack(positions, model.codec.pad_id))), expected)
    assert close(model.logits(model.read_frozen(pack(positions, model.codec.pad_id))), expected)
    (long, a), (_, b), _, _, (short, c) = positions
    decoder = model.decoder(remember=True)
    decoder.start([long[:-2], short])
    decoder.read([long[-2:], c[:1]], [0, 1])  # of different lengths, so there is padding inside
    found = decoder.read([a, b, c[1:]], [0, 0, 1])
    assert close(model.logits(found), expected[[0, 1, 4]])


@pytest.mark.parametrize("kind", READ if EVERYTHING else FEW)
def test_it_reads_as_plain_transformers_does(kind: str) -> None:
    causal, model = loaded(kind)
    assert model.window == WINDOWS.get(kind)
    assert_reads_as_plain(causal, model)


@pytest.mark.parametrize("kind", REFUSED if EVERYTHING else FEW_REFUSED)
def test_what_cannot_be_read_right_is_refused(kind: str) -> None:
    with pytest.raises(ModelError, match=REFUSED[kind]):
        loaded(kind)


def test_there_are_enough_of_them() -> None:
    assert len(READ) >= 45
    assert {*FEW} <= READ.keys()
    assert {*FEW_REFUSED} <= REFUSED.keys()


def test_a_composite_model_is_trained_where_it_reads_text() -> None:
    """Its images have no part in the policy, so their weights are neither trained nor copied."""
    assert "gemma3" in COMPOSITE
    causal, model = loaded("gemma3")
    trained = model.state()
    assert trained
    assert not any("vision" in name or "projector" in name for name in trained)
    text = causal.config.get_text_config()
    assert model.context_length == text.max_position_embeddings
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in causal.parameters())


@pytest.mark.parametrize("kind", COMPOSITE if EVERYTHING else ("gemma3",))
def test_adapters_sit_where_a_composite_model_reads_text(kind: str) -> None:
    words = byte_level()
    causal = with_adapters(build(config_of(kind, len(words))), ModelConfig(tuning="lora"))
    model = LanguageModel(causal, TextCodec(words))
    adapters = [name for name, _ in causal.named_parameters() if "lora" in name]
    assert adapters
    assert model.state().keys() == {*adapters}
    assert not any("vision" in name for name in adapters)


def test_masks_that_come_out_wrong_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading tries rows that branch beyond the window; if they fail, rows do without branches."""
    import poad.lm.masks

    real = poad.lm.masks.over_positions

    def without_windows(body: Any, sees: Any, queries: Any, keys: Any) -> Any:
        return real(body, sees, torch.zeros_like(queries), torch.zeros_like(keys))

    monkeypatch.setattr("poad.lm.model.over_positions", without_windows)
    causal, model = loaded("mistral")
    assert not model.branching
    assert_reads_as_plain(causal, model)
    monkeypatch.setattr("poad.lm.cache.over_positions", without_windows)
    with pytest.raises(ModelError, match="hidden states differ"):
        loaded("mistral")


# --- the length of the context ----------------------------------------------------------------


def test_a_window_too_long_to_try_limits_the_context() -> None:
    words = byte_level()
    config = config_of("mistral", len(words), sliding_window=5000, max_position_embeddings=9000)
    model = LanguageModel(build(config), TextCodec(words))
    assert (model.window, model.context_length) == (None, 5000)


def long_rope(factor: float) -> dict[str, Any]:
    factors = {"short_factor": [1.0] * 4, "long_factor": [factor] * 4}
    return {"rope_type": "longrope", "rope_theta": 1e4, **factors}


@pytest.mark.parametrize(
    ("kind", "rope", "limit"),
    [
        ("phi3", long_rope(9.0) | {"original_max_position_embeddings": 24}, 24),
        ("llama", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}, 40),
    ],
)
def test_rotary_embeddings_that_change_with_the_length_limit_the_context(
    kind: str, rope: dict[str, Any], limit: int
) -> None:
    """Within the limit a row reads the same next to any other; beyond it is an error."""
    words = byte_level()
    own: dict[str, Any] = {"original_max_position_embeddings": 24} if kind == "phi3" else {}
    config = config_of(kind, len(words), rope_parameters=rope, max_position_embeddings=40, **own)
    causal = build(config)
    model = LanguageModel(causal, TextCodec(words))
    assert model.context_length == limit
    row, whole = (5, 6, 7), tuple(range(10, 10 + limit))
    apart, together = (
        model.read(pack([(r, ()) for r in rows], 0)) for rows in ([row], [row, whole])
    )
    torch.testing.assert_close(together[0], apart[0], rtol=0, atol=drift())
    for read in (
        lambda long: model.read(pack([(long, ())], 0)),
        lambda long: model.decoder().start([long]),
    ):
        with pytest.raises(ModelError, match=f"{limit + 1} tokens is longer than the {limit}"):
            read((*whole, 1))
    # The limit is not too strict: one token more does change the tokens before it.
    with torch.no_grad():
        body = causal.model
        short, longer = (
            body(input_ids=torch.tensor([r])).last_hidden_state[0, 2] for r in (row, (*whole, 1))
        )
        same = body(input_ids=torch.tensor([[*row, *whole[3:], 1]])).last_hidden_state[0, 2]
    assert longer.shape == short.shape
    assert not torch.allclose(same, short, atol=1e-4)


def test_a_token_beyond_the_vocabulary_is_named() -> None:
    words = byte_level()
    model = LanguageModel(build(config_of("llama", len(words))), TextCodec(words))
    words.add_tokens(["<door>"])
    ids = model.codec.prompt("You see a <door>.")

    def read(packed: Packed) -> None:
        model.read(packed)

    for reading in (
        lambda: read(pack([(ids, ())], 0)),
        lambda: model.decoder().start([ids]),
        lambda: model.codec.trie(["open <door>", "wait"]),
    ):
        with pytest.raises(ModelError, match=r"'<door>' \(id 320\).*knows 320 tokens"):
            reading()
