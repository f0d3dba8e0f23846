"""The story of one run: collect, learn, report, again.

:func:`train` gives an iterator of metrics: whoever iterates it decides when to stop.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from poad.agent import Agent, load_agent
from poad.config import SEEDS_PER_RUN, Config
from poad.envs import make
from poad.learn import resume as snapshot
from poad.learn.evaluate import evaluate, summarize
from poad.learn.ppo import PPO
from poad.learn.rollout import Collector
from poad.turns import Episode, Rollout, Work

if TYPE_CHECKING:
    from poad.runs import Run

Metrics = dict[str, float]

RECENT_TURNS = 200
"""Means of what a world measures run over this many turns."""


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
    """The parts of one run, joined.

    Args:
        config: what to train; resolved on the way.
        run: where to write; without one (it may be set later) nothing is written.
        resume: go on from the run's newest checkpoint.
    """

    def __init__(self, config: Config, run: Run | None = None, *, resume: bool = False) -> None:
        self.agent: Agent = load_agent(config)
        self.config = config = self.agent.config
        self.run = run
        self.learner = PPO(
            self.agent.policy, self.agent.critic, self.agent.features, self.agent.method, config
        )
        self.collector = Collector(
            lambda: make(config.env, **config.env_args),
            self.agent.policy,
            config.streams,
            (config.seed + 2) * SEEDS_PER_RUN,
        )
        if any(o.admissible_actions is None for o in self.collector.observations):
            self.learner.refuse_free_writing()
        self._check_discount()
        for note in self.collector.notes:
            warnings.warn(note, stacklevel=2)
        self.generator = np.random.default_rng(config.seed)
        self.iteration = self.env_steps = self.episodes = self._saved = 0
        self.recent: deque[Episode] = deque(maxlen=100)
        self.measured: deque[Mapping[str, float]] = deque(maxlen=RECENT_TURNS)
        self.best: Work | None = None
        """The best thing the agent has made, where a world calls for making things."""
        self.collecting, self.updating = Clock(), Clock()
        self._told = False
        if resume:
            self._resume()

    def train(self) -> Iterator[Metrics]:
        """Iterate to the end of the run, logging and saving on the way.

        Closing the generator, or an error, leaves a checkpoint of the last whole iteration.
        """
        config, whole = self.config, True
        due = config.eval.every if config.eval.episodes else 0
        every = config.checkpoint_every
        try:
            while self.env_steps < config.steps:
                whole = False
                metrics = self.iterate()
                if due and self.iteration % due == 0:
                    metrics |= self.evaluate()
                if self.run is not None:
                    self.run.log(metrics)
                whole = True
                if every and self.iteration % every == 0:
                    self.save()
                yield metrics
        finally:
            if whole:  # an interrupted iteration is not kept: the last checkpoint is exact
                self.save()
            self.collector.close()

    def iterate(self) -> Metrics:
        """One rollout and one update; their metrics."""
        with self.collecting:
            rollout = self.collector.collect(self.config.horizon, self.generator)
        if (note := self.collector.prompt_note) and not self._told:
            self._told = True
            warnings.warn(note, stacklevel=2)
        with self.updating:
            learned = self.learner.update(rollout, progress=self.env_steps / self.config.steps)
        self.iteration += 1
        self.collecting.cpu += rollout.cpu_elsewhere
        self._keep(rollout.best)
        self.measured.extend(measures for measures in rollout.measures if measures)
        self.env_steps += len(rollout.turns)
        self.episodes += len(rollout.episodes)
        self.recent.extend(rollout.episodes)
        return self._metrics(rollout, learned)

    def evaluate(self) -> Metrics:
        """A sampled evaluation in the middle of training, on record like the final one."""
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
        tensors, state = snapshot.take(self.agent, self.learner, self.collector, self.generator)
        self.run.save_checkpoint(self.iteration, tensors, state | self._counters())
        self._saved = self.iteration

    def _check_discount(self) -> None:
        """Warn of two discounts per step: the world's inside a turn, ours between turns."""
        inner, credit = self.collector.step_discount, self.config.credit
        if credit.discount == "duration" and inner is not None and inner != credit.gamma:
            warnings.warn(
                f"{self.config.env} discounts by {inner} per primitive step inside an action; with "
                f"discount = duration and gamma = {credit.gamma} the same step counts differently "
                f"inside and between actions. Use gamma = {inner}, or discount = turn.",
                stacklevel=2,
            )

    def _keep(self, made: Work | None) -> None:
        """Keep what the agent made if it is the best so far; its turn counts from the run's."""
        if made is None or (self.best is not None and made.score <= self.best.score):
            return
        self.best = made._replace(turn=self.env_steps + made.turn)
        self._write_best()

    def _write_best(self) -> None:
        if self.run is not None and (made := self.best) is not None:
            told = f"score {made.score:.4f}, standard deviation {made.deviation:.4f}"
            text = f"# {told}, turn {made.turn}\n{made.text.rstrip()}\n"
            self.run.keep(made.file, text)

    def _counters(self) -> dict[str, Any]:
        clocks = (self.collecting, self.updating)
        return {
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "recent": [list(episode) for episode in self.recent],
            "measured": [dict(measures) for measures in self.measured],
            "best": None if self.best is None else self.best._asdict(),
            "seconds": [[clock.cpu, clock.wall] for clock in clocks],
        }

    def _resume(self) -> None:
        assert self.run is not None
        tensors, state = self.run.load_checkpoint()
        snapshot.restore(tensors, state, self.agent, self.learner, self.collector, self.generator)
        self.iteration = self._saved = state["iteration"]
        self.env_steps, self.episodes = state["env_steps"], state["episodes"]
        self.recent.extend(Episode(*episode) for episode in state["recent"])
        self.measured.extend(state["measured"])
        if state["best"] is not None:
            self.best = Work(**state["best"])
            self._write_best()
        for clock, (cpu, wall) in zip(
            (self.collecting, self.updating), state["seconds"], strict=True
        ):
            clock.cpu, clock.wall = cpu, wall
        self.run.truncate_metrics(self.iteration)

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
        """Means over the last turns of what the world measures, each over the turns that tell."""
        told: dict[str, list[float]] = {}
        for measures in self.measured:
            for name, value in measures.items():
                told.setdefault(f"world/{name}", []).append(value)
        return {name: float(np.mean(values)) for name, values in told.items()}


LEARNED = (
    "entropy",
    "kl",
    "clip_fraction",
    "policy_loss",
    "value_loss",
    "explained_variance",
    "advantage_std",
    "grad_norm",
    "kl_reference",
    "logprob_drift",
    "logprob_drift_mean",
    "passes",
)
"""The metrics of an update, in the order they are written."""


def train(config: Config, run: Run | None = None, *, resume: bool = False) -> Iterator[Metrics]:
    """Train an agent; iterate to go on, stop iterating to stop.

    Args:
        config: what to train.
        run: a directory to write metrics and checkpoints to; none writes nothing.
        resume: go on from the run's newest checkpoint, exactly where it was.

    Yields:
        The metrics of each iteration: means over the last 100 training episodes, the update's
        losses, and seconds. docs/runs.md explains each.
    """
    return Trainer(config, run, resume=resume).train()
