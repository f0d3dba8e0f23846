"""The records that a run keeps in its files; docs/runs.md explains every key."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from poad.runs.codec import stored
from poad.stats import wilson_interval
from poad.turns import Cut, Episode

Mode = Literal["sampled", "greedy"]
Versions = dict[str, str | None]
"""Versions by package name; None where a package is not installed."""


@dataclass(frozen=True)
class TurnRecord:
    """One turn of an evaluation episode, with what the agent computed in it. n tokens."""

    prompt: str
    """The text that the world showed."""
    offered: tuple[tuple[str, float], ...] | None
    """(action, probability) in the order offered; None where they were not listed: written freely,
    or offered as a form."""
    action: str
    token_ids: tuple[int, ...]
    """[n] the sampled tokens, the end-of-action token included."""
    pieces: tuple[str, ...]
    """[n] the tokens as readable text."""
    choice: tuple[bool, ...]
    """[n] whether another token could have stood there."""
    logprob: tuple[float, ...]
    """[n] log-probabilities under the policy, in nats; 0 at forced tokens."""
    value: tuple[float, ...]
    """[n] the critic's value before each token."""
    root_value: float
    """The critic's value of the prompt, before the first token."""
    reward: float
    duration: int
    """Primitive steps that the action took."""
    invalid: bool
    """Whether the world did not offer the action."""
    form: str = ""
    """The form that was offered, with the alternatives of a part in brackets: ``(small|large)
    dough( rye| wheat)``. Empty if none was."""
    cut: Cut | None = None
    """What the model did not read, if the prompt was too long for it."""


@dataclass(frozen=True)
class EpisodeRecord:
    """One evaluation episode: a line of episodes.jsonl."""

    env: str
    env_args: dict[str, Any] = field(metadata=stored(exact=True))
    mode: Mode
    checkpoint: int | None
    """Training iteration of the agent; None if untrained."""
    versions: Versions
    seed: int
    episode_return: float = field(metadata=stored("return"))
    length: int
    success: bool
    ending: Literal["terminated", "truncated", "failed"]
    """How it ended; it ``failed`` if its world did."""
    turns: tuple[TurnRecord, ...]
    """Empty if ``eval.turns`` is false."""
    error: str = ""
    """What the world did if it failed."""
    model: str = ""
    """Directory of the exported model that played; empty for the run's own weights."""


@dataclass(frozen=True)
class WorldErrorRecord:
    """One failure of a world in training: a line of world_errors.jsonl."""

    iteration: int
    """The training iteration in which it happened."""
    stream: int
    """The number of the stream, from 0."""
    seed: int
    """Seed of the episode."""
    turn: int
    """The number of the action that failed, from 1; 0 if the world failed at its reset."""
    error: str
    """What happened."""
    actions: tuple[str, ...]
    """All actions of the episode, the one that failed included."""


@dataclass(frozen=True)
class Evaluation:
    """Statistics over the episodes of one evaluation; NaN or None without episodes."""

    episodes: int
    success_rate: float
    success_interval: tuple[float, float] | None
    """95 % Wilson interval."""
    mean_return: float
    mean_length: float
    failed: int = 0
    """Episodes whose world failed. They count as no success."""


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


@dataclass(frozen=True)
class LogprobDrift:
    """Differences in log-probability between sampler and learner over a whole run, in nats."""

    largest: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The outcome of a run: summary.json."""

    env: str
    method: str
    seed: int
    status: Literal["finished", "stopped"]
    iteration: int | None
    env_steps: int | None
    cpu_seconds: float
    wall_seconds: float
    training_episodes: int | None
    sampled: Evaluation | None = field(default=None, metadata=stored(flat=True))
    """The sampled evaluation once more, so that its numbers stand at the top of the file."""
    evaluation: dict[Mode, Evaluation] | None = None
    """None if the run was not evaluated at its end."""
    best: dict[str, Any] | None = None
    """The best program or other work that the agent made, in worlds that ask for it."""
    logprob_drift: LogprobDrift | None
    plan: dict[str, Any] | None = None
    """Memory and time as ``poad plan`` would have predicted them, and as measured."""


@dataclass(frozen=True)
class UnseenEvaluation:
    """One agent in one world and mode: an entry of generalization.json."""

    agent: str
    env_steps: int
    """Environment steps the agent was trained for."""
    world: str
    mode: Mode
    evaluation: Evaluation = field(metadata=stored(flat=True))


@dataclass(frozen=True)
class Generalization:
    """Agents in worlds they were not trained in: generalization.json."""

    results: tuple[UnseenEvaluation, ...]
