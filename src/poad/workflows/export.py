"""Export the model of a run as a directory that other programs load.

    config.json, model.safetensors             the model in the Hugging Face layout, adapters merged
    adapter_config.json, adapter_model.…       or only the adapters, with model.tuning = lora
    tokenizer.json, …                          the tokenizer
    README.md                                  a model card: training, method and results

Tensors are safetensors; nothing is pickled. The directory is written under another name and then
renamed, so that it is complete or absent.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from poad.agent import Agent
from poad.display import Screen
from poad.errors import ExportError
from poad.lm import find_source, save_adapters, without_progress_bars
from poad.runs import atomic_directory
from poad.workflows.card import base_name, model_card
from poad.workflows.load import LoadedRun, Weights, load_weights


def export_run(weights: Weights, to: Path, *, adapter: bool = False) -> int:
    """Export the model of a run and print how to evaluate it; the exit status."""
    _check_free(to)
    loaded = load_weights(weights, full=True)
    export(loaded, to, adapter=adapter)
    what = "adapters" if adapter else "model"
    Screen().print(
        f"Exported the {what} of {loaded.run.path}, checkpoint {loaded.iteration}, to {to}\n"
        f"  poad eval {loaded.run.path} --model {to}   evaluate it in the run's world",
        soft_wrap=True,
    )
    return 0


def export(loaded: LoadedRun, to: Path, *, adapter: bool = False) -> None:
    """Write an agent's language model into a new directory.

    Full weights keep the dtype of the training. The weights of a quantized base are dequantized.

    Args:
        loaded: the run and its agent, loaded in full precision (`load_weights`).
        to: the directory, which is new or empty.
        adapter: write the adapters alone.

    Raises:
        ExportError: the run has no adapters to write alone, the agent's weights are rounded, or
            the directory cannot be written.
    """
    to = Path(os.path.abspath(to))  # the card names the model after the directory, also for "."
    run, agent, _ = loaded
    _check_free(to)
    if adapter and run.config.model.tuning != "lora":
        raise ExportError(
            f"The run {run.path} has no adapters: model.tuning = {run.config.model.tuning} trained "
            "every weight. Leave out --adapter."
        )
    if adapter and find_source(run.config.model).adapter is not None:
        raise ExportError(
            f"The run {run.path} began at an adapter, {run.config.model.name}, and an adapter "
            "cannot stand on another. Leave out --adapter."
        )
    if agent.config.model.precision == "mixed":
        raise ExportError(
            f"The weights of {run.path} are rounded to bfloat16, as in its training. Load them "
            "with load_weights(..., full=True) to export them."
        )
    try:
        with atomic_directory(to) as partial:
            with without_progress_bars():
                if adapter:
                    save_adapters(agent.model, partial, base_name(agent.config.model.name))
                    _generation(agent).save_pretrained(partial)
                else:
                    merged = _merged(agent)
                    merged.generation_config = _generation(agent)
                    merged.save_pretrained(partial)
            agent.model.codec.tokenizer.save_pretrained(partial)
            card = partial / "README.md"
            card.write_text(model_card(loaded, to.name, adapter), encoding="utf-8")
            for file in partial.rglob("*"):  # safetensors makes files for their owner only
                if file.is_file():
                    shutil.copymode(card, file)
    except (OSError, SafetensorError) as error:
        raise ExportError(
            f"Cannot write the export {to}: {error}. Is the disk full? Nothing of it is left."
        ) from error


def _check_free(to: Path) -> None:
    """Raise ExportError if a file or a directory with content is in the way."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        kind = "not empty" if to.is_dir() else "a file"
        raise ExportError(
            f"{to} is {kind}, and an export overwrites nothing. Name another directory with --to, "
            "or remove this one first."
        )


def _merged(agent: Agent) -> Any:
    """The plain model, with the adapters' changes added to the weights of the base."""
    module: Any = agent.model.module
    if agent.config.model.tuning != "lora":
        return module
    changes: dict[str, Tensor] = {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").detach()
        for name, layer in module.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    plain = module.unload()
    if agent.config.model.quantize != "none":  # before adding, or the sum would be rounded again
        plain = plain.dequantize()
    weights = [weight for _, weight in plain.named_parameters(remove_duplicate=False)]
    with torch.no_grad():
        for name, change in changes.items():
            weight = plain.get_submodule(name).weight
            if sum(weight is other for other in weights) > 1:
                raise ExportError(
                    f"The adapters change only {name}, but its weights are tied to those of "
                    "another layer, so they cannot be merged. Export them with --adapter."
                )
            weight += change.to(weight.device)
    return plain


def _generation(agent: Agent) -> Any:
    """Return settings by which ``generate()`` writes what the run may, and ends where it does.

    Nothing else but the model itself decides. Rows of a padded vocabulary that have no token are
    suppressed, as they are while acting.
    """
    from transformers import GenerationConfig

    codec = agent.model.codec
    return GenerationConfig(
        bos_token_id=codec.tokenizer.bos_token_id,
        eos_token_id=codec.end_id,
        pad_token_id=codec.pad_id,
        suppress_tokens=list(codec.without_token(agent.model.vocabulary)) or None,
    )
