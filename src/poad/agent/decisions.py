"""What the agent decides between: distinct decisions, laid out once for many turns.

A *decision* is a distribution over options. Token by token, the options are the admissible next
tokens at one position; action by action, they are the offered actions of one prompt. Identical
decisions of a rollout are one decision here, so each is computed once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from poad.lm import Bundles, Packed, pack
from poad.trie import ActionTrie
from poad.turns import Position, TokenIds


@dataclass(frozen=True)
class DecisionBatch:
    """Q decisions, each between up to K options, over rows shared by all of them.

    An option's score is the mean or sum of the log-probabilities of A tokens: one token where the
    agent decides token by token, the whole action where it decides between actions.
    """

    positions: tuple[Position, ...]
    """R readings."""
    bundles: Bundles
    """How the readings may be divided; a decision lies in one bundle."""
    pad_id: int
    read: Tensor
    """[Q, K, A] int64: the reading that predicts each token of an option."""
    token: Tensor
    """[Q, K, A] int64."""
    token_mask: Tensor
    """[Q, K, A] bool."""
    option_mask: Tensor
    """[Q, K] bool."""
    divisor: Tensor
    """[Q, K] float32: what an option's summed log-probability is divided by."""
    renormalize: Tensor
    """[Q] bool: whether the options are all there is (softmax over them), or some of the tokens of
    the whole vocabulary."""
    also: Tensor
    """[E] int64: the readings of further positions, where a critic on the same body reads."""

    @cached_property
    def packed(self) -> Packed:
        """The rows in which the readings lie."""
        return pack(self.positions, self.pad_id)

    def select(self, bundles: Tensor) -> tuple[DecisionBatch, Tensor, Tensor]:
        """Some bundles with the decisions that lie in them.

        Args:
            bundles: [S'] int64, distinct.

        Returns:
            The smaller batch; [Q'] int64: which decisions it kept, in ascending order; [E'] int64:
            which of the further positions.
        """
        picked, readings = self.bundles.select(bundles)
        place = torch.full((len(self.positions),), -1)
        place[readings] = torch.arange(len(readings))
        kept = (place[self.read[:, 0, 0]] >= 0).nonzero().squeeze(1)
        also = place[self.also]
        kept_also = (also >= 0).nonzero().squeeze(1)
        batch = DecisionBatch(
            tuple(self.positions[r] for r in readings.tolist()),
            picked,
            self.pad_id,
            place[self.read[kept]].clamp(min=0),
            self.token[kept],
            self.token_mask[kept],
            self.option_mask[kept],
            self.divisor[kept],
            self.renormalize[kept],
            also[kept_also],
        )
        return batch, kept, kept_also


@dataclass
class _Decision:
    """A decision in the making: options as paths of (position, token)."""

    paths: list[list[tuple[Position, int]]]
    divisor: list[float]
    renormalize: bool


class DecisionTable:
    """Collects distinct decisions and numbers them in the order they come."""

    def __init__(self) -> None:
        self._index: dict[tuple, int] = {}
        self._made: list[_Decision] = []
        self._options: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._made)

    def at_node(self, prompt: TokenIds, trie: ActionTrie, node: int) -> int:
        """The decision between the children of a trie node."""
        key = (prompt, trie, node)
        if key not in self._index:
            position = (prompt, trie.token_path(node))
            children = trie.children[node + 1]
            paths = [[(position, trie.tokens[child])] for child in children]
            self._add(key, _Decision(paths, [1.0] * len(children), renormalize=True))
        return self._index[key]

    def between_actions(
        self, prompt: TokenIds, trie: ActionTrie, score: str, score_end: bool
    ) -> int:
        """The decision between whole actions, scored per ``word``, per ``token`` or by the sum."""
        key = (prompt, trie)
        if key not in self._index:
            paths, divisor = [], []
            for leaf, text in zip(trie.leaves, trie.texts, strict=True):
                tokens = trie.token_path(leaf)
                counted = tokens if score_end else tokens[:-1]
                paths.append([((prompt, tokens[:j]), token) for j, token in enumerate(counted)])
                lengths = {"word": len(text.split()), "token": len(counted), "sum": 1}
                divisor.append(float(lengths[score]))
            self._add(key, _Decision(paths, divisor, renormalize=True))
        return self._index[key]

    def of_vocabulary(self, position: Position, token: int) -> tuple[int, int]:
        """The decision between all tokens at a position, and the option that ``token`` is."""
        if position not in self._index:
            self._add(position, _Decision([], [], renormalize=False))
        q = self._index[position]
        if (q, token) not in self._options:
            self._options[q, token] = len(self._made[q].paths)
            self._made[q].paths.append([(position, token)])
            self._made[q].divisor.append(1.0)
        return q, self._options[q, token]

    def batch(
        self,
        pad_id: int,
        also: Sequence[Position] = (),
        branching: bool = True,
        divide: bool = True,
    ) -> DecisionBatch:
        """Pad all decisions into one batch; every position is read once.

        Args:
            pad_id: token written into padding.
            also: further positions to read.
            branching: whether the model can read trees.
            divide: whether the decisions behind one prompt may be divided among bundles.

        Raises:
            ValueError: there is no decision.
        """
        if not self._made:
            raise ValueError("None of these turns held a choice; there is nothing to learn from.")
        index: dict[Position, int] = {}
        for decision in self._made:
            for path in decision.paths:
                for position, _ in path:
                    index.setdefault(position, len(index))
        for position in also:
            index.setdefault(position, len(index))
        shape = (
            len(self._made),
            max(len(d.paths) for d in self._made),
            max(len(path) for d in self._made for path in d.paths),
        )
        read = np.zeros(shape, dtype=np.int64)
        token = np.zeros(shape, dtype=np.int64)
        token_mask = np.zeros(shape, dtype=bool)
        divisor = np.ones(shape[:2], dtype=np.float32)
        for q, decision in enumerate(self._made):
            read[q] = index[decision.paths[0][0][0]]
            divisor[q, : len(decision.divisor)] = decision.divisor
            for k, path in enumerate(decision.paths):
                for a, (position, token_id) in enumerate(path):
                    read[q, k, a] = index[position]
                    token[q, k, a] = token_id
                    token_mask[q, k, a] = True
        # A whole-action decision reads all over its prompt, and must not be divided.
        positions = tuple(index)
        largest = None if shape[2] > 1 else 128 if divide else sys.maxsize
        bundles = Bundles.divide(positions, largest, branching)
        return DecisionBatch(
            positions,
            bundles,
            pad_id,
            torch.from_numpy(read),
            torch.from_numpy(token),
            torch.from_numpy(token_mask),
            torch.from_numpy(token_mask.any(2)),
            torch.from_numpy(divisor),
            torch.tensor([d.renormalize for d in self._made]),
            torch.tensor([index[position] for position in also], dtype=torch.int64),
        )

    def _add(self, key: tuple, decision: _Decision) -> None:
        self._index[key] = len(self._made)
        self._made.append(decision)
