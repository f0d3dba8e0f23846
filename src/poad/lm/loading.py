"""Loading language models: embedded ones, directories and hub names, with or without adapters.

This is the only module that imports peft.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from poad.config import ModelConfig, PromptConfig
from poad.errors import ModelError, did_you_mean
from poad.lm.model import LanguageModel, seeded
from poad.lm.prompts import codec_for

ASSETS = Path(__file__).parents[1] / "assets"
"""The directory of the embedded models."""

# --- names ------------------------------------------------------------------------------------


def embedded_models() -> list[str]:
    """List the names of the tiny models that come with the package."""
    return sorted(path.parent.name for path in ASSETS.glob("*/config.json"))


def model_card(name: str) -> dict[str, Any]:
    """Read how an embedded model was made, from its ``making.json``."""
    return json.loads((ASSETS / name / "making.json").read_text(encoding="utf-8"))


def resolve_model(name: str, env: str) -> str:
    """Replace ``auto`` by the name of the embedded model that was made for a world.

    Raises:
        ModelError: there is none for this world.
    """
    if name != "auto":
        return name
    for embedded in embedded_models():
        if env in model_card(embedded)["recipe"]["worlds"]:
            return embedded
    raise ModelError(
        f"No embedded model knows the words of {env!r}. Name a model with --model.name: a "
        f"directory, a hub name, or one of {', '.join(embedded_models())}."
    )


def model_source(name: str) -> str:
    """Return what transformers loads a model from: a directory, or the hub name as it is."""
    return str(ASSETS / name) if name in embedded_models() else name


def resolve_device(name: str) -> torch.device:
    """Return the device of a name: ``cpu``, ``cuda``, ``cuda:1`` …; ``auto`` prefers a GPU.

    Raises:
        ModelError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"Device {name!r} cannot be used ({str(error).splitlines()[0]}); use cpu, or cuda or "
            "cuda:1 … where there is a GPU."
        ) from error


# --- loading ----------------------------------------------------------------------------------


def load_model(
    config: ModelConfig,
    prompt: PromptConfig | None = None,
    seed: int = 0,
    *,
    keep_frozen: bool = True,
    keep_reference: bool = False,
) -> LanguageModel:
    """Load a model and its tokenizer.

    Args:
        config: which model, and how it is tuned. Its name must not be ``auto``; see
            :func:`resolve_model`.
        prompt: the form of the prompts; plain by default.
        seed: the seed of the adapters' initial weights; the caller's random state is kept.
        keep_frozen: whether the untrained body is needed, by a critic that reads it.
        keep_reference: whether the probabilities of the untrained model are needed.

    Raises:
        ModelError: the model is not found, damaged, not a causal language model, or without an
            end-of-text token; no layer takes the adapters; the device is not there; or a package
            is missing.
    """
    device = resolve_device(config.device)
    with seeded(seed, device):
        causal, tokenizer = _from_pretrained(config, device)
        if config.quantize == "none":  # a quantized model is loaded onto its device
            causal.to(device)
        if config.tuning == "lora":
            causal = with_adapters(causal, config)
    try:
        codec = codec_for(tokenizer, prompt or PromptConfig())
    except ValueError as error:
        raise ModelError(f"The tokenizer of {config.name!r} cannot be used: {error}") from error
    return LanguageModel(
        causal,
        codec,
        keep_frozen,
        keep_reference,
        branching=config.attention != "flash_attention_2",
        gradient_checkpointing=config.gradient_checkpointing,
    )


def _from_pretrained(config: ModelConfig, device: torch.device) -> tuple[Any, Any]:
    """Load the model and the tokenizer of transformers; explain what went wrong."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name, source = config.name, model_source(config.name)
    is_local = Path(source).is_dir()
    options = _loading_options(config, device)
    try:
        with without_progress_bars(is_local):  # downloads from the hub keep theirs
            tokenizer = AutoTokenizer.from_pretrained(source)
            return AutoModelForCausalLM.from_pretrained(source, **options), tokenizer
    except ImportError as error:
        raise ModelError(
            f"Cannot load the model {name!r} with model.attention = {config.attention} and "
            f"model.quantize = {config.quantize}: {str(error).strip().splitlines()[0]}"
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        place = "" if is_local else "there is no such directory, and from the hub: "
        raise ModelError(
            f"Cannot load the model {name!r}: {place}{str(error).splitlines()[0]} "
            f"{did_you_mean(name, embedded_models(), 1)}Expected an embedded model "
            f"({', '.join(embedded_models())}), a directory, or a hub name."
        ) from error


def _loading_options(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """Keyword arguments of ``from_pretrained``: precision, attention kernel and quantization."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": config.attention}
    if config.attention == "flash_attention_2" and device.type == "cpu":
        raise ModelError("model.attention = flash_attention_2 runs on GPUs only; use sdpa.")
    if config.quantize == "none":
        return options
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantize = {config.quantize} needs bitsandbytes: pip install 'poad[quantize]'."
        )
    from transformers import BitsAndBytesConfig

    if config.quantize == "8bit":
        quantization = BitsAndBytesConfig(load_in_8bit=True)
    else:  # as in QLoRA (arXiv 2305.14314)
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return options | {"quantization_config": quantization, "device_map": {"": device}}


@contextmanager
def without_progress_bars(hide: bool = True) -> Iterator[None]:
    """Hide the progress bars of transformers while it reads or writes files.

    Args:
        hide: if false, do nothing.
    """
    from transformers.utils import logging as transformers_logging

    hide = hide and transformers_logging.is_progress_bar_enabled()
    if hide:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            transformers_logging.enable_progress_bar()


# --- adapters ---------------------------------------------------------------------------------


def with_adapters(causal: Any, config: ModelConfig) -> nn.Module:
    """Add low-rank adapters to a model (LoRA, arXiv 2106.09685); only these are then trained.

    Raises:
        ModelError: no layer has one of the names in ``config.lora_targets``, or they are empty and
            the attention projections of this architecture are not known.
    """
    # peft imports bitsandbytes if it is installed, which then warns about kernels that nobody uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    targets = list(config.lora_targets) or _attention_projections(causal)
    linear = {
        n.split(".")[-1]: m for n, m in causal.named_modules() if isinstance(m, nn.Linear | Conv1D)
    }
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
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
            f"No layer is called {' or '.join(targets)}; this model's linear layers are "
            f"{', '.join(sorted(linear))}. Set model.lora_targets."
        ) from error


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
