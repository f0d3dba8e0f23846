"""Decisions: the distributions that the agent chose from, laid out once for many turns.

A *decision* is a distribution over options. Token by token, the options are the admissible next
tokens at one position. Action by action, they are the offered actions behind one prompt. Identical
decisions of a rollout are merged, so that each is computed once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from poad.errors import ConfigError
from poad.lm import Bundles, renumber
from poad.trie import MAX_LISTED, Form, TokenTree
from poad.turns import Beginning, Position, TokenIds


@dataclass(frozen=True)
class DecisionBatch:
    """Q decisions, each between up to K options, over R readings that they share.

    The score of an option is the mean or the sum of the log-probabilities of up to A tokens: one
    token where the agent decides token by token, the whole action where it decides between actions.

    For example, a decision between the tokens ``look`` and ``take``, both predicted at reading 7,
    and one between the actions ``go on`` and ``wait`` are, with K = A = 2::

        read        [[[7, 7], [7, 7]],             [[0, 1], [0, 0]]]
        token       [[[look, -], [take, -]],       [[go, on], [wait, -]]]
        token_mask  [[[1, 0], [1, 0]],             [[1, 1], [1, 0]]]
    """

    bundles: Bundles
    """The readings, each of another position, divided into units of work. All readings of a
    decision lie in one bundle."""
    pad_id: int
    """The token in the padding of the rows."""
    read: Tensor
    """[Q, K, A] int64: the reading that predicts each token of an option."""
    token: Tensor
    """[Q, K, A] int64: the tokens of each option."""
    token_mask: Tensor
    """[Q, K, A] bool, True where an option has a token."""
    option_mask: Tensor
    """[Q, K] bool, True where a decision has an option."""
    divisor: Tensor
    """[Q, K] float32: the summed log-probability of an option is divided by this."""
    renormalize: Tensor
    """[Q] bool: True if the policy is the softmax over the options, False if the options are tokens
    of the whole vocabulary, or of the part of it that is allowed."""
    extra_readings: Tensor
    """[E] int64: readings of further positions, for a critic that shares the body."""
    allowed: Tensor | None = None
    """[D, B] uint8: distinct masks over the vocabulary, one bit a token, lowest first; None if
    there is none."""
    mask: Tensor | None = None
    """[Q] int64: the row of ``allowed`` that holds for a decision, -1 where all tokens are."""
    reference: Tensor | None = None
    """[R, H] what the untrained model reads, if the policy is compared with it. These are states
    and not distributions, which would hold the whole vocabulary where the agent writes freely."""

    @property
    def positions(self) -> tuple[Position, ...]:
        """[R] the positions to read; reading r belongs to position r."""
        return self.bundles.positions

    @property
    def between_single_tokens(self) -> bool:
        """True if every decision is the softmax over tokens at one reading."""
        one = self.read.shape[2] == 1 and bool((self.divisor == 1).all())
        return one and bool(self.renormalize.all())

    def select(self, bundles: Tensor) -> tuple[DecisionBatch, Tensor, Tensor]:
        """Select some bundles, with the decisions and further positions that lie in them.

        Args:
            bundles: [S'] int64, distinct.

        Returns:
            The smaller batch; [Q'] int64, the decisions it keeps, in ascending order; [E'] int64,
            the further positions it keeps, as indices into ``extra_readings``.
        """
        kept_bundles, kept_readings = self.bundles.select(bundles)
        new = renumber(kept_readings, len(self.positions))  # [R] -> [R'], -1 where left out
        # [Q, K, A] -> [Q]: a decision lies in one bundle, so its first reading stands for them all
        kept = (new[self.read[:, 0, 0]] >= 0).nonzero().squeeze(1)
        extra = new[self.extra_readings]  # [E], -1 where left out
        kept_extra = (extra >= 0).nonzero().squeeze(1)
        batch = DecisionBatch(
            bundles=kept_bundles,
            pad_id=self.pad_id,
            read=new[self.read[kept]],
            token=self.token[kept],
            token_mask=self.token_mask[kept],
            option_mask=self.option_mask[kept],
            divisor=self.divisor[kept],
            renormalize=self.renormalize[kept],
            extra_readings=extra[kept_extra],
            allowed=self.allowed,
            mask=None if self.mask is None else self.mask[kept],
            reference=(
                None
                if self.reference is None
                else self.reference[kept_readings.to(self.reference.device)]
            ),
        )
        return batch, kept, kept_extra


@dataclass
class _Decision:
    """One decision in a table: its options as paths of (position, token)."""

    paths: list[list[tuple[Position, int]]]
    divisor: list[float]
    renormalize: bool
    allowed: bytes | None = None
    """For a decision between many tokens: which of the vocabulary, one bit each."""


def listed_leaves(trie: TokenTree) -> Sequence[int]:
    """Return the last node of each offered action, where whole actions are to be scored.

    Raises:
        ConfigError: a form or a grammar offers more actions than are ever listed.
    """
    try:
        return trie.all_leaves()
    except ValueError as error:
        offer = trie.offer
        number = (
            f"a form offers {offer.size:,} of them"
            if isinstance(offer, Form)
            else "a grammar describes many"
        )
        raise ConfigError(
            f"Whole actions are scored one by one, but {number}, more than {MAX_LISTED:,}. "
            "Use a method that decides token by token, such as poad or turn_ppo, with "
            "acting.scheme = trie."
        ) from error


class DecisionTable:
    """Collects distinct decisions and numbers them in the order in which they were first added."""

    def __init__(self) -> None:
        self._index: dict[tuple, int] = {}
        self._decisions: list[_Decision] = []
        self._options: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._decisions)

    def at_node(self, prompt: TokenIds, trie: TokenTree, node: int) -> int:
        """Add the decision between the children of a trie node; return its number."""
        key = (prompt, trie, node)
        if key not in self._index:
            position = (prompt, trie.token_path(node))
            children = trie.options(node)
            paths: list[list[tuple[Position, int]]] = [
                [(position, trie.token(child))] for child in children
            ]
            self._add(key, _Decision(paths, [1.0] * len(children), renormalize=True))
        return self._index[key]

    def after_node(
        self, prompt: TokenIds, trie: TokenTree, node: int, child: int
    ) -> tuple[int, int]:
        """Add the decision after a trie node; return its number and that of the option taken.

        Where the children of the node are listed, they are the options. Otherwise the options are
        those that were taken, as in `of_vocabulary`.
        """
        allowed = trie.allowed(node)
        if allowed is None:
            return self.at_node(prompt, trie, node), trie.options(node).index(child)
        key, position = (prompt, trie, node), (prompt, trie.token_path(node))
        return self._taken(key, position, trie.token(child), allowed)

    def between_actions(
        self, prompt: TokenIds, trie: TokenTree, score: str, score_end: bool
    ) -> int:
        """Add the decision between whole actions; return its number.

        Args:
            prompt: the prompt behind which the actions are offered.
            trie: the offered actions.
            score: ``word`` or ``token`` for the mean log-probability per word or per token, ``sum``
                for the sum.
            score_end: whether the end-of-action token counts.
        """
        key = (prompt, trie)
        if key not in self._index:
            paths, divisor = [], []
            for leaf in listed_leaves(trie):
                tokens, text = trie.token_path(leaf), trie.text(leaf)
                # Token j is predicted at the position behind the j tokens before it. Every path
                # begins at (prompt, ()), the position behind the prompt.
                counted = tokens if score_end else tokens[:-1]
                paths.append(
                    [((prompt, Beginning(tokens, j)), token) for j, token in enumerate(counted)]
                )
                lengths = {"word": len(text.split()), "token": len(counted), "sum": 1}
                divisor.append(float(lengths[score]))
            self._add(key, _Decision(paths, divisor, renormalize=True))
        return self._index[key]

    def of_vocabulary(self, position: Position, token: int) -> tuple[int, int]:
        """Add the decision between all tokens at a position; return its number and the option.

        Only the tokens that were taken become options, in the order in which they come.
        """
        return self._taken(position, position, token, None)

    def _taken(
        self, key: tuple, position: Position, token: int, allowed: bytes | None
    ) -> tuple[int, int]:
        if key not in self._index:
            self._add(key, _Decision([], [], renormalize=False, allowed=allowed))
        q = self._index[key]
        if (q, token) not in self._options:
            self._options[q, token] = len(self._decisions[q].paths)
            self._decisions[q].paths.append([(position, token)])
            self._decisions[q].divisor.append(1.0)
        return q, self._options[q, token]

    def batch(
        self,
        pad_id: int,
        extra_positions: Sequence[Position] = (),
        branching: bool = True,
        divide: bool = True,
    ) -> DecisionBatch:
        """Pad all decisions into one batch, in which every position is read once.

        Args:
            pad_id: the token in the padding.
            extra_positions: E further positions to read.
            branching: whether the model can read trees.
            divide: whether the decisions behind one prompt may be divided among bundles.

        Raises:
            ValueError: there is no decision.
        """
        if not self._decisions:
            raise ValueError("None of these turns held a choice; there is nothing to learn from.")
        # Number the distinct positions in the order in which they come: these are the readings.
        numbers: dict[Position, int] = {}
        for position in (*self._positions(), *extra_positions):
            numbers.setdefault(position, len(numbers))
        read, token, token_mask, divisor = self._padded(numbers)
        positions = tuple(numbers)
        # A decision between whole actions reads all over its prompt, so it must stay in one bundle.
        # Where a bundle is larger than a pass, `evaluate` divides the pass.
        whole_prompts = read.shape[2] > 1
        allowed, mask = self._masks()
        max_unshared = None if whole_prompts else 128 if divide else sys.maxsize
        return DecisionBatch(
            bundles=Bundles.divide(positions, max_unshared, branching),
            pad_id=pad_id,
            read=torch.from_numpy(read),
            token=torch.from_numpy(token),
            token_mask=torch.from_numpy(token_mask),
            option_mask=torch.from_numpy(token_mask.any(2)),
            divisor=torch.from_numpy(divisor),
            renormalize=torch.tensor([d.renormalize for d in self._decisions]),
            extra_readings=torch.tensor([numbers[p] for p in extra_positions], dtype=torch.int64),
            allowed=allowed,
            mask=mask,
        )

    def _padded(
        self, numbers: Mapping[Position, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Pad all decisions: read, token and token_mask [Q, K, A], and divisor [Q, K]."""
        shape = (
            len(self._decisions),  # Q
            max(len(d.paths) for d in self._decisions),  # K
            max(len(path) for d in self._decisions for path in d.paths),  # A
        )
        read = np.zeros(shape, dtype=np.int64)
        token = np.zeros(shape, dtype=np.int64)
        token_mask = np.zeros(shape, dtype=bool)
        divisor = np.ones(shape[:2], dtype=np.float32)
        for q, decision in enumerate(self._decisions):
            # Padding points at a reading of the same decision, so that `select` keeps it valid.
            # Padded options have no tokens and divide by 1; `option_mask` rules them out.
            read[q] = numbers[decision.paths[0][0][0]]
            divisor[q, : len(decision.divisor)] = decision.divisor
            for k, path in enumerate(decision.paths):
                for a, (position, token_id) in enumerate(path):
                    read[q, k, a] = numbers[position]
                    token[q, k, a] = token_id
                    token_mask[q, k, a] = True
        return read, token, token_mask, divisor

    def _masks(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Number the distinct masks over the vocabulary: [D, B] uint8 and [Q] int64."""
        rows: dict[bytes, int] = {}
        for decision in self._decisions:
            if decision.allowed is not None:
                rows.setdefault(decision.allowed, len(rows))
        if not rows:
            return None, None
        mask = [-1 if d.allowed is None else rows[d.allowed] for d in self._decisions]
        return torch.tensor([[*row] for row in rows], dtype=torch.uint8), torch.tensor(mask)

    def _add(self, key: tuple, decision: _Decision) -> None:
        self._index[key] = len(self._decisions)
        self._decisions.append(decision)

    def _positions(self) -> Iterator[Position]:
        """Go through the positions of all decisions, repeated ones included."""
        for decision in self._decisions:
            for path in decision.paths:
                for position, _ in path:
                    yield position
