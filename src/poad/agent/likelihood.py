"""Probabilities of what the agent did or could do, as the model sees them now, with gradient.

Which tokens of a turn are decisions is decided once, in `_decisions_of`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from poad.agent.decisions import DecisionBatch, DecisionTable, listed_leaves
from poad.agent.settings import Acting
from poad.lm import LanguageModel, Packed, allowed_tokens, computed_twice, pack_in_passes, renumber
from poad.trie import TokenTree
from poad.turns import Position, TokenIds, Turn


class Evaluated(NamedTuple):
    """Log-probabilities and entropies of a batch of decisions, with gradient."""

    logprob: Tensor
    """[Q, K] log-probability of each option; -inf where there is none."""
    entropy: Tensor
    """[Q] in nats, over the options or the vocabulary, whichever the decision is between."""
    extra_hidden: Tensor
    """[E, H] the hidden states at the batch's further positions."""
    kl_reference: Tensor | None
    """[Q] KL(policy ‖ untrained model) in nats, over the same options as the entropy; None if the
    batch does not hold what the untrained model reads."""
    mean_code: Tensor | None
    """[Q, R] the mean of the codes of tokens under the policy, over the same options; None if no
    codes were given."""


def evaluate(
    model: LanguageModel,
    batch: DecisionBatch,
    acting: Acting,
    pass_tokens: int = sys.maxsize,
    codes: Tensor | None = None,
) -> Evaluated:
    """Compute the log-probabilities and entropies of a batch of decisions.

    The score of an option is the sum of its tokens' log-probabilities over its divisor. The policy
    is the softmax over the options (``renormalize``), or the vocabulary's own distribution. Both
    are taken once the scores of all options are known, so an offer of many actions may be read in
    several passes. Of these none keeps its activations: the backward pass computes them again.

    Args:
        model: the language model.
        batch: the decisions.
        acting: the way of acting, of which the temperatures divide the scores.
        pass_tokens: columns of one forward pass, padding included. A longer row is a pass of its
            own. Gradients of sharded weights take one pass in any case.
        codes: [V, R] a vector for each token, for decisions between single tokens.
    """
    if torch.is_grad_enabled() and model.shards is not None:
        pass_tokens = sys.maxsize  # each pass over sharded weights is one of all ranks
    passes = pack_in_passes(batch.positions, batch.pad_id, pass_tokens, model.branching)
    once = len(passes) == 1 or not torch.is_grad_enabled()
    each: list[_Sums] = []
    extra = []  # [E'] the further positions that each pass reads
    for packed, here in passes:
        compute = partial(_read_pass, model, batch, acting, packed, here, codes)
        each.append(compute() if once else computed_twice(compute, model.device))
        place = renumber(here, len(batch.positions))[batch.extra_readings]
        extra.append((place >= 0).nonzero().squeeze(1))
    order = torch.cat(extra).argsort().to(model.device)
    return _joined(batch, acting.temperature, each, order, codes)


@torch.no_grad()
def option_logprobs(
    model: LanguageModel, batch: DecisionBatch, acting: Acting, pass_tokens: int
) -> Tensor:
    """Compute the log-probabilities of all options without gradient, in passes of bounded size.

    Args:
        model: the language model.
        batch: the Q decisions.
        acting: the way of acting, of which the temperatures divide the scores.
        pass_tokens: columns of one forward pass, padding included.

    Returns:
        [Q, K] on the CPU; -inf where there is no option.
    """
    mine = model.ranks.share(batch.bundles.cost)

    def compute(tokens: int) -> Tensor:
        logprob = torch.zeros(batch.option_mask.shape)
        # Every decision lies in one of the micro-batches, which fills its row.
        for run in batch.bundles.micro_batches(tokens, mine):
            part, kept, _ = batch.select(run)
            logprob[kept] = evaluate(model, part, acting, tokens).logprob.cpu()
        return logprob

    logprob = model.passes.within(compute, pass_tokens, model.ranks)
    model.ranks.add_up([logprob])  # other ranks have the other rows
    return logprob


class _Sums(NamedTuple):
    """What Q decisions sum up over their readings, in one pass: 0 where another pass reads.

    The last four of the sums are None if no decision is between all tokens of the vocabulary. Each
    of those that are has one reading.
    """

    score: Tensor
    """[Q, K] the logits or log-probabilities of the tokens of each option."""
    old_score: Tensor | None
    """[Q, K] the same of the untrained model; None if the batch does not hold its states."""
    picked: Tensor | None
    """[Q, K] log-probability of each option among all tokens."""
    entropy: Tensor | None
    """[Q] over all tokens."""
    kl: Tensor | None
    """[Q] from the untrained model, over all tokens; None without the untrained model as well."""
    mean_code: Tensor | None
    """[Q, R] over all tokens; None without codes as well."""
    extra_hidden: Tensor
    """[E', H] hidden states at those of the further positions that are read here. No sum."""


def _read_pass(
    model: LanguageModel,
    batch: DecisionBatch,
    acting: Acting,
    packed: Packed,
    here: Tensor,
    codes: Tensor | None,
) -> _Sums:
    """Read a share of a batch's positions, [R'], which are numbered by ``here``."""
    hidden = model.read(packed)  # [R', H]
    place = renumber(here, len(batch.positions))  # [R] -> [R'], -1 where another pass reads
    at = place[batch.read]  # [Q, K, A]
    states = batch.reference
    if states is not None:
        states = states[here.to(states.device)]  # [R, H] -> [R', H]
    old_score = old_logits = logits = None
    if batch.between_single_tokens:
        score = _token_scores(batch, at, hidden, model.logits)
        if states is not None:
            old_score = _token_scores(batch, at, states, model.frozen_logits)
    else:
        logits = model.logits(hidden)
        score = _token_sums(batch, at, logits)
        if states is not None:
            old_logits = model.frozen_logits(states)
            old_score = _token_sums(batch, at, old_logits)
    picked = entropy = divergence = mean_code = None
    if logits is not None and not bool(batch.renormalize.all()):
        # [Q'] decisions over the vocabulary have one token per option, all read at one position.
        free = (~batch.renormalize & (at[:, 0, 0] >= 0)).nonzero().squeeze(1)
        reading, which = at[free, 0, 0].to(logits.device), free.to(logits.device)
        excluded = _excluded(batch, free, logits.shape[1])  # [Q', V] or None
        everything = _vocabulary(logits[reading], acting, excluded)  # [Q', V]
        taken = everything.gather(1, batch.token[free, :, 0].to(logits.device))  # [Q', K]
        picked = torch.zeros_like(score).index_copy(0, which, taken)
        entropy = score.new_zeros(len(score)).index_copy(0, which, _entropy(everything))
        if old_logits is not None:
            old = _vocabulary(old_logits[reading], acting, excluded)
            divergence = categorical_kl(everything, old)
            divergence = score.new_zeros(len(score)).index_copy(0, which, divergence)
        if codes is not None:
            mean_code = score.new_zeros(len(score), codes.shape[1])
            mean_code = mean_code.index_copy(0, which, everything.exp() @ codes.to(score))
    extra = place[batch.extra_readings]
    read = hidden[extra[extra >= 0].to(hidden.device)]
    return _Sums(score, old_score, picked, entropy, divergence, mean_code, read)


def _excluded(batch: DecisionBatch, decisions: Tensor, vocabulary: int) -> Tensor | None:
    """Unpack which tokens some decisions [Q'] exclude: [Q', V] bool, or None for none at all."""
    if batch.allowed is None or batch.mask is None:
        return None
    row = batch.mask[decisions.to(batch.mask.device)].cpu()  # [Q'], -1 where all are allowed
    masks = batch.allowed.numpy()
    rows = [allowed_tokens(masks[i].tobytes(), vocabulary) for i in range(len(masks))]
    inside = torch.from_numpy(np.stack(rows))[row.clamp(min=0)]  # [D, V] -> [Q', V]
    return ~inside & (row >= 0)[:, None]


def _vocabulary(logits: Tensor, acting: Acting, excluded: Tensor | None) -> Tensor:
    """Turn logits into log-probabilities over the vocabulary, without some tokens. [Q', V]."""
    scores = logits / acting.free_temperature
    if excluded is not None:
        scores = scores.masked_fill(excluded.to(scores.device), -math.inf)
    return scores.log_softmax(-1)


def _joined(
    batch: DecisionBatch,
    temperature: float,
    each: Sequence[_Sums],
    order: Tensor,
    codes: Tensor | None,
) -> Evaluated:
    """Add up what the passes read; ``order`` [E] sorts their further positions."""
    *sums, hidden = zip(*each, strict=True)
    score, old, picked, entropy_free, kl_free, code_free = (
        None if some[0] is None else reduce(torch.add, some) for some in sums
    )
    assert score is not None
    among = _among_options(batch, score, temperature)  # [Q, K]
    entropy, divergence, mean_code = _entropy(among), None, None
    if old is not None:
        divergence = categorical_kl(among, _among_options(batch, old, temperature))
    if codes is not None:
        each_code = codes.to(score)[batch.token[:, :, 0].to(score.device)]  # [Q, K, R]
        mean_code = (among.exp()[:, :, None] * each_code).sum(1)
    if picked is not None and entropy_free is not None:
        chosen = batch.renormalize.to(score.device)  # [Q]
        picked = picked.masked_fill(~batch.option_mask.to(score.device), -math.inf)
        among = torch.where(chosen[:, None], among, picked)
        entropy = torch.where(chosen, entropy, entropy_free)
        if divergence is not None and kl_free is not None:
            divergence = torch.where(chosen, divergence, kl_free)
        if mean_code is not None and code_free is not None:
            mean_code = torch.where(chosen[:, None], mean_code, code_free)
    return Evaluated(among, entropy, torch.cat(hidden)[order], divergence, mean_code)


def _token_scores(
    batch: DecisionBatch,
    at: Tensor,
    hidden: Tensor,
    logits: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Compute the logits of options that are single tokens, from the states [R', H]. [Q, K]."""
    place, device = at[:, 0, 0], hidden.device  # all options of such a decision have one reading
    score = logits(hidden[place.clamp(min=0).to(device)], batch.token[:, :, 0].to(device))
    inside = batch.token_mask[:, :, 0] & (place >= 0)[:, None]
    return score.masked_fill(~inside.to(device), 0.0)


def _token_sums(batch: DecisionBatch, at: Tensor, logits: Tensor) -> Tensor:
    """Sum the logits [R', V] of each option's tokens, read at [Q, K, A] unless that is -1."""
    # The vocabulary's normalizer is the same for all options that are single tokens at one reading,
    # so there it cancels in the softmax over options. Elsewhere it is needed.
    if batch.read.shape[2] > 1 or bool((batch.divisor != 1).any()):
        logits = logits.log_softmax(-1)
    device, inside = logits.device, batch.token_mask & (at >= 0)
    # [R', V] -> [Q, K, A] -> [Q, K]
    each = logits[at.clamp(min=0).to(device), batch.token.to(device)]
    return each.masked_fill(~inside.to(device), 0.0).sum(2)


def _among_options(batch: DecisionBatch, score: Tensor, temperature: float) -> Tensor:
    """Turn the sums of options into log-probabilities among the options. [Q, K]."""
    score = score / batch.divisor.to(score.device) / temperature
    return score.masked_fill(~batch.option_mask.to(score.device), -math.inf).log_softmax(-1)


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
            node = action.nodes[j]
            yield j, *table.after_node(after_thoughts, trie, trie.parent(node), node)
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
    read = partial(option_logprobs, model, acting=acting, pass_tokens=acting.pass_tokens)
    table = DecisionTable()
    if acting.scheme != "trie":
        table.between_actions(prompt, trie, acting.score, acting.score_end)
        batch = table.batch(model.codec.pad_id, branching=model.branching)
        return read(batch)[0].exp().tolist()
    above = dict.fromkeys(trie.parent(n) for leaf in leaves for n in trie.path(leaf))
    nodes = [node for node in above if len(trie.options(node)) > 1]
    for node in nodes:  # which the table numbers 0, 1, 2, ...
        table.at_node(prompt, trie, node)
    batch = table.batch(model.codec.pad_id, branching=model.branching)
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
