"""Examine an agent: fixed seeds, sampled or greedy, and every turn on record.

An episode depends on its seed and the weights alone, not on how many others are played beside it,
so any episode of an evaluation can be played again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from poad.agent import ActingCache, Agent
from poad.envs import make
from poad.learn.play import Step, WorldStream, play
from poad.runs import versions
from poad.stats import wilson_interval
from poad.trie import ActionTrie
from poad.turns import TokenIds


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
    recorder = _Recorder(agent) if turns else None
    cache = ActingCache()
    seeds = iter(range(seed, seed + episodes))
    worlds = [
        WorldStream(partial(make, env, **(env_args or {})), agent.policy.dialogue(), first)
        for first in islice(seeds, streams)
    ]
    recorded: list[list[dict[str, Any]]] = [[] for _ in worlds]
    done: dict[int, dict[str, Any]] = {}
    next_to_yield = seed
    try:
        for step in play(agent.policy, worlds, seeds, greedy=greedy, cache=cache):
            if recorder is not None:
                recorded[step.stream].append(recorder.record(step, cache))
            if step.ended:
                done[step.seed] = head | _outcome(step) | {"turns": recorded[step.stream]}
                recorded[step.stream] = []
            while next_to_yield in done:
                yield done.pop(next_to_yield)
                next_to_yield += 1
    finally:
        for world in worlds:
            world.close()


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


def _outcome(step: Step) -> dict[str, Any]:
    """The fields of an episode's record that its last step decides."""
    episode = step.episode()
    return {
        "seed": step.seed,
        "return": episode.episode_return,
        "length": episode.length,
        "success": episode.success,
        "ending": "terminated" if step.terminated else "truncated",
    }


class _Recorder:
    """Records what the agent saw, weighed and predicted in a turn."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._described: dict[tuple[TokenIds, ActionTrie, TokenIds], dict[str, Any]] = {}

    def record(self, step: Step, cache: ActingCache) -> dict[str, Any]:
        return self._describe(step, cache) | {
            "reward": step.reward,
            "duration": step.duration,
            "invalid": "invalid_action" in step.info,
        }

    def _describe(self, step: Step, cache: ActingCache) -> dict[str, Any]:
        """Describe the decision; equal ones are computed once, unless they were written freely."""
        action, trie = step.action, step.action.trie
        if trie is None:
            return self._compute(step, cache)
        key = (step.observation.prompt_ids, trie, action.token_ids)
        if key not in self._described:
            self._described[key] = self._compute(step, cache)
        return self._described[key]

    def _compute(self, step: Step, cache: ActingCache) -> dict[str, Any]:
        policy, observation, action = self._agent.policy, step.observation, step.action
        prompt, tokens = observation.prompt_ids, action.token_ids
        decided = replace(observation, prompt_ids=(*prompt, *tokens[: action.thought]))
        value = self._agent.values([(prompt, tokens[:j]) for j in range(len(tokens))])
        offered = observation.admissible_actions
        chances = None if offered is None else policy.probabilities(decided, cache)
        return {
            "prompt": observation.prompt,
            "offered": None if chances is None else list(map(list, zip(offered or (), chances))),  # noqa: B905
            "action": action.text,
            "token_ids": list(tokens),
            "pieces": policy.codec.pieces(tokens),
            "choice": list(action.choice),
            "logprob": list(action.logprob),
            "value": value,
            "root_value": value[0],
        }
