"""Runs that nobody trained: made-up metrics, episodes and checkpoints of the right shape."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from poad.config import Config, CreditConfig
from poad.runs.run import Run

HOSTILE = '<script>alert("a & b")</script>'


def metrics(iteration: int, steps: int = 512) -> dict[str, float]:
    """One iteration of a run that learns; nothing has finished before the second one."""
    learned = 1 - math.exp(-iteration / 6)
    finished = iteration > 1
    return {
        "iteration": iteration,
        "env_steps": iteration * steps,
        "episodes": (iteration - 1) * 40,
        "return": -0.1 + 1.1 * learned if finished else math.nan,
        "success": learned if finished else math.nan,
        "length": 30 - 23 * learned if finished else math.nan,
        "entropy": 1.2 * (1 - learned) + 0.02,
        "kl": 0.03 + 0.01 * math.sin(iteration),
        "clip_fraction": 0.1,
        "policy_loss": -0.02,
        "value_loss": 0.05 / iteration,
        "explained_variance": learned - 0.1,
        "advantage_std": 0.2,
        "grad_norm": 0.4,
        "logprob_drift": 1e-7,
        "passes": 4,
        "collect_seconds": 0.1,
        "update_seconds": 0.2,
        "cpu_seconds": 0.3 * iteration,
        "wall_seconds": 0.35 * iteration,
        "steps_per_second": steps / 0.35,
    }


def turn(prompt: str = "You see a tomato.", reward: float = 0.2, **changes: Any) -> dict[str, Any]:
    """One turn in which the second of three tokens was forced."""
    made = {
        "prompt": prompt,
        "offered": [["chop the tomato", 0.7], ["get the tomato", 0.25], ["wait", 0.05]],
        "action": "chop the tomato",
        "token_ids": [5, 6, 7],
        "pieces": ["chop", " the", " tomato"],
        "choice": [True, False, True],
        "logprob": [math.log(0.8), 0.0, math.log(0.875)],
        "value": [0.41, 0.52, 0.53],
        "root_value": 0.41,
        "reward": reward,
        "duration": 3,
        "invalid": False,
    }
    return {**made, **changes}


def episode(
    seed: int = 1_000_000,
    *,
    checkpoint: int | None = 20,
    mode: str = "sampled",
    success: bool = True,
    turns: list[dict[str, Any]] | None = None,
    env: str = "poad/TomatoSalad-v0",
) -> dict[str, Any]:
    """The record of one evaluation episode."""
    turns = turns if turns is not None else [turn(), turn("You hold a tomato.", -0.01)]
    return {
        "seed": seed,
        "checkpoint": checkpoint,
        "mode": mode,
        "env": env,
        "return": 1.1 if success else -0.3,
        "length": len(turns),
        "success": success,
        "ending": "terminated" if success else "truncated",
        "versions": {"poad": "0.1.0", "torch": "2", "transformers": "5", "python": "3.11"},
        "turns": turns,
    }


def run_of(
    path: Path, *, iterations: int = 20, episodes: int = 10, method: str = "poad", seed: int = 0
) -> Run:
    """A finished run of ``iterations``, with nine in ten of its ``episodes`` successful."""
    run = Run.create(path, Config(seed=seed, credit=CreditConfig(method=method)))
    for iteration in range(1, iterations + 1):
        run.log(metrics(iteration))
    run.add_episodes(
        episode(1_000_000 + i, mode=mode, success=i % 10 != 9)
        for mode in ("sampled", "greedy")
        for i in range(episodes)
    )
    run.write_summary({"env_steps": 512 * iterations})
    return run
