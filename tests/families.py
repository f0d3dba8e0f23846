"""Tiny random models of many architectures, with windows that a short row exceeds."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

WINDOW = 6
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "intermediate_size": 48,
    "ffn_hidden_size": 48,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "init_std": 0.2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def config_of(kind: str, vocabulary: int, **own: Any) -> Any:
    """A tiny configuration of an architecture, by the name of its model type."""
    known = CONFIG_MAPPING[kind]
    default = known()
    sizes = {k: v for k, v in _SIZES.items() if hasattr(default, k)} | {"vocab_size": vocabulary}
    return known(**{k: v for k, v in (sizes | own).items() if v != "absent"})


def build(config: Any, seed: int = 7) -> Any:
    """A random model whose logits differ, in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        causal: Any = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in causal.parameters():  # norms and biases, too
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return causal.eval()
