"""``poad export``: write a run's model for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from poad.cli.arguments import Switch
from poad.runs import Run


@dataclass(frozen=True)
class Options:
    """Write a run's trained model in the Hugging Face layout, with a model card."""

    run: tyro.conf.Positional[Path]
    """The directory of the run."""
    to: Path
    """Where to write: a directory that is empty or does not exist yet."""
    checkpoint: int | None = None
    """Iteration whose weights are used. Default: the newest checkpoint."""
    adapter: Switch = False
    """Write only the LoRA adapters, for PEFT, instead of merging them into the model (for runs with
    model.tuning = lora)."""


def run(options: Options) -> int:
    """Export; the exit status."""
    Run.open(options.run).checkpoint_path(options.checkpoint)
    from poad.workflows import Weights, export_run

    weights = Weights(options.run, options.checkpoint)
    return export_run(weights, options.to, adapter=options.adapter)
