"""Records of evaluation turns: what the agent read, how likely each action was, what it valued."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from poad.agent import Agent, Memo, Observation
from poad.runs import TurnRecord
from poad.trie import ActionTrie
from poad.turns import Action, TokenIds


class TurnRecorder:
    """Builds the records of an agent's turns.

    The same action at the same prompt is computed once: episodes of one evaluation often share
    their first turns, and a record costs a forward pass.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._known: dict[tuple[TokenIds, ActionTrie, TokenIds], TurnRecord] = {}

    def record(
        self,
        observation: Observation,
        action: Action,
        reward: float,
        info: Mapping[str, Any],
        memo: Memo,
    ) -> TurnRecord:
        """Build the record of one turn.

        Args:
            observation: what the action answered.
            action: what the agent wrote.
            reward: what the world returned for it.
            info: the dictionary that came with the reward.
            memo: distributions that acting has already computed.
        """
        turn = self._thoughts(observation, action, memo)
        duration, invalid = int(info.get("duration", 1)), "invalid_action" in info
        return replace(turn, reward=reward, duration=duration, invalid=invalid)

    def _thoughts(self, observation: Observation, action: Action, memo: Memo) -> TurnRecord:
        if action.trie is None:  # freely written actions hardly ever repeat
            return _compute(self._agent, observation, action, memo)
        key = (self._agent.policy.prompt_ids(observation), action.trie, action.token_ids)
        if key not in self._known:
            self._known[key] = _compute(self._agent, observation, action, memo)
        return self._known[key]


def _compute(agent: Agent, observation: Observation, action: Action, memo: Memo) -> TurnRecord:
    """Build the record of a turn whose outcome is not known yet."""
    prompt, tokens = agent.policy.prompt_ids(observation), action.token_ids
    # Thoughts come before the action, so its probabilities are those after the thoughts.
    decided = replace(observation, prompt_ids=(*prompt, *tokens[: action.thought]))
    value = agent.values([(prompt, tokens[:j]) for j in range(len(tokens))])
    offered = None
    if observation.admissible_actions is not None:
        chances = agent.policy.probabilities(decided, memo)
        offered = tuple(zip(observation.admissible_actions, chances, strict=True))
    return TurnRecord(
        prompt=observation.prompt,
        offered=offered,
        action=action.text,
        token_ids=tuple(tokens),
        pieces=tuple(agent.model.codec.pieces(tokens)),
        choice=tuple(action.choice),
        logprob=tuple(action.logprob),
        value=tuple(value),
        root_value=value[0],
        reward=0.0,
        duration=1,
        invalid=False,
    )
