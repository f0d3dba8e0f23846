"""Evaluate an agent on fixed seeds, sampled or greedy, and record every turn.

An episode depends on its seed and the weights alone, not on the number of streams, so any episode
of an evaluation can be played again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from poad.agent import Agent, Memo
from poad.envs import make
from poad.learn.recording import TurnRecorder
from poad.learn.rollout import Stream, episode_of, open_stream
from poad.runs import EpisodeRecord, Evaluation, TurnRecord, versions
from poad.stats import wilson_interval
from poad.turns import Action, Episode


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
) -> Iterator[EpisodeRecord]:
    """Play episodes and record them.

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

    Yields:
        One record per episode, in the order of the seeds.
    """
    if env is None:
        env, env_args = agent.config.env, agent.config.env_args
    env_args = dict(env_args or {})
    describe = partial(
        EpisodeRecord,
        env=env,
        env_args=env_args,
        mode="greedy" if greedy else "sampled",
        checkpoint=checkpoint,
        versions=versions(),
    )
    recorder, memo = (TurnRecorder(agent) if turns else None), Memo()
    waiting = iter(range(seed, seed + episodes))
    first_seeds = list(islice(waiting, streams))
    open_env = partial(make, env, **env_args)
    done, next_to_yield = dict[int, EpisodeRecord](), seed
    playing = [_Play(open_stream(open_env, agent.policy, first)) for first in first_seeds]
    while playing:
        actions = _act(agent, playing, greedy, memo)
        still_playing = []
        for i, play in enumerate(playing):
            if (outcome := play.step(actions[i], recorder, memo)) is not None:
                done[play.stream.seed] = describe(**outcome)
                if (next_seed := next(waiting, None)) is None:
                    play.stream.env.close()
                    continue
                play.begin(next_seed)
            still_playing.append(play)
        playing = still_playing
        while next_to_yield in done:
            yield done.pop(next_to_yield)
            next_to_yield += 1


def _act(agent: Agent, playing: Sequence[_Play], greedy: bool, memo: Memo) -> dict[int, Action]:
    """Choose the next action of every episode, by the index of its stream."""
    observations = [play.stream.observation for play in playing]
    generators = [play.generator for play in playing]
    actions: dict[int, Action] = {}
    for i, action in agent.policy.act_each(observations, generators, greedy=greedy, memo=memo):
        actions[i] = action
        playing[i].stream.prepare(action.text)  # the world may compute while others still write
    return actions


def summarize(episodes: Iterable[EpisodeRecord | Episode]) -> Evaluation:
    """Compute success rate, its 95 % Wilson interval, mean return and mean length of episodes."""
    rows = [(e.success, e.episode_return, e.length) for e in episodes]
    if not rows:
        return Evaluation(0, np.nan, None, np.nan, np.nan)
    wins, count = sum(success for success, _, _ in rows), len(rows)
    return Evaluation(
        episodes=count,
        success_rate=wins / count,
        success_interval=wilson_interval(wins, count),
        mean_return=float(np.mean([each for _, each, _ in rows])),
        mean_length=float(np.mean([length for _, _, length in rows])),
    )


class _Play:
    """One stream of an evaluation and the turns of its current episode."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.turns: list[TurnRecord] = []
        self.generator = np.random.default_rng(stream.seed)

    def begin(self, seed: int) -> None:
        """Start the next episode."""
        self.stream.reset(seed)
        self.turns = []
        self.generator = np.random.default_rng(seed)

    def step(
        self, action: Action, recorder: TurnRecorder | None, memo: Memo
    ) -> dict[str, Any] | None:
        """Take one turn; at the end of the episode, return the fields of its record."""
        observation = self.stream.observation
        reward, terminated, truncated, info = self.stream.step(action)
        if recorder is not None:
            self.turns.append(recorder.record(observation, action, reward, info, memo))
        if not (terminated or truncated):
            return None
        episode = episode_of(info)
        return {
            "seed": self.stream.seed,
            "episode_return": episode.episode_return,
            "length": episode.length,
            "success": episode.success,
            "ending": "terminated" if terminated else "truncated",
            "turns": tuple(self.turns),
        }
