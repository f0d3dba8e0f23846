"""A run whose weights were changed at random instead of trained: it acts, and acts otherwise."""

from __future__ import annotations

from pathlib import Path

import torch
from synthetic_run import evaluation, metrics, summary

from poad.agent.build import load_agent
from poad.config import Config
from poad.runs.run import Run


def run_of(path: Path, config: Config) -> Run:
    """A run of one iteration, with a checkpoint and an evaluation to quote."""
    agent = load_agent(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in (*agent.model.parameters(), *agent.critic.parameters()):
            p.add_((torch.randn(p.shape, generator=generator) * 0.05).to(p.dtype))
    with Run.create(path, agent.config) as run:
        run.log(metrics(1))
        run.save_checkpoint(1, agent.tensors(), {})
        run.write_summary(summary(iteration=1, evaluation={"sampled": evaluation()}))
    return run
