"""Adapters on a quantized base: it reads about the same, and only the adapters learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import byte_level
from tiny_worlds import settings
from transformers import AutoModelForCausalLM, LlamaConfig

from poad.agent.build import load_agent
from poad.config import ModelConfig, from_dict
from poad.envs.registry import make
from poad.errors import ModelError
from poad.learn.ppo import PPO
from poad.learn.rollout import Collector
from poad.lm.loading import load_model
from poad.lm.packing import pack

BITS = {"8bit": 0.05, "4bit": 0.4}
"""Relative error allowed for hidden states against those of the full weights."""
POSITIONS = [((5, 6, 7, 8), (9,)), ((5, 6, 7, 8), (10, 11)), ((12, 13), ())]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Save a model whose widths are multiples of 64, the block size of the quantization."""
    words, path = byte_level(), tmp_path_factory.mktemp("base")
    sizes: Any = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config: Any = LlamaConfig(
        vocab_size=len(words), num_attention_heads=4, initializer_range=0.2, **sizes
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        causal: Any = AutoModelForCausalLM.from_config(config)
    causal.save_pretrained(path)
    words.save_pretrained(path)
    return str(path)


def quantized(name: str, bits: str) -> ModelConfig:
    data = {"name": name, "tuning": "lora", "quantize": bits, "device": "cpu"}
    return from_dict({"model": data | {"dtype": "bfloat16"}}).model


@pytest.mark.parametrize("bits", BITS)
def test_a_quantized_base_reads_about_the_same(base: str, bits: str) -> None:
    pytest.importorskip("bitsandbytes")
    whole = load_model(ModelConfig(name=base, device="cpu"))
    model = load_model(quantized(base, bits))
    packed = pack(POSITIONS, whole.codec.pad_id)
    expected = whole.read(packed).detach()
    for found in (model.read(packed).detach(), model.read_frozen(packed)):
        distance = (found.float() - expected).norm() / expected.norm()
        assert 1e-4 < distance < BITS[bits]


@pytest.mark.parametrize("bits", BITS)
def test_only_the_adapters_learn(base: str, bits: str) -> None:
    pytest.importorskip("bitsandbytes")
    config = settings("Chain", model={"name": base, "tuning": "lora", "quantize": bits})
    config = from_dict({"model": {"dtype": "bfloat16"}}, config)
    agent = load_agent(config)
    before = {n: p.detach().clone() for n, p in agent.model.module.named_parameters()}
    learner = PPO(agent)
    worlds = Collector(lambda: make(config.env), agent.policy, config.streams, config.seed)
    for seed in range(2):
        metrics = learner.update(worlds.collect(8, np.random.default_rng(seed)))
        assert metrics["logprob_drift_mean"] < 0.05
    moved = {n for n, p in agent.model.module.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(agent.model.state())
    assert all("lora_" in name for name in moved)
    assert {p.dtype for p in agent.model.parameters()} == {torch.float32}


def test_without_bitsandbytes_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"needs bitsandbytes: pip install bitsandbytes"):
        load_model(quantized("tiny-code", "4bit"))


@pytest.mark.parametrize("bits", BITS)
def test_gradients_go_through_the_quantized_base(base: str, bits: str) -> None:
    """The gradients of the adapters point in about the same direction as with full weights."""
    pytest.importorskip("bitsandbytes")
    found = []
    for config in (ModelConfig(name=base, tuning="lora", device="cpu"), quantized(base, bits)):
        model = load_model(config)
        logits = model.logits(model.read(pack(POSITIONS, model.codec.pad_id)))
        logits.log_softmax(-1)[:, 30].sum().backward()
        found.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    whole, few = found
    assert torch.cosine_similarity(whole, few, dim=0) > 0.75


def test_flash_attention_needs_a_gpu() -> None:
    config = from_dict({"model": {"attention": "flash_attention_2", "device": "cpu"}}).model
    with pytest.raises(ModelError, match=r"flash_attention_2 runs on GPUs only; use sdpa"):
        load_model(config)
