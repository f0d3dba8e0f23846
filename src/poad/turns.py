"""Turns: frozen records of the text an agent read and wrote, and of its consequences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

from poad.trie import Offer, TokenTree

TokenIds = tuple[int, ...]


class Beginning(Sequence[int]):
    """The first tokens of an action, equal to the tuple of them.

    It is a view: all beginnings of an action share the action's tokens. As tuples of their own they
    would take the square of its length.
    """

    __slots__ = ("_hash", "length", "tokens")

    def __init__(self, tokens: TokenIds, length: int) -> None:
        self.tokens, self.length = tokens, length
        self._hash: int | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        return self.tokens[: self.length][index]

    def __iter__(self) -> Iterator[int]:
        return islice(self.tokens, self.length)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(self.tokens[: self.length])
        return self._hash

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Beginning):
            same = self.length == other.length and hash(self) == hash(other)
            if not same or self.tokens is other.tokens:
                return same
            other = other.tokens[: other.length]
        return self.tokens[: self.length] == other

    def __repr__(self) -> str:
        return repr(tuple(self))


Position = tuple[TokenIds, TokenIds | Beginning]
"""A prompt's token ids and those of an action's beginning: where a next token is predicted."""


@dataclass(frozen=True)
class Cut:
    """The tokens that a prompt lost, by what they were, since it was too long for the model.

    The words of a goal that are put in front of what is left are counted against them.
    """

    turns: int = 0
    """Of earlier turns, also of those that an earlier prompt of the episode lost for good."""
    examples: int = 0
    """Of `prompt.examples`."""
    observation: int = 0
    """Of the middle of the observation."""

    def __str__(self) -> str:
        parts = {
            "earlier turns": self.turns,
            "examples": self.examples,
            "the middle of the observation": self.observation,
        }
        *most, last = [f"{count:,} of {what}" for what, count in parts.items() if count] or [""]
        told = f"{', '.join(most)} and {last}" if most else last
        total = sum(parts.values())
        return f"The prompt was too long, so the model did not read {total:,} tokens: {told}."


@dataclass(frozen=True)
class Observation:
    """The text that a world shows, and the actions it offers."""

    prompt: str
    admissible_actions: Offer | None = None
    """None lets the agent write freely."""
    prompt_ids: TokenIds = ()
    """The prompt as the model reads it. If empty, it is encoded as the first of an episode."""
    cut: Cut | None = None
    """What the model does not read of it, if it was too long."""


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
    trie: TokenTree | None = None
    """The offered actions it was chosen from; None if it was written freely."""
    nodes: tuple[int, ...] = ()
    """[n] its path in the trie, with -1 at thoughts; empty if it was written freely."""
    thought: int = 0
    """The number of tokens, at the beginning, that are thoughts before the action."""

    @cached_property
    def beginnings(self) -> tuple[Beginning, ...]:
        """[n] what is written before each token."""
        return tuple(Beginning(self.token_ids, j) for j in range(len(self.token_ids)))


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
    works: tuple[Mapping[str, Any] | None, ...] = ()
    """``info["work"]`` of each turn, in the same order as the measures."""
    broken: tuple[tuple[int, int], ...] = ()
    """Stream and turn where an episode broke off because its world failed, with the turn -1 if that
    was the last one of an earlier rollout."""
    faults: int = 0
    """The number of worlds that failed."""

    @property
    def turns(self) -> list[Turn]:
        """All turns, stream after stream."""
        return [turn for stream in self.streams for turn in stream]
