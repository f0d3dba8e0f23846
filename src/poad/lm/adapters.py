"""Low-rank adapters on frozen weights (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from poad.config import ModelConfig
from poad.errors import ModelError
from poad.lm.mixed import MixedConv1D
from poad.lm.model import LanguageModel, layers_of, text_body


def with_adapters(causal: Any, config: ModelConfig) -> nn.Module:
    """Add low-rank adapters to a model (LoRA, arXiv 2106.09685); only these are then trained.

    Raises:
        ModelError: no layer has one of the names in ``config.lora_targets``, or they are empty and
            the attention projections of this architecture are not known.
    """
    quiet_bitsandbytes()
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    linear = {
        n.split(".")[-1]: m for n, m in causal.named_modules() if isinstance(m, nn.Linear | Conv1D)
    }
    inside = {name.split(".")[-1] for name, _ in text_body(causal).named_modules()}
    targets = list(config.lora_targets) or _attention_projections(causal)
    if targets == ["all-linear"]:
        targets = sorted(inside & linear.keys())
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        exclude_modules=_beside_the_text(causal, targets) or None,
        layers_to_transform=_last_blocks(causal, config.lora_layers),
        # GPT-2 keeps its weights transposed.
        fan_in_fan_out=any(isinstance(linear.get(name), Conv1D) for name in targets),
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():  # peft still uses a deprecated name of transformers
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            return get_peft_model(causal, lora)
    except ValueError as error:
        raise ModelError(
            f"No layer to adapt is called {' or '.join(targets)}; this model's linear layers are "
            f"{', '.join(sorted(linear))}. Set model.lora_targets."
        ) from error


def layers_to_adapt(body: nn.Module, config: ModelConfig) -> list[nn.Module]:
    """Find the linear layers that a configuration adapts, inside the adapters that are there.

    Args:
        body: the part of a model that reads text.
        config: names the layers, and counts the blocks.

    Raises:
        ModelError: there are none.
    """
    from transformers.pytorch_utils import Conv1D

    kinds, inner = nn.Linear | Conv1D | MixedConv1D, ".base_layer"
    linear = {
        name.removesuffix(inner): module
        for name, module in body.named_modules()
        if isinstance(module, kinds) and "lora_" not in name
    }
    named = {name.split(".")[-1] for name in linear}
    targets = list(config.lora_targets) or _attention_projections(body)
    wanted = named if targets == ["all-linear"] else {each.split(".")[-1] for each in targets}
    blocks = layers_of(body) if config.lora_layers else None
    last = [body] if blocks is None else blocks[-(config.lora_layers or 0) :]
    inside = {id(module) for block in last for module in block.modules()}
    found = [m for n, m in linear.items() if n.split(".")[-1] in wanted and id(m) in inside]
    if not found:
        raise ModelError(
            f"No layer to adapt is called {' or '.join(targets)}; this model's linear layers are "
            f"{', '.join(sorted(named))}. Set model.lora_targets."
        )
    return found


def save_adapters(model: LanguageModel, folder: Path, base: str) -> None:
    """Write the adapters of a model into a directory that PEFT and vLLM read.

    Args:
        model: one with adapters.
        folder: created if it is not there.
        base: what the files call the model below the adapters.

    Raises:
        OSError, SafetensorError: they cannot be written.
    """
    module: Any = model.module
    module.peft_config["default"].base_model_name_or_path = base
    module.save_pretrained(folder, save_embedding_layers=False)


def _beside_the_text(causal: Any, targets: Sequence[str]) -> list[str]:
    """Name the layers of an image encoder that are called like those to adapt."""
    read = {
        id(m)
        for half in (text_body(causal), causal.get_output_embeddings())
        for m in half.modules()
    }
    return [
        name
        for name, module in causal.named_modules()
        if id(module) not in read and name.split(".")[-1] in {t.split(".")[-1] for t in targets}
    ]


def quiet_bitsandbytes() -> None:
    """Before peft imports it, if it is installed: it warns about kernels that nobody uses."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _attention_projections(causal: nn.Module) -> list[str]:
    """Name the query and value projections, or the fused layer that holds them.

    The paper adapts these two (arXiv 2405.15821).
    """
    names = {name.split(".")[-1] for name, _ in causal.named_modules()}
    for known in (["q_proj", "v_proj"], ["c_attn"], ["query_key_value"], ["qkv_proj"], ["Wqkv"]):
        if names.issuperset(known):
            return known
    raise ModelError(
        "The attention projections of this architecture are not known; name the layers to adapt "
        "with model.lora_targets."
    )


def _last_blocks(causal: Any, count: int | None) -> list[int] | None:
    """Return the indices of the last transformer blocks; None for all of them."""
    total = int(causal.config.get_text_config().num_hidden_layers)
    return None if count is None or count >= total else list(range(total - count, total))
