"""Episodes from files of verifiers, the library of environments by Prime Intellect.

Since version 0.4 its `traces.jsonl` has an episode a line, with a trace for each agent. A trace is
a graph of messages; each path from a root to a leaf is one sequence of tokens. Before, its
`results.jsonl` had a rollout a line, whose column `trajectory` has the tokens of each turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from poad.errors import RunError
from poad.pages.views import EpisodeView, TurnView

Decode = Callable[[Sequence[int]], Sequence[str]]
"""Turns tokens into texts, each by itself."""
_LIMITS = (
    *("max_turns", "max_input_tokens", "max_output_tokens", "max_total_tokens"),
    "compaction_failed",
)
"""Stop conditions by which verifiers calls a trace truncated."""


def is_from_verifiers(line: Mapping[str, Any]) -> bool:
    """Tell whether a line of a file is one of verifiers."""
    return "traces" in line or "trajectory" in line


def from_verifiers(
    line: Mapping[str, Any], number: int, decode: Decode, where: str
) -> list[EpisodeView]:
    """Convert a line: a rollout, or an episode with a trace for each of its agents.

    Args:
        line: as verifiers saved it.
        number: stands for the seed, which verifiers does not save.
        decode: turns tokens into texts.
        where: what errors call the line.

    Raises:
        RunError: it is damaged, of another version, or without tokens.
    """
    try:
        if "trajectory" in line:
            found = [_from_rollout(line, number, decode)]
        else:
            found = [_from_trace(trace, number, decode) for trace in line["traces"]]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RunError(
            f"{where}: this is not an episode as verifiers saves it: {type(error).__name__}: "
            f"{error}."
        ) from error
    if not any(episode.turns for episode in found):
        raise RunError(
            f"{where}: no turn has tokens. Save episodes of an engine that returns token ids."
        )
    return [episode for episode in found if episode.turns]


# --- since 0.4 -----------------------------------------------------------------------------------


def _from_trace(trace: Mapping[str, Any], number: int, decode: Decode) -> EpisodeView:
    """Convert the last path of a trace; earlier ones end where the agent began anew."""
    total = sum(
        float(reward["score"]) * float(reward.get("weight", 1.0))
        for reward in trace["rewards"].values()
        if reward is not None
    )
    turns: list[TurnView] = []
    pending: list[Mapping[str, Any]] = []  # the messages that the next action answers
    for node in _last_path(trace["nodes"]):
        if node["sampled"] and any(node["mask"]):
            turns.append(_turn_of_node(pending, node, decode))
            pending = []
        else:
            pending.append(node["message"])
    if turns:  # verifiers rewards whole traces
        turns[-1] = replace(turns[-1], reward=total)
    return EpisodeView(number, total, None, _ending_of(trace), tuple(turns))


def _last_path(nodes: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """List the nodes from a root to the leaf that was added last."""
    path, here = list[int](), len(nodes) - 1 if nodes else None
    while here is not None:
        if here in path or not 0 <= here < len(nodes):
            raise ValueError(f"node {path[-1]} has no proper parent")
        path.append(here)
        here = nodes[here].get("parent")
    return (nodes[i] for i in reversed(path))


def _turn_of_node(
    prompt: Sequence[Mapping[str, Any]], node: Mapping[str, Any], decode: Decode
) -> TurnView:
    tokens, mask = [int(token) for token in node["token_ids"]], list(map(bool, node["mask"]))
    ids = tuple(token for token, sampled in zip(tokens, mask, strict=True) if sampled)
    logprob, before, entropy = (
        tuple(map(float, node.get(name) or ()))
        for name in ("logprobs", "reference_logprobs", "entropies")
    )
    if any(len(column) not in (0, len(ids)) for column in (logprob, before, entropy)):
        raise ValueError("a column of a node differs in length from its sampled tokens")
    return TurnView(
        prompt=_messages(prompt),
        action=_messages([node["message"]]),
        token_ids=ids,
        pieces=tuple(decode(ids)),
        choice=(True,) * len(ids),
        logprob=logprob or (math.nan,) * len(ids),
        value=(math.nan,) * len(ids),
        reward=0.0,
        before=before,
        entropy=entropy,
    )


def _ending_of(trace: Mapping[str, Any]) -> Literal["terminated", "truncated", "unfinished"]:
    if not trace.get("ok", True):
        return "unfinished"
    calls = [call for call in trace.get("calls", ()) if not call.get("error")]
    too_long = bool(calls) and calls[-1].get("finish_reason") == "length"
    limited = trace.get("stop_condition") in _LIMITS
    return "truncated" if limited or too_long else "terminated"


# --- before 0.4 ----------------------------------------------------------------------------------


def _from_rollout(line: Mapping[str, Any], number: int, decode: Decode) -> EpisodeView:
    """Convert a rollout that was saved with the state column `trajectory`."""
    steps = [step for step in line["trajectory"] if step.get("tokens")]
    rewards, total = [step.get("reward") for step in steps], float(line["reward"])
    if steps and any(reward is None for reward in rewards):  # then all of it comes at the end
        rewards = [0.0] * (len(steps) - 1) + [total]
    turns = tuple(
        _turn_of_step(step, float(reward), decode)
        for step, reward in zip(steps, rewards, strict=True)
    )
    ending = "truncated" if line.get("is_truncated") else "terminated"
    return EpisodeView(number, total, None, ending, turns)


def _turn_of_step(step: Mapping[str, Any], reward: float, decode: Decode) -> TurnView:
    tokens = step["tokens"]
    ids = tuple(map(int, tokens["completion_ids"]))
    sampled = tuple(map(bool, tokens["completion_mask"]))
    logprob = tuple(map(float, tokens["completion_logprobs"]))
    if not len(ids) == len(sampled) == len(logprob):
        raise ValueError("completion_ids, completion_mask and completion_logprobs differ in length")
    return TurnView(
        prompt=_messages(step["prompt"]),
        action=_messages(step["completion"]),
        token_ids=ids,
        pieces=tuple(decode(ids)),
        choice=sampled,
        logprob=logprob,
        value=(math.nan,) * len(ids),
        reward=reward,
    )


# --- messages ------------------------------------------------------------------------------------


def _messages(messages: Any) -> str:
    if isinstance(messages, str):
        return messages
    return "\n".join(f"{m['role']}: {_content(m)}" for m in messages)


def _content(message: Mapping[str, Any]) -> str:
    """Return what a message says: its text, without images, and the tools it calls."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = " ".join(part.get("text") or f"[{part['type']}]" for part in content)
    return "\n".join(filter(None, (content, *map(_called, message.get("tool_calls") or ()))))


def _called(call: Mapping[str, Any] | str) -> str:
    if isinstance(call, str):  # earlier versions save a call as the JSON of it
        return call
    function = call.get("function") or call
    return f"{function['name']}({function.get('arguments') or ''})"
