"""Rows through a language model as the published trainers send them, or with our savings.

TWOSOME and POAD write prompt and action out anew for every offered action of every turn. A *line*
is such a row; a *question* is a decision that some lines answer.
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
from poad.turns import TokenIds, Turn


@dataclass(frozen=True)
class Savings:
    """What is not done twice, or not at all. None of it is the published style."""

    chosen_path: bool = False
    """Compute the tokens that were chosen, not those of every offered action."""
    no_reference: bool = False
    """No pass of the untrained model for reference log-probabilities, which no loss uses here."""
    rows_once: bool = False
    """Compute identical rows of a minibatch once; minibatches part the prompts, not the turns."""
    memo: bool = False
    """While acting, compute each distribution once per rollout."""
    frozen_once: bool = False
    """Read the untrained body for the critic once per rollout, not at every turn and epoch."""
    beginnings_once: bool = False
    """Compute what rows begin with alike once: they become trees (includes `rows_once`)."""
    few_logits: bool = False
    """Logits, and the last feed-forward layer, where a token of an action is predicted, not at
    every column of every row."""
    skip_forced: bool = False
    """Compute nothing at tokens without an alternative, nor behind the last choice."""
    keep_keys: bool = False
    """While acting along the chosen path, keep keys and values and append to them, and read choices
    that lie close with the prompt."""


Line = tuple[TokenIds, TokenIds]
"""A row to compute: a prompt and the beginning of an action. All its positions can be read."""
Question = tuple[int, list[tuple[int, int]]]
"""A decision: how many tokens precede it, and for each option a line to read it in and a token."""


@cache
def ways(trie: ActionTrie, skip_forced: bool) -> tuple[list[TokenIds], dict[int, int], list[int]]:
    """Of a trie: the tokens to compute of each action, an action through each node, the choices."""
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
    """Rows through the model, laid out with or without our savings."""

    def __init__(self, model: LanguageModel, savings: Savings) -> None:
        self.model, self.savings = model, savings

    def lay(self, lines: Sequence[Line]) -> tuple[Packed, list[int]]:
        """Rows for some lines, and the first reading of each: its prompt's end, then its tokens."""
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
        """Hidden states of the untrained body at all readings of some lines."""
        packed, first = self.lay(lines)
        if self.savings.few_logits:
            return self.model.read_frozen(packed).float(), first
        whole, readings = _everywhere(packed)
        return self.model.read_frozen(whole)[readings].float(), first

    def logprobs(self, packed: Packed, read: Callable[[Packed], Tensor]) -> Tensor:
        """[R, V] of the next token at the readings."""
        if self.savings.few_logits:
            return self.model.logits(read(packed)).log_softmax(-1)
        whole, readings = _everywhere(packed)
        return self.model.logits(read(whole)).log_softmax(-1)[readings]

    def answer(self, lines: Sequence[Line], questions: Sequence[Question]) -> Tensor:
        """[S, K] log-probabilities among the options of each question."""
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
        """Column, question and answer of each decision of a turn; adds the lines it takes."""
        trie, action = turn.action.trie, turn.action
        assert trie is not None
        if self.savings.skip_forced and not any(action.choice):
            return
        beginnings, through, _ = ways(trie, self.savings.skip_forced)
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

    def spoken(self, turn: Turn) -> Line:
        """What the critic reads of a turn."""
        assert turn.action.trie is not None
        beginnings, _, _ = ways(turn.action.trie, self.savings.skip_forced)
        k = turn.action.trie.leaves.index(turn.action.nodes[-1])
        return turn.prompt_ids, beginnings[k]


def _everywhere(packed: Packed) -> tuple[Packed, Tensor]:
    """The same rows with every column read, and where among those the readings are."""
    rows, width = packed.token_ids.shape
    row, column = torch.arange(rows * width) // width, torch.arange(rows * width) % width
    return replace(packed, row=row, column=column), packed.row * width + packed.column
