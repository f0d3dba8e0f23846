"""A tiny language model written as a .gguf file, the way llama.cpp's converter writes a Llama."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TYPES = {"embed_tokens": "Q8_0", "self_attn": "Q4_1", "gate_proj": "Q5_0", "up_proj": "Q4_0"}
"""Types of storage by a part of a weight's name; whatever has none of these parts is F32."""
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(folder: Path, to: Path, pre: str = "gpt-2") -> Any:
    """Write the Llama in a directory, with byte-level tokens, as a .gguf file.

    Args:
        folder: the directory.
        to: the file.
        pre: the name of its pre-tokenizer.

    Returns:
        The model whose weights are those in the file, dequantized.
    """
    import gguf

    causal: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    writer = gguf.GGUFWriter(to, "llama")
    _write_settings(writer, causal.config, AutoTokenizer.from_pretrained(folder), pre)
    for name, weight in causal.named_parameters():
        array = weight.detach().numpy()
        kind = next((kind for part, kind in TYPES.items() if part in name), "F32")
        stored = gguf.GGMLQuantizationType[kind]
        heads = {
            "q_proj": causal.config.num_attention_heads,
            "k_proj": causal.config.num_key_value_heads,
        }.get(name.split(".")[-2])
        if heads:  # llama.cpp rotates neighbours where transformers rotates halves
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        short = name
        for ours, theirs in _NAMES.items():
            short = short.replace(ours, theirs)
        packed = gguf.quants.quantize(np.ascontiguousarray(array), stored)
        writer.add_tensor(short, packed, raw_dtype=stored)
        array = gguf.quants.dequantize(packed, stored)
        if heads:
            array = array.reshape(heads, -1, 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        with torch.no_grad():
            weight.copy_(torch.from_numpy(array.copy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return causal.eval()


def _write_settings(writer: Any, config: Any, tokenizer: Any, pre: str) -> None:
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    words = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = words["model"]["vocab"]
    special = {each["content"] for each in words["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in words["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
