"""Sampling token by token: walking the trie of offered actions, and writing freely."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from poad.config import ActingConfig
from poad.lm import Decoder, LanguageModel
from poad.trie import ROOT, ActionTrie
from poad.turns import Action, TokenIds


class Choice(NamedTuple):
    """One distribution, kept while the weights stand still."""

    logprob: list[float]
    cumulative: list[float]

    @classmethod
    def of(cls, logprob: Tensor) -> Choice:
        """From normalized log-probabilities [K]."""
        return cls(logprob.tolist(), logprob.double().exp().cumsum(-1).tolist())

    def draw(self, generator: np.random.Generator, greedy: bool) -> int:
        """Index of an option, sampled or the likeliest."""
        if greedy:
            return max(range(len(self.logprob)), key=self.logprob.__getitem__)
        u = generator.random() * self.cumulative[-1]
        return next((i for i, c in enumerate(self.cumulative) if u < c), len(self.logprob) - 1)


CERTAIN = Choice([0.0], [1.0])
"""What to do where only one action is offered; no forward pass is spent on it."""


class Memo(dict[tuple, "Choice | Sequence[float]"]):
    """Distributions already computed, and what was read for prompts that grow.

    Valid only while the weights stand still: whoever acts holds it, one per rollout.
    """

    decoder: Decoder | None = None
    """Remembers the rows it has read, where prompts grow."""
    engine: np.random.Generator | None = None
    """The source of the engine's seeds, where another engine is to write; set by who acts."""


@dataclass
class _Walker:
    """One walk through a trie, from the root to a leaf."""

    prompt: TokenIds
    trie: ActionTrie
    generator: np.random.Generator
    node: int = ROOT
    nodes: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    choice: list[bool] = field(default_factory=list)
    logprob: list[float] = field(default_factory=list)
    row: int = -1
    """Its row in the decoder; -1 before the prompt is read."""
    read: int = 0
    """Tokens the decoder has read behind the prompt."""

    def advance(self, greedy: bool, memo: Memo) -> bool:
        """Walk on as far as is known; whether the leaf was reached."""
        while children := self.trie.children[self.node + 1]:
            if len(children) == 1:
                self._step(children[0], 0.0, choice=False)
                continue
            known = memo.get((self.prompt, self.trie, self.node))
            if not isinstance(known, Choice):
                return False
            option = known.draw(self.generator, greedy)
            self._step(children[option], known.logprob[option], choice=True)
        return True

    def action(self) -> Action:
        """What was written on the way."""
        return Action(
            self.trie.texts[self.trie.leaves.index(self.node)],
            tuple(self.tokens),
            tuple(self.choice),
            tuple(self.logprob),
            self.trie,
            tuple(self.nodes),
        )

    def _step(self, node: int, logprob: float, choice: bool) -> None:
        self.node = node
        self.nodes.append(node)
        self.tokens.append(self.trie.tokens[node])
        self.logprob.append(logprob)
        self.choice.append(choice)


def walk(
    model: LanguageModel,
    temperature: float,
    offers: Sequence[tuple[TokenIds, ActionTrie]],
    generators: Sequence[np.random.Generator],
    greedy: bool,
    memo: Memo,
) -> list[Action]:
    """Sample among offered actions: at every trie node renormalize over the children.

    The prompt is computed once and then only the chosen path, however many actions are offered.

    Args:
        model: the language model.
        temperature: divides the logits.
        offers: prompt and trie of each decision.
        generators: one for each.
        greedy: take the likeliest child instead of sampling.
        memo: distributions to reuse and extend.
    """
    walkers = [
        _Walker(prompt, trie, generator)
        for (prompt, trie), generator in zip(offers, generators, strict=True)
    ]
    decoder = memo.decoder or model.decoder()
    waiting = [w for w in walkers if not w.advance(greedy, memo)]
    while waiting:
        _read_nodes(model, temperature, waiting, decoder, memo)
        waiting = [w for w in waiting if not w.advance(greedy, memo)]
    return [w.action() for w in walkers]


def _read_nodes(
    model: LanguageModel,
    temperature: float,
    waiting: Sequence[_Walker],
    decoder: Decoder,
    memo: Memo,
) -> None:
    """One forward pass for all walkers that stand at an unknown node; equal ones share it."""
    groups: dict[tuple, list[_Walker]] = {}
    for w in waiting:
        groups.setdefault((w.prompt, tuple(w.tokens)), []).append(w)
    firsts = [group[0] for group in groups.values()]
    if firsts[0].row < 0:
        hidden = decoder.start([(*w.prompt, *w.tokens) for w in firsts])
    else:
        chunks = [tuple(w.tokens[w.read :]) for w in firsts]
        hidden = decoder.read(chunks, [w.row for w in firsts])
    logits = model.logits(hidden)
    for row, group in enumerate(groups.values()):
        for w in group:
            w.row, w.read = row, len(w.tokens)
            key = (w.prompt, w.trie, w.node)
            if key not in memo:
                tokens = [w.trie.tokens[c] for c in w.trie.children[w.node + 1]]
                memo[key] = Choice.of((logits[row, tokens] / temperature).log_softmax(-1))


def write(
    model: LanguageModel,
    acting: ActingConfig,
    prompts: Sequence[TokenIds],
    generators: Sequence[np.random.Generator],
    greedy: bool,
    decoder: Decoder | None = None,
) -> Iterator[tuple[int, Action]]:
    """Write freely: every token of the vocabulary, until a stop text or the token budget's end.

    Equal prompts are computed once and share what was computed; a row leaves the batch when it is
    over.

    Args:
        model: the language model.
        acting: temperature, token budget and stop texts.
        prompts: of each decision.
        generators: one for each.
        greedy: take the likeliest token instead of sampling.
        decoder: one that remembers; none: a fresh one.

    Yields:
        The index of a prompt and the action behind it, each as soon as it is over.
    """
    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    decoder = decoder or model.decoder()
    distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    writing, rows = list(range(len(prompts))), [distinct[prompt] for prompt in prompts]
    hidden = decoder.start(list(distinct))[rows]
    while True:
        scores = (model.logits(hidden) / acting.temperature).log_softmax(-1)
        chosen = scores.argmax(-1) if greedy else _draw(scores, [generators[i] for i in writing])
        taken = scores.gather(1, chosen[:, None]).squeeze(1).tolist()
        going: list[tuple[int, int]] = []
        for i, row, token, logprob in zip(writing, rows, chosen.tolist(), taken, strict=True):
            tokens[i].append(token)
            logprobs[i].append(logprob)
            if is_over(model, acting, tokens[i]):
                ids, values = tuple(tokens[i]), tuple(logprobs[i])
                yield i, Action(spoken(model, acting, ids), ids, (True,) * len(ids), values)
            else:
                going.append((i, row))
        if not going:
            return
        writing = [i for i, _ in going]
        hidden = decoder.read([(tokens[i][-1],) for i in writing], [row for _, row in going])
        rows = list(range(len(writing)))


def _draw(logprob: Tensor, generators: Sequence[np.random.Generator]) -> Tensor:
    """Sample a token for each row [R] of normalized log-probabilities [R, V]."""
    cumulative = logprob.double().exp().cumsum(-1)
    u = torch.tensor([[g.random()] for g in generators], dtype=torch.float64).to(cumulative.device)
    drawn = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True).squeeze(1)
    return drawn.clamp(max=logprob.shape[1] - 1)


def is_over(model: LanguageModel, acting: ActingConfig, tokens: Sequence[int]) -> bool:
    """Whether the newest token ends a freely written action."""
    budget = acting.max_action_tokens
    if tokens[-1] == model.codec.end_id or (budget is not None and len(tokens) >= budget):
        return True
    if not acting.stop:
        return False
    # The newest token completes a stop text or none does; a token is a byte of text at least.
    reach = max(len(stop.encode()) for stop in acting.stop) + 4
    text = model.codec.tokenizer.decode(tokens[-reach:])
    return any(stop in text for stop in acting.stop)


def spoken(model: LanguageModel, acting: ActingConfig, tokens: Sequence[int]) -> str:
    """The text of a freely written action: up to the first stop text."""
    kept = tokens[:-1] if tokens[-1] == model.codec.end_id else tokens
    text = model.codec.tokenizer.decode(kept)
    for stop in acting.stop or ():
        text = text.partition(stop)[0]
    return text.strip()
