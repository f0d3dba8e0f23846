"""Loading language models: by name, from directories, .gguf files and hubs; with adapters."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from poad.config import ModelConfig, PromptConfig
from poad.errors import ModelError, did_you_mean
from poad.lm.adapters import quiet_bitsandbytes, with_adapters
from poad.lm.chat import describe_own_system
from poad.lm.gguf import (
    Contents,
    as_ordinary,
    loading_options,
    read_contents,
    source_options,
    with_own_splits,
)
from poad.lm.identity import Identity, identify
from poad.lm.mixed import use_mixed_products
from poad.lm.model import LanguageModel, seeded, text_body
from poad.lm.prompts import codec_for
from poad.models import (
    ASSETS,
    KNOWN,
    embedded_models,
    fetched,
    is_gguf,
    model_card,
    own_names,
)

_ADAPTER = "adapter_config.json"
"""The file by which a directory is an adapter of PEFT."""

_NO_SAFETENSORS = (
    "it has no weights in safetensors. Others are not read, since they could hold code: if you "
    "trust where they come from, load them in Python and write them by `save_pretrained`."
)

# --- names ------------------------------------------------------------------------------------


def resolve_model(name: str, env: str) -> str:
    """Replace ``auto`` by the name of the embedded model that was made for a world.

    The path of a directory or a .gguf file becomes absolute, since a run is opened from other
    directories, too.

    Raises:
        ModelError: there is none for this world.
    """
    if name != "auto":
        return os.path.abspath(name) if is_path(name) else name
    for embedded in embedded_models():
        if env in model_card(embedded)["recipe"]["worlds"]:
            return embedded
    raise ModelError(
        f"No embedded model knows the words of {env!r}. `poad pretrain --env {env} --to my-model` "
        "makes a tiny one that does, in a minute or two; then train it with --model.name my-model. "
        "Or name another model: a directory, a .gguf file, a hub name, or one of "
        f"{', '.join(own_names())}."
    )


def is_path(name: str) -> bool:
    """Return True for a directory or a .gguf file that is here, False for any other name.

    A name of poad's own is no path, whatever lies in the current directory.
    """
    return name not in own_names() and (os.path.isdir(name) or os.path.isfile(name))


def model_source(name: str) -> str:
    """Return what transformers loads a model from: a directory, or the hub name as it is.

    Raises:
        ModelError: it is a known model that has not been fetched.
    """
    return str(ASSETS / name if name in embedded_models() else fetched(name) or name)


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
        causal, tokenizer, identity, notes = _from_pretrained(config, device)
        if config.quantize == "none":  # a quantized model is loaded onto its device
            causal.to(device)
        if config.tuning == "lora":
            causal = with_adapters(causal, config)
    prompt = prompt or PromptConfig()
    try:
        codec = codec_for(tokenizer, prompt)
    except ValueError as error:
        raise ModelError(f"The tokenizer of {config.name!r} cannot be used: {error}") from error
    model = LanguageModel(
        causal,
        codec,
        keep_frozen,
        keep_reference,
        branching=config.attention != "flash_attention_2",
        gradient_checkpointing=config.gradient_checkpointing,
    )
    if config.precision == "mixed":  # after the checks, which compare to many digits
        use_mixed_products(text_body(model.causal_lm))
        for weight in model.module.parameters():
            # As long as one of them lies in the file, all of it stays mapped into memory.
            weight.data = weight.data.clone()
    model.identity = identity
    model.notes = (*notes, *describe_own_system(tokenizer, prompt))
    return model


@dataclass(frozen=True)
class Source:
    """Where transformers finds a model."""

    base: str
    """A directory or a hub name."""
    adapter: str | None
    """An adapter of PEFT on the base: a directory or a hub name."""
    options: dict[str, Any]
    """Keyword arguments for ``from_pretrained`` of configurations, tokenizers and models."""
    gguf: Contents | None = None
    """What the base says of itself, if it is a .gguf file."""


def find_source(config: ModelConfig) -> Source:
    """Find a model, without loading it.

    Raises:
        ModelError: there is no such model, or it is an adapter whose base is not there.
    """
    source = model_source(config.name)
    trusted = {"trust_remote_code": config.trust_remote_code}
    if is_gguf(source):
        return _in_file(config, source, None, trusted)
    if os.path.isdir(source) and not any(
        os.path.isfile(os.path.join(source, file)) for file in (_ADAPTER, "config.json")
    ):
        raise ModelError(
            f"Cannot load the model {config.name!r}: the directory holds no model. It has neither "
            f"a config.json nor an {_ADAPTER}."
        )
    options = _hub_options(config.name, source) | trusted
    with _explained(config, config.name):
        base = _base_of_adapter(source, options)
    if base is None:
        return Source(source, None, options)
    if not is_gguf(base):
        options |= _hub_options(base, base)
    with _explained(config, base):
        stacked = not is_gguf(base) and _base_of_adapter(base, options) is not None
    if stacked:
        raise ModelError(
            f"The model {config.name!r} is an adapter on the adapter {base!r}. Merge that one into "
            "its base model, and save the result."
        )
    if config.quantize != "none":
        raise ModelError(
            f"The model {config.name!r} is an adapter, which cannot be merged into a base in "
            f"{config.quantize}. Merge the two and save the result, or set model.quantize = none."
        )
    if is_gguf(base):
        return _in_file(config, base, source, options)
    return Source(base, source, options)


def _in_file(
    config: ModelConfig, file: str, adapter: str | None, options: Mapping[str, Any]
) -> Source:
    """Describe a model in a .gguf file."""
    contents = read_contents(file)
    if config.quantize != "none":
        raise ModelError(
            f"The model {file!r} is quantized already, and is dequantized when it is loaded. Set "
            "model.quantize = none, or make a directory of it with `poad models convert`."
        )
    folder = os.path.dirname(os.path.abspath(file))
    return Source(folder, adapter, {**options, **source_options(file)}, contents)


def _hub_options(name: str, source: str) -> dict[str, Any]:
    """Ask the hub for a name once. If it cannot be reached, only downloaded files are used.

    Transformers would ask for each file, and try each many times.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    if os.path.isdir(source):
        return {}
    try:
        HfApi().model_info(source, timeout=10)
    except (RepositoryNotFoundError, HFValidationError) as error:
        valid = isinstance(error, RepositoryNotFoundError)
        reason = "has none that you may read" if valid else "takes no such name"
        raise ModelError(
            f"Cannot load the model {name!r}: there is no such directory, and the hub {reason}. "
            f"{did_you_mean(name, own_names(), 1)}{_expected()}"
        ) from error
    except Exception:  # whatever the client of the hub raises where there is no network
        return {"local_files_only": True}
    return {}


def _base_of_adapter(source: str, options: Mapping[str, Any]) -> str | None:
    """Return the base of an adapter: a directory or a hub name; None if it is no adapter."""
    from transformers.utils.peft_utils import find_adapter_config_file

    local = {k: v for k, v in options.items() if k == "local_files_only"}
    found = find_adapter_config_file(source, **local)
    if found is None:
        return None
    settings = json.loads(Path(found).read_text(encoding="utf-8"))
    name = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    if not name:
        raise ModelError(f"The adapter {source!r} does not name its base model in {_ADAPTER}.")
    beside = Path(found).parent / name
    if not os.path.isdir(name) and beside.is_dir():
        return str(beside)
    if os.path.isdir(name) and not os.path.isabs(name) and name not in own_names():
        raise ModelError(
            f"The base model {name!r} of the adapter {source!r} is a directory here, and would be "
            f"another one, or a name on the hub, elsewhere. Write {os.path.abspath(name)!r} as "
            f"base_model_name_or_path into its {_ADAPTER}."
        )
    # A hub name has at most one slash.
    if (name[0] in "/.~" or name.count("/") > 1) and not is_path(name):
        raise ModelError(
            f"The base model {name!r} of the adapter {source!r} is not there. Correct "
            f"base_model_name_or_path in its {_ADAPTER}."
        )
    return model_source(name)


def _from_pretrained(
    config: ModelConfig, device: torch.device
) -> tuple[Any, Any, Identity, list[str]]:
    """Load the model and the tokenizer of transformers; explain what went wrong.

    Returns:
        The model, the tokenizer, what tells them from others, and sentences for the user.
    """
    from transformers import AutoModelForCausalLM

    source = find_source(config)
    options = source.options | _loading_options(config, device)
    options |= {"use_safetensors": True} if source.gguf is None else loading_options()
    # Downloads from the hub keep their progress bars. What transformers reports on many lines about
    # missing weights, `_check_complete` says in one.
    local = os.path.isdir(source.base)
    name = config.name if source.adapter is None else source.base
    with without_progress_bars(local), _without_load_report(), _explained(config, name):
        tokenizer = load_tokenizer(source)
        with redirect_stderr(io.StringIO()) if source.gguf else nullcontext():  # another bar
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.base, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        causal, info = loaded
    _check_complete(causal, info, config.name)
    _check_vocabulary(causal, tokenizer, config.name)
    notes = []
    if source.gguf is not None:
        notes = [source.gguf.describe(options["gguf_file"], config.dtype)]
        causal = as_ordinary(causal)
    if source.adapter is None:
        return causal, tokenizer, identify(causal, tokenizer), notes
    with _explained(config, config.name):
        adapted = _with_adapter(causal, source.adapter, config.name)
    identity = identify(adapted, tokenizer)  # merging may round otherwise on another machine
    return _merged(adapted, config.name), tokenizer, identity, notes


@contextmanager
def _without_load_report() -> Iterator[None]:
    # A filter and not a level: at a level above its default, transformers reports more.
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_error)
    try:
        yield
    finally:
        logger.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def load_tokenizer(source: Source) -> Any:
    """Load the tokenizer of a model: that of its adapter, if it has one."""
    from transformers import AutoTokenizer

    if source.adapter is not None:
        options = {k: v for k, v in source.options.items() if k != "gguf_file"}
        try:
            return AutoTokenizer.from_pretrained(source.adapter, **options)
        except (OSError, ValueError):  # most adapters are saved without one
            pass
    tokenizer = AutoTokenizer.from_pretrained(source.base, **source.options)
    return tokenizer if source.gguf is None else with_own_splits(tokenizer, source.gguf)


@contextmanager
def _explained(config: ModelConfig, name: str) -> Iterator[None]:
    """Turn what transformers raises where a model cannot be loaded into one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except ImportError as error:
        raise ModelError(
            f"Cannot load the model {name!r} with model.attention = {config.attention} and "
            f"model.quantize = {config.quantize}: {_in_a_line(error)}"
        ) from error
    except (OSError, ValueError, KeyError, NotImplementedError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        said = _in_a_line(error)
        if "trust_remote_code" in said:
            raise ModelError(
                f"The model {name!r} brings Python code of its own, which loading it would run. If "
                "you have read and trust that code, set model.trust_remote_code = true."
            ) from error
        if "model.safetensors" in said:
            said = _NO_SAFETENSORS
        if "backend tokenizer" in said:
            said = "its tokenizer is missing or cannot be read; it belongs into the same directory."
        if "in the cached files" in said:
            said = "it cannot be reached, and the model has not been downloaded before."
        is_local = os.path.exists(model_source(name))
        place = "" if is_local else "there is no such directory, and from the hub: "
        hint = did_you_mean(name, own_names(), 1)
        raise ModelError(
            f"Cannot load the model {name!r}: {place}{said} {hint}{_expected()}"
        ) from error


def _expected() -> str:
    return (
        f"Expected an embedded model ({', '.join(embedded_models())}), one that poad fetches "
        f"({', '.join(KNOWN)}), a directory, a .gguf file, or a hub name."
    )


def _in_a_line(error: BaseException) -> str:
    """Return what an error says, up to the end of its first paragraph."""
    return " ".join(str(error).strip().split("\n\n")[0].split())


def _check_complete(causal: Any, info: Mapping[str, Any], name: str) -> None:
    """Check that a checkpoint and the model it was loaded into have the same weights.

    Transformers fills in what is missing at random.
    """
    own = {part for half in (causal, causal.base_model) for part, _ in half.named_children()}
    # A value head or an image encoder beside the model does no harm.
    left = [key for key in info.get("unexpected_keys", ()) if key.split(".")[0] in own]
    misshapen = [key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]]
    for keys, what in (
        (info["missing_keys"], "lacks weights that its config.json promises"),
        (misshapen, "has weights of other sizes than its config.json says"),
        (left, "has weights that its config.json does not mention"),
    ):
        if keys:
            some = ", ".join(sorted(map(str, keys))[:3])
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ModelError(f"The checkpoint of {name!r} {what}: {some}{more}. Save it again.")


def _check_vocabulary(causal: Any, tokenizer: Any, name: str) -> None:
    """Check that the model knows the words of its tokenizer.

    Added tokens may lie beyond it, as one of Gemma 3 does. They are refused where they are read.
    """
    rows = int(causal.get_input_embeddings().weight.shape[0])
    added = set(tokenizer.added_tokens_decoder)
    beyond = [i for i in tokenizer.get_vocab().values() if i >= rows and i not in added]
    if beyond:
        raise ModelError(
            f"The tokenizer of {name!r} has {len(beyond):,} tokens that the model does not know: "
            f"ids up to {max(beyond):,}, where the model has {rows:,}. Use the model's own "
            "tokenizer."
        )


def _with_adapter(causal: Any, adapter: str, name: str) -> Any:
    """Put an adapter of PEFT on its base.

    Raises:
        ModelError: it is damaged, or fits another base.
    """
    quiet_bitsandbytes()
    from peft import PeftModel
    from safetensors import SafetensorError
    from transformers.utils.hub import cached_file

    try:
        cached_file(adapter, "adapter_model.safetensors")
    except OSError as error:  # PEFT would unpickle adapter_model.bin instead
        raise ModelError(f"Cannot load the adapter {adapter!r}: {_NO_SAFETENSORS}") from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*missing adapter keys", UserWarning)
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            return PeftModel.from_pretrained(causal, adapter).eval()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise _unmerged(name, _in_a_line(error)) from error
    except (SafetensorError, UserWarning) as error:
        raise _unmerged(name, _in_a_line(error)) from error


def _merged(adapted: Any, name: str) -> Any:
    """Merge an adapter of PEFT into its base, so that training and the reference start there.

    Raises:
        ModelError: it cannot be merged exactly.
    """
    ids = torch.arange(8)[None].remainder(adapted.get_input_embeddings().weight.shape[0])
    ids = ids.to(adapted.device)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            expected = adapted(input_ids=ids, use_cache=False).logits.float()
            merged: Any = adapted.merge_and_unload(safe_merge=True).eval()
            found = merged(input_ids=ids, use_cache=False).logits.float()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise _unmerged(name, _in_a_line(error)) from error
    tolerance = 1e-3 if merged.dtype == torch.float32 else 0.05
    if not (found - expected).norm() <= tolerance * expected.norm():
        raise _unmerged(name, "together they compute something else than side by side.")
    return merged.requires_grad_(True)  # PEFT has frozen the base


def _unmerged(name: str, reason: str) -> ModelError:
    return ModelError(
        f"The model {name!r} is an adapter that cannot be merged into its base model: {reason}"
    )


def _loading_options(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """Keyword arguments of ``from_pretrained``: precision, attention kernel and quantization."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    options: dict[str, Any] = {"dtype": dtype}
    if config.attention == "flash_attention_2":
        # Otherwise transformers chooses `sdpa`, or `eager` for an architecture without it.
        options["attn_implementation"] = config.attention
    if config.attention == "flash_attention_2" and device.type == "cpu":
        raise ModelError("model.attention = flash_attention_2 runs on GPUs only; use sdpa.")
    if config.quantize == "none":
        return options
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantize = {config.quantize} needs bitsandbytes: pip install bitsandbytes."
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
