"""Training: collect, learn, report, again.

`train` returns an iterator of metrics: its user decides when to stop.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from poad.agent import Agent, load_agent, refuse_free_writing, torch_threads
from poad.config import SEEDS_PER_RUN, Config
from poad.envs import BestWork, Work, make
from poad.learn.evaluate import evaluate
from poad.learn.experience import PLACES
from poad.learn.ppo import PPO
from poad.learn.resume import restore_snapshot, take_snapshot
from poad.learn.rollout import Collector
from poad.runs import summarize
from poad.turns import Episode, Rollout

if TYPE_CHECKING:
    from poad.runs import Run

Metrics = dict[str, float]

RECENT_EPISODES = 100
"""Return, success and length are means over this many training episodes."""
RECENT_TURNS = 200
"""Measures of the world are means over this many turns."""


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


class Trainer:
    """The parts of one training run, and how far it has come.

    Args:
        config: what to train.
        run: where to write. None writes nothing; it may also be set later.
        resume: go on from the run's newest checkpoint.
    """

    def __init__(self, config: Config, run: Run | None = None, *, resume: bool = False) -> None:
        self.agent: Agent = load_agent(config)
        self.config = config = self.agent.config
        self.run = run
        self.learner = PPO.for_agent(self.agent)
        self.works = BestWork()
        self.collector = Collector(
            lambda: self.works.watch(make(config.env, **config.env_args)),
            self.agent.policy,
            config.streams,
            (config.seed + 2) * SEEDS_PER_RUN,
        )
        if any(o.admissible_actions is None for o in self.collector.observations):
            refuse_free_writing(self.agent.settings.credit.method, f"the world {config.env}")
        self._check_discount()
        for note in (*self.agent.model.notes, *self.collector.notes):
            warnings.warn(note, stacklevel=2)
        if run is not None and not resume and run.config != config:
            run.change_config(config)  # other directories and versions know no `auto`, for example
        self.generator = np.random.default_rng(config.seed)
        self.iteration = self.env_steps = self.episodes = self._saved = 0
        self.recent: deque[Episode] = deque(maxlen=RECENT_EPISODES)
        self.measured: deque[Mapping[str, float]] = deque(maxlen=RECENT_TURNS)
        self.collecting, self.updating = Clock(), Clock()
        self._kept: Work | None = None
        self._noted_prompts = False
        if resume:
            self._resume()

    def train(self) -> Iterator[Metrics]:
        """Iterate to the end of the run, logging and saving on the way.

        Closing the generator, or an error, leaves a checkpoint of the last whole iteration.
        """
        config, whole = self.config, True
        try:
            while self.env_steps < config.steps:
                whole = False
                with torch_threads(config.threads):
                    metrics = self.iterate()
                    if self._is_due(config.eval.every if config.eval.episodes else 0):
                        metrics |= self.evaluate()
                if self.run is not None:
                    self.run.log(metrics)
                whole = True
                if self._is_due(config.checkpoint_every):
                    self.save()
                yield metrics
        finally:
            if whole:  # an interrupted iteration is not kept: the last checkpoint is exact
                self.save()
            self.collector.close()

    def _is_due(self, every: int) -> bool:
        """Return True if something that happens every so many iterations (0: never) happens now."""
        return every > 0 and self.iteration % every == 0

    def iterate(self) -> Metrics:
        """Collect one rollout, learn from it, and return the metrics."""
        # What layers below all adapters compute for acting, the update can use again.
        with self.agent.model.lower.remembered():
            with self.collecting:
                rollout = self.collector.collect(self.config.horizon, self.generator)
            self.collecting.cpu += rollout.cpu_elsewhere
            with self.updating:
                learned = self.learner.update(rollout, progress=self.env_steps / self.config.steps)
        self.iteration += 1
        self.env_steps += len(rollout.turns)
        self.episodes += len(rollout.episodes)
        self.recent.extend(rollout.episodes)
        self.measured.extend(measures for measures in rollout.measures if measures)
        self._keep_best()
        if (note := self.collector.prompt_note) and not self._noted_prompts:
            self._noted_prompts = True
            warnings.warn(note, stacklevel=2)
        return self._metrics(rollout, learned)

    def evaluate(self) -> Metrics:
        """Evaluate in the middle of training, sampled, and record the episodes."""
        config = self.config.eval
        records = list(
            evaluate(
                self.agent,
                episodes=config.episodes,
                seed=config.seed,
                greedy=False,
                streams=config.streams,
                checkpoint=self.iteration,
                turns=config.turns,
            )
        )
        if self.run is not None:
            self.run.add_episodes(records)
        summary = summarize(records)
        return {"eval_success": summary.success_rate, "eval_return": summary.mean_return}

    def save(self) -> None:
        """Write a checkpoint of this moment, unless there is one."""
        if self.run is None or self._saved == self.iteration:
            return
        parts = (self.agent, self.learner, self.collector, self.generator)
        tensors, state = take_snapshot(*parts)
        self.run.save_checkpoint(self.iteration, tensors, state | self._counters())
        self._saved = self.iteration

    def _check_discount(self) -> None:
        """Warn if the world discounts primitive steps at another rate than we do between turns."""
        inner, credit = self.collector.step_discount, self.config.credit
        if credit.discount == "duration" and inner is not None and inner != credit.gamma:
            warnings.warn(
                f"{self.config.env} discounts by {inner} per primitive step inside an action. With "
                f"discount = duration and gamma = {credit.gamma} the same step counts differently "
                f"inside and between actions. Use gamma = {inner}, or discount = turn.",
                stacklevel=2,
            )

    def _keep_best(self) -> None:
        """Write the best thing the agent has made, in worlds where it makes things."""
        best = self.works.best
        if self.run is not None and best is not None and best != self._kept:
            self.run.keep(best.file, best.page())
            self._kept = best

    def _counters(self) -> dict[str, Any]:
        clocks = (self.collecting, self.updating)
        return {
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "recent": [list(episode) for episode in self.recent],
            "measured": [dict(measures) for measures in self.measured],
            "works": self.works.state(),
            "seconds": [[clock.cpu, clock.wall] for clock in clocks],
        }

    def _resume(self) -> None:
        assert self.run is not None
        tensors, state = self.run.load_checkpoint()
        parts = (self.agent, self.learner, self.collector, self.generator)
        restore_snapshot(tensors, state, *parts)
        self.iteration = self._saved = state["iteration"]
        self.env_steps, self.episodes = state["env_steps"], state["episodes"]
        self.recent.extend(Episode(*episode) for episode in state["recent"])
        self.measured.extend(state["measured"])
        self.works.load_state(state["works"])
        for clock, (cpu, wall) in zip(
            (self.collecting, self.updating), state["seconds"], strict=True
        ):
            clock.cpu, clock.wall = cpu, wall
        self.run.truncate_metrics(self.iteration)
        self._keep_best()

    def _metrics(self, rollout: Rollout, learned: Metrics) -> Metrics:
        def recent(field: str) -> float:
            values = [getattr(episode, field) for episode in self.recent]
            return float(np.mean(values)) if values else math.nan

        collect, update = self.collecting, self.updating
        return {
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "return": recent("episode_return"),
            "success": recent("success"),
            "length": recent("length"),
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


LEARNED = (
    "entropy",
    "kl",
    "clip_fraction",
    "policy_loss",
    "value_loss",
    "explained_variance",
    *(f"{what}_{place}" for what in ("explained_variance", "value_bias") for place in PLACES),
    "beta",
    "advantage_std",
    "grad_norm",
    "critic_grad_norm",
    "kl_reference",
    "logprob_drift",
    "logprob_drift_mean",
    "passes",
    "kl_after",
    "kept",
)
"""The metrics of an update, in the order they are written."""


def train(config: Config, run: Run | None = None, *, resume: bool = False) -> Iterator[Metrics]:
    """Train an agent. Iterate to go on, stop iterating to stop.

    The process keeps its own thread count and random state: torch computes with
    `config.threads` threads while an iteration runs, and with the caller's number between them.

    Args:
        config: what to train.
        run: a directory to write metrics and checkpoints to. None writes nothing.
        resume: go on from the run's newest checkpoint, exactly where it was.

    Yields:
        The metrics of each iteration: means over the last 100 training episodes, the update's
        losses, and seconds. docs/runs.md explains each.

    Raises:
        PoadError: the configuration, the world or the run cannot be used.
    """
    return Trainer(config, run, resume=resume).train()
