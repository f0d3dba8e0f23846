"""Examine an agent: fixed seeds, sampled or greedy, and every turn on record.

An episode depends on its seed and the weights alone, not on how many others are played beside it,
so any episode of an evaluation can be played again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from poad.agent import ActingCache, Agent, Observation
from poad.envs import make
from poad.learn.rollout import Stream, episode_of, open_stream
from poad.runs import versions
from poad.stats import wilson_interval
from poad.trie import ActionTrie
from poad.turns import Action, TokenIds


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
) -> Iterator[dict[str, Any]]:
    """Play episodes and record them.

    Args:
        agent: who plays.
        episodes: how many; their seeds are ``seed``, ``seed + 1``, …
        seed: the first episode's.
        greedy: take the likeliest token or action instead of sampling.
        streams: how many are played side by side.
        env: another world than the agent's own, with ``env_args``.
        env_args: arguments of that world.
        checkpoint: what to write into the records as the agent's iteration.
        turns: keep every turn; without, the list of turns stays empty.

    Yields:
        One record per episode, in the order of the seeds; ready for JSON. docs/runs.md lists its
        fields.
    """
    if env is None:
        env, env_args = agent.config.env, agent.config.env_args
    head = {
        "env": env,
        "env_args": dict(env_args or {}),
        "mode": "greedy" if greedy else "sampled",
        "checkpoint": checkpoint,
        "versions": versions(),
    }
    scribe = _Scribe(agent) if turns else None
    cache = ActingCache()
    waiting = iter(range(seed, seed + episodes))
    done: dict[int, dict[str, Any]] = {}
    due = seed
    playing = []
    for first in list(islice(waiting, streams)):
        stream = open_stream(lambda: make(env, **(env_args or {})), agent.policy, first)
        playing.append(_Play(stream))
    while playing:
        observations = [play.stream.observation for play in playing]
        generators = [play.generator for play in playing]
        actions: dict[int, Action] = {}
        for i, action in agent.policy.act_each(
            observations, generators, greedy=greedy, cache=cache
        ):
            actions[i] = action
            playing[i].stream.prepare(action.text)
        still = []
        for i, play in enumerate(playing):
            record = play.step(actions[i], scribe, cache)
            if record is None:
                still.append(play)
                continue
            done[play.stream.seed] = head | record
            next_seed = next(waiting, None)
            if next_seed is None:
                play.stream.env.close()
            else:
                play.begin(next_seed)
                still.append(play)
        playing = still
        while due in done:
            yield done.pop(due)
            due += 1


def summarize(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Success rate with its 95 % Wilson interval, mean return and mean length of some episodes."""
    rows = [(r["success"], r["return"], r["length"]) for r in records]
    wins, count = sum(row[0] for row in rows), len(rows)
    return {
        "episodes": count,
        "success_rate": wins / count if count else None,
        "success_interval": list(wilson_interval(wins, count)) if count else None,
        "mean_return": float(np.mean([row[1] for row in rows])) if count else None,
        "mean_length": float(np.mean([row[2] for row in rows])) if count else None,
    }


class _Play:
    """One stream of an evaluation and the turns of its current episode."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.turns: list[dict[str, Any]] = []
        self.generator = np.random.default_rng(stream.seed)

    def begin(self, seed: int) -> None:
        self.stream.reset(seed)
        self.turns = []
        self.generator = np.random.default_rng(seed)

    def step(
        self, action: Action, scribe: _Scribe | None, cache: ActingCache
    ) -> dict[str, Any] | None:
        """Act; the episode's record when this ended it."""
        thought = scribe and scribe.describe(self.stream.observation, action, cache)
        reward, terminated, truncated, info = self.stream.step(action)
        outcome = {
            "reward": reward,
            "duration": int(info.get("duration", 1)),
            "invalid": "invalid_action" in info,
        }
        if thought is not None:
            self.turns.append(thought | outcome)
        if not (terminated or truncated):
            return None
        episode = episode_of(info)
        return {
            "seed": self.stream.seed,
            "return": episode.episode_return,
            "length": episode.length,
            "success": episode.success,
            "ending": "terminated" if terminated else "truncated",
            "turns": self.turns,
        }


class _Scribe:
    """Writes down what the agent saw, weighed and thought in a turn."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._described: dict[tuple[TokenIds, ActionTrie, TokenIds], dict[str, Any]] = {}

    def describe(
        self, observation: Observation, action: Action, cache: ActingCache
    ) -> dict[str, Any]:
        if action.trie is None:
            return self._describe(observation, action, cache)  # free writing hardly repeats
        key = (self._agent.policy.prompt_ids(observation), action.trie, action.token_ids)
        if key not in self._described:
            self._described[key] = self._describe(observation, action, cache)
        return self._described[key]

    def _describe(
        self, observation: Observation, action: Action, cache: ActingCache
    ) -> dict[str, Any]:
        codec, policy = self._agent.model.codec, self._agent.policy
        prompt, tokens = policy.prompt_ids(observation), action.token_ids
        decided = replace(observation, prompt_ids=(*prompt, *tokens[: action.thought]))
        value = self._agent.values([(prompt, tokens[:j]) for j in range(len(tokens))])
        offered = observation.admissible_actions
        chances = None if offered is None else policy.probabilities(decided, cache)
        return {
            "prompt": observation.prompt,
            "offered": None if chances is None else list(map(list, zip(offered or (), chances))),  # noqa: B905
            "action": action.text,
            "token_ids": list(tokens),
            "pieces": codec.pieces(tokens),
            "choice": list(action.choice),
            "logprob": list(action.logprob),
            "value": value,
            "root_value": value[0],
        }
