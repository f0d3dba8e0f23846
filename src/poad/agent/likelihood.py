"""Probabilities of what the agent did or could do, as the model sees them now, with gradient.

Which tokens of a turn are decisions is decided once, in `_decisions_of`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from poad.agent.decisions import DecisionBatch, DecisionTable, listed_leaves
from poad.agent.settings import Acting
from poad.lm import LanguageModel
from poad.trie import TokenTree
from poad.turns import Position, TokenIds, Turn


class Evaluated(NamedTuple):
    """Log-probabilities and entropies of a batch of decisions, with gradient."""

    logprob: Tensor
    """[Q, K] log-probability of each option; -inf where there is none."""
    entropy: Tensor
    """[Q] in nats, over the options or the vocabulary, whichever the decision is between."""
    hidden: Tensor
    """[R, H] the hidden states that were read."""
    kl_reference: Tensor | None
    """[Q] KL(policy ‖ untrained model) in nats, over the same options as the entropy; None if the
    batch does not hold what the untrained model reads."""


def evaluate(model: LanguageModel, batch: DecisionBatch, temperature: float) -> Evaluated:
    """Compute the log-probabilities and entropies of a batch of decisions.

    The score of an option is the sum of its tokens' log-probabilities over its divisor. The policy
    is the softmax over the options (``renormalize``), or the vocabulary's own distribution.

    Args:
        model: the language model.
        batch: the decisions.
        temperature: divides the scores.
    """
    hidden = model.read(batch.packed)
    new = _distributions(batch, model.logits(hidden), temperature)
    divergence = None
    if batch.reference is not None:
        old = _distributions(batch, model.frozen_logits(batch.reference), temperature)
        divergence = new.between(categorical_kl, old)
    return Evaluated(new.taken, new.between(_entropy), hidden, divergence)


@torch.no_grad()
def option_logprobs(
    model: LanguageModel, batch: DecisionBatch, temperature: float, pass_tokens: int
) -> Tensor:
    """Compute the log-probabilities of all options without gradient, in passes of bounded size.

    Args:
        model: the language model.
        batch: the Q decisions.
        temperature: divides the scores.
        pass_tokens: tokens per forward pass, padding included.

    Returns:
        [Q, K] on the CPU; -inf where there is no option.
    """
    runs = batch.bundles.micro_batches(pass_tokens)
    if len(runs) == 1:
        return evaluate(model, batch, temperature).logprob.cpu()
    logprob = torch.zeros(batch.option_mask.shape)
    for run in runs:  # every decision lies in one of them, which fills its row
        part, kept, _ = batch.select(run)
        logprob[kept] = evaluate(model, part, temperature).logprob.cpu()
    return logprob


class _Distributions(NamedTuple):
    """The distributions of Q decisions."""

    among: Tensor
    """[Q, K] log-probabilities, normalized over the options."""
    everything: Tensor | None
    """[Q, V] those of the whole vocabulary; None if no decision needs them."""
    among_options: Tensor
    """[Q] bool: True where `among` is the policy, False where `everything` is."""
    taken: Tensor
    """[Q, K] the policy's log-probability of each option; -inf where there is none."""

    def between(self, measure: Callable[..., Tensor], *others: _Distributions) -> Tensor:
        """Apply a measure of distributions, such as the entropy, to every decision. [Q]."""
        among = measure(self.among, *(other.among for other in others))
        if self.everything is None:
            return among
        # Both kinds are computed for every decision; each takes its own.
        everything = measure(self.everything, *(other.everything for other in others))
        return torch.where(self.among_options, among, everything)


def _distributions(batch: DecisionBatch, logits: Tensor, temperature: float) -> _Distributions:
    """Turn logits [R, V] at the readings of a batch into the distributions of its decisions."""
    device = logits.device
    # The vocabulary's normalizer is the same for all options that are single tokens at one reading,
    # so there it cancels in the softmax over options. Elsewhere it is needed.
    if batch.read.shape[2] > 1 or bool((batch.divisor != 1).any()):
        logits = logits.log_softmax(-1)
    read, token = batch.read.to(device), batch.token.to(device)
    # Gather the logit of every token of every option, [R, V] -> [Q, K, A], and sum over the tokens:
    # [Q, K, A] -> [Q, K].
    score = logits[read, token].masked_fill(~batch.token_mask.to(device), 0.0).sum(2)
    score = score / batch.divisor.to(device) / temperature
    score = score.masked_fill(~batch.option_mask.to(device), -math.inf)
    among = score.log_softmax(-1)  # [Q, K]
    among_options = batch.renormalize.to(device)  # [Q]
    if bool(batch.renormalize.all()):
        return _Distributions(among, None, among_options, among)
    # Decisions over the vocabulary have one token per option, all read at the same position.
    everything = (logits[read[:, 0, 0]] / temperature).log_softmax(-1)  # [Q, V]
    picked = everything.gather(1, token[:, :, 0])  # [Q, V] -> [Q, K]: the tokens that were taken
    picked = picked.masked_fill(~batch.option_mask.to(device), -math.inf)
    taken = torch.where(among_options[:, None], among, picked)
    return _Distributions(among, everything, among_options, taken)


def find_decisions(
    model: LanguageModel,
    acting: Acting,
    turns: Sequence[Turn],
    extra_positions: Sequence[Position] = (),
    divide: bool = True,
) -> tuple[DecisionBatch, Tensor, Tensor]:
    """Find the distinct decisions behind some turns; `Policy.decisions` explains the result."""
    table = DecisionTable()
    # Turns with the same prompt, offer and tokens made the same decisions: find them once.
    seen: dict[tuple, list[tuple[int, int]]] = {}
    found: list[tuple[int, int]] = []  # (decision, option) of all tokens of all turns
    for turn in turns:
        action = turn.action
        key = (turn.prompt_ids, action.trie, action.token_ids)
        if key not in seen:
            seen[key] = [(-1, 0)] * len(action.token_ids)  # (-1, 0) stands for no decision
            for column, q, k in _decisions_of(turn, table, acting):
                seen[key][column] = q, k
        found += seen[key]
    batch = table.batch(model.codec.pad_id, extra_positions, model.branching, divide)
    decision, option = torch.tensor(found).unbind(1)  # [M, 2] -> [M], [M]
    return batch, decision, option


def _decisions_of(
    turn: Turn, table: DecisionTable, acting: Acting
) -> Iterator[tuple[int, int, int]]:
    """Yield (column, decision, option) of each decision of a turn."""
    prompt, action, trie = turn.prompt_ids, turn.action, turn.action.trie
    after_thoughts = (*prompt, *action.token_ids[: action.thought])
    for j, choice in enumerate(action.choice):
        if not choice:
            continue
        # Token j was predicted behind the j tokens before it.
        if trie is None or acting.scheme == "published" or j < action.thought:
            yield j, *table.of_vocabulary((prompt, action.beginnings[j]), action.token_ids[j])
        elif acting.scheme == "trie":
            parent = trie.parent(action.nodes[j])
            option = trie.options(parent).index(action.nodes[j])
            yield j, table.at_node(after_thoughts, trie, parent), option
        else:  # the whole action is one decision, recorded at its first token
            q = table.between_actions(prompt, trie, acting.score, acting.score_end)
            yield j, q, trie.all_leaves().index(action.nodes[-1])


@torch.no_grad()
def offered_probabilities(
    model: LanguageModel, acting: Acting, prompt: TokenIds, trie: TokenTree
) -> list[float]:
    """Compute the probability of each offered action, in the order offered. [K]."""
    leaves = listed_leaves(trie)
    if len(leaves) == 1:
        return [1.0]
    read = partial(
        option_logprobs, model, temperature=acting.temperature, pass_tokens=acting.pass_tokens
    )
    table = DecisionTable()
    if acting.scheme != "trie":
        table.between_actions(prompt, trie, acting.score, acting.score_end)
        batch = table.batch(model.codec.pad_id)
        return read(batch)[0].exp().tolist()
    above = dict.fromkeys(trie.parent(n) for leaf in leaves for n in trie.path(leaf))
    nodes = [node for node in above if len(trie.options(node)) > 1]
    for node in nodes:  # which the table numbers 0, 1, 2, ...
        table.at_node(prompt, trie, node)
    batch = table.batch(model.codec.pad_id)
    logprob = read(batch).tolist()  # [Q, K]
    # The probability of an action is the product over the choices on its path.
    taken = {
        child: logprob[q][k]
        for q, node in enumerate(nodes)
        for k, child in enumerate(trie.options(node))
    }
    return [math.exp(sum(taken.get(n, 0.0) for n in trie.path(leaf))) for leaf in leaves]


def categorical_kl(logprob: Tensor, reference: Tensor) -> Tensor:
    """Compute KL(π ‖ π_ref) = Σ π·(log π − log π_ref) in nats, and its exact gradient.

    Args:
        logprob: [..., K] log π, normalized. An option at -inf adds nothing.
        reference: [..., K] log π_ref; finite wherever log π is.

    Returns:
        [...].
    """
    # 0 · (-inf) would be NaN, so those logarithms are replaced before the product.
    ratio = (logprob - reference).masked_fill(logprob == -math.inf, 0.0)
    return (logprob.exp() * ratio).sum(-1)


def _entropy(logprob: Tensor) -> Tensor:
    """Compute the entropy in nats over the last axis, where options at -inf add nothing."""
    return -(logprob.exp() * logprob.masked_fill(logprob == -math.inf, 0.0)).sum(-1)
