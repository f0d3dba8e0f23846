"""``poad export``: write a run's model for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from poad.cli.arguments import Switch
from poad.cli.trust import open_run


@dataclass(frozen=True)
class Options:
    """Write a run's trained model in the Hugging Face layout, with a model card."""

    run: tyro.conf.Positional[Path]
    """The directory of the run."""
    to: Path
    """Where to write: a directory that is empty or does not exist yet."""
    checkpoint: int | Literal["best"] | None = None
    """Iteration whose weights are used, or `best`, the best by evaluation in training (eval.every).
    Default: the newest checkpoint."""
    adapter: Switch = False
    """Write only the LoRA adapters, for PEFT, instead of merging them into the model (for runs with
    model.tuning = lora)."""
    trust_code: Switch = False
    """Do what the settings of the run ask for: import modules that are not poad's, or run programs
    without protection. You are asked once (docs/security.md)."""


def run(options: Options) -> int:
    """Export; the exit status."""
    run = open_run(options.run, trusted=options.trust_code)
    run.checkpoint_path(options.checkpoint)
    from poad.workflows import Weights, export_run

    weights = Weights(options.run, options.checkpoint)
    return export_run(weights, options.to, adapter=options.adapter)
