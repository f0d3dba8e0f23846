"""Load the agent of a run: its trained weights, the untrained model, or an exported model."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safetensors import SafetensorError

from poad.agent import Agent, load_agent
from poad.config import Config
from poad.envs import make
from poad.errors import ExportError
from poad.runs import Run, read_json

# Settings that poad never gives an adapter. With another value the same weights would compute
# something else.
_PLAIN_LORA = {
    "peft_type": "LORA",
    "use_rslora": False,
    "use_dora": False,
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
}


@dataclass(frozen=True)
class Weights:
    """Which weights of a run to use."""

    run: Path
    """The directory of the run."""
    checkpoint: int | Literal["best"] | None = None
    """The iteration; None is the newest checkpoint, `best` the best by evaluation in training."""
    untrained: bool = False
    """Use the model as it was before training."""
    exported: Path | None = None
    """Use an exported model with the run's critic. Ignored for the untrained model."""

    def describe(self, iteration: int | None) -> str:
        """Describe the weights in a few words; ``iteration`` is the checkpoint that was loaded."""
        if self.exported is not None:
            return f"the model {self.exported}"
        return "untrained" if iteration is None else f"checkpoint {iteration}"


class LoadedRun(NamedTuple):
    """A run and its agent."""

    run: Run
    agent: Agent
    iteration: int | None
    """The checkpoint that was loaded; None for the untrained model."""


def load_weights(weights: Weights, *, full: bool = False) -> LoadedRun:
    """Load a run's agent with the given weights.

    Args:
        weights: the run and the checkpoint.
        full: load frozen weights as they are, even if the run computes with rounded ones
            (`model.precision`).

    Raises:
        RunError: there is no such run or checkpoint, or it is damaged.
        ExportError: the exported model cannot be used.
        ModelError: the model cannot be loaded, or is another one than the run was trained from.
    """
    run = Run.open(weights.run)
    config = run.config
    if full:
        config = replace(config, model=replace(config.model, precision="full"))
    if weights.untrained:
        agent = load_agent(config)
        if run.checkpoints():
            newest = read_json(run.checkpoint_path() / "state.json") or {}
            agent.check_origin(newest.get("state", {}))
        return LoadedRun(run, agent, None)
    folder = run.checkpoint_path(weights.checkpoint)
    tensors, state = run.load_checkpoint(folder)
    agent = load_agent(config)
    agent.check_origin(state)
    agent.load(tensors)
    if weights.exported is not None:
        agent = with_exported(agent, weights.exported)
    return LoadedRun(run, agent, int(folder.name))


def with_exported(agent: Agent, folder: Path) -> Agent:
    """Replace an agent's model by an exported one; the critic stays."""
    model, config = agent.config.model, agent.config
    adapter = _adapter_config(folder)
    if adapter is None:
        # With full weights, fresh adapters change nothing. Rounding would, since the changes of
        # the adapters lie in these weights.
        model = replace(model, name=str(folder), quantize="none", precision="full")
    else:
        model = replace(
            model,
            name=adapter["base_model_name_or_path"],
            tuning="lora",
            lora_rank=adapter["r"],
            lora_alpha=adapter["lora_alpha"],
            lora_targets=tuple(sorted(adapter["target_modules"])),
            lora_layers=_adapted_blocks(adapter, agent, folder),
        )
    # The new agent lends only its model and policy: its critic needs no frozen copy of the model.
    critic, ppo = replace(config.critic, body="shared"), replace(config.ppo, kl_reference=0.0)
    exported = load_agent(replace(config, model=model, critic=critic, ppo=ppo))
    if adapter is not None:
        _load_adapter(exported, folder)
    ours, theirs = agent.model.codec.tokenizer, exported.model.codec.tokenizer
    if theirs.get_vocab() != ours.get_vocab():
        raise ExportError(
            f"{folder} has another tokenizer than the run, so the run's critic cannot judge it. "
            "Use an export of this run."
        )
    return replace(agent, model=exported.model, policy=exported.policy)


def check_world(config: Config) -> None:
    """Open and close the world of a configuration.

    Raises:
        ConfigError: it cannot be opened.
    """
    make(config.env, **config.env_args).close()


def _adapter_config(folder: Path) -> dict[str, Any] | None:
    """The settings of an exported adapter, or None for full weights."""
    if (folder / "config.json").is_file():
        return None
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{folder} is not an exported model: it has neither a config.json nor a readable "
            "adapter_config.json. `poad export RUN --to DIR` writes one."
        ) from error
    if other := [key for key, value in _PLAIN_LORA.items() if config.get(key, value) != value]:
        raise ExportError(
            f"The adapter {folder} sets {', '.join(other)}, which poad does not support. Merge it "
            "into its base model and use that."
        )
    return config


def _adapted_blocks(adapter: dict[str, Any], agent: Agent, folder: Path) -> int | None:
    """Count the last blocks that an adapter is for; None if it is for all of them.

    Raises:
        ExportError: it is for other blocks.
    """
    chosen = adapter.get("layers_to_transform")
    if chosen is None or chosen == []:  # to PEFT, both mean all blocks
        return None
    blocks = sorted(chosen) if isinstance(chosen, list) else [chosen]
    config: Any = agent.model.causal_lm.config
    total = int(config.get_text_config().num_hidden_layers)
    if blocks != list(range(total - len(blocks), total)):
        raise ExportError(
            f"The adapter {folder} changes the blocks {', '.join(map(str, blocks))} of {total}, "
            "and poad adapts the last blocks only. Merge it into its base model and use that."
        )
    return len(blocks)


def _load_adapter(agent: Agent, folder: Path) -> None:
    from safetensors.torch import load_file

    try:
        saved = load_file(folder / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise ExportError(
            f"The adapter {folder} is missing or damaged: {error}. Export it again."
        ) from error
    # PEFT leaves the name of the adapter out of its files.
    names = {name.replace(".default", ""): name for name in agent.model.state()}
    agent.model.load_state({names.get(name, name): tensor for name, tensor in saved.items()})
