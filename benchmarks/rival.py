"""A learner in the published style, with each of our savings as a switch.

The trainers published with TWOSOME (arXiv 2401.14151) and POAD (arXiv 2405.15821) write out prompt
and action for every offered action of every turn. They run separate passes of the untrained model
for values and for reference log-probabilities, compute logits at every column, and repeat all of
this in every epoch. This learner does the same, with the same loss as ours: clipped PPO on the trie
policy, with a critic on the untrained body. It is faster than the published code in two respects:
it tokenizes texts once, and its batches have the size that suits the machine best.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from rival_reader import Line, Reader, Savings
from torch import Tensor

from poad.agent import Critic
from poad.config import Config
from poad.credit import Credit, token_credit
from poad.learn import normalize_advantages
from poad.lm import LanguageModel
from poad.turns import Position, Turn


@dataclass(frozen=True)
class Readings:
    """The U distinct positions where the critic is read, for n turns of at most D tokens."""

    positions: list[Position]
    at: Tensor
    """[n, D] int64. The position before each choice and before the first token; −1 elsewhere."""
    after: Tensor
    """[n] int64. The position after a turn where its stream is cut off; −1 elsewhere."""

    @classmethod
    def of(cls, streams: Sequence[Sequence[Turn]]) -> Readings:
        """Find the positions of all turns."""
        index: dict[Position, int] = {}
        at, after = [], []
        for stream in streams:
            for turn in stream:
                tokens, cut = turn.action.token_ids, turn.truncated or turn is stream[-1]
                at.append(
                    torch.tensor(
                        [
                            index.setdefault((turn.prompt_ids, tokens[:j]), len(index))
                            if j == 0 or choice
                            else -1
                            for j, choice in enumerate(turn.action.choice)
                        ]
                    )
                )
                next_position = (turn.next_prompt_ids, ())
                bootstraps = cut and not turn.terminated
                after.append(index.setdefault(next_position, len(index)) if bootstraps else -1)
        padded = torch.nn.utils.rnn.pad_sequence(at, batch_first=True, padding_value=-1)
        return cls(list(index), padded, torch.tensor(after))


class Rival:
    """Learns from rollouts as the published trainers do, except for the given savings."""

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
        """Run all epochs, and return the measurements of each gradient step."""
        self.turns = [turn for stream in streams for turn in stream]
        self._assign_credit(streams)
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
        """Read the critic at all positions of each line."""
        values = []
        for run in self._runs([(len(p) + len(b), [i]) for i, (p, b) in enumerate(lines)]):
            hidden, first = self.reader.hidden([lines[i] for i in run])
            value = self.critic(hidden)
            for i, at in zip(run, first, strict=True):
                values.append(value[at : at + len(lines[i][1]) + 1])
        return values

    def _last(self, lines: Sequence[Line]) -> Iterator[Tensor]:
        """Yield the hidden states of the untrained body at the end of each line, in batches."""
        for run in self._runs([(len(p) + len(b), [i]) for i, (p, b) in enumerate(lines)]):
            hidden, first = self.reader.hidden([lines[i] for i in run])
            yield hidden[[at + len(lines[i][1]) for i, at in zip(run, first, strict=True)]]

    def _assign_credit(self, streams: Sequence[Sequence[Turn]]) -> None:
        """Compute advantages and targets, [n, D] each, with the arithmetic that ours uses."""
        self.readings = readings = Readings.of(streams)
        if self.savings.frozen_once:
            self.features = torch.cat(list(self._last(readings.positions)))
            value = self.critic(self.features).detach()
        else:
            read = self.values([self.reader.critic_line(turn) for turn in self.turns])
            value = torch.zeros(len(readings.positions))
            for at, values in zip(readings.at, read, strict=True):
                columns = (at >= 0).nonzero().squeeze(1)
                value[at[columns]] = values[columns]
            cut = (readings.after >= 0).nonzero().squeeze(1).tolist()
            after = self.values([(self.turns[i].next_prompt_ids, ()) for i in cut])
            value[readings.after[cut]] = torch.cat(after)
        credit, place = self._flat_credit(streams, value)
        advantage = normalize_advantages(credit.advantage, credit.mask, self.config.ppo.std_floor)

        def by_turn(flat: Tensor) -> Tensor:  # [N, L] -> [n, D], with zeros after the last token
            return flat.flatten()[place.clamp(min=0)] * (place >= 0)

        self.advantage, self.target = by_turn(advantage), by_turn(credit.target)
        self.value_mask = by_turn(credit.value_mask)
        # The target of a turn's first slot is also that of its root, where the critic is trained
        # even if the first token was forced.
        first = self.value_mask.int().argmax(1, keepdim=True)
        self.target[:, :1] = self.target.gather(1, first)
        self.value_mask[:, 0] = True
        self.old_value = value[readings.at.clamp(min=0)]
        self.terms = int(credit.mask.sum())
        roots, others = self.value_mask.clone(), self.value_mask.clone()
        roots[:, 1:], others[:, 0] = False, False
        self.value_weight = roots / roots.sum() + others / others.sum().clamp(min=1)  # [n, D]

    def _flat_credit(
        self, streams: Sequence[Sequence[Turn]], value: Tensor
    ) -> tuple[Credit, Tensor]:
        """Lay the tokens of each stream end to end, [N, L], and call `token_credit`.

        Also returns the place of each turn's tokens among the N·L positions, [n, D] with −1 after
        the last token.
        """
        settings, readings = self.config.credit, self.readings
        n, width = len(streams), max(sum(len(t.action.token_ids) for t in s) for s in streams)
        reward, old, bootstrap, discount = torch.zeros(4, n, width)
        mask, choice, ended = torch.zeros(3, n, width, dtype=torch.bool)
        turn_ids, episodes = torch.zeros(2, n, width, dtype=torch.long)
        place = torch.full_like(readings.at, -1)
        i = 0
        for row, stream in enumerate(streams):
            start = episode = 0
            for number, turn in enumerate(stream):
                length = len(turn.action.token_ids)
                span, last = (row, slice(start, start + length)), (row, start + length - 1)
                at, after = readings.at[i, :length], readings.after[i]
                duration = turn.duration if settings.discount == "duration" else 1
                old[span] = torch.where(at >= 0, value[at], 0.0)
                mask[span], choice[span] = True, torch.tensor(turn.action.choice)
                turn_ids[span], episodes[span] = number, episode
                reward[last], discount[last] = turn.reward, settings.gamma**duration
                bootstrap[last] = value[after] if after >= 0 else 0.0
                ended[last] = turn.terminated or turn.truncated
                place[i, :length] = row * width + torch.arange(start, start + length)
                episode += int(ended[last])
                start, i = start + length, i + 1
        credit = token_credit(
            reward,
            old,
            mask,
            turn_ids,
            gamma=settings.gamma,
            lam=settings.lam,
            lam_token=settings.lam_token,
            slots="choices",
            choice=choice,
            discount=discount,
            bootstrap=bootstrap,
            ended=ended,
            episode_ids=episodes,
        )
        return credit, place

    def _step(self, groups: Sequence[tuple[int, list[int]]]) -> Mapping[str, float]:
        """Take one gradient step on some turns."""
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
        """Compute the loss of some turns, and its parts."""
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
        index = torch.tensor(turns)
        mask = self.value_mask[index]
        error = (value - target) ** 2
        if critic.clip is not None:
            near = old + (value - old).clamp(-critic.clip, critic.clip)
            error = torch.maximum(error, (near - target) ** 2)
        # Roots weigh as much as all other readings together, as in our learner.
        value_loss = 0.5 * (error * self.value_weight[index][mask]).sum() / share
        parts["value_loss"] = float(value_loss.detach())
        return total + critic.coefficient * value_loss, parts

    def _read_values(self, turns: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the values at the slots of some turns, with their old values and targets."""
        index = torch.tensor(turns)
        mask = self.value_mask[index]
        if self.savings.frozen_once:
            hidden = self.features[self.readings.at[index][mask]]
        else:
            states, first = self.reader.hidden(
                [self.reader.critic_line(self.turns[i]) for i in turns]
            )
            place = torch.tensor(first)[:, None] + torch.arange(mask.shape[1])
            hidden = states[place[mask]]
        return self.critic(hidden), self.old_value[index][mask], self.target[index][mask]

    def _cost(self, turns: Sequence[int]) -> int:
        """Count the tokens to compute for some turns."""
        lines: list[Line] = []
        for i in turns:
            list(self.reader.ask(self.turns[i], lines))
        rows = set(lines) if self.savings.rows_once else lines
        return sum(len(prompt) + len(beginning) for prompt, beginning in rows)

    def _runs(self, groups: Sequence[tuple[int, list[int]]]) -> Iterator[list[int]]:
        """Join groups, each with its cost, into batches for the model."""
        run, spent = [], 0
        for cost, members in groups:
            run, spent = run + members, spent + cost
            if spent >= self.config.ppo.micro_batch_tokens:
                yield run
                run, spent = [], 0
        if run:
            yield run
