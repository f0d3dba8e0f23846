"""Acting in the published style: all offered actions go through the model at every turn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from rival_reader import Line, Reader, Savings, trie_lines

from poad.agent import ActingCache, Policy
from poad.lm import LanguageModel
from poad.trie import ROOT, ActionTrie
from poad.turns import Action, Observation, TokenIds


def _listed(observation: Observation) -> tuple[str, ...]:
    """The offered actions, of which the rival knows lists alone."""
    return tuple(cast(Iterable[str], observation.admissible_actions or ()))


@dataclass
class _Walker:
    """A walk through the tree of offered actions."""

    number: int
    prompt: TokenIds
    trie: ActionTrie
    nodes: list[int] = field(default_factory=list)
    logprob: list[float] = field(default_factory=list)

    @property
    def node(self) -> int:
        return self.nodes[-1] if self.nodes else ROOT

    def key(self, shared: bool, node: int | None = None) -> tuple:
        """Return the key of a distribution, either shared by all walks or for this walk only."""
        node = self.node if node is None else node
        return (self.prompt, self.trie, node) if shared else (self.number, node)

    def action(self) -> Action:
        return Action(
            self.trie.texts[self.trie.leaves.index(self.node)],
            tuple(self.trie.tokens[n] for n in self.nodes),
            tuple(self.trie.is_choice(n) for n in self.nodes),
            tuple(self.logprob),
            self.trie,
            tuple(self.nodes),
        )


class Actor:
    """The part of a policy that the collector uses."""

    def __init__(self, model: LanguageModel, savings: Savings) -> None:
        self.model, self.codec, self.savings = model, model.codec, savings
        self.reader = Reader(model, savings)
        own = Policy(model)
        self.dialogue, self.prompt_ids = own.dialogue, own.prompt_ids
        self._cache: ActingCache | None = None
        self._known: dict[tuple, list[float]] = {}
        """Distributions by :meth:`_Walker.key`, valid as long as the caller passes one cache."""

    @torch.no_grad()
    def act_each(
        self,
        observations: Sequence[Observation],
        generator: np.random.Generator | Sequence[np.random.Generator],
        *,
        greedy: bool = False,
        cache: ActingCache | None = None,
    ) -> Iterable[tuple[int, Action]]:
        """Choose one action for each observation; it always samples."""
        assert isinstance(generator, np.random.Generator)
        assert not greedy
        if self.savings.keep_keys and self.savings.chosen_path:
            own = cache if self.savings.memo else ActingCache()
            return enumerate(Policy(self.model).act(observations, generator, cache=own))
        if cache is not self._cache or not self.savings.memo:
            self._cache, self._known = cache, {}
        walkers = [
            _Walker(i, self.codec.prompt(o.prompt), self.codec.trie(_listed(o)))
            for i, o in enumerate(observations)
        ]
        while waiting := [w for w in walkers if not self._walk(w, generator)]:
            self._look(waiting)
        return enumerate(w.action() for w in walkers)

    def _walk(self, w: _Walker, generator: np.random.Generator) -> bool:
        """Walk on as far as distributions are known; return whether the action is complete."""
        while children := w.trie.children[w.node + 1]:
            key = w.key(self.savings.memo)
            if len(children) > 1 or (self.savings.chosen_path and not self.savings.skip_forced):
                if key not in self._known:
                    return False
                logprob = self._known[key]
                option = int(generator.choice(len(children), p=np.exp(logprob)))
            else:
                logprob, option = [0.0], 0
            w.nodes.append(children[option])
            w.logprob.append(logprob[option])
        return True

    def _look(self, waiting: Sequence[_Walker]) -> None:
        """Compute the next distribution of each walker, or all that it may need."""
        lines: list[Line] = []
        keys, questions = [], []
        for w in waiting:
            start = len(lines)
            beginnings, through, choices = trie_lines(w.trie, self.savings.skip_forced)
            if self.savings.chosen_path:
                lines.append((w.prompt, w.trie.token_path(w.node)))
                nodes, through = [w.node], dict.fromkeys(through, 0)
            else:
                lines += [(w.prompt, beginning) for beginning in beginnings]
                nodes = choices
            for node in nodes:
                options = [
                    (start + through[c], w.trie.tokens[c]) for c in w.trie.children[node + 1]
                ]
                questions.append((len(w.trie.path(node)), options))
                keys.append(w.key(self.savings.memo, node))
        answers = self.reader.answer(lines, questions).double().softmax(-1).log()
        for key, (_, options), answer in zip(keys, questions, answers.tolist(), strict=True):
            self._known[key] = answer[: len(options)]
