"""Rows for a language model as in the published trainers, or with our savings.

TWOSOME and POAD write out prompt and action for every offered action of every turn. A *line* is
such a row. A *question* is a decision, whose probabilities some lines provide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from poad.lm import LanguageModel, Packed, pack
from poad.trie import ROOT, ActionTrie
from poad.turns import Position, TokenIds, Turn


@dataclass(frozen=True)
class Savings:
    """Computations that are done once or not at all. The published style has none of these."""

    chosen_path: bool = False
    """Compute the tokens of the chosen action, not those of every offered action."""
    no_reference: bool = False
    """Skip the untrained model's pass for reference log-probabilities, which no loss uses here."""
    rows_once: bool = False
    """Compute identical rows of a minibatch once. Minibatches partition prompts, not turns."""
    memo: bool = False
    """When acting, compute each distribution once per rollout."""
    frozen_once: bool = False
    """Run the untrained body for the critic once per rollout, not at every turn and epoch."""
    beginnings_once: bool = False
    """Compute common prefixes of rows once, as trees. This includes `rows_once`."""
    few_logits: bool = False
    """Compute logits and the last feed-forward layer only where an action's token is predicted."""
    skip_forced: bool = False
    """Skip tokens without an alternative, and tokens after the last choice."""
    keep_keys: bool = False
    """When acting along the chosen path, keep the keys and values in a cache, and read choices
    soon after the prompt together with it."""


Line = Position
"""A row: a prompt and the beginning of an action. All of its positions can be read."""
Question = tuple[int, list[tuple[int, int]]]
"""A decision: the number of tokens before it, and a line and a token for each option."""


@cache
def trie_lines(
    trie: ActionTrie, skip_forced: bool
) -> tuple[list[TokenIds], dict[int, int], list[int]]:
    """List each action's tokens to compute, an action through each node, and the choice nodes."""
    beginnings, through = [], {}
    for k, leaf in enumerate(trie.leaves):
        nodes = trie.path(leaf)
        last = max((j for j, n in enumerate(nodes) if trie.is_choice(n)), default=0)
        beginnings.append(trie.token_path(leaf)[: last if skip_forced else -1])
        for node in nodes:
            through.setdefault(node, k)
    nodes = range(ROOT, len(trie.tokens))
    return beginnings, through, [n for n in nodes if len(trie.children[n + 1]) > 1]


class Reader:
    """Runs rows through the model, with or without our savings."""

    def __init__(self, model: LanguageModel, savings: Savings) -> None:
        self.model, self.savings = model, savings

    def lay(self, lines: Sequence[Line]) -> tuple[Packed, list[int]]:
        """Lay out rows for lines. Also returns the index of each line's first reading.

        The readings of a line are the end of its prompt, then its tokens.
        """
        pad_id = self.model.codec.pad_id
        once = self.savings.rows_once or self.savings.beginnings_once
        rows = list(dict.fromkeys(lines)) if once else lines
        starts = np.cumsum([0, *(len(beginning) + 1 for _, beginning in rows)]).tolist()
        index = dict(zip(rows, starts, strict=False))
        first = [index[line] for line in lines] if once else starts[:-1]
        if self.savings.beginnings_once:
            return pack([(p, b[:j]) for p, b in rows for j in range(len(b) + 1)], pad_id), first
        length = np.array([len(p) + len(b) for p, b in rows])
        mask = np.arange(length.max()) < length[:, None]
        ids = np.full(mask.shape, pad_id)
        ids[mask] = np.concatenate([(*p, *b) for p, b in rows])
        row = np.repeat(np.arange(len(rows)), [len(b) + 1 for _, b in rows])
        column = np.concatenate([np.arange(len(p) - 1, len(p) + len(b)) for p, b in rows])
        place = np.tile(np.arange(mask.shape[1]), (len(rows), 1))
        ids, mask, place, row, column = map(torch.from_numpy, (ids, mask, place, row, column))
        return Packed(ids, mask, place, None, row, column), first

    def hidden(self, lines: Sequence[Line]) -> tuple[Tensor, list[int]]:
        """Compute the untrained body's hidden states at all readings of some lines."""
        packed, first = self.lay(lines)
        if self.savings.few_logits:
            return self.model.read_frozen(packed).float(), first
        whole, readings = _everywhere(packed)
        return self.model.read_frozen(whole)[readings].float(), first

    def logprobs(self, packed: Packed, read: Callable[[Packed], Tensor]) -> Tensor:
        """[R, V] log-probabilities of the next token at the readings."""
        if self.savings.few_logits:
            return self.model.logits(read(packed)).log_softmax(-1)
        whole, readings = _everywhere(packed)
        return self.model.logits(read(whole)).log_softmax(-1)[readings]

    def answer(self, lines: Sequence[Line], questions: Sequence[Question]) -> Tensor:
        """[S, K] log-probabilities over the options of each question."""
        packed, first = self.lay(lines)
        if not self.savings.no_reference:
            with torch.no_grad():
                self.logprobs(packed, self.model.read_frozen)
        width = max(len(options) for _, options in questions)
        reading = np.zeros((len(questions), width), dtype=np.int64)
        token, real = np.zeros_like(reading), np.zeros_like(reading, dtype=bool)
        for s, (j, options) in enumerate(questions):
            reading[s, : len(options)] = [first[line] + j for line, _ in options]
            token[s, : len(options)] = [t for _, t in options]
            real[s, : len(options)] = True
        reading, token, real = map(torch.from_numpy, (reading, token, real))
        score = self.logprobs(packed, self.model.read)[reading, token]
        return score.masked_fill(~real, -math.inf).log_softmax(-1)

    def ask(self, turn: Turn, lines: list[Line]) -> Iterator[tuple[int, Question, int]]:
        """Yield the column, question and answer of each decision of a turn; appends its lines."""
        trie, action = turn.action.trie, turn.action
        assert isinstance(trie, ActionTrie)
        if self.savings.skip_forced and not any(action.choice):
            return
        beginnings, through, _ = trie_lines(trie, self.savings.skip_forced)
        start = len(lines)
        mine = trie.leaves.index(action.nodes[-1])
        chosen = [mine] if self.savings.chosen_path else range(len(beginnings))
        lines += [(turn.prompt_ids, beginnings[k]) for k in chosen]
        for j, choice in enumerate(action.choice):
            if choice:
                children = trie.children[trie.parents[action.nodes[j]] + 1]
                via = [0 if self.savings.chosen_path else through[c] for c in children]
                options = [(start + k, trie.tokens[c]) for k, c in zip(via, children, strict=True)]
                yield j, (j, options), children.index(action.nodes[j])

    def critic_line(self, turn: Turn) -> Line:
        """Return the line of a turn that the critic reads."""
        trie = turn.action.trie
        assert isinstance(trie, ActionTrie)
        beginnings, _, _ = trie_lines(trie, self.savings.skip_forced)
        k = trie.leaves.index(turn.action.nodes[-1])
        return turn.prompt_ids, beginnings[k]


def _everywhere(packed: Packed) -> tuple[Packed, Tensor]:
    """Read every column of the same rows. Also returns the places of the original readings."""
    rows, width = packed.token_ids.shape
    row, column = torch.arange(rows * width) // width, torch.arange(rows * width) % width
    return replace(packed, row=row, column=column), packed.row * width + packed.column
