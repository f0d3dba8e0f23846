"""The agent's policy: text in, action out, and the probabilities that training needs.

``act`` samples; ``decisions`` finds the decisions behind what was sampled; ``evaluate`` gives their
log-probabilities with gradient. Which tokens are decisions is said once, in ``_decisions_of``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from poad.agent.continuous_batching import write_with_transformers
from poad.agent.decisions import DecisionBatch, DecisionTable
from poad.agent.sampling import CERTAIN, Choice, Memo, walk, write
from poad.config import ActingConfig, PromptConfig
from poad.envs import FreeText
from poad.lm import Dialogue, LanguageModel
from poad.trie import ROOT, ActionTrie
from poad.turns import Action, Position, TokenIds, Turn

Scheme = Literal["trie", "score", "published"]
Score = Literal["word", "token", "sum"]


@dataclass(frozen=True)
class Observation:
    """What a world shows: its text, and the actions it offers (none: write freely)."""

    prompt: str
    admissible_actions: tuple[str, ...] | None = None
    prompt_ids: TokenIds | None = None
    """The prompt as the model reads it; none: as at an episode's beginning."""


class Evaluated(NamedTuple):
    """What the policy says of a batch of decisions, with gradient."""

    logprob: Tensor
    """[Q, K] log-probability of each option; -inf where there is none."""
    entropy: Tensor
    """[Q] in nats, over the options or the vocabulary, whichever the decision is between."""
    hidden: Tensor
    """[R, H] the hidden states that were read."""


_NEAR = 8
"""Tokens to all choices of an offer that cost less, added to the prompt's pass, than a pass."""


class Policy:
    """A language model that acts.

    Args:
        model: the language model.
        acting: how it acts; ``auto`` means the trie, and scores per word.
        prompt: how observations become prompts; the model's codec must be made for it.
    """

    def __init__(
        self,
        model: LanguageModel,
        acting: ActingConfig | None = None,
        prompt: PromptConfig | None = None,
    ) -> None:
        self.model = model
        self.codec = model.codec
        self.prompt = prompt or PromptConfig()
        acting = acting or ActingConfig()
        if acting.stop is None:
            acting = replace(acting, stop=FreeText().stop)
        if acting.max_action_tokens is None:
            acting = replace(acting, max_action_tokens=FreeText().max_tokens)
        self.acting = acting
        self.scheme: Scheme = "trie" if acting.scheme == "auto" else acting.scheme
        self.score: Score = "word" if acting.score == "auto" else acting.score

    def dialogue(self) -> Dialogue:
        """What makes one stream's prompts."""
        longest = self.model.longest
        if longest is not None:
            longest -= (self.acting.max_action_tokens or 0) + self.prompt.thinking
        return Dialogue(self.codec, self.prompt, longest)

    def prompt_ids(self, observation: Observation) -> TokenIds:
        """The prompt that the model reads."""
        if observation.prompt_ids is not None:
            return observation.prompt_ids
        return self.dialogue().begin(observation.prompt)

    # --- acting -------------------------------------------------------------------------------

    @torch.no_grad()
    def act(
        self,
        observations: Sequence[Observation],
        generator: np.random.Generator | Sequence[np.random.Generator],
        *,
        greedy: bool = False,
        memo: Memo | None = None,
    ) -> list[Action]:
        """Write one action for each observation.

        Args:
            observations: any number, with or without offered actions.
            generator: the source of randomness; or one for each observation, so that what an
                episode does depends on no other. Where all share one, who draws first depends on
                what the memo knows: the probabilities are the same, the actions may differ.
            greedy: take the likeliest token (or action) instead of sampling.
            memo: distributions to reuse and extend; only while the weights stand still.

        Raises:
            ValueError: a world offers actions that are empty, repeated or the same tokens.
        """
        actions = dict(self.act_each(observations, generator, greedy=greedy, memo=memo))
        return [actions[i] for i in range(len(observations))]

    @torch.no_grad()
    def act_each(
        self,
        observations: Sequence[Observation],
        generator: np.random.Generator | Sequence[np.random.Generator],
        *,
        greedy: bool = False,
        memo: Memo | None = None,
    ) -> Iterator[tuple[int, Action]]:
        """The same, each action as soon as it is written.

        What an action does can so be worked out while others are still being written.

        Yields:
            The index of an observation, and the action.
        """
        memo = Memo() if memo is None else memo
        if memo.decoder is None and (self.prompt.history == "episode" or self.prompt.thinking):
            memo.decoder = self.model.decoder(remember=True)
        by_engine = self.acting.engine == "transformers" and not greedy
        # It has one seed for all: where each has its own source, we write ourselves.
        memo.engine = (
            generator if by_engine and isinstance(generator, np.random.Generator) else None
        )
        many = len(observations)
        each = [generator] * many if isinstance(generator, np.random.Generator) else generator
        thoughts = self._think(observations, each, greedy, memo) if self.prompt.thinking else None
        if thoughts is not None:
            observations = [
                replace(o, prompt_ids=(*self.prompt_ids(o), *thought.token_ids))
                for o, thought in zip(observations, thoughts, strict=True)
            ]
        for free in (False, True):
            mine = [i for i in range(many) if (observations[i].admissible_actions is None) is free]
            if mine:
                seen, generators = [observations[i] for i in mine], [each[i] for i in mine]
                act = self._write if free else self._choose
                for place, action in act(seen, generators, greedy, memo):
                    i = mine[place]
                    yield i, action if thoughts is None else _behind(thoughts[i], action)

    def _think(
        self,
        observations: Sequence[Observation],
        generators: Sequence[np.random.Generator],
        greedy: bool,
        memo: Memo,
    ) -> list[Action]:
        """Thoughts, closed by the agent or, with tokens that are no choice of its own, for it."""
        close = self.prompt.thinking_close
        mark = close.strip()
        acting = replace(self.acting, stop=(mark,), max_action_tokens=self.prompt.thinking)
        prompts = [self.prompt_ids(o) for o in observations]
        found = dict(self._freely(acting, prompts, generators, greedy, memo))
        thoughts = []
        for thought in (found[i] for i in range(len(prompts))):
            text = self.codec.tokenizer.decode(list(thought.token_ids))
            _, closed, after = text.partition(mark)
            missing = close[len(close.rstrip()) :].removeprefix(after) if closed else close
            forced = self.codec.following(missing) if missing else ()
            many = len(thought.token_ids) + len(forced)
            thoughts.append(
                replace(
                    thought,
                    token_ids=(*thought.token_ids, *forced),
                    choice=(*thought.choice, *(False for _ in forced)),
                    logprob=(*thought.logprob, *(0.0 for _ in forced)),
                    nodes=(-1,) * many,
                    thought=many,
                )
            )
        return thoughts

    def _choose(
        self,
        observations: Sequence[Observation],
        generators: Sequence[np.random.Generator],
        greedy: bool,
        memo: Memo,
    ) -> Iterator[tuple[int, Action]]:
        """Among offered actions."""
        offers = [self._encode(o) for o in observations]
        if self.scheme == "trie":
            if memo.decoder is None:
                self._prefetch_choices(offers, memo)
            actions = walk(self.model, self.acting.temperature, offers, generators, greedy, memo)
        else:
            actions = self._pick(offers, generators, greedy, memo)
            if self.scheme == "published":
                actions = self._as_tokens([prompt for prompt, _ in offers], actions, memo)
        return enumerate(actions)

    def _prefetch_choices(self, offers: Sequence[tuple[TokenIds, ActionTrie]], memo: Memo) -> None:
        """Compute all decisions of an offer in one pass where they lie close behind the prompt.

        A walk waits for a pass at each choice, and reads a prompt anew when it comes to another of
        its choices. Where few tokens lead to all of them, reading these with the prompt costs less.
        """
        table = DecisionTable()
        found: dict[tuple[TokenIds, ActionTrie, int], int] = {}
        for prompt, trie in offers:
            choices, tokens = trie.choices
            known = all((prompt, trie, node) in memo for node in choices)
            if not known and tokens <= _NEAR:
                found |= {(prompt, trie, n): table.at_node(prompt, trie, n) for n in choices}
        if found:
            logprob = self.evaluate(table.batch(self.codec.pad_id)).logprob
            for (prompt, trie, node), q in found.items():
                children = trie.children[node + 1]
                memo[prompt, trie, node] = Choice.of(logprob[q, : len(children)])

    def _write(
        self,
        observations: Sequence[Observation],
        generators: Sequence[np.random.Generator],
        greedy: bool,
        memo: Memo,
    ) -> Iterator[tuple[int, Action]]:
        """Freely; what is written hardly repeats, so no distribution is remembered."""
        prompts = [self.prompt_ids(o) for o in observations]
        return self._freely(self.acting, prompts, generators, greedy, memo)

    def _freely(
        self,
        acting: ActingConfig,
        prompts: Sequence[TokenIds],
        generators: Sequence[np.random.Generator],
        greedy: bool,
        memo: Memo,
    ) -> Iterator[tuple[int, Action]]:
        if memo.engine is not None:
            return write_with_transformers(self.model, acting, prompts, memo.engine)
        return write(self.model, acting, prompts, generators, greedy, memo.decoder)

    def _pick(
        self,
        offers: Sequence[tuple[TokenIds, ActionTrie]],
        generators: Sequence[np.random.Generator],
        greedy: bool,
        memo: Memo,
    ) -> list[Action]:
        """Whole-action policy: softmax over normalized scores of all offered actions."""
        table = DecisionTable()
        unknown = {
            (prompt, trie): self._whole(prompt, trie, table)
            for prompt, trie in offers
            if len(trie.leaves) > 1 and (prompt, trie) not in memo
        }
        if unknown:
            logprob = self.evaluate(table.batch(self.codec.pad_id)).logprob
            for (prompt, trie), q in unknown.items():
                memo[prompt, trie] = Choice.of(logprob[q, : len(trie.leaves)])
        actions = []
        for (prompt, trie), generator in zip(offers, generators, strict=True):
            choice = memo.get((prompt, trie), CERTAIN)
            assert isinstance(choice, Choice)
            option = choice.draw(generator, greedy)
            actions.append(_whole_action(trie, option, choice.logprob[option]))
        return actions

    def _as_tokens(
        self, prompts: Sequence[TokenIds], actions: Sequence[Action], memo: Memo
    ) -> list[Action]:
        """The same actions with the full-vocabulary log-probability of each of their tokens."""
        keys = [(p, a.token_ids) for p, a in zip(prompts, actions, strict=True)]
        counted = {key: [True] * len(key[1]) for key in keys}
        if not self.acting.score_end:
            for choice in counted.values():
                choice[-1] = False
        unknown = [key for key in counted if key not in memo]
        if unknown:
            turns = [
                Turn(prompt, Action("", tokens, tuple(counted[prompt, tokens]), ()), 0.0)
                for prompt, tokens in unknown
            ]
            batch, decision, option = self.decisions(turns)
            logprob = self.evaluate(batch).logprob.cpu()[decision, option]
            logprob = logprob.where(decision >= 0, torch.zeros(()))
            for key, values in zip(unknown, logprob.tolist(), strict=True):
                memo[key] = tuple(values[: len(key[1])])
        return [
            replace(action, choice=tuple(counted[key]), logprob=tuple(memo[key]))
            for key, action in zip(keys, actions, strict=True)
        ]

    def _encode(self, observation: Observation) -> tuple[TokenIds, ActionTrie]:
        offered = observation.admissible_actions or ()
        return self.prompt_ids(observation), self.codec.trie(offered)

    # --- training -----------------------------------------------------------------------------

    def decisions(
        self, turns: Sequence[Turn], also: Sequence[Position] = (), divide: bool = True
    ) -> tuple[DecisionBatch, Tensor, Tensor]:
        """The distinct decisions behind some turns.

        Args:
            turns: n turns that this policy acted.
            also: further positions to read in the same rows.
            divide: whether the decisions behind one prompt may fall into several minibatches.

        Returns:
            The batch of Q decisions; [n, D] int64, the decision behind each token, -1 where there
            was none; [n, D] int64, the option taken. D is the longest action's token count.
        """
        length = max(len(turn.action.token_ids) for turn in turns)
        decision = np.full((len(turns), length), -1)
        option = np.zeros((len(turns), length), dtype=np.int64)
        table = DecisionTable()
        seen: dict[tuple, list[tuple[int, int, int]]] = {}
        for i, turn in enumerate(turns):
            key = (turn.prompt_ids, turn.action.trie, turn.action.token_ids)
            if key not in seen:
                seen[key] = list(self._decisions_of(turn, table))
            for column, q, k in seen[key]:
                decision[i, column] = q
                option[i, column] = k
        batch = table.batch(self.codec.pad_id, also, self.model.branching, divide)
        return batch, torch.from_numpy(decision), torch.from_numpy(option)

    def evaluate(self, batch: DecisionBatch, reference: bool = False) -> Evaluated:
        """Log-probabilities and entropies of a batch of decisions, with gradient.

        An option's score is the sum of its tokens' log-probabilities over its divisor; the policy
        is the softmax over the options (``renormalize``), or the vocabulary's own distribution.

        Args:
            batch: the decisions.
            reference: ask the untrained model instead; then there is no gradient.
        """
        if reference:
            hidden = self.model.read_frozen(batch.packed)
            logits = self.model.frozen_logits(hidden)
        else:
            hidden = self.model.read(batch.packed)
            logits = self.model.logits(hidden)  # [R, V]
        device = logits.device
        if batch.read.shape[2] > 1 or bool((batch.divisor != 1).any()):
            logits = logits.log_softmax(-1)  # elsewhere the vocabulary's normalizer cancels
        read, token = batch.read.to(device), batch.token.to(device)
        score = logits[read, token].masked_fill(~batch.token_mask.to(device), 0.0).sum(2)
        score = score / batch.divisor.to(device) / self.acting.temperature
        score = score.masked_fill(~batch.option_mask.to(device), -math.inf)
        among = score.log_softmax(-1)
        if bool(batch.renormalize.all()):
            return Evaluated(among, _entropy(among), hidden)
        everything = (logits[read[:, 0, 0]] / self.acting.temperature).log_softmax(-1)  # [Q, V]
        picked = everything.gather(1, token[:, :, 0])
        picked = picked.masked_fill(~batch.option_mask.to(device), -math.inf)
        among_options = batch.renormalize.to(device)
        logprob = torch.where(among_options[:, None], among, picked)
        entropy = torch.where(among_options, _entropy(among), _entropy(everything))
        return Evaluated(logprob, entropy, hidden)

    def probabilities(self, observation: Observation, memo: Memo | None = None) -> list[float]:
        """[K] probability of each offered action, in the order offered."""
        prompt, trie = self._encode(observation)
        memo = Memo() if memo is None else memo
        known = memo.get(("probabilities", prompt, trie))
        if known is None:
            with torch.no_grad():
                known = memo["probabilities", prompt, trie] = self._probabilities(prompt, trie)
        return list(known)  # pyright: ignore[reportReturnType]

    def _probabilities(self, prompt: TokenIds, trie: ActionTrie) -> list[float]:
        if len(trie.leaves) == 1:
            return [1.0]
        table = DecisionTable()
        if self.scheme != "trie":
            self._whole(prompt, trie, table)
            return self.evaluate(table.batch(self.codec.pad_id)).logprob[0].exp().tolist()
        nodes = [n for n in range(ROOT, len(trie.tokens)) if len(trie.children[n + 1]) > 1]
        for node in nodes:
            table.at_node(prompt, trie, node)
        logprob = self.evaluate(table.batch(self.codec.pad_id)).logprob.tolist()
        taken = {
            child: logprob[q][k]
            for q, node in enumerate(nodes)
            for k, child in enumerate(trie.children[node + 1])
        }
        return [math.exp(sum(taken.get(n, 0.0) for n in trie.path(leaf))) for leaf in trie.leaves]

    # --- what counts as a decision ------------------------------------------------------------

    def _decisions_of(self, turn: Turn, table: DecisionTable) -> Iterator[tuple[int, int, int]]:
        """(column, decision, option) of each decision of a turn."""
        prompt, action, trie = turn.prompt_ids, turn.action, turn.action.trie
        behind = (*prompt, *action.token_ids[: action.thought])
        for j, choice in enumerate(action.choice):
            if not choice:
                continue
            if trie is None or self.scheme == "published" or j < action.thought:
                yield j, *table.of_vocabulary((prompt, action.token_ids[:j]), action.token_ids[j])
            elif self.scheme == "trie":
                parent = trie.parents[action.nodes[j]]
                option = trie.children[parent + 1].index(action.nodes[j])
                yield j, table.at_node(behind, trie, parent), option
            else:
                yield j, self._whole(prompt, trie, table), trie.leaves.index(action.nodes[-1])

    def _whole(self, prompt: TokenIds, trie: ActionTrie, table: DecisionTable) -> int:
        return table.between_actions(prompt, trie, self.score, self.acting.score_end)


def _whole_action(trie: ActionTrie, option: int, logprob: float) -> Action:
    """An action chosen as one lump: one decision, recorded at its first token."""
    nodes = trie.path(trie.leaves[option])
    tokens = tuple(trie.tokens[n] for n in nodes)
    rest = len(nodes) - 1
    choice = len(trie.leaves) > 1
    return Action(
        trie.texts[option],
        tokens,
        (choice, *(False,) * rest),
        (logprob if choice else 0.0, *(0.0,) * rest),
        trie,
        nodes,
    )


def _behind(thought: Action, action: Action) -> Action:
    """Thoughts and the action after them, as one action."""
    return replace(
        action,
        token_ids=(*thought.token_ids, *action.token_ids),
        choice=(*thought.choice, *action.choice),
        logprob=(*thought.logprob, *action.logprob),
        nodes=(*thought.nodes, *action.nodes) if action.trie is not None else (),
        thought=thought.thought,
    )


def _entropy(logprob: Tensor) -> Tensor:
    """Entropy in nats over the last axis; options at -inf add nothing."""
    return -(logprob.exp() * logprob.masked_fill(logprob == -math.inf, 0.0)).sum(-1)
