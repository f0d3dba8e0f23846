"""Sampling token by token: walking the trie of offered actions, and writing freely."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from poad.agent.settings import Acting
from poad.errors import ModelError
from poad.lm import Decoder, LanguageModel, allowed_tokens, explain_nan
from poad.trie import ROOT, TokenTree
from poad.turns import Action, TokenIds


class Categorical(NamedTuple):
    """A distribution over K options, as plain lists that are fast to sample from."""

    logprob: list[float]
    """[K] natural logarithms of the probabilities."""
    cumulative: list[float]
    """[K] cumulative sums of the probabilities."""

    @classmethod
    def from_logprob(cls, logprob: Tensor) -> Categorical:
        """Make a distribution from normalized log-probabilities [K]."""
        return cls(logprob.tolist(), logprob.double().exp().cumsum(-1).tolist())

    def checked(self, model: LanguageModel, prompt: TokenIds) -> Categorical:
        """Return the distribution itself.

        Raises:
            ModelError: a log-probability is not finite; says behind which prompt, and why.
        """
        check_finite(model, prompt, self.logprob)
        return self

    def sample(self, generator: np.random.Generator, greedy: bool) -> int:
        """Return the index of an option: the likeliest if greedy, otherwise sampled."""
        if greedy:
            return max(range(len(self.logprob)), key=self.logprob.__getitem__)
        # The cumulative sum may miss 1 by rounding, so its last entry takes the place of 1.
        u = generator.random() * self.cumulative[-1]
        return next((i for i, c in enumerate(self.cumulative) if u < c), len(self.logprob) - 1)


SINGLE_OPTION = Categorical([0.0], [1.0])
"""The distribution where only one action is offered; it takes no forward pass."""


_CACHED_TOKENS = 2**23
"""About 300 MB of prompts."""


@dataclass
class ActingCache:
    """Everything that acting computes and can use again while the weights do not change.

    A rollout or an evaluation keeps one from its beginning to its end. Prompts are given by their
    token ids. Tries are compared by identity; the codec returns the same one for the same offer.
    """

    node_choices: dict[tuple[TokenIds, TokenTree, int], Categorical] = field(default_factory=dict)
    """By prompt, trie and node: the distribution over the children of the node."""
    action_choices: dict[tuple[TokenIds, TokenTree], Categorical] = field(default_factory=dict)
    """By prompt and trie: the distribution over whole actions, where the agent scores those."""
    token_logprobs: dict[tuple[TokenIds, TokenIds], tuple[float, ...]] = field(default_factory=dict)
    """By prompt and action: the log-probability of each token over the whole vocabulary."""
    probabilities: dict[tuple[TokenIds, TokenTree], list[float]] = field(default_factory=dict)
    """By prompt and trie: the probability of each offered action, under any scheme."""
    decoder: Decoder | None = None
    """Remembers rows from turn to turn, where prompts grow."""
    prompts: set[TokenIds] = field(default_factory=set)
    """The prompts that something was computed for."""
    tokens: int = 0
    """The number of tokens in these prompts."""

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        """Note prompts before they are used; forget all others when there are too many tokens.

        A long evaluation where no prompt repeats would otherwise fill the memory.
        """
        new = {*prompts} - self.prompts
        self.tokens += sum(map(len, new))
        self.prompts |= new
        if self.tokens > _CACHED_TOKENS:
            for known in (self.node_choices, self.action_choices, self.token_logprobs):
                known.clear()
            self.probabilities.clear()
            self.prompts = {*prompts}
            self.tokens = sum(map(len, self.prompts))


@dataclass
class _Walker:
    """One walk through a trie, from the root to a leaf."""

    prompt: TokenIds
    trie: TokenTree
    generator: np.random.Generator
    node: int = ROOT
    nodes: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    choice: list[bool] = field(default_factory=list)
    logprob: list[float] = field(default_factory=list)
    row: int = -1
    """Its row in the decoder, -1 before the prompt is read."""
    read: int = 0
    """The number of its tokens that the decoder has read behind the prompt."""

    def advance(self, greedy: bool, cache: ActingCache) -> bool:
        """Walk on as long as the distributions are known; return whether a leaf was reached."""
        while self.trie.allowed(self.node) is None and (children := self.trie.options(self.node)):
            if len(children) == 1:
                self._step(children[0], 0.0, choice=False)
                continue
            known = cache.node_choices.get((self.prompt, self.trie, self.node))
            if known is None:
                return False
            option = known.sample(self.generator, greedy)
            self._step(children[option], known.logprob[option], choice=True)
        return self.trie.allowed(self.node) is None

    def take(self, token: int, logprob: float) -> None:
        """Walk on with one of many admissible tokens."""
        self._step(self.trie.child(self.node, token), logprob, choice=True)

    def action(self) -> Action:
        """Return the action at the leaf."""
        return Action(
            self.trie.text(self.node),
            tuple(self.tokens),
            tuple(self.choice),
            tuple(self.logprob),
            self.trie,
            tuple(self.nodes),
        )

    def _step(self, node: int, logprob: float, choice: bool) -> None:
        self.node = node
        self.nodes.append(node)
        self.tokens.append(self.trie.token(node))
        self.logprob.append(logprob)
        self.choice.append(choice)


def walk(
    model: LanguageModel,
    acting: Acting,
    offers: Sequence[tuple[TokenIds, TokenTree]],
    generators: Sequence[np.random.Generator],
    greedy: bool,
    cache: ActingCache,
) -> list[Action]:
    """Sample offered actions: at each trie node, renormalize over its children and take one.

    The prompt is computed once, and behind it only the chosen path, however many actions are
    offered.

    Args:
        model: the language model.
        acting: temperature and size of a forward pass.
        offers: the prompt and trie of each action.
        generators: the source of randomness of each action.
        greedy: take the likeliest child instead of sampling.
        cache: distributions to use and to add to.
    """
    walkers = [
        _Walker(prompt, trie, generator)
        for (prompt, trie), generator in zip(offers, generators, strict=True)
    ]
    decoder = cache.decoder or model.decoder(pass_tokens=acting.pass_tokens)
    waiting = [w for w in walkers if not w.advance(greedy, cache)]
    while waiting:
        _read_nodes(model, acting, waiting, greedy, decoder, cache)
        waiting = [w for w in waiting if not w.advance(greedy, cache)]
    return [w.action() for w in walkers]


def _read_nodes(
    model: LanguageModel,
    acting: Acting,
    waiting: Sequence[_Walker],
    greedy: bool,
    decoder: Decoder,
    cache: ActingCache,
) -> None:
    """Compute the distributions at the nodes where walkers wait, in one forward pass.

    Walkers that wait where many tokens are admissible take one, since that hardly repeats.
    """
    # Walkers with the same prompt and tokens share a row.
    groups: dict[tuple, list[_Walker]] = {}
    for w in waiting:
        groups.setdefault((w.prompt, tuple(w.tokens)), []).append(w)
    firsts = [group[0] for group in groups.values()]
    if firsts[0].row < 0:  # the first pass: none of the prompts has been read
        hidden = decoder.start([(*w.prompt, *w.tokens) for w in firsts])
    else:  # walkers that wait again were all in the pass before; the others' rows are dropped
        # A row is read on from where it stopped; forced tokens make a chunk of several.
        chunks = [tuple(w.tokens[w.read :]) for w in firsts]
        hidden = decoder.read(chunks, [w.row for w in firsts])
    # The nodes whose distributions are not known yet, each with its row.
    unknown: dict[tuple[TokenIds, TokenTree, int], int] = {}
    for row, group in enumerate(groups.values()):
        for w in group:
            w.row, w.read = row, len(w.tokens)
            key = (w.prompt, w.trie, w.node)
            if w.trie.allowed(w.node) is None and key not in cache.node_choices:
                unknown.setdefault(key, row)
    _take_freely(model, acting, hidden, [w for w in waiting if w.trie.allowed(w.node)], greedy)
    options = [
        torch.tensor([trie.token(child) for child in trie.options(node)])
        for _, trie, node in unknown
    ]
    if not options:
        return
    tokens = torch.nn.utils.rnn.pad_sequence(options, batch_first=True).to(hidden.device)
    logits = model.logits(hidden[[*unknown.values()]], tokens)  # [n, H], [n, K] -> [n, K]
    for (key, own), some in zip(zip(unknown, options, strict=True), logits, strict=True):
        logprob = (some[: len(own)] / acting.temperature).log_softmax(-1)
        cache.node_choices[key] = Categorical.from_logprob(logprob).checked(model, key[0])


def _take_freely(
    model: LanguageModel, acting: Acting, hidden: Tensor, walkers: Sequence[_Walker], greedy: bool
) -> None:
    """Take a token for each walker whose node admits many; ``hidden`` [n, H] by their rows."""
    if not walkers:
        return
    # Walkers of one row wait at one node of one trie, or at the same tokens of two: one mask each.
    rows = [w.row for w in walkers]
    logits = model.logits(hidden[rows]) / acting.free_temperature  # [R, V]
    masks = [allowed_tokens(w.trie.allowed(w.node) or b"", logits.shape[1]) for w in walkers]
    inside = torch.from_numpy(np.stack(masks)).to(logits.device)
    scores = logits.masked_fill(~inside, -math.inf).log_softmax(-1)
    chosen = scores.argmax(-1) if greedy else _sample(scores, [w.generator for w in walkers])
    taken = scores.gather(1, chosen[:, None]).squeeze(1).tolist()  # [R, V] -> [R]
    for walker, token, logprob in zip(walkers, chosen.tolist(), taken, strict=True):
        check_finite(model, walker.prompt, [logprob])
        walker.take(token, logprob)


def write(
    model: LanguageModel,
    acting: Acting,
    prompts: Sequence[TokenIds],
    generators: Sequence[np.random.Generator],
    greedy: bool,
    decoder: Decoder | None = None,
) -> Iterator[tuple[int, Action]]:
    """Write freely: sample from the whole vocabulary until a stop text or the token budget.

    Equal prompts are computed once. A row leaves the batch when its action is finished.

    Args:
        model: the language model.
        acting: temperature, token budget and stop texts.
        prompts: the prompt of each action.
        generators: the source of randomness of each action.
        greedy: take the likeliest token instead of sampling.
        decoder: one that remembers rows; a fresh one by default.

    Yields:
        The index of a prompt and the action behind it, as soon as the action is finished.
    """
    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    decoder = decoder or model.decoder(pass_tokens=acting.pass_tokens)
    distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    # The unfinished actions, and the row of the decoder that each continues.
    writing, rows = list(range(len(prompts))), [distinct[prompt] for prompt in prompts]
    hidden = decoder.start(list(distinct))[rows]  # [R, H]
    while True:
        scores = (model.logits(hidden) / acting.free_temperature).log_softmax(-1)  # [R, V]
        chosen = scores.argmax(-1) if greedy else _sample(scores, [generators[i] for i in writing])
        taken = scores.gather(1, chosen[:, None]).squeeze(1).tolist()  # [R, V] -> [R]
        unfinished: list[tuple[int, int]] = []
        for i, row, token, logprob in zip(writing, rows, chosen.tolist(), taken, strict=True):
            check_finite(model, prompts[i], [logprob])
            tokens[i].append(token)
            logprobs[i].append(logprob)
            if is_finished(model, acting, tokens[i]):
                yield i, _written(model, acting, tokens[i], logprobs[i])
            else:
                unfinished.append((i, row))
        if not unfinished:
            return
        # Finished rows are dropped. Actions behind equal prompts now get rows of their own.
        writing = [i for i, _ in unfinished]
        hidden = decoder.read([(tokens[i][-1],) for i in writing], [row for _, row in unfinished])
        rows = list(range(len(writing)))


def check_finite(model: LanguageModel, prompt: TokenIds, logprobs: Sequence[float]) -> None:
    """Refuse to act on log-probabilities that are not finite: what is drawn would be arbitrary.

    Raises:
        ModelError: says behind which prompt, where the numbers come from, and what to do.
    """
    if all(map(math.isfinite, logprobs)):
        return
    ending = model.codec.tokenizer.decode(list(prompt[-30:]))
    raise ModelError(
        f"The model's log-probabilities of its next token are not finite behind the prompt that "
        f"ends in {ending!r}: {explain_nan(model)}"
    )


def _sample(logprob: Tensor, generators: Sequence[np.random.Generator]) -> Tensor:
    """Sample a token [R] for each row of normalized log-probabilities [R, V]."""
    # Inverse transform sampling in float64, with the sum in place of 1 to absorb rounding. The
    # draws are made on the CPU, so they are the same on any device.
    cumulative = logprob.double().exp().cumsum(-1)  # [R, V]
    u = torch.tensor([[g.random()] for g in generators], dtype=torch.float64).to(cumulative.device)
    drawn = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True).squeeze(1)
    return drawn.clamp(max=logprob.shape[1] - 1)


def is_finished(model: LanguageModel, acting: Acting, tokens: Sequence[int]) -> bool:
    """Tell whether the newest token ends a freely written action."""
    if tokens[-1] == model.codec.end_id or len(tokens) >= acting.max_action_tokens:
        return True
    if not acting.stop:
        return False
    # Earlier tokens held no stop text, so only the end of the text can hold one. A token is at
    # least one byte, so these tokens suffice, with some to spare for a character cut in half.
    reach = max(len(stop.encode()) for stop in acting.stop) + 4
    text = model.codec.tokenizer.decode(tokens[-reach:])
    return any(stop in text for stop in acting.stop)


def as_action(
    model: LanguageModel,
    acting: Acting,
    prompt: TokenIds,
    tokens: Sequence[int],
    logprobs: Sequence[float],
) -> Action:
    """Make an action of what another engine wrote, up to where it is finished.

    Raises:
        ModelError: a log-probability is not finite.
    """
    ends = (n for n in range(1, len(tokens)) if is_finished(model, acting, tokens[:n]))
    count = next(ends, len(tokens))
    values = [float(value) for value in logprobs[:count]]
    check_finite(model, prompt, values)
    return _written(model, acting, tokens[:count], values)


def _written(
    model: LanguageModel, acting: Acting, tokens: Sequence[int], logprobs: Sequence[float]
) -> Action:
    """Make an action of freely written tokens, each of which was a choice."""
    choice = (True,) * len(tokens)
    return Action(_text(model, acting, tokens), tuple(tokens), choice, tuple(logprobs))


def _text(model: LanguageModel, acting: Acting, tokens: Sequence[int]) -> str:
    """Return the text of a freely written action, up to the first stop text."""
    kept = tokens[:-1] if tokens[-1] == model.codec.end_id else tokens
    text = model.codec.tokenizer.decode(kept)
    for stop in acting.stop:
        text = text.partition(stop)[0]
    return text.strip()
