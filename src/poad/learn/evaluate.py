"""Evaluate an agent on fixed seeds, sampled or greedy, and record every turn.

An episode depends on its seed and the weights alone, not on the number of streams, so any episode
of an evaluation can be played again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

from poad.agent import ActingCache, Agent, in_threads
from poad.envs import make
from poad.learn.recording import TurnRecorder
from poad.learn.remarks import prompt_remark
from poad.learn.rollout import play
from poad.learn.stream import MakeEnv, Step, WorldStream
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
) -> Iterator[EpisodeRecord]:
    """Play episodes and record them.

    torch computes with the threads of the agent's configuration, and with the caller's number of
    threads between the episodes.

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

    Yields:
        One record per episode, in the order of the seeds.
    """
    if env is None:
        env, env_args = agent.config.env, agent.config.env_args
    describe = partial(
        EpisodeRecord,
        env=env,
        env_args=dict(env_args or {}),
        mode="greedy" if greedy else "sampled",
        checkpoint=checkpoint,
        versions=versions(),
    )
    played = _episodes(
        agent,
        describe,
        partial(make, env, **(env_args or {})),
        range(seed, seed + episodes),
        greedy=greedy,
        streams=streams,
        turns=turns,
        remark=remark,
    )
    return in_threads(agent.config.threads, played)


def examine(agent: Agent, iteration: int) -> Iterator[EpisodeRecord]:
    """Evaluate an agent in the middle of its training, sampled, as its settings say."""
    config = agent.config.eval
    return evaluate(
        agent,
        episodes=config.episodes,
        seed=config.seed,
        greedy=False,
        streams=config.streams,
        checkpoint=iteration,
        turns=config.turns,
        remark=False,  # training has said it
    )


def _episodes(
    agent: Agent,
    describe: Callable[..., EpisodeRecord],
    make_env: MakeEnv,
    seeds: range,
    *,
    greedy: bool,
    streams: int,
    turns: bool,
    remark: bool,
) -> Generator[EpisodeRecord, None, None]:
    """Play the episodes of some seeds, and yield their records in the order of the seeds."""
    cache = ActingCache()
    recorder = TurnRecorder(agent, cache) if turns else None
    waiting = iter(seeds)
    worlds = [
        WorldStream(make_env, agent.policy.dialogue(), seed) for seed in islice(waiting, streams)
    ]
    recorded: list[list[TurnRecord]] = [[] for _ in worlds]
    done, next_to_yield = dict[int, EpisodeRecord](), seeds.start
    try:
        for step in play(
            agent.policy, worlds, lambda _: next(waiting, None), greedy=greedy, cache=cache
        ):
            if recorder is not None:
                recorded[step.stream].append(recorder.record(step))
            if step.ended:
                done[step.seed] = describe(**_outcome(step), turns=tuple(recorded[step.stream]))
                recorded[step.stream] = []
            while next_to_yield in done:
                yield done.pop(next_to_yield)
                next_to_yield += 1
        if remark and (told := prompt_remark(worlds)):
            warnings.warn(told, stacklevel=2)
    finally:
        for world in worlds:
            world.close()


def _outcome(step: Step) -> dict[str, Any]:
    """The fields of an episode's record that its last step decides."""
    episode = step.episode()
    return {
        "seed": step.seed,
        "episode_return": episode.episode_return,
        "length": episode.length,
        "success": episode.success,
        "ending": "terminated" if step.terminated else "truncated",
    }
