"""Records of evaluation turns: what the agent read, how likely each action was, what it valued."""

from __future__ import annotations

from dataclasses import replace

from poad.agent import ActingCache, Agent
from poad.learn.stream import Step
from poad.runs import TurnRecord
from poad.trie import Form, Grammar, TokenTree
from poad.turns import TokenIds


class TurnRecorder:
    """Builds the records of an agent's turns.

    The same action at the same prompt is computed once: episodes of one evaluation often share
    their first turns, and a record costs a forward pass.

    Args:
        agent: whose turns are recorded. Its weights must not change.
        cache: distributions that acting has already computed.
    """

    def __init__(self, agent: Agent, cache: ActingCache) -> None:
        self._agent = agent
        self._cache = cache
        self._known: dict[tuple[TokenIds, TokenTree, TokenIds], TurnRecord] = {}

    def record(self, step: Step) -> TurnRecord:
        """Build the record of one turn."""
        # Two texts may be the same to the model, if it reads neither as a whole.
        return replace(
            self._decision(step),
            prompt=step.observation.prompt,
            cut=step.observation.cut,
            reward=step.reward,
            duration=step.duration,
            invalid="invalid_action" in step.info,
        )

    def _decision(self, step: Step) -> TurnRecord:
        action = step.action
        if action.trie is None:  # freely written actions hardly ever repeat
            return self._compute(step)
        key = (step.observation.prompt_ids, action.trie, action.token_ids)
        if key not in self._known:
            self._known[key] = self._compute(step)
        return self._known[key]

    def _compute(self, step: Step) -> TurnRecord:
        """Build the record of a turn without its outcome."""
        policy, observation, action = self._agent.policy, step.observation, step.action
        prompt, tokens = observation.prompt_ids, action.token_ids
        # Thoughts come before the action, so its probabilities are those after the thoughts.
        decided = replace(observation, prompt_ids=(*prompt, *tokens[: action.thought]))
        value = self._agent.values([(prompt, tokens[:j]) for j in range(len(tokens))])
        actions, offered, form = observation.admissible_actions, None, ""
        if isinstance(actions, Form | Grammar):
            form = str(actions)
        elif actions is not None:
            chances = policy.probabilities(decided, self._cache)
            offered = tuple(zip(actions, chances, strict=True))
        return TurnRecord(
            prompt="",
            offered=offered,
            action=action.text,
            token_ids=tuple(tokens),
            pieces=tuple(policy.codec.pieces(tokens)),
            choice=tuple(action.choice),
            logprob=tuple(action.logprob),
            value=tuple(value),
            root_value=value[0],
            reward=0.0,
            duration=1,
            invalid=False,
            form=form,
        )
