"""Training: collect, learn, report, again.

`train` returns an iterator of metrics: its user decides when to stop.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial

import numpy as np

from poad.agent import Agent, load_agent, open_engine, torch_threads
from poad.config import SEEDS_PER_RUN, Config
from poad.envs import BestWork, Work, Workers, make
from poad.learn.evaluate import examine
from poad.learn.faults import Tolerance, log_faults
from poad.learn.meters import Meters, Metrics
from poad.learn.ppo import PPO
from poad.learn.pretraining import pretrain
from poad.learn.remarks import prompt_remark, remarks
from poad.learn.resume import restore_snapshot, take_snapshot
from poad.learn.rollout import Collector
from poad.learn.saving import Schedule
from poad.learn.sharing import collect, own_streams, share_streams, share_works
from poad.lm import advice_on_memory
from poad.ranks import ALONE, Ranks
from poad.runs import Run, summarize


class Trainer:
    """The parts of one training run, and how far it has come.

    Args:
        config: what to train.
        run: where to write. None writes nothing; it may also be set later.
        resume: go on from the run's newest checkpoint.
        ranks: the processes that train together. Only the first one writes.
    """

    def __init__(
        self, config: Config, run: Run | None = None, *, resume: bool = False, ranks: Ranks = ALONE
    ) -> None:
        self.agent: Agent = load_agent(config, ranks=ranks)
        self.config = config = self.agent.config
        self.run, self.ranks = run if ranks.is_first else None, ranks
        self.learner = PPO(self.agent, ranks)
        self.engine = open_engine(config, self.agent.model)
        self.works = BestWork()
        self.generator = np.random.default_rng(config.seed)
        self.meters = Meters()
        self._schedule = Schedule(config)
        self._kept: Work | None = None
        self._noted_prompts = False
        self.collector = Collector(
            partial(make, config.env, **config.env_args),
            self.agent.policy.writing_with(self.engine),
            config.streams,
            (config.seed + 2) * SEEDS_PER_RUN,
            ranks.own(config.streams) if config.randomness == "stream" else None,
            Workers(config.workers, config.step_timeout, config.reset_timeout),
            Tolerance(config.on_world_error, config.world_error_limit),
            self.agent.settings.credit.group,
            partial(log_faults, self.run, 1 + max(run.checkpoints() if run else (), default=0)),
        )
        with self.collector.closed_on_error():
            for remark in remarks(self.agent, self.collector):
                warnings.warn(remark, stacklevel=2)
            if self.run is not None and not resume and self.run.config != config:
                self.run.change_config(config)  # other directories know no `auto`, for example
            if resume:
                assert run is not None
                self._resume(run)
            elif config.critic.pretrain:
                with torch_threads(config.threads):
                    pretrain(self.learner)

    def train(self) -> Iterator[Metrics]:
        """Iterate to the end of the run, logging and saving on the way.

        Checkpoint 0 is written before the first iteration. Closing the generator, or an error,
        leaves a checkpoint of the last whole iteration.
        """
        config, whole = self.config, True
        try:
            self.save()
            while self.meters.env_steps < config.steps:
                whole = False
                with torch_threads(config.threads), advice_on_memory():
                    metrics = self.iterate()
                    if self._is_due(config.eval.every if config.eval.episodes else 0):
                        metrics |= self.evaluate()
                if self.run is not None:
                    self.run.log(metrics)
                whole = True
                iteration, evaluated = self.meters.iteration, "eval_success" in metrics
                self.save(due=self._schedule.owes(self.run, iteration, evaluated=evaluated))
                yield metrics
        finally:
            # An interrupted iteration is not kept: the last checkpoint is exact.
            if (whole or self.collector.rewound) and not self.ranks.gone:
                self.save()
            self.collector.close()
            self.engine.close()

    def iterate(self) -> Metrics:
        """Collect one rollout, learn from it, and return the metrics."""
        # What layers below all adapters compute for acting, the update can use again.
        with self.agent.model.lower.remembered():
            with self.meters.collecting:
                log = partial(log_faults, self.run, self.meters.iteration + 1)
                collected = self.collector, self.generator, self.agent, self.engine, self.ranks
                rollout = collect(*collected, log)
            with self.meters.updating:
                progress = self.meters.env_steps / self.config.steps
                learned = self.learner.update(rollout, progress)
        self.meters.count(rollout)
        share_works(self.works, rollout, self.ranks)
        self._keep_best()
        if not self._noted_prompts and (remark := prompt_remark(self.collector.streams)):
            self._noted_prompts = True
            warnings.warn(remark, stacklevel=2)
        return self.meters.metrics(rollout, learned)

    def _is_due(self, every: int) -> bool:
        """Return True if something that happens every so many iterations (0: never) happens now."""
        return every > 0 and self.meters.iteration % every == 0

    def evaluate(self) -> Metrics:
        """Evaluate in the middle of training, sampled, and record the episodes.

        Only the first rank, which records them, has metrics.
        """
        records = examine(self.agent, self.meters.iteration, self.ranks)
        if not self.ranks.is_first:
            return {}
        if self.run is not None:
            self.run.add_episodes(records)
        summary = summarize(records)
        return {"eval_success": summary.success_rate, "eval_return": summary.mean_return}

    def _keep_best(self) -> None:
        """Write the best thing the agent has made, in worlds where it makes things."""
        best = self.works.best
        if self.run is not None and best is not None and best != self._kept:
            self.run.keep(best.file, best.page())
            self._kept = best

    def save(self, *, due: bool = True) -> None:
        """Write a checkpoint of this moment, unless there is one, or steps are being skipped.

        Weights that lead to numbers that are not finite replace those before them at the end only.
        """
        iteration = self.meters.iteration
        due = due and self.run is not None and self._schedule.saved != iteration
        sound = not self.learner.skips.here or self.meters.env_steps >= self.config.steps
        if not self.ranks.exchange("save", due and sound)[0]:
            return
        parts = (self.agent, self.learner, self.collector, self.generator)
        tensors, state = take_snapshot(*parts)
        state |= self.meters.state() | {"works": self.works.state()}
        state["tolerance"] = self.collector.tolerance.state()
        state["collector"] = share_streams(state["collector"], self.ranks)
        if self.run is not None:
            self.run.save_checkpoint(iteration, tensors, state)
        self._schedule.note(iteration)

    def _resume(self, run: Run) -> None:
        recovered = self.ranks.first_does("recover", run.recover_checkpoint)
        tensors, state = recovered or run.load_checkpoint()
        state["collector"] = own_streams(state["collector"], self.ranks)
        parts = (self.agent, self.learner, self.collector, self.generator)
        restore_snapshot(tensors, state, *parts)
        self.meters.load_state(state)
        self.works.load_state(state["works"])
        self.collector.tolerance.load_state(state["tolerance"])
        self._schedule.note(self.meters.iteration)
        if self.run is not None:
            self.run.truncate_metrics(self.meters.iteration)
            self._keep_best()


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
