"""Acting: how observations become actions, with or without offered actions and thoughts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from poad.agent.decisions import DecisionBatch, DecisionTable, listed_leaves
from poad.agent.engines import Engine
from poad.agent.likelihood import find_decisions, option_logprobs
from poad.agent.sampling import (
    SINGLE_OPTION,
    ActingCache,
    Categorical,
    check_finite,
    walk,
)
from poad.agent.settings import Acting
from poad.config import PromptConfig
from poad.lm import LanguageModel
from poad.trie import TokenTree
from poad.turns import Action, TokenIds, Turn

PREFETCHED_TOKENS = 8
"""An offer is computed together with its prompt if at most so many tokens lead to all choices."""

Offer = tuple[TokenIds, TokenTree | None]
"""A prompt and the offered actions; None writes freely."""


@dataclass(frozen=True)
class Actor:
    """Writes actions as long as the weights do not change.

    Args:
        model: the language model.
        acting: the way of acting.
        engine: writes freely.
        generators: the source of randomness of each observation.
        greedy: take the likeliest token or action instead of sampling.
        cache: distributions to reuse and extend.
    """

    model: LanguageModel
    acting: Acting
    engine: Engine
    generators: Sequence[np.random.Generator]
    greedy: bool
    cache: ActingCache

    def act(self, offers: Sequence[Offer]) -> Iterator[tuple[int, Action]]:
        """Yield the index of an offer and the action, each as soon as it is written."""
        chosen = [i for i, (_, trie) in enumerate(offers) if trie is not None]
        written = [i for i, (_, trie) in enumerate(offers) if trie is None]
        # Each observation keeps its own generator in either group.
        if chosen:
            mine = replace(self, generators=[self.generators[i] for i in chosen])
            tries = [(prompt, trie) for prompt, trie in offers if trie is not None]
            yield from zip(chosen, mine._choose(tries), strict=True)
        if written:
            mine = replace(self, generators=[self.generators[i] for i in written])
            for place, action in mine._write([offers[i][0] for i in written]):
                yield written[place], action

    def think(self, prompts: Sequence[TokenIds], config: PromptConfig) -> list[Action]:
        """Write thoughts behind each prompt, and close those that exceed the token budget."""
        close = config.thinking_close
        mark = close.strip()
        acting = replace(self.acting, stop=(mark,), max_action_tokens=config.thinking)
        found = dict(replace(self, acting=acting)._write(prompts))
        codec = self.model.codec
        thoughts = []
        for thought in (found[i] for i in range(len(prompts))):
            text = codec.tokenizer.decode(list(thought.token_ids))
            _, closed, after = text.partition(mark)
            # Closed by the agent, thoughts may lack only the whitespace that ends the mark.
            missing = close[len(close.rstrip()) :].removeprefix(after) if closed else close
            # The agent did not choose the tokens that close its thoughts for it.
            forced = codec.continuation(missing) if missing else ()
            length = len(thought.token_ids) + len(forced)
            thoughts.append(
                replace(
                    thought,
                    token_ids=(*thought.token_ids, *forced),
                    choice=(*thought.choice, *(False for _ in forced)),
                    logprob=(*thought.logprob, *(0.0 for _ in forced)),
                    nodes=(-1,) * length,  # thoughts have no place in the trie
                    thought=length,
                )
            )
        return thoughts

    def _write(self, prompts: Sequence[TokenIds]) -> Iterator[tuple[int, Action]]:
        """Write freely. What is written hardly repeats, so no distribution is cached."""
        return self.engine.write(self.acting, prompts, self.generators, self.cache.decoder)

    def _choose(self, offers: Sequence[tuple[TokenIds, TokenTree]]) -> list[Action]:
        """Choose among offered actions."""
        if self.acting.scheme == "trie":
            if self.cache.decoder is None:
                self._prefetch(offers)
            return walk(self.model, self.acting, offers, self.generators, self.greedy, self.cache)
        actions = self._choose_whole(offers)
        if self.acting.scheme == "published":
            return self._as_tokens([prompt for prompt, _ in offers], actions)
        return actions

    def _read(self, batch: DecisionBatch) -> Tensor:
        """Compute the log-probabilities of all options, [Q, K] on the CPU."""
        acting = self.acting
        return option_logprobs(self.model, batch, acting, acting.pass_tokens)

    def _prefetch(self, offers: Sequence[tuple[TokenIds, TokenTree]]) -> None:
        """Compute all decisions of an offer in one pass where they lie close behind the prompt.

        A walk needs a forward pass for each choice on its way, and another one when a later walk
        takes another path. Where few tokens lead to all choices, reading these together with the
        prompt costs less.
        """
        table = DecisionTable()
        found: dict[tuple[TokenIds, TokenTree, int], int] = {}
        for prompt, trie in offers:
            choices, tokens = trie.choices or ((), 0)
            known = all((prompt, trie, node) in self.cache.node_choices for node in choices)
            if not known and tokens <= PREFETCHED_TOKENS:
                found |= {(prompt, trie, n): table.at_node(prompt, trie, n) for n in choices}
        if found:
            batch = table.batch(self.model.codec.pad_id, branching=self.model.branching)
            logprob = self._read(batch)  # [Q, K]
            for (prompt, trie, node), q in found.items():
                # [Q, K] -> the node's own options, without the padding of its row
                options = logprob[q, : len(trie.options(node))]
                known = Categorical.from_logprob(options).checked(self.model, prompt)
                self.cache.node_choices[prompt, trie, node] = known

    def _choose_whole(self, offers: Sequence[tuple[TokenIds, TokenTree]]) -> list[Action]:
        """Choose by the softmax over normalized scores of all offered actions."""
        acting, cache = self.acting, self.cache
        table = DecisionTable()
        unknown = {
            (prompt, trie): table.between_actions(prompt, trie, acting.score, acting.score_end)
            for prompt, trie in offers
            if len(listed_leaves(trie)) > 1 and (prompt, trie) not in cache.action_choices
        }
        if unknown:
            batch = table.batch(self.model.codec.pad_id, branching=self.model.branching)
            logprob = self._read(batch)  # [Q, K]
            for (prompt, trie), q in unknown.items():
                options = logprob[q, : len(trie.all_leaves())]
                known = Categorical.from_logprob(options).checked(self.model, prompt)
                cache.action_choices[prompt, trie] = known
        actions = []
        for offer, generator in zip(offers, self.generators, strict=True):
            options = cache.action_choices.get(offer, SINGLE_OPTION)
            option = options.sample(generator, self.greedy)
            actions.append(_whole_action(offer[1], option, options.logprob[option]))
        return actions

    def _as_tokens(self, prompts: Sequence[TokenIds], actions: Sequence[Action]) -> list[Action]:
        """Record each token's log-probability over the whole vocabulary, as published."""
        keys = [(p, a.token_ids) for p, a in zip(prompts, actions, strict=True)]
        # All tokens count as choices, also those that the offer forces. The end token may not.
        counted = {key: [True] * len(key[1]) for key in keys}
        if not self.acting.score_end:
            for choice in counted.values():
                choice[-1] = False
        known = self.cache.token_logprobs
        unknown = [key for key in counted if key not in known]
        if unknown:
            turns = [
                Turn(prompt, Action("", tokens, tuple(counted[prompt, tokens]), ()), 0.0)
                for prompt, tokens in unknown
            ]
            # [M] both, over the tokens of all unknown actions laid end to end
            batch, decision, option = find_decisions(self.model, self.acting, turns)
            logprob = self._read(batch)
            # [Q, K] -> [M]. A token that is no decision has the number -1; its 0 is put in here.
            each = logprob[decision, option].where(decision >= 0, torch.zeros(()))
            lengths = [len(tokens) for _, tokens in unknown]
            for key, values in zip(unknown, each.split(lengths), strict=True):
                known[key] = tuple(values.tolist())
                check_finite(self.model, key[0], known[key])
        return [
            replace(action, choice=tuple(counted[key]), logprob=known[key])
            for key, action in zip(keys, actions, strict=True)
        ]


def with_thoughts(thought: Action, action: Action) -> Action:
    """Join thoughts and the action after them into one action."""
    return replace(
        action,
        token_ids=(*thought.token_ids, *action.token_ids),
        choice=(*thought.choice, *action.choice),
        logprob=(*thought.logprob, *action.logprob),
        nodes=(*thought.nodes, *action.nodes) if action.trie is not None else (),
        thought=thought.thought,
    )


def _whole_action(trie: TokenTree, option: int, logprob: float) -> Action:
    """Make an action that was one decision, recorded at its first token."""
    leaves = trie.all_leaves()
    nodes = trie.path(leaves[option])
    rest = len(nodes) - 1
    choice = len(leaves) > 1
    return Action(
        trie.text(nodes[-1]),
        trie.token_path(nodes[-1]),
        (choice, *(False,) * rest),
        (logprob if choice else 0.0, *(0.0,) * rest),
        trie,
        nodes,
    )
