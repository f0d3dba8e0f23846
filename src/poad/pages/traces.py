"""Episodes from files: our own episodes.jsonl, traces of other tools, and those of verifiers.

Each line is an episode, in one of the forms of docs/inspect.md, which its keys decide. A file may
mix them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from poad.errors import RunError
from poad.pages.compare import age, world_of
from poad.pages.verifiers import from_verifiers, is_from_verifiers
from poad.pages.views import EpisodeView, TurnView
from poad.runs import EpisodeRecord, decode

Pieces = Callable[[Sequence[int]], Sequence[str]]
"""Decodes tokens, each by itself."""


@dataclass(frozen=True)
class TokenTrace:
    """One episode as flat columns over its tokens, as `poad.token_credit` takes them."""

    token_ids: tuple[int, ...]
    """[n] all tokens, or those of the actions alone."""
    turn_ids: tuple[int, ...]
    """[n] the turn of each token; never decreasing. An observation may have the number of the turn
    that answers it."""
    rewards: tuple[float, ...]
    """[n] the sum over a turn's action tokens is the turn's reward. Rewards at the tokens of an
    observation do not count."""
    texts: tuple[str, ...] = ()
    """[n] the tokens as text."""
    logprobs: tuple[float, ...] = ()
    """[n] log-probabilities of the action tokens, in nats."""
    values: tuple[float, ...] = ()
    """[n] the critic's value before each token."""
    entropies: tuple[float, ...] = ()
    """[n] in nats."""
    mask: tuple[bool, ...] = ()
    """[n] action tokens, those that the policy sampled; all if empty."""
    choice: tuple[bool, ...] = ()
    """[n] action tokens that had an alternative; all action tokens if empty."""
    ending: Literal["terminated", "truncated", "unfinished"] = "terminated"
    bootstrap: float = math.nan
    """The value after the last turn, unless the episode terminated."""
    success: bool | None = None
    seed: int | None = None


def read_episodes(
    path: Path, *, limit: int, checkpoint: int | None = None, pieces: Pieces | None = None
) -> dict[str, list[EpisodeView]]:
    """Read episodes from JSON lines, by the agent that acted in them.

    Args:
        path: the file. The keys of each line decide its form.
        limit: how many episodes of each agent.
        checkpoint: of our own episodes, those of this checkpoint. None: of the newest.
        pieces: decodes tokens that have no text of their own; without it they show their ids.

    Raises:
        RunError: the file or a line cannot be read; the message names the line and what is wrong.
    """
    traces: list[EpisodeView] = []
    records: list[EpisodeRecord] = []
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        if "turns" in line:
            record = decode(EpisodeRecord, line, where)
            if record.turns:
                records.append(record)
        elif is_from_verifiers(line):
            if len(traces) < limit:
                traces += from_verifiers(line, number, partial(_decoded, pieces=pieces), where)
        elif "token_ids" in line:
            if len(traces) < limit:
                trace = decode(TokenTrace, line, where)
                traces.append(_from_trace(trace, number, pieces, where))
        else:
            raise RunError(
                f"{where}: this is no episode. Its keys are {', '.join([*line][:8]) or 'none'}; "
                "a line needs `turns` (episodes.jsonl), `token_ids` (a trace), or `traces` or "
                "`trajectory` (verifiers). docs/inspect.md has the forms."
            )
    found = {"": traces[:limit]} if traces else {}
    found |= _newest(records, checkpoint, path, limit)
    if not any(found.values()):
        raise RunError(f"{path} holds no episode with turns.")
    return found


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    line = json.loads(text)
                except ValueError as error:
                    raise RunError(f"{path}, line {number}: this is not JSON: {error}.") from None
                if not isinstance(line, dict):
                    raise RunError(f"{path}, line {number}: an episode is a JSON object.")
                yield number, line
    except OSError as error:
        raise RunError(f"Cannot read {path}: {error.strerror or error}.") from error


# Our own records.


def _newest(
    records: Sequence[EpisodeRecord],
    checkpoint: int | None,
    path: Path,
    limit: int,
) -> dict[str, list[EpisodeView]]:
    """Keep the episodes of one checkpoint by world and mode, each seed once."""
    if not records:
        return {}
    ages = sorted({age(record.checkpoint) for record in records})
    chosen = ages[-1] if checkpoint is None else checkpoint
    if chosen not in ages:
        known = ", ".join("untrained" if each < 0 else str(each) for each in ages)
        raise RunError(
            f"{path} has no episodes of checkpoint {chosen}; there are those of {known}."
        )
    weights = "untrained" if chosen < 0 else f"checkpoint {chosen}"
    found: dict[str, dict[int, EpisodeRecord]] = {}
    for record in records:
        if age(record.checkpoint) == chosen:
            world = world_of(record.env, record.env_args)
            who = f"{record.model or weights} in {world}, {record.mode}"
            found.setdefault(who, {})[record.seed] = record
    return {
        who: [_from_record(record) for record in islice(kept.values(), limit)]
        for who, kept in found.items()
    }


def _from_record(record: EpisodeRecord) -> EpisodeView:
    turns = tuple(
        TurnView(**{spec.name: getattr(turn, spec.name) for spec in _SHARED})
        for turn in record.turns
    )
    ending = "unfinished" if record.ending == "failed" else record.ending
    return EpisodeView(record.seed, record.episode_return, record.success, ending, turns, math.nan)


_SHARED = [
    spec for spec in fields(TurnView) if spec.name not in ("before", "entropy", "alternatives")
]


# Traces of other tools.


def _from_trace(trace: TokenTrace, number: int, pieces: Pieces | None, where: str) -> EpisodeView:
    size = len(trace.token_ids)
    for spec in fields(trace):
        column = getattr(trace, spec.name)
        if isinstance(column, tuple) and len(column) not in (
            (0, size) if spec.default == () else (size,)
        ):
            raise RunError(
                f"{where}: {spec.name} has {len(column)} entries, and token_ids has {size}."
            )
    if any(a > b for a, b in zip(trace.turn_ids, trace.turn_ids[1:], strict=False)):
        raise RunError(f"{where}: turn_ids decrease; tokens must be in the order of time.")
    texts = trace.texts or _decoded(trace.token_ids, pieces)
    mask = trace.mask or (True,) * size
    unknown = (math.nan,) * size
    logprobs, values = trace.logprobs or unknown, trace.values or unknown
    choice = trace.choice or mask
    turns: list[TurnView] = []
    pending: list[str] = []  # the observation that the next action answers
    for turn_id in dict.fromkeys(trace.turn_ids):
        here = [i for i in range(size) if trace.turn_ids[i] == turn_id]
        acted = [i for i in here if mask[i]]
        pending += [texts[i] for i in here if not mask[i]]
        if not acted:
            continue
        turns.append(
            TurnView(
                prompt="".join(pending),
                action="".join(texts[i] for i in acted),
                token_ids=tuple(trace.token_ids[i] for i in acted),
                pieces=tuple(texts[i] for i in acted),
                choice=tuple(choice[i] for i in acted),
                logprob=tuple(logprobs[i] for i in acted),
                value=tuple(values[i] for i in acted),
                reward=sum(trace.rewards[i] for i in acted),
                entropy=tuple(trace.entropies[i] for i in acted) if trace.entropies else (),
            )
        )
        pending = []
    return EpisodeView(
        seed=number if trace.seed is None else trace.seed,
        episode_return=sum(turn.reward for turn in turns),
        success=trace.success,
        ending=trace.ending,
        turns=tuple(turns),
        bootstrap=trace.bootstrap,
    )


def _decoded(token_ids: Sequence[int], pieces: Pieces | None) -> Sequence[str]:
    return [f"#{token}" for token in token_ids] if pieces is None else pieces(token_ids)
