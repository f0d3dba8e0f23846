"""The agent's policy: text in, action out, and the probabilities that training needs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from poad.agent.acting import Actor, Offer, with_thoughts
from poad.agent.decisions import DecisionBatch
from poad.agent.engines import Engine, OwnEngine
from poad.agent.likelihood import (
    Evaluated,
    evaluate,
    find_decisions,
    offered_probabilities,
    option_logprobs,
)
from poad.agent.sampling import ActingCache, check_finite
from poad.agent.settings import Acting
from poad.config import PromptConfig
from poad.lm import Dialogue, LanguageModel
from poad.turns import Action, Observation, Position, TokenIds, Turn


class Policy:
    """A language model that acts.

    Args:
        model: the language model.
        acting: the way of acting; the defaults of `Acting` if None.
        prompt: the form of the prompts; the model's codec must be made for it. None: plain prompts.
        engine: writes freely, where actions are sampled. None: our own decoder.
    """

    def __init__(
        self,
        model: LanguageModel,
        acting: Acting | None = None,
        prompt: PromptConfig | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.model, self.codec = model, model.codec
        self.acting = acting or Acting()
        self.prompt = prompt or PromptConfig()
        self.codec.spare_tokens = self.acting.max_action_tokens
        self._engine = engine or OwnEngine(model)

    def writing_with(self, engine: Engine) -> Policy:
        """Return the same policy with another engine for what is written freely."""
        return Policy(self.model, self.acting, self.prompt, engine)

    def dialogue(self) -> Dialogue:
        """Return a maker of prompts for one stream."""
        # The prompt, the thoughts and the action share the model's context.
        room, longest = self.model.context_length, self.acting.max_action_tokens
        if room is not None:
            room -= longest
            if self.prompt.thinking:
                closing = self.codec.closing_tokens(self.prompt.thinking_close)
                room -= self.prompt.thinking + closing
        return Dialogue(self.codec, self.prompt, room, longest)

    def prompt_ids(self, observation: Observation) -> TokenIds:
        """Return the prompt that the model reads."""
        if observation.prompt_ids:
            return observation.prompt_ids
        return self.dialogue().first_prompt(observation.prompt, observation.admissible_actions)

    def act(
        self,
        observations: Sequence[Observation],
        generator: np.random.Generator | Sequence[np.random.Generator],
        *,
        greedy: bool = False,
        cache: ActingCache | None = None,
    ) -> list[Action]:
        """Write one action for each observation.

        Args:
            observations: any number, with or without offered actions.
            generator: the source of randomness, or one for each observation, so that an episode
                depends on no other. If all share one, the order in which they draw depends on what
                the cache holds: the probabilities are the same, but the actions may differ.
            greedy: take the likeliest token (or action) instead of sampling.
            cache: distributions to reuse and extend; only while the weights do not change.

        Raises:
            ValueError: offered actions that are empty, repeated, or the same tokens.
            ModelError: the model's log-probabilities are not finite.
            EngineError: the engine that writes cannot go on.
        """
        actions = dict(self.act_each(observations, generator, greedy=greedy, cache=cache))
        return [actions[i] for i in range(len(observations))]

    @torch.no_grad()
    def act_each(
        self,
        observations: Sequence[Observation],
        generator: np.random.Generator | Sequence[np.random.Generator],
        *,
        greedy: bool = False,
        cache: ActingCache | None = None,
    ) -> Iterator[tuple[int, Action]]:
        """Write one action for each observation, and yield each as soon as it is written.

        A world can then work on an action while others are still being written. The arguments are
        those of `act`.

        Yields:
            The index of an observation, and the action.
        """
        cache = ActingCache() if cache is None else cache
        if cache.decoder is None and (self.prompt.history == "episode" or self.prompt.thinking):
            cache.decoder = self.model.decoder(True, self.acting.pass_tokens)
        if isinstance(generator, np.random.Generator):
            generator = [generator] * len(observations)
        engine = OwnEngine(self.model, greedy=True) if greedy else self._engine
        actor = Actor(self.model, self.acting, engine, generator, greedy, cache)
        prompts = [self.prompt_ids(o) for o in observations]
        thoughts: list[Action] = []
        if self.prompt.thinking:
            thoughts = actor.think(prompts, self.prompt)
            prompts = [(*p, *t.token_ids) for p, t in zip(prompts, thoughts, strict=True)]
        cache.admit(prompts)
        offers: list[Offer] = [
            (prompt, None if offered is None else self.codec.trie(offered))
            for prompt, offered in zip(
                prompts, (o.admissible_actions for o in observations), strict=True
            )
        ]
        for i, action in actor.act(offers):
            yield i, with_thoughts(thoughts[i], action) if thoughts else action

    def decisions(
        self, turns: Sequence[Turn], extra_positions: Sequence[Position] = (), divide: bool = True
    ) -> tuple[DecisionBatch, Tensor, Tensor]:
        """Find the distinct decisions behind some turns.

        Args:
            turns: turns that this policy acted, of M tokens together.
            extra_positions: further positions to read in the same rows.
            divide: whether the decisions behind one prompt may fall into several minibatches.

        Returns:
            The batch of Q decisions; [M] int64, the decision at each token in the order of turns
            and tokens, -1 where there was none; [M] int64, the option taken there.
        """
        return find_decisions(self.model, self.acting, turns, extra_positions, divide)

    def evaluate(self, batch: DecisionBatch, pass_tokens: int = sys.maxsize) -> Evaluated:
        """Compute log-probabilities and entropies of a batch of decisions, with gradient.

        Args:
            batch: the decisions.
            pass_tokens: columns of one forward pass, padding included; no limit by default. Several
                passes take twice the time, and the memory of one.
        """
        return evaluate(self.model, batch, self.acting, pass_tokens)

    def logprobs(self, batch: DecisionBatch, pass_tokens: int) -> Tensor:
        """Compute the log-probabilities [Q, K] of all options without gradient, on the CPU.

        Args:
            batch: the decisions.
            pass_tokens: tokens per forward pass, padding included.
        """
        return option_logprobs(self.model, batch, self.acting, pass_tokens)

    @torch.no_grad()
    def outlook(
        self, batch: DecisionBatch, pass_tokens: int, codes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute what is known of each decision before it is made, without gradient, on the CPU.

        Args:
            batch: the decisions.
            pass_tokens: columns of one forward pass, padding included.
            codes: [V, R] a vector for each token; R may be 0.

        Returns:
            The entropy [Q] in nats, and the mean code [Q, R] of the token that will be taken.
        """
        model, ranks = self.model, self.model.ranks
        mine = ranks.share(batch.bundles.cost)

        def compute(tokens: int) -> tuple[Tensor, Tensor]:
            entropy = torch.zeros(len(batch.read))
            code = torch.zeros(len(batch.read), codes.shape[1])
            for run in batch.bundles.micro_batches(tokens, mine):
                part, kept, _ = batch.select(run)
                found = evaluate(model, part, self.acting, tokens, codes)
                assert found.mean_code is not None
                entropy[kept], code[kept] = found.entropy.cpu(), found.mean_code.cpu()
            return entropy, code

        found = model.passes.within(compute, pass_tokens, ranks)
        ranks.add_up(list(found))  # other ranks have the other rows
        return found

    def probabilities(
        self, observation: Observation, cache: ActingCache | None = None
    ) -> list[float]:
        """Compute the probability of each offered action, in the order offered. [K]."""
        prompt = self.prompt_ids(observation)
        trie = self.codec.trie(observation.admissible_actions or ())
        known = {} if cache is None else cache.probabilities
        if (prompt, trie) not in known:
            found = offered_probabilities(self.model, self.acting, prompt, trie)
            check_finite(self.model, prompt, found)
            known[prompt, trie] = found
        return list(known[prompt, trie])
