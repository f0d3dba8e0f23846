"""Tiny random models of many architectures, with windows that a short row exceeds."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("initializer_range", "init_std"), 0.2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), None),
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
}
_ABSENT: Any = object()
_WINDOW: dict[str, Any] = {"sliding_window": 6}
_KINDS = {"layer_types": ["sliding_attention", "full_attention"]}
_MIXED = _WINDOW | _KINDS
_QWEN = _WINDOW | {"use_sliding_window": True, "max_window_layers": 1}
_CHUNKS = {
    "attention_chunk_size": 6,
    "layer_types": ["chunked_attention", "full_attention"],
    "intermediate_size_mlp": 48,
}
_LATENT = {"num_key_value_heads": 4}
_ENDS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}

READ: dict[str, dict[str, Any]] = {
    "afmoe": {},
    "apertus": {},
    "arcee": {},
    "biogpt": {},
    "bloom": {},
    "codegen": {"rotary_dim": 8},
    "cohere": {},
    "cohere2": _MIXED,
    "ctrl": {},
    "cwm": _MIXED | _ENDS,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "diffllama": {},
    "doge": {},
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": _MIXED,
    "falcon": {"head_dim": _ABSENT},
    "falcon alibi": {"head_dim": _ABSENT, "alibi": True},
    "gemma": {},
    "gemma2": _MIXED,
    "gemma3": {},
    "gemma3_text": _MIXED,
    "gemma3n_text": _MIXED
    | {
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.5, 0.0],
        "intermediate_size": [48, 48],
        "laurel_rank": 4,
        "vocab_size_per_layer_input": 512,
        "altup_num_inputs": 2,
        "hidden_size_per_layer_input": 8,
    },
    "gemma4": {},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo global": {"attention_types": [[["global"], 2]]},
    "gpt_neox": {},
    "gpt_oss": _MIXED,
    "gptj": {"rotary_dim": 8},
    "granite": {"logits_scaling": 4.0},
    "granitemoe": {"logits_scaling": 4.0},
    "helium": {},
    "hunyuan_v1_dense": {},
    "hyperclovax": {"logits_scaling": 0.5},
    "jetmoe": {},
    "llama": {},
    "llama4": {},
    "llama4_text": _CHUNKS,
    "minicpm3": _LATENT,
    "minimax_m2": {},
    "ministral": _MIXED,
    "ministral3": _WINDOW,
    "mistral": _WINDOW,
    "mixtral": _WINDOW,
    "nanochat": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": _MIXED,
    "olmoe": {},
    "opt": {},
    "persimmon": {},
    "phi": {},
    "phi3": _WINDOW,
    "phimoe": _WINDOW,
    "qwen2": _QWEN,
    "qwen2_moe": {},
    "qwen3": _QWEN,
    "qwen3_moe": {},
    "seed_oss": {},
    "smollm3": _MIXED | {"use_sliding_window": True},
    "stablelm": {},
    "starcoder2": _WINDOW,
    "vaultgemma": _MIXED,
    "xglm": {},
}
"""Architectures that read right, with the settings of their own."""
_CANNOT = "cannot read several actions behind one prompt"
REFUSED: dict[str, str] = {
    "bert": "between its last hidden state and its logits",
    "falcon_h1": _CANNOT,
    "gpt_neo": _CANNOT,
    "jamba": _CANNOT,
    "lfm2": _CANNOT,
    "mamba": _CANNOT,
    "minimax": _CANNOT,
    "mpt": _CANNOT,
    "openai-gpt": _CANNOT,
    "qwen3_next": _CANNOT,
    "recurrent_gemma": _CANNOT,
    "rwkv": _CANNOT,
}
"""Those that do not, with what the refusal says."""
_REFUSED_SETTINGS: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
}
COMPOSITE = ("gemma3", "gemma4", "llama4")
"""Models of text and images, whose settings for text are nested."""
WINDOWS = dict.fromkeys(
    [name for name, own in READ.items() if "sliding_window" in own or own is _CHUNKS], 6
) | dict.fromkeys(COMPOSITE, 6)


def config_of(kind: str, vocabulary: int, **own: Any) -> Any:
    """A tiny configuration of an architecture, by the name of its model type."""
    if kind in COMPOSITE:
        return _composite(kind, vocabulary)
    known: Any = CONFIG_MAPPING[kind.split()[0]]
    default = known()
    sizes = {k: v for k, v in _SIZES.items() if hasattr(default, k)} | {"vocab_size": vocabulary}
    sizes |= READ.get(kind, _REFUSED_SETTINGS.get(kind, {})) | own
    return known(**{k: v for k, v in sizes.items() if v is not _ABSENT})


def _composite(kind: str, vocabulary: int) -> Any:
    text: dict[str, Any] = {k: v for k, v in _SIZES.items() if k.startswith("num_")}
    text |= {"vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    text |= _CHUNKS | _ENDS if kind == "llama4" else _MIXED
    seen: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    seen |= {"intermediate_size": 64 if kind == "llama4" else 48}
    rest: dict[str, Any] = {}
    if kind == "gemma4":
        text |= {"global_head_dim": 8, "hidden_size_per_layer_input": 8, "num_local_experts": None}
        text |= {"vocab_size_per_layer_input": vocabulary, "num_experts": None}
        seen |= {"num_key_value_heads": 4, "head_dim": 8}
        rest = {"audio_config": None}
    else:
        seen |= {"image_size": 28, "patch_size": 14}
    if kind == "gemma3":
        text["query_pre_attn_scalar"] = 8
        rest = {"mm_tokens_per_image": 4}
    known: Any = CONFIG_MAPPING[kind]
    return known(text_config=text, vision_config=seen, **rest)


def build(config: Any) -> Any:
    """A random model whose norms and biases matter, too."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        causal: Any = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in causal.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return causal.eval()
