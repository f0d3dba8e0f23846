"""Meters: how far a run has come, and the metrics that are read from that."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from poad.learn.rows import PLACES
from poad.turns import Episode, Rollout

Metrics = dict[str, float]

RECENT_EPISODES = 100
"""Return, success and length are means over this many training episodes."""
RECENT_TURNS = 200
"""Measures of the world are means over this many turns."""

LEARNED = (
    "entropy",
    "kl",
    "clip_fraction",
    "policy_loss",
    "value_loss",
    "explained_variance",
    *(f"{what}_{place}" for what in ("explained_variance", "value_bias") for place in PLACES),
    "lam_actor",
    "decided",
    "advantage_std",
    "grad_norm",
    "critic_grad_norm",
    "critic_body_grad_norm",
    "kl_reference",
    "logprob_drift",
    "logprob_drift_mean",
    "passes",
    "skipped",
    "kl_after",
    "kept",
    "lr_scale",
)
"""The metrics of an update, in the order they are written."""


class Clock:
    """CPU seconds (all threads of this process) and wall seconds spent inside ``with``."""

    def __init__(self) -> None:
        self.cpu = self.wall = self.last = 0.0

    def __enter__(self) -> Clock:
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.last = time.perf_counter() - self._wall
        self.wall += self.last
        self.cpu += time.process_time() - self._cpu


class Meters:
    """Counts, recent episodes and clocks of a run."""

    def __init__(self) -> None:
        self.iteration = self.env_steps = self.episodes = self.tokens = self.world_errors = 0
        self.recent: deque[Episode] = deque(maxlen=RECENT_EPISODES)
        self.measured: deque[Mapping[str, float]] = deque(maxlen=RECENT_TURNS)
        self.collecting, self.updating = Clock(), Clock()

    def count(self, rollout: Rollout) -> None:
        """Count one more iteration and what its rollout brought."""
        self.iteration += 1
        self.env_steps += len(rollout.turns)
        self.episodes += len(rollout.episodes)
        self.world_errors += rollout.faults
        self.tokens += sum(len(turn.action.token_ids) for turn in rollout.turns)
        self.recent.extend(rollout.episodes)
        self.measured.extend(measures for measures in rollout.measures if measures)
        self.collecting.cpu += rollout.cpu_elsewhere

    def metrics(self, rollout: Rollout, learned: Metrics) -> Metrics:
        """Return the metrics of the iteration that was counted last.

        Args:
            rollout: what was collected in it.
            learned: what its update measured.
        """

        def recent(field: str) -> float:
            values = [getattr(episode, field) for episode in self.recent]
            return float(np.mean(values)) if values else math.nan

        collect, update = self.collecting, self.updating
        return {
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "tokens": self.tokens,
            "reward": float(np.mean([turn.reward for turn in rollout.turns])),
            "return": recent("episode_return"),
            "success": recent("success"),
            "length": recent("length"),
            "world_errors": self.world_errors,
            **{name: learned.get(name, math.nan) for name in LEARNED},
            **self._measures(),
            "collect_seconds": collect.last,
            "update_seconds": update.last,
            "cpu_seconds": collect.cpu + update.cpu,
            "wall_seconds": collect.wall + update.wall,
            "steps_per_second": len(rollout.turns) / max(1e-9, collect.last + update.last),
        }

    def _measures(self) -> Metrics:
        """Average each measure of the world over the recent turns that report it."""
        found: dict[str, list[float]] = {}
        for measures in self.measured:
            for name, value in measures.items():
                found.setdefault(f"world/{name}", []).append(value)
        return {name: float(np.mean(values)) for name, values in found.items()}

    def state(self) -> dict[str, Any]:
        """Return everything that is needed to go on from here, as JSON values."""
        clocks = (self.collecting, self.updating)
        return {
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "tokens": self.tokens,
            "world_errors": self.world_errors,
            "recent": [list(episode) for episode in self.recent],
            "measured": [dict(measures) for measures in self.measured],
            "seconds": [[clock.cpu, clock.wall] for clock in clocks],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.iteration, self.env_steps = state["iteration"], state["env_steps"]
        self.episodes, self.tokens = state["episodes"], state["tokens"]
        self.world_errors = state["world_errors"]
        self.recent.extend(Episode(*episode) for episode in state["recent"])
        self.measured.extend(state["measured"])
        clocks = (self.collecting, self.updating)
        for clock, (cpu, wall) in zip(clocks, state["seconds"], strict=True):
            clock.cpu, clock.wall = cpu, wall
