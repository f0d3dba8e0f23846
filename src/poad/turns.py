"""Turns: frozen records of the text an agent read and wrote, and of its consequences."""

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
    """The text that a world shows, and the actions it offers."""

    prompt: str
    admissible_actions: tuple[str, ...] | None = None
    """None lets the agent write freely."""
    prompt_ids: TokenIds = ()
    """The prompt as the model reads it. If empty, it is encoded as the first of an episode."""


@dataclass(frozen=True)
class Action:
    """An action of n tokens, exactly as the agent sampled it."""

    text: str
    token_ids: TokenIds
    """[n] as sampled, the end-of-action token included; never re-tokenized."""
    choice: tuple[bool, ...]
    """[n] True where the token had an alternative; forced tokens earn no credit."""
    logprob: tuple[float, ...]
    """[n] natural log of the probability it was sampled with; 0 at forced tokens."""
    trie: ActionTrie | None = None
    """The offered actions it was chosen from; None if it was written freely."""
    nodes: tuple[int, ...] = ()
    """[n] its path in the trie, with -1 at thoughts; empty if it was written freely."""
    thought: int = 0
    """The number of tokens, at the beginning, that are thoughts before the action."""


@dataclass(frozen=True)
class Turn:
    """One observation, the action written behind it, and its consequences."""

    prompt_ids: TokenIds
    action: Action
    reward: float
    duration: int = 1
    """Primitive steps the action took."""
    terminated: bool = False
    truncated: bool = False
    next_prompt_ids: TokenIds = field(default=(), repr=False)
    """The prompt after the action; of the same episode, even if the action ended it."""


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
