"""Runs that nobody trained: made-up metrics, episodes and checkpoints of the right shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from poad.config import Config, CreditConfig
from poad.runs import EpisodeRecord, Evaluation, Mode, Run, RunSummary, TurnRecord

HOSTILE = '<script>alert("a & b")</script>'


def metrics(iteration: int, steps: int = 512) -> dict[str, float]:
    """One iteration of a run that learns; nothing has finished before the second one."""
    learned = 1 - math.exp(-iteration / 6)
    finished = iteration > 1
    return {
        "iteration": iteration,
        "env_steps": iteration * steps,
        "episodes": (iteration - 1) * 40,
        "reward": 0.02 * learned - 0.001,
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


def turn(prompt: str = "You see a tomato.", reward: float = 0.2, **changes: Any) -> TurnRecord:
    """One turn in which the second of three tokens was forced."""
    made = TurnRecord(
        prompt=prompt,
        offered=(("chop the tomato", 0.7), ("get the tomato", 0.25), ("wait", 0.05)),
        action="chop the tomato",
        token_ids=(5, 6, 7),
        pieces=("chop", " the", " tomato"),
        choice=(True, False, True),
        logprob=(math.log(0.8), 0.0, math.log(0.875)),
        value=(0.41, 0.52, 0.53),
        root_value=0.41,
        reward=reward,
        duration=3,
        invalid=False,
    )
    return replace(made, **changes)


def episode(
    seed: int = 1_000_000,
    *,
    checkpoint: int | None = 20,
    mode: Mode = "sampled",
    success: bool = True,
    turns: Sequence[TurnRecord] | None = None,
    env: str = "poad/TomatoSalad-v0",
    env_args: dict[str, Any] | None = None,
) -> EpisodeRecord:
    """The record of one evaluation episode."""
    turns = turns if turns is not None else [turn(), turn("You hold a tomato.", -0.01)]
    return EpisodeRecord(
        env=env,
        env_args=env_args or {},
        mode=mode,
        checkpoint=checkpoint,
        versions={"poad": "0.1.0", "torch": "2", "transformers": "5", "python": "3.11"},
        seed=seed,
        episode_return=1.1 if success else -0.3,
        length=len(turns),
        success=success,
        ending="terminated" if success else "truncated",
        turns=tuple(turns),
    )


def evaluation(rate: float = 0.75, *, episodes: int = 4) -> Evaluation:
    """An evaluation in which a share of the episodes succeeded."""
    return Evaluation(episodes, rate, (0.5, 0.9), 0.2, 9.0)


def summary(**changes: Any) -> RunSummary:
    """The outcome of a run that was not evaluated at its end."""
    made = RunSummary(
        env="poad/TomatoSalad-v0",
        method="poad",
        seed=0,
        status="finished",
        iteration=20,
        env_steps=10_240,
        cpu_seconds=6.0,
        wall_seconds=7.0,
        training_episodes=760,
        logprob_drift=None,
    )
    return replace(made, **changes)


def run_of(
    path: Path, *, iterations: int = 20, episodes: int = 10, method: str = "poad", seed: int = 0
) -> Run:
    """A finished run of ``iterations``, with nine in ten of its ``episodes`` successful."""
    run = Run.create(path, Config(seed=seed, credit=CreditConfig(method=method)))
    for iteration in range(1, iterations + 1):
        run.log(metrics(iteration))
    modes: tuple[Mode, ...] = ("sampled", "greedy")
    run.add_episodes(
        episode(1_000_000 + i, mode=mode, success=i % 10 != 9)
        for mode in modes
        for i in range(episodes)
    )
    run.write_summary(summary(env_steps=512 * iterations))
    return run
