"""Pretraining of a critic: it learns what a recorded run's episodes came to, before it is used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from poad.agent import Agent
from poad.errors import ConfigError
from poad.learn.experience import pick_value_terms
from poad.learn.ppo import PPO
from poad.learn.rows import lay_out
from poad.learn.steps import divided
from poad.learn.value import Readings, merged
from poad.runs import EpisodeRecord, Run
from poad.turns import Action, Observation, Turn


def pretrain(learner: PPO) -> int:
    """Fit the critic to the recorded episodes of the run that `critic.pretrain` names.

    Targets are discounted returns, so nothing that an untrained critic says gets into them. A
    truncated episode counts as if nothing had come after it.

    Args:
        learner: of an agent that has not learned anything.

    Returns:
        The number of turns.

    Raises:
        ConfigError: the run holds no turns of this world that the model can read.
        RunError: there is no such run, or it is damaged.
    """
    agent, values = learner.agent, learner.values
    path = agent.config.critic.pretrain
    assert values is not None
    with Run.open(Path(path)) as run:
        streams = list(recorded(run.episodes(), agent))
    if not streams:
        raise ConfigError(
            f"critic.pretrain = {path}: its episodes.jsonl has no turns in {agent.config.env}. "
            "Name a run in the same world with eval.turns = true, or leave the setting out."
        )
    credit = agent.settings.credit
    rates = credit.rates._replace(lam=1.0, lam_token=1.0, lam_actor=1.0, beta=1.0, trace="token")
    rows = lay_out(streams, replace(credit, rates=rates))
    nothing = torch.zeros(len(rows.positions))
    judged = rows.credit(nothing, replace(credit, rates=rates))
    assert agent.features is not None
    with divided(agent.model, learner.ranks):
        features = agent.features(rows.positions)
    agent.critic.observe(features)
    target, weight = merged(pick_value_terms(rows, judged, nothing), len(rows.positions))
    turns = sum(map(len, streams))
    rollouts = turns / (agent.config.streams * agent.config.horizon)
    values.pretrain(Readings(features, target, weight).select(weight > 0), rollouts)
    return turns


def recorded(episodes: Iterable[EpisodeRecord], agent: Agent) -> Iterable[tuple[Turn, ...]]:
    """Yield the turns of recorded episodes in the agent's world, as it would read them.

    Raises:
        ConfigError: they were recorded with another tokenizer.
    """
    policy = agent.policy
    for episode in episodes:
        if episode.env != agent.config.env or not episode.turns:
            continue
        turns = list[Turn]()
        for turn in episode.turns:
            if tuple(policy.codec.pieces(turn.token_ids)) != turn.pieces:
                raise ConfigError(
                    f"critic.pretrain = {agent.config.critic.pretrain}: its actions were written "
                    "with another tokenizer than this model's; name a run of the same model."
                )
            prompt = policy.prompt_ids(Observation(turn.prompt))
            action = Action(turn.action, turn.token_ids, turn.choice, turn.logprob)
            turns.append(Turn(prompt, action, turn.reward, turn.duration))
        turns[-1] = replace(turns[-1], terminated=True)
        yield tuple(turns)
