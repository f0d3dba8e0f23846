"""Find and load language models: embedded ones, directories, hub names; whole or with adapters.

The only module that knows peft.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from poad.config import ModelConfig
from poad.errors import ModelError, did_you_mean
from poad.lm.model import LanguageModel
from poad.lm.tokenizer import TextCodec

ASSETS = Path(__file__).parents[1] / "assets"


def embedded_models() -> list[str]:
    """Names of the tiny models that come with the package."""
    return sorted(path.parent.name for path in ASSETS.glob("*/config.json"))


def resolve_model(name: str, env: str) -> str:
    """Turn ``auto`` into the embedded model of the world.

    Raises:
        ModelError: the world has no embedded model.
    """
    if name != "auto":
        return name
    for embedded in embedded_models():
        if env in model_card(embedded)["recipe"]["worlds"]:
            return embedded
    raise ModelError(
        f"No embedded model knows the words of {env!r}; name one with --model.name: a directory, "
        f"a hub name, or one of {', '.join(embedded_models())}."
    )


def where(name: str) -> str:
    """What transformers is to load: an embedded model's directory, or the name as it is."""
    return str(ASSETS / name) if name in embedded_models() else name


def load_model(
    config: ModelConfig,
    env: str,
    seed: int,
    keep_frozen: bool = True,
    keep_reference: bool = False,
    make_codec: Callable[[Any], TextCodec] = TextCodec,
) -> LanguageModel:
    """Load the model a run asks for.

    Args:
        config: which model and how to tune it.
        env: the world's id, for ``name="auto"``.
        seed: of the adapters' initial weights.
        keep_frozen: whether the untrained body is needed (by a critic that reads it).
        keep_reference: whether the untrained model's probabilities are needed.
        make_codec: from its tokenizer.

    Raises:
        ModelError: not found, damaged, not a causal language model, without an end-of-text token,
            adapters that fit no layer, a device that is not there, or a missing package.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = resolve_model(config.name, env)
    source = where(name)
    hint = did_you_mean(name, embedded_models(), 1)
    if source == name and hint and not Path(name).exists():
        raise ModelError(f"There is no embedded model {name!r}. {hint.rstrip()}")
    device = _device(config.device)
    options = _loading(config, device)
    torch.manual_seed(seed)
    try:
        with without_bars(Path(source).is_dir()):  # a download from the hub keeps its own
            tokenizer = AutoTokenizer.from_pretrained(source)
            causal = AutoModelForCausalLM.from_pretrained(source, **options)
    except ImportError as error:
        raise ModelError(
            f"Cannot load the model {name!r} with model.attention = {config.attention} and "
            f"model.quantize = {config.quantize}: {str(error).strip().splitlines()[0]}"
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        local = "" if Path(source).is_dir() else "there is no such directory, and from the hub: "
        raise ModelError(
            f"Cannot load the model {name!r}: {local}{str(error).splitlines()[0]} Expected an "
            f"embedded model ({', '.join(embedded_models())}), a directory, or a hub name."
        ) from error
    try:
        codec = make_codec(tokenizer)
    except ValueError as error:
        raise ModelError(f"The tokenizer of {name!r} cannot be used: {error}") from error
    if config.quantize == "none":
        causal.to(device)  # pyright: ignore[reportArgumentType]
    if config.tuning == "lora":
        causal = with_adapters(causal, config)
    return LanguageModel(
        causal,
        codec,
        keep_frozen,
        keep_reference,
        branching=config.attention != "flash_attention_2",
        recompute=config.gradient_checkpointing,
    )


def _loading(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """How transformers is to load the weights."""
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
    else:  # as QLoRA, arXiv 2305.14314
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return options | {"quantization_config": quantization, "device_map": {"": device}}


@contextmanager
def without_bars(quiet: bool = True) -> Iterator[None]:
    """No progress bars of transformers' while it reads or writes."""
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled() and quiet
    if shown:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def with_adapters(causal: Any, config: ModelConfig) -> nn.Module:
    # Peft loads bitsandbytes where it is installed, which warns of kernels that nobody asked for.
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
        fan_in_fan_out=any(isinstance(linear.get(name), Conv1D) for name in targets),
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():  # peft asks transformers by a name that is going away
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            return get_peft_model(causal, lora)
    except ValueError as error:
        raise ModelError(
            f"No layer is called {' or '.join(targets)}; this model's linear layers are "
            f"{', '.join(sorted(linear))}. Set model.lora_targets."
        ) from error


def _attention_projections(causal: nn.Module) -> list[str]:
    """Query and value projections as the paper adapts them, or the fused layer that holds them."""
    names = {name.split(".")[-1] for name, _ in causal.named_modules()}
    for known in (["q_proj", "v_proj"], ["c_attn"], ["query_key_value"], ["qkv_proj"], ["Wqkv"]):
        if names.issuperset(known):
            return known
    raise ModelError(
        "The attention projections of this architecture are not known; name the layers to adapt "
        "with model.lora_targets."
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"Device {name!r} cannot be used ({str(error).splitlines()[0]}); use cpu, or cuda or "
            "cuda:1 … where there is a GPU."
        ) from error


def model_card(name: str) -> dict[str, Any]:
    """How an embedded model was made: its ``making.json``."""
    return json.loads((ASSETS / name / "making.json").read_text(encoding="utf-8"))
