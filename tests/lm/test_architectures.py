"""Tiny random models of real architectures act and learn, with any tuning and precision."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chats import chatting
from tiny_worlds import settings
from tolerance import EXACT, float64
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PhiConfig,
    Qwen3Config,
)
from transformers.utils import logging

from poad.agent.build import load_agent
from poad.config import Config
from poad.envs.registry import make
from poad.learn.ppo import PPO
from poad.learn.rollout import Collector

_SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_SHAPE |= {"intermediate_size": 48, "initializer_range": 0.2}
_GROUPED = _SHAPE | {"num_key_value_heads": 2}
_GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
ARCHITECTURES: dict[str, Any] = {
    "llama": lambda **rest: LlamaConfig(**_GROUPED, **rest),
    "qwen3": lambda **rest: Qwen3Config(**_GROUPED, head_dim=8, tie_word_embeddings=True, **rest),
    "gemma3": lambda **rest: Gemma3TextConfig(**_GROUPED, head_dim=8, sliding_window=64, **rest),
    "gpt2": lambda **rest: GPT2Config(**_GPT2, **rest),
    "neox": lambda **rest: GPTNeoXConfig(**_SHAPE, **rest),
    "phi": lambda **rest: PhiConfig(**_SHAPE, **rest),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("architectures")


def directory(folder: Path, architecture: str) -> str:
    """Save a model to disk, with a chat template and without a padding token."""
    path = folder / architecture
    if not path.exists():
        words = chatting("marked")
        special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        config = ARCHITECTURES[architecture](vocab_size=len(words), **special)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            causal: Any = AutoModelForCausalLM.from_config(config)
        logging.disable_progress_bar()
        causal.save_pretrained(path)
        logging.enable_progress_bar()
        words.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize(
    ("world", "prompt"),
    [("Novel", {}), ("Chain", {"format": "chat", "history": "episode", "thinking": 4})],
)
def test_it_acts_and_learns(
    folder: Path, architecture: str, tuning: str, dtype: str, world: str, prompt: dict[str, Any]
) -> None:
    """Sampler and learner agree, up to the precision, and a step changes the policy."""
    model = {"name": directory(folder, architecture), "tuning": tuning}
    model |= {} if dtype == "float64" else {"dtype": dtype}
    config = settings(world, model=model, prompt=prompt, ppo={"lr": 1e-2, "drift_stop": 0.05})
    with float64() if dtype == "float64" else nullcontext():
        assert_acts_and_learns(config, EXACT if dtype == "float64" else 0.3)


def assert_acts_and_learns(config: Config, most_drift: float) -> None:
    agent = load_agent(config)
    config = agent.config
    learner = PPO(agent)
    worlds = Collector(lambda: make(config.env), agent.policy, config.streams, config.seed)
    before = {name: tensor.clone() for name, tensor in agent.model.state().items()}
    for seed in range(2):
        metrics = learner.update(worlds.collect(6, np.random.default_rng(seed)))
        assert all(map(math.isfinite, metrics.values()))
        assert metrics["logprob_drift"] <= most_drift
        assert metrics["passes"] >= 1
    moved = [name for name, tensor in agent.model.state().items() if (tensor != before[name]).any()]
    assert len(moved) > len(before) / 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_of_a_half_precision_model_are_float32(folder: Path, architecture: str) -> None:
    model = {"name": directory(folder, architecture), "tuning": "lora", "dtype": "float16"}
    agent = load_agent(settings("Chain", model=model))
    assert {p.dtype for p in agent.model.parameters()} == {torch.float32}
    assert agent.model.device.type == "cpu"
    frozen = {p.dtype for p in agent.model.module.parameters() if not p.requires_grad}
    assert frozen == {torch.float16}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_tokenizers_padding_changes_nothing(folder: Path, architecture: str) -> None:
    """Poad pads rows itself, whatever the padding side and token of the tokenizer."""
    found = []
    for side in ("left", "right"):
        agent = load_agent(settings("Chain", model={"name": directory(folder, architecture)}))
        assert agent.model.codec.tokenizer.pad_token is None
        agent.model.codec.tokenizer.padding_side = side
        worlds = Collector(lambda: make("tiny/Chain-v0"), agent.policy, 3, 0)
        turns = worlds.collect(5, np.random.default_rng(0)).turns
        found.append([(t.prompt_ids, t.action.token_ids, t.action.logprob) for t in turns])
    assert found[0] == found[1]
