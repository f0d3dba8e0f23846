"""The model card of an export: where the model comes from, how well it does, and how to use it."""

from __future__ import annotations

from pathlib import Path

from poad.config import ModelConfig, PromptConfig, dump
from poad.display import evaluation_table
from poad.lm import is_path
from poad.models import KNOWN, embedded_models, is_gguf
from poad.runs import Run, versions
from poad.workflows.load import LoadedRun


def model_card(loaded: LoadedRun, name: str, adapter: bool) -> str:
    """Write the model card as Markdown."""
    run, _, iteration = loaded
    config = run.config
    return f"""{_front_matter(config.model.name, adapter)}
# {name}

A language agent: a language model that poad trained by reinforcement learning to act in a text
world.

| | |
|---|---|
{_facts(run, iteration)}

## Results

{_results(run, iteration)}

## Use

```python
{_usage(config.model, name, adapter)}
```

{_prompting(config.prompt)} `poad eval RUN --model {name}` evaluates it in the run's world.
{_precision(config.model, adapter)}
## Configuration

```yaml
{dump(config).strip()}
```
"""


def base_name(name: str) -> str:
    """The name of a base model in an export, which is read from other directories."""
    if name in KNOWN:
        return str(KNOWN[name].folder)
    return str(Path(name).resolve()) if is_path(name) else name


def _front_matter(base: str, adapter: bool) -> str:
    lines = [
        f"library_name: {'peft' if adapter else 'transformers'}",
        "pipeline_tag: text-generation",
    ]
    if base in KNOWN:
        lines += [f"base_model: {KNOWN[base].hub}", f"license: {KNOWN[base].tag}"]
    elif base not in embedded_models() and not is_path(base):
        lines.append(f"base_model: {base}")
    return "\n".join(["---", *lines, "tags: [poad, reinforcement-learning, language-agent]", "---"])


def _facts(run: Run, iteration: int | None) -> str:
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
        "trained with": ", ".join(f"{name} {run.versions().get(name)}" for name in versions()),
        "exported by": f"poad {versions()['poad']}",
    }
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _results(run: Run, iteration: int | None) -> str:
    summary = run.summary()
    if (
        summary is None
        or not summary.evaluation
        or iteration is None
        or summary.iteration != iteration
    ):
        return "There is no evaluation of this checkpoint from the end of its training."
    table = evaluation_table(summary.evaluation.items()).to_markdown()
    return f"{table}\n\nThe length of an episode is its number of primitive steps."


def _usage(model: ModelConfig, name: str, adapter: bool) -> str:
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if adapter:
        lines[0] += ", GenerationConfig"
        embedded = model.name in embedded_models()
        lines.insert(0, "from peft import PeftModel")
        if embedded:
            lines.insert(1, "from poad.lm import ASSETS")
        path = base_name(model.name)
        base = f'ASSETS / "{model.name}"' if embedded else f'"{path}"'
        if is_gguf(path):
            base = f'"{Path(path).parent}", gguf_file="{Path(path).name}"'
        lines += [
            f'base = AutoModelForCausalLM.from_pretrained({base}, dtype="{model.dtype}")',
            f'model = PeftModel.from_pretrained(base, "{name}")',
            f'model.generation_config = GenerationConfig.from_pretrained("{name}")',
        ]
    else:
        lines.append(f'model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")')
    return "\n".join([*lines, f'tokenizer = AutoTokenizer.from_pretrained("{name}")'])


def _prompting(prompt: PromptConfig) -> str:
    if prompt != PromptConfig():
        return "The settings under `prompt` below define the prompt and where the action begins."
    return (
        "The prompt is the world's text. The model writes an action after one space and closes it "
        "with the end-of-text token."
    )


def _precision(model: ModelConfig, adapter: bool) -> str:
    """A line about rounding, where the export computes otherwise than the trained model."""
    if model.quantize != "none" and adapter:
        return (
            f"\nThe adapters were trained on a base in {model.quantize}. Apply them to such a "
            "base.\n"
        )
    if model.quantize != "none":
        return (
            f"\nThe base was in {model.quantize} during training and is dequantized to "
            f"{model.dtype} here.\n"
        )
    if model.tuning == "lora" and not adapter and model.dtype != "float32":
        return (
            f"\nThe merged weights are rounded to {model.dtype}. `poad export --adapter` keeps the "
            "adapters exact.\n"
        )
    if model.precision == "mixed":
        return (
            "\nProducts with the frozen weights were taken in bfloat16 during training. The "
            "weights here are not rounded.\n"
        )
    return ""
