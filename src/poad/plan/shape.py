"""The sizes of a model, counted on torch's `meta` device before any weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from poad.config import ModelConfig
from poad.errors import ModelError, did_you_mean
from poad.lm import find_source, resolve_model, text_body, with_adapters
from poad.models import own_names

_COUNTED = 67
"""Tokens sent through a model without memory. No size of a model is this number."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, as numbers of weights unless stated otherwise."""

    architecture: str
    weights: int
    """Of the base model; tied weights count once."""
    body: int
    """All weights but the head's. A tied head belongs to the body."""
    multiplied: int
    """Weights of the body that every token is multiplied with: all but the embeddings."""
    head: int
    """Weights of the head, multiplied where logits are computed."""
    quantizable: int
    """Weights of the body's linear layers."""
    largest: int
    """Weights of the body's largest linear layer."""
    adapters: int
    """Low-rank weights, in float32. 0 with full tuning."""
    layers: int
    adapted: int
    """Layers from the first that is trained on. What those below compute never changes."""
    width: int
    """H, the size of a hidden state."""
    feed: int
    """Outputs of the body's widest linear layer: numbers per token."""
    cached: int
    """Keys and values in the cache: numbers per token."""
    vocabulary: int
    saved: int
    """Bytes per token that the backward pass needs, attention matrices not included."""


def model_shape(config: ModelConfig, env: str) -> Shape:
    """Build a model without memory and count its weights.

    ``saved`` is the coefficient of Korthikanti et al. (arXiv 2205.05198, equation 1). In a layer of
    a GPT in 16 bits the backward pass needs 34 bytes per token and unit of width, and 5 bytes per
    head and pair of tokens. Here the first term is counted for the architecture, precision and
    tuning at hand: it is what torch's graph keeps of a forward pass on `meta`. The second term
    belongs to kernels that keep the attention matrix, which those used here do not. Where the pass
    cannot be made on `meta`, the published 34 is used.

    Args:
        config: the model and its tuning. It need not fit into any machine.
        env: the world's id, for ``name="auto"``.

    Raises:
        ModelError: the model does not exist or is no causal language model, or the adapters fit no
            layer.
    """
    described = describe(config, env)
    dtype = getattr(torch, config.dtype)
    causal = _without_memory(described, dtype, config.name)
    body = text_body(causal)
    counts = _counts(causal, described.get_text_config())
    if config.tuning == "lora":
        causal = with_adapters(causal, config)
    adapters = sum(p.numel() for p in causal.parameters()) - counts["weights"]
    # Equation 1 has 34 bytes at 2 bytes a number, so 17 numbers per unit of width and layer.
    published = 17 * dtype.itemsize * counts["width"] * counts["layers"]
    layers = counts["layers"]
    adapted = min(layers, config.lora_layers or layers) if config.tuning == "lora" else layers
    saved = _saved(causal, body) or published * adapted // layers
    return Shape(**counts, adapters=adapters, adapted=adapted, saved=saved)


@cache
def adapter_weights(config: ModelConfig, env: str) -> int:
    """Count the low-rank weights that the settings ask for, with full tuning as well."""
    return model_shape(replace(config, tuning="lora"), env).adapters


def describe(config: ModelConfig, env: str) -> Any:
    """Load the transformers configuration of a model; of an adapter, that of its base.

    Raises:
        ModelError: there is no such model.
    """
    from transformers import AutoConfig

    name = resolve_model(config.name, env)
    source = find_source(replace(config, name=name))
    try:
        return AutoConfig.from_pretrained(source.base, **source.options)
    except (OSError, ValueError, KeyError) as error:
        hint = did_you_mean(name, own_names(), 1)
        raise ModelError(
            f"Cannot find the configuration of the model {name!r}. {hint}Expected one of "
            f"{', '.join(own_names())}, a directory with a config.json, a .gguf file, or a hub "
            f"name: {str(error).splitlines()[0]}"
        ) from error


def _without_memory(described: Any, dtype: torch.dtype, name: str) -> Any:
    """Build a causal language model on `meta`."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            causal: Any = AutoModelForCausalLM.from_config(described, dtype=dtype)
    except ValueError as error:
        raise ModelError(
            f"{name!r} is no causal language model: {str(error).splitlines()[0]}"
        ) from error
    return causal.eval()


def _counts(causal: Any, text: Any) -> dict[str, Any]:
    """Count a base model; ``text`` is its configuration as a reader of text."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    body, head = text_body(causal), causal.get_output_embeddings()
    linear = [m for m in body.modules() if isinstance(m, nn.Linear | Conv1D)]
    embedded = {
        id(p) for m in body.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    heads, layers = int(text.num_attention_heads), int(text.num_hidden_layers)
    width = int(text.hidden_size)
    per_head = getattr(text, "head_dim", None) or width // heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    return {
        "architecture": type(causal).__name__,
        "weights": sum(p.numel() for p in causal.parameters()),
        "body": sum(p.numel() for p in body.parameters()),
        "multiplied": sum(p.numel() for p in body.parameters() if id(p) not in embedded),
        "head": int(head.weight.numel()),
        "quantizable": sum(m.weight.numel() for m in linear),
        "largest": max(m.weight.numel() for m in linear),
        "layers": layers,
        "width": width,
        "feed": max(m.nf if isinstance(m, Conv1D) else m.out_features for m in linear),
        "cached": 2 * layers * key_heads * per_head,  # keys and values
        "vocabulary": int(head.weight.shape[0]),
    }


def _saved(causal: nn.Module, body: nn.Module) -> int:
    """Bytes per token that the graph of a forward pass keeps; 0 if it cannot be made on `meta`."""
    own = {p.untyped_storage()._cdata for p in causal.parameters()}
    sizes: dict[int, int] = {}
    kept: list[torch.Tensor] = []  # a storage that is freed would give its id to the next one

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept.append(tensor)
        attention_matrix = tensor.shape[-2:] == (_COUNTED, _COUNTED)
        if storage._cdata not in own and not attention_matrix:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    ids = torch.zeros(1, _COUNTED, dtype=torch.long, device="meta")
    mask: Any = torch.ones(1, 1, _COUNTED, _COUNTED, dtype=torch.bool, device="meta")
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            body(input_ids=ids, attention_mask=mask, position_ids=ids, use_cache=False)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return 0
    return sum(sizes.values()) // _COUNTED
