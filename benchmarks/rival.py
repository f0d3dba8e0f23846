"""A learner in the published style, with each of our savings as a switch on it.

The trainers published with TWOSOME (arXiv 2401.14151) and POAD (arXiv 2405.15821) write prompt and
action out anew for every offered action of every turn, read the untrained model in passes of its
own for values and for reference log-probabilities, compute logits at every column, and do all of it
again at every epoch. This learner does the same, for the same loss as ours: clipped PPO on the trie
policy with a critic on the untrained body. It is kinder than they are: texts are tokenized once,
and rows go through the model in batches of the size that suits the machine best.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from rival_reader import Line, Reader, Savings
from torch import Tensor

from poad.agent import Critic
from poad.config import Config
from poad.credit import METHODS
from poad.learn import lay_out, normalize_advantages, read_where
from poad.lm import LanguageModel
from poad.turns import Turn


class Rival:
    """Learns from rollouts as the published trainers do, except for the savings it is given."""

    def __init__(
        self, model: LanguageModel, critic: Critic, config: Config, savings: Savings
    ) -> None:
        self.critic, self.config, self.savings = critic, config, savings
        self.reader = Reader(model, savings)
        self.groups = [model.parameters(), list(critic.parameters())]
        rates = (config.ppo.lr, config.critic.lr)
        self.optimizer = torch.optim.Adam(
            [{"params": g, "lr": lr} for g, lr in zip(self.groups, rates, strict=True)],
            eps=1e-5,
            fused=True,
        )
        self.generator = torch.Generator().manual_seed(config.seed)

    def update(self, streams: Sequence[Sequence[Turn]]) -> list[Mapping[str, float]]:
        """Epochs of minibatch steps; what each step measured."""
        self.turns = [turn for stream in streams for turn in stream]
        self._judge(streams)
        together: dict[object, list[int]] = {}
        for i, turn in enumerate(self.turns):
            together.setdefault(turn.prompt_ids if self.savings.rows_once else i, []).append(i)
        groups = [(self._cost(turns), turns) for turns in together.values()]
        steps = []
        for _ in range(self.config.ppo.epochs):
            order = torch.randperm(len(groups), generator=self.generator)
            for part in order.tensor_split(self.config.ppo.minibatches):
                steps.append(self._step([groups[g] for g in part.tolist()]))
        return steps

    @torch.no_grad()
    def values(self, lines: Sequence[Line]) -> list[Tensor]:
        """The critic at all readings of each line."""
        said = []
        for run in self._runs([(len(p) + len(b), [i]) for i, (p, b) in enumerate(lines)]):
            hidden, first = self.reader.hidden([lines[i] for i in run])
            value = self.critic(hidden)
            for i, at in zip(run, first, strict=True):
                said.append(value[at : at + len(lines[i][1]) + 1])
        return said

    def _last(self, lines: Sequence[Line]) -> Iterator[Tensor]:
        """Hidden states of the untrained body at the end of each line, in batches."""
        for run in self._runs([(len(p) + len(b), [i]) for i, (p, b) in enumerate(lines)]):
            hidden, first = self.reader.hidden([lines[i] for i in run])
            yield hidden[[at + len(lines[i][1]) for i, at in zip(run, first, strict=True)]]

    def _judge(self, streams: Sequence[Sequence[Turn]]) -> None:
        """Credit, by the same few lines of arithmetic that ours uses; [n, D] each."""
        self.readings = readings = read_where(streams, METHODS["poad"], "choices")
        if self.savings.frozen_once:
            self.features = torch.cat(list(self._last(readings.positions)))
            value = self.critic(self.features).detach()
        else:
            spoken = self.values([self.reader.spoken(turn) for turn in self.turns])
            value = torch.zeros(len(readings.positions))
            for at, said in zip(readings.at, spoken, strict=True):
                read = (at >= 0).nonzero().squeeze(1)
                value[at[read]] = said[read]
            ends = (readings.beyond >= 0).nonzero().squeeze(1).tolist()
            after = self.values([(self.turns[i].next_prompt_ids, ()) for i in ends])
            value[readings.beyond[ends]] = torch.cat(after)
        credit = self.config.credit
        time, place = lay_out(streams, readings, value, credit.gamma, credit.discount == "duration")
        judged = METHODS["poad"].credit(
            time, credit.gamma, credit.lam, lam_token=credit.lam_token, slots="choices"
        )
        floor = self.config.ppo.std_floor
        advantage = normalize_advantages(judged.advantage, judged.mask, floor)
        four = (advantage, judged.target, judged.mask, judged.value_mask)
        self.advantage, self.target, mask, self.value_mask = (t.flatten(0, 1)[place] for t in four)
        first = self.value_mask.int().argmax(1, keepdim=True)  # forced roots learn too
        self.target[:, :1] = self.target.gather(1, first)
        self.value_mask[:, 0] = True
        self.old_value = value[readings.at.clamp(min=0)]
        self.terms, self.value_terms = int(mask.sum()), int(self.value_mask.sum())

    def _step(self, groups: Sequence[tuple[int, list[int]]]) -> Mapping[str, float]:
        """One gradient step on some turns."""
        ppo = self.config.ppo
        self.optimizer.zero_grad(set_to_none=True)
        totals: Counter[str] = Counter()
        for run in self._runs(groups):
            loss, parts = self._loss(run, 1 / ppo.minibatches)
            loss.backward()
            totals.update(parts)
        for group in self.groups:
            torch.nn.utils.clip_grad_norm_(group, ppo.max_grad_norm)
        self.optimizer.step()
        return totals

    def _loss(self, turns: Sequence[int], share: float) -> tuple[Tensor, dict[str, float]]:
        """The loss of some turns, and its parts."""
        ppo, critic = self.config.ppo, self.config.critic
        lines: list[Line] = []
        asked = [(i, *a) for i in turns for a in self.reader.ask(self.turns[i], lines)]
        total, parts = torch.zeros(()), {"policy_loss": 0.0, "entropy": 0.0}
        if asked:
            among = self.reader.answer(lines, [question for _, _, question, _ in asked])
            logprob = among[torch.arange(len(asked)), [option for *_, option in asked]]
            old = torch.tensor([self.turns[i].action.logprob[j] for i, j, *_ in asked])
            advantage = torch.stack([self.advantage[i, j] for i, j, *_ in asked])
            ratio = (logprob - old).exp()
            clipped = ratio.clamp(1 - ppo.clip, 1 + ppo.clip)
            surrogate = -torch.minimum(ratio * advantage, clipped * advantage).sum()
            entropy = -(among.exp() * among.masked_fill(among == -math.inf, 0)).sum()
            scale = 1 / (self.terms * share)
            total = total + (surrogate - ppo.entropy * entropy) * scale
            parts = {"policy_loss": float(surrogate.detach()) * scale}
            parts["entropy"] = float(entropy.detach()) * scale
        value, old, target = self._read_values(turns)
        error = (value - target) ** 2
        if critic.clip is not None:
            near = old + (value - old).clamp(-critic.clip, critic.clip)
            error = torch.maximum(error, (near - target) ** 2)
        value_loss = 0.5 * error.sum() / (self.value_terms * share)
        parts["value_loss"] = float(value_loss.detach())
        return total + critic.coefficient * value_loss, parts

    def _read_values(self, turns: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """The critic at the slots of some turns, its values of before, and targets."""
        index = torch.tensor(turns)
        mask = self.value_mask[index]
        if self.savings.frozen_once:
            hidden = self.features[self.readings.at[index][mask]]
        else:
            states, first = self.reader.hidden([self.reader.spoken(self.turns[i]) for i in turns])
            place = torch.tensor(first)[:, None] + torch.arange(mask.shape[1])
            hidden = states[place[mask]]
        return self.critic(hidden), self.old_value[index][mask], self.target[index][mask]

    def _cost(self, turns: Sequence[int]) -> int:
        """Tokens to compute for some turns."""
        lines: list[Line] = []
        for i in turns:
            list(self.reader.ask(self.turns[i], lines))
        rows = set(lines) if self.savings.rows_once else lines
        return sum(len(prompt) + len(beginning) for prompt, beginning in rows)

    def _runs(self, groups: Sequence[tuple[int, list[int]]]) -> Iterator[list[int]]:
        """Join groups, given with their cost, to batches that go through the model at once."""
        run, spent = [], 0
        for cost, members in groups:
            run, spent = run + members, spent + cost
            if spent >= self.config.ppo.micro_batch_tokens:
                yield run
                run, spent = [], 0
        if run:
            yield run
