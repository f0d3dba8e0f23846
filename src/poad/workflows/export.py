"""What a run learned, as a directory that others load: whole weights, or the adapters alone.

    config.json, model.safetensors             a model in the Hugging Face layout, adapters merged
    adapter_config.json, adapter_model.…       or the adapters of a run with model.tuning = lora
    tokenizer.json, …                          its tokenizer
    README.md                                  a card: what was trained, how, and how well it does

Tensors are safetensors, nothing is pickled. A directory is written beside its place, to disk, and
renamed: it is complete or absent.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from poad.agent import Agent, load_agent
from poad.config import PromptConfig, dump
from poad.display import evaluation_table
from poad.errors import ExportError
from poad.lm import embedded_models, without_bars
from poad.runs import Run, atomic_directory, versions

# What poad never sets in an adapter: another value would be another function of the same weights.
_PLAIN_LORA = {
    "peft_type": "LORA",
    "use_rslora": False,
    "use_dora": False,
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
}


def export(run: Run, agent: Agent, iteration: int | None, to: Path, *, adapter: bool) -> None:
    """Write an agent's language model into a new directory.

    Whole weights keep the dtype they were trained in; those of a quantized base are dequantized.

    Args:
        run: where the agent comes from.
        agent: its model is used up: adapters are merged into it.
        iteration: the agent's checkpoint; none if untrained.
        to: a directory that does not exist yet or is empty.
        adapter: write the adapters alone, for PEFT to put on their base.

    Raises:
        ExportError: there are no adapters, they cannot be merged, the directory is taken, or it
            could not be written (nothing remains of it then).
    """
    to = Path(os.path.abspath(to))  # "." has no name to put a card under
    refuse_taken(to)
    if adapter and run.config.model.tuning != "lora":
        raise ExportError(
            f"The run {run.path} has no adapters: model.tuning = {run.config.model.tuning} trained "
            "every weight. Leave out --adapter."
        )
    try:
        with atomic_directory(to) as partial:
            with without_bars():
                if adapter:
                    _save_adapter(agent, partial)
                else:
                    _merged(agent).save_pretrained(partial)
            agent.model.codec.tokenizer.save_pretrained(partial)
            card = partial / "README.md"
            card.write_text(_card(run, iteration, to, adapter), encoding="utf-8")
            for file in partial.iterdir():  # safetensors lets only the owner read
                shutil.copymode(card, file)
    except (OSError, SafetensorError) as error:
        raise ExportError(
            f"Cannot write the export {to}: {error}. Is the disk full? Nothing of it remains."
        ) from error


def refuse_taken(to: Path) -> None:
    """Say that a directory is taken before anything is loaded.

    Raises:
        ExportError: it is a file, or holds something.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        kind = "not empty" if to.is_dir() else "a file"
        raise ExportError(
            f"{to} is {kind}, and an export overwrites nothing. Name another directory with --to, "
            "or remove this one first."
        )


def with_exported(agent: Agent, folder: Path) -> Agent:
    """The agent with an exported model in place of its own weights; the critic stays.

    Args:
        agent: of the run whose world and critic are wanted.
        folder: what :func:`export` wrote, whole weights or adapters.

    Raises:
        ExportError: not an export, or one with another tokenizer.
        poad.lm.loading.ModelError: its model cannot be loaded.
    """
    model, config = agent.config.model, agent.config
    adapter = _adapter_config(folder)
    if adapter is None:  # on whole weights the adapters of a fresh start do nothing
        model = replace(model, name=str(folder), quantize="none")
    else:
        model = replace(
            model,
            name=adapter["base_model_name_or_path"],
            tuning="lora",
            lora_rank=adapter["r"],
            lora_alpha=adapter["lora_alpha"],
            lora_targets=tuple(sorted(adapter["target_modules"])),
        )
    # Its critic is not asked, so no untrained copy is needed for it.
    critic, ppo = replace(config.critic, body="shared"), replace(config.ppo, kl_reference=0.0)
    exported = load_agent(replace(config, model=model, critic=critic, ppo=ppo))
    if adapter is not None:
        _load_adapter(exported, folder)
    words, own = exported.model.codec.tokenizer, agent.model.codec.tokenizer
    if words.get_vocab() != own.get_vocab():
        raise ExportError(
            f"{folder} has another tokenizer than the run, so the run's critic cannot judge it."
        )
    return replace(agent, model=exported.model, policy=exported.policy)


# Weights.


def _merged(agent: Agent) -> Any:
    """The plain model: with adapters, what they add is added to the base's weights."""
    module: Any = agent.model.module
    if agent.config.model.tuning != "lora":
        return module
    added: dict[str, Tensor] = {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").detach()
        for name, layer in module.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    plain = module.unload()
    if agent.config.model.quantize != "none":  # before adding: the sum would be rounded again
        plain = plain.dequantize()
    weights = [weight for _, weight in plain.named_parameters(remove_duplicate=False)]
    with torch.no_grad():
        for name, change in added.items():
            weight = plain.get_submodule(name).weight
            if sum(weight is other for other in weights) > 1:
                raise ExportError(
                    f"The adapters change {name} alone, but its weights are tied to another "
                    "layer's, so they cannot be merged. Export them with --adapter."
                )
            weight += change.to(weight.device)
    return plain


def _save_adapter(agent: Agent, folder: Path) -> None:
    module: Any = agent.model.module
    module.peft_config["default"].base_model_name_or_path = _base(agent.config.model.name)
    module.save_pretrained(folder, save_embedding_layers=False)


def _base(name: str) -> str:
    """How to call the base in an export, which is read from anywhere."""
    is_folder = name not in embedded_models() and Path(name).is_dir()
    return str(Path(name).resolve()) if is_folder else name


def _adapter_config(folder: Path) -> dict[str, Any] | None:
    """What an exported adapter says of itself; none for whole weights."""
    if (folder / "config.json").is_file():
        return None
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{folder} is not an exported model: it has neither a config.json nor an "
            "adapter_config.json that can be read. `poad export RUN --to DIR` writes one."
        ) from error
    if other := [key for key, value in _PLAIN_LORA.items() if config.get(key, value) != value]:
        raise ExportError(f"The adapter {folder} sets {', '.join(other)}, which poad cannot read.")
    return config


def _load_adapter(agent: Agent, folder: Path) -> None:
    from safetensors.torch import load_file

    try:
        saved = load_file(folder / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise ExportError(f"The adapter {folder} is missing or damaged: {error}.") from error
    # PEFT leaves the name of the adapter out of its files.
    names = {name.replace(".default", ""): name for name in agent.model.state()}
    agent.model.load_state({names.get(name, name): tensor for name, tensor in saved.items()})


# The card.


def _card(run: Run, iteration: int | None, to: Path, adapter: bool) -> str:
    config = run.config
    world = " ".join([config.env, *(f"{key}={value}" for key, value in config.env_args.items())])
    steps = next((m["env_steps"] for m in run.metrics() if m["iteration"] == iteration), 0)
    tuned = (
        "every weight" if config.model.tuning == "full" else f"LoRA, rank {config.model.lora_rank}"
    )
    rows = {
        "trained in": f"`{world}`",
        "from": f"`{config.model.name}`, {tuned}, {config.model.dtype}",
        "method": f"{config.credit.method}, acting by `{config.acting.scheme}`",
        "seed": config.seed,
        "training": f"iteration {iteration or 0}, {steps:,.0f} environment steps",
        "made with": ", ".join(f"{name} {run.versions().get(name)}" for name in versions()),
        "exported by": f"poad {versions()['poad']}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""{_front_matter(config.model.name, adapter)}
# {to.name}

A language agent: a language model trained with poad, by reinforcement learning, to act in a text
world.

| | |
|---|---|
{table}

## Results

{_results(run, iteration)}

## Use

```python
{_usage(config.model.name, config.model.dtype, to, adapter)}
```

{_border(config.prompt)} `poad eval RUN --model {to.name}` plays it in the run's world.
{_notes(config.model.quantize, config.model.dtype, config.model.tuning, adapter)}
## Configuration

```yaml
{dump(config).strip()}
```
"""


def _border(prompt: PromptConfig) -> str:
    if prompt != PromptConfig():
        return (
            "What the model reads and where its action begins: `prompt` in the configuration below."
        )
    return (
        "The model reads the world's text as its prompt and writes an action behind one space, "
        "closed by the end-of-text token."
    )


def _front_matter(base: str, adapter: bool) -> str:
    lines = [
        f"library_name: {'peft' if adapter else 'transformers'}",
        "pipeline_tag: text-generation",
    ]
    if base not in embedded_models() and not Path(base).is_dir():
        lines.append(f"base_model: {base}")
    return "\n".join(["---", *lines, "tags: [poad, reinforcement-learning, language-agent]", "---"])


def _results(run: Run, iteration: int | None) -> str:
    summary = run.summary()
    if summary is None or not summary.evaluation or summary.iteration != iteration:
        return "This checkpoint was not evaluated when its training ended."
    return evaluation_table(summary.evaluation).to_markdown()


def _usage(base: str, dtype: str, to: Path, adapter: bool) -> str:
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if adapter:
        embedded = base in embedded_models()
        lines.insert(0, "from peft import PeftModel")
        if embedded:
            lines.insert(1, "from poad.lm.loading import ASSETS")
        where = f'ASSETS / "{base}"' if embedded else f'"{_base(base)}"'
        lines += [
            f'base = AutoModelForCausalLM.from_pretrained({where}, dtype="{dtype}")',
            f'model = PeftModel.from_pretrained(base, "{to.name}")',
        ]
    else:
        lines.append(f'model = AutoModelForCausalLM.from_pretrained("{to.name}", dtype="auto")')
    return "\n".join([*lines, f'tokenizer = AutoTokenizer.from_pretrained("{to.name}")'])


def _notes(quantize: str, dtype: str, tuning: str, adapter: bool) -> str:
    if quantize != "none" and adapter:
        return f"\nThe adapters were trained on a base in {quantize}; put them on one such.\n"
    if quantize != "none":
        return f"\nTrained on a base in {quantize}, which was dequantized to {dtype}.\n"
    if tuning == "lora" and not adapter and dtype != "float32":
        return f"\nThe merged weights are rounded to {dtype}; `--adapter` exports them exactly.\n"
    return ""
