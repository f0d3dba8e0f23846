"""Presets: the defaults that suit a kind of model.

A preset is where the settings of a training start; whatever a file or a flag says counts more. The
figures behind them are in docs/models.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """The defaults that suit a kind of model."""

    about: str
    """Which models it is for, and what it does, in one sentence."""
    settings: Mapping[str, Any]
    """What differs from the plain defaults, by dotted name."""


_ADAPTERS = {
    "model.tuning": "lora",
    "model.lora_rank": 16,
    "model.lora_targets": ["all-linear"],
    "model.lora_layers": 10,
    "model.precision": "auto",
}
_PRETRAINED = {
    # The cost of an iteration follows the distinct prompts and the gradient steps, not the turns.
    "streams": 32,
    "horizon": 32,
    "steps": 16_384,
    # A pretrained model all but excludes some actions. What it writes freely needs its own prior.
    "acting.temperature": 5.0,
    "acting.temperature_free": 1.0,
    # Most of a pretrained hidden state is the same everywhere, and it tells little of what has
    # been written. With its root and codes, the critic knows the inside of an action.
    "critic.standardize": True,
    "critic.root": True,
    "critic.codes": 64,
    "critic.hidden": [64],
    "critic.replay": 4,
    "critic.lr": 1e-3,
    "credit.lam_actor": "auto",
    "credit.trace": "bit",
}
PRESETS: Mapping[str, Preset] = {
    "plain": Preset("The plain defaults, for tiny models such as the embedded ones.", {}),
    "small": Preset(
        "Below two billion weights: adapters in the last ten blocks.",
        {**_PRETRAINED, **_ADAPTERS, "ppo.lr": 4e-3},
    ),
    "small-full": Preset(
        "The same with model.tuning = full: every weight is trained.",
        {**_PRETRAINED, "ppo.lr": 3e-5},
    ),
    "large": Preset(
        "Larger models: adapters as in small, on weights in bfloat16.",
        {
            **_PRETRAINED,
            **_ADAPTERS,
            "model.dtype": "bfloat16",
            "model.gradient_checkpointing": True,
            "ppo.lr": 5e-4,
            "threads": 0,
        },
    ),
}
"""The presets by name."""
