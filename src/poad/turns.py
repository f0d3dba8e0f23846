"""Turns: what an agent saw and wrote, and what came of it, exactly as it happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from poad.trie import ActionTrie

TokenIds = tuple[int, ...]
Position = tuple[TokenIds, TokenIds]
"""A prompt's token ids and those of an action's beginning: where a next token is predicted."""


@dataclass(frozen=True)
class Observation:
    """What a world shows: its text, and the actions it offers."""

    prompt: str
    admissible_actions: tuple[str, ...] | None = None
    """None: the agent writes freely."""
    prompt_ids: TokenIds = ()
    """The prompt as the model reads it; empty: as at the beginning of an episode."""


@dataclass(frozen=True)
class Action:
    """What the agent wrote, exactly as sampled. n tokens."""

    text: str
    token_ids: TokenIds
    """[n] as sampled, the end-of-action token included; never re-tokenized."""
    choice: tuple[bool, ...]
    """[n] whether another token could have stood here; forced tokens earn no credit."""
    logprob: tuple[float, ...]
    """[n] natural log of the probability it was sampled with; 0 at forced tokens."""
    trie: ActionTrie | None = None
    """The offered actions it was chosen from; none when written freely."""
    nodes: tuple[int, ...] = ()
    """[n] its path in the trie; -1 at thoughts."""
    thought: int = 0
    """How many of the tokens, the first, are thoughts before the action."""


@dataclass(frozen=True)
class Turn:
    """One observation, the action written at it, and what came of it."""

    prompt_ids: TokenIds
    action: Action
    reward: float
    duration: int = 1
    """Primitive steps the action took."""
    terminated: bool = False
    truncated: bool = False
    next_prompt_ids: TokenIds = field(default=(), repr=False)
    """The observation after the action; of the same episode, also where that is its last."""


class Episode(NamedTuple):
    """Outcome of an episode, as the world reports it in ``info["episode"]`` at the end."""

    episode_return: float
    length: int
    success: bool


@dataclass(frozen=True)
class Rollout:
    """Turns of N streams in time order, and the episodes that ended among them."""

    streams: tuple[tuple[Turn, ...], ...]
    episodes: tuple[Episode, ...]
    measures: tuple[Mapping[str, float], ...] = ()
    """``info["measures"]`` of each turn, in the order in which the turns were taken."""
    cpu_elsewhere: float = 0.0
    """CPU seconds that the worlds spent in other processes."""

    @property
    def turns(self) -> list[Turn]:
        """All turns, stream after stream."""
        return [turn for stream in self.streams for turn in stream]
