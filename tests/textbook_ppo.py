"""PPO the slow way: a forward pass per turn, nothing shared, the losses as in the textbook.

It checks the learner, and takes from it the model's weights and the recorded turns alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from naive_credit import naive_credit
from torch import Tensor
from trajectories import Trajectory

from poad.agent.build import Agent
from poad.credit import Credit
from poad.trie import Grammar, TokenTree
from poad.turns import Turn

Streams = Sequence[Sequence[Turn]]


def listed(trie: TokenTree) -> tuple[str, ...]:
    """The offered actions, which a grammar does not list."""
    assert not isinstance(trie.offer, Grammar)
    return tuple(trie.offer)


def hidden_states(body: Any, tokens: tuple[int, ...]) -> Tensor:
    """[L, H] of one row by a plain forward pass."""
    return body(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0]


def log_softmax(scores: list[Tensor]) -> Tensor:
    return torch.stack(scores).log_softmax(0)


@dataclass
class Textbook:
    """What the agent says and what it costs; all with gradient."""

    agent: Agent

    def __post_init__(self) -> None:
        self.causal: Any = self.agent.model.module
        self.frozen: Any = self.agent.model._frozen

    def logits(self, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> Tensor:
        """[n, V] the prediction of each token behind a prompt."""
        ids = torch.tensor([(*prompt, *tokens)])
        return self.causal(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]

    def decisions(self, turn: Turn) -> dict[int, tuple[Tensor, Tensor]]:
        """(log-probability, entropy) of each decision of a turn, by its token."""
        acting, action = self.agent.config.acting, turn.action
        if action.trie is not None and acting.scheme == "score":
            return {0: self._whole(turn)} if action.choice[0] else {}
        logits = self.logits(turn.prompt_ids, action.token_ids) / acting.temperature
        found = {}
        for j, choice in enumerate(action.choice):
            if not choice:
                continue
            if action.trie is None or acting.scheme == "published":
                logprob, taken = logits[j].log_softmax(0), action.token_ids[j]
            else:
                siblings = sorted(
                    {
                        tokens[j]
                        for text in listed(action.trie)
                        if (tokens := self.agent.model.codec.action(text))[:j]
                        == action.token_ids[:j]
                    }
                )
                logprob = log_softmax([logits[j, token] for token in siblings])
                taken = siblings.index(action.token_ids[j])
            found[j] = logprob[taken], -(logprob.exp() * logprob).sum()
        return found

    def _whole(self, turn: Turn) -> tuple[Tensor, Tensor]:
        acting, trie = self.agent.config.acting, turn.action.trie
        assert trie is not None
        scores = []
        for text in listed(trie):
            tokens = self.agent.model.codec.action(text)
            logprob = self.logits(turn.prompt_ids, tokens).log_softmax(-1)
            count = len(tokens) - (not acting.score_end)
            total = torch.stack([logprob[j, tokens[j]] for j in range(count)]).sum()
            by = {"word": len(text.split()), "token": count, "sum": 1}[acting.score]
            scores.append(total / by / acting.temperature)
        logprob = log_softmax(scores)
        return logprob[listed(trie).index(turn.action.text)], -(logprob.exp() * logprob).sum()

    def values(self, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> Tensor:
        """[n] the critic before each token."""
        body = self.causal.base_model if self.agent.features is None else self.frozen
        return self.agent.critic(hidden_states(body, (*prompt, *tokens))[len(prompt) - 1 : -1])

    def trajectory(self, streams: Streams) -> Trajectory:
        """The turns in time, with the values of the critic as it stands."""
        config = self.agent.config.credit
        shape = (
            len(streams),
            max(map(len, streams)),
            max(len(turn.action.token_ids) for stream in streams for turn in stream),
        )
        reward, value = torch.zeros(shape).double(), torch.zeros(shape).double()
        mask, choice = torch.zeros(shape).bool(), torch.zeros(shape).bool()
        discount, bootstrap = torch.ones(shape[:2]).double(), torch.zeros(shape[:2]).double()
        cut, ended = torch.zeros(shape[:2]).bool(), torch.zeros(shape[:2]).bool()
        for s, stream in enumerate(streams):
            for t, turn in enumerate(stream):
                n = len(turn.action.token_ids)
                mask[s, t, :n] = True
                choice[s, t, :n] = torch.tensor(turn.action.choice)
                reward[s, t, n - 1] = turn.reward
                with torch.no_grad():
                    value[s, t, :n] = self.values(turn.prompt_ids, turn.action.token_ids).double()
                    beyond = self.values(turn.next_prompt_ids, (0,))[0].double()
                power = turn.duration if config.discount == "duration" else 1
                discount[s, t] = config.gamma**power
                cut[s, t] = turn.terminated or turn.truncated or t == len(stream) - 1
                ended[s, t] = turn.terminated or turn.truncated
                bootstrap[s, t] = beyond if cut[s, t] and not turn.terminated else 0.0
        return Trajectory(reward, value, mask, choice, discount, cut, bootstrap, ended)

    def credit(self, before: Trajectory) -> Credit:
        """The credit of the turns by the values that the update began with."""
        config = self.agent.config
        return naive_credit(
            before,
            config.credit.method,
            config.credit.gamma,
            config.credit.lam,
            lam_token=config.credit.lam_token,
            gamma_token=config.credit.gamma_token,
            slots=config.credit.slots,
        )

    def policy_loss(self, streams: Streams, before: Trajectory) -> Tensor:
        """The surrogate less the entropy bonus, now."""
        config, credit = self.agent.config, self.credit(before)
        judged = credit.advantage[credit.mask]
        spread = max(float(judged.std(unbiased=False)), float(config.ppo.std_floor))
        mean = float(judged.mean())
        surrogate, entropies = [], []
        for s, stream in enumerate(streams):
            for t, turn in enumerate(stream):
                decisions = self.decisions(turn)
                for j in range(len(turn.action.token_ids)):
                    if not credit.mask[s, t, j]:
                        continue
                    logprob, entropy = decisions[j]
                    advantage = (float(credit.advantage[s, t, j]) - mean) / spread
                    ratio = (logprob - turn.action.logprob[j]).exp()
                    near = ratio.clamp(1 - config.ppo.clip, 1 + config.ppo.clip)
                    surrogate.append(-torch.minimum(ratio * advantage, near * advantage))
                    free = turn.action.trie is None or config.acting.scheme == "published"
                    weight = config.ppo.entropy_free if free else config.ppo.entropy
                    entropies.append(weight * entropy)
        return average(surrogate) - average(entropies)

    def value_loss(self, streams: Streams, before: Trajectory) -> Tensor:
        """Half the squared error, now: the mean over roots and the mean over all other slots."""
        clip, credit = self.agent.config.critic.clip, self.credit(before)
        roots, others = [], []
        for s, stream in enumerate(streams):
            for t, turn in enumerate(stream):
                value = self.values(turn.prompt_ids, turn.action.token_ids)
                slots = credit.value_mask[s, t].nonzero().flatten().tolist()
                for j in {0, *slots} if slots else ():
                    # A forced root is no slot, but what a bootstrap reads: it learns from the
                    # turn's first slot.
                    target = float(credit.target[s, t, j if j in slots else slots[0]])
                    old = float(before.value[s, t, j])
                    loss = (value[j] - target) ** 2
                    if clip is not None:
                        moved = old + (value[j] - old).clamp(-clip, clip)
                        loss = torch.maximum(loss, (moved - target) ** 2)
                    (others if j else roots).append(loss / 2)
        return average(roots) + average(others)


def average(losses: list[Tensor]) -> Tensor:
    """The mean, or 0 of nothing."""
    return torch.stack(losses).mean() if losses else torch.zeros(())
