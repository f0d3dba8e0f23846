"""Evaluate an agent on fixed seeds, sampled or greedy, and record every turn.

An episode depends on its seed and the weights alone, not on the number of streams, so any episode
of an evaluation can be played again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from poad.agent import ActingCache, Agent, in_threads
from poad.envs import Workers, make
from poad.learn.ahead import open_stream
from poad.learn.faults import fault_of
from poad.learn.recording import TurnRecorder
from poad.learn.remarks import prompt_remark
from poad.learn.rollout import play
from poad.learn.sharing import share_episodes
from poad.learn.stream import Step, WorldStream
from poad.ranks import ALONE, Ranks
from poad.runs import EpisodeRecord, TurnRecord, versions


def evaluate(
    agent: Agent,
    *,
    episodes: int,
    seed: int,
    greedy: bool,
    streams: int = 64,
    env: str | None = None,
    env_args: Mapping[str, Any] | None = None,
    checkpoint: int | None = None,
    turns: bool = True,
    remark: bool = True,
    max_turns: int | None = None,
    workers: Workers | None = None,
    ranks: Ranks = ALONE,
    stopping: Sequence[bool] = (),
) -> Iterator[EpisodeRecord]:
    """Play episodes and record them.

    torch computes with the threads of the agent's configuration, and with the caller's between the
    episodes. One whose world fails is recorded as far as it went, as ``failed``; others go on.

    Args:
        agent: the agent to evaluate.
        episodes: how many; their seeds are ``seed``, ``seed + 1``, …
        seed: of the first episode.
        greedy: take the likeliest token or action instead of sampling.
        streams: how many episodes are played at once.
        env: a world to play in, with ``env_args``; default: the agent's own.
        env_args: arguments of that world.
        checkpoint: the agent's training iteration, for the records.
        turns: record every turn; otherwise the records have no turns.
        remark: warn if prompts were too long for the model, or rewritten by its chat template.
        max_turns: cut episodes off after so many turns; 0 never does. Default: the agent's setting.
        workers: where the worlds live. Default: the agent's own settings.
        ranks: divide the episodes among themselves.
        stopping: has an entry once this rank is asked to stop; see `share_episodes`.

    Yields:
        One record per episode, in the order of the seeds; on other ranks than the first, none.
    """
    config, own = agent.config, ranks.own(episodes)
    if env is None:
        env, env_args = config.env, config.env_args
    describe = partial(
        EpisodeRecord,
        env=env,
        env_args=dict(env_args or {}),
        mode="greedy" if greedy else "sampled",
        checkpoint=checkpoint,
        versions=versions(),
    )
    workers = workers or Workers(config.workers, config.step_timeout, config.reset_timeout)
    limit = config.eval.max_turns if max_turns is None else max_turns
    world = partial(make, env, **(env_args or {}))
    open_world = partial(open_stream, world, workers=workers, max_turns=limit)
    seeds = range(seed + own.start, seed + own.stop)
    played = _Episodes(agent, describe, seeds, greedy=greedy, turns=turns, remark=remark)
    records = in_threads(config.threads, played.play(open_world, workers, streams))
    return records if ranks.size == 1 else share_episodes(records, episodes, ranks, stopping)


def examine(agent: Agent, iteration: int, ranks: Ranks = ALONE) -> list[EpisodeRecord]:
    """Evaluate an agent in the middle of its training, sampled, as its settings say.

    Returns:
        The records; on other ranks than the first, none.
    """
    config = agent.config.eval
    played = evaluate(
        agent,
        episodes=config.episodes,
        seed=config.seed,
        greedy=False,
        streams=config.streams,
        checkpoint=iteration,
        turns=config.turns,
        remark=False,  # training has said it
        ranks=ranks,
    )
    return list(played)


class _Episodes:
    """The episodes of an evaluation, which are recorded in the order of their seeds.

    Args:
        agent: who plays.
        describe: makes a record; it knows what all episodes have in common.
        seeds: of the episodes.
        greedy: take the likeliest token or action instead of sampling.
        turns: record every turn.
        remark: warn of prompts that are not as they should be.
    """

    def __init__(
        self,
        agent: Agent,
        describe: Callable[..., EpisodeRecord],
        seeds: range,
        *,
        greedy: bool,
        turns: bool,
        remark: bool,
    ) -> None:
        self._agent, self._describe, self._greedy = agent, describe, greedy
        self._remark = remark
        self._cache = ActingCache()
        self._recorder = TurnRecorder(agent, self._cache) if turns else None
        self._waiting, self._next = iter(seeds), seeds.start
        self._recorded: dict[int, list[TurnRecord]] = {seed: [] for seed in seeds}
        self._done: dict[int, EpisodeRecord] = {}

    def play(
        self, open_world: Callable[..., WorldStream], workers: Workers, streams: int
    ) -> Generator[EpisodeRecord, None, None]:
        """Play all episodes, and yield their records.

        Args:
            open_world: opens a stream, given its prompts and the seed of its first episode.
            workers: that the worlds live with.
            streams: how many episodes are played at once.
        """
        policy, worlds = self._agent.policy, list[WorldStream]()
        try:
            for seed in islice(self._waiting, streams):
                worlds.append(open_world(policy.dialogue(), seed))
            for step in play(
                policy,
                worlds,
                lambda _: next(self._waiting, None),
                greedy=self._greedy,
                cache=self._cache,
                told=self._fail,
            ):
                if self._recorder is not None:
                    self._recorded[step.seed].append(self._recorder.record(step))
                if step.ended:
                    self._end(step.seed, **_outcome(step))
                yield from self._ready()
            yield from self._ready()  # worlds that failed took no step
            if self._remark and (told := prompt_remark(worlds)):
                warnings.warn(told, stacklevel=2)
        finally:
            for world in worlds:
                world.close()
            workers.close()

    def _ready(self) -> Iterator[EpisodeRecord]:
        while self._next in self._done:
            yield self._done.pop(self._next)
            self._next += 1

    def _end(self, seed: int, **outcome: Any) -> None:
        turns = tuple(self._recorded.pop(seed))
        self._done[seed] = self._describe(seed=seed, turns=turns, **outcome)

    def _fail(self, number: int, stream: WorldStream, error: Exception) -> None:
        """Record an episode whose world failed as far as it went."""
        self._end(
            stream.seed,
            episode_return=stream.earned,
            length=stream.length,
            success=False,
            ending="failed",
            error=fault_of(number, stream, error).error,
        )


def _outcome(step: Step) -> dict[str, Any]:
    """The fields of an episode's record that its last step decides."""
    episode = step.episode()
    return {
        "episode_return": episode.episode_return,
        "length": episode.length,
        "success": episode.success,
        "ending": "terminated" if step.terminated else "truncated",
    }
