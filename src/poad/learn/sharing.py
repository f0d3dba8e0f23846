"""What the ranks of a training share: rollouts, episodes of evaluations, and the state of streams.

Turns are small, and the passes that learn from them are not. So every rank hears of all turns, and
then computes the same credit; only the passes are divided.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np

from poad.agent import Agent, Engine
from poad.envs import BestWork
from poad.errors import EngineError
from poad.learn.faults import Log, fault_from_json, fault_to_json, is_world_fault
from poad.learn.resume import offer_from_json, offer_to_json, turn_from_json, turn_to_json
from poad.learn.rollout import Collector
from poad.lm import TextCodec
from poad.ranks import Ranks
from poad.runs import EpisodeRecord, decode, encode
from poad.turns import Episode, Rollout, Turn

_AT_A_TIME = 256
"""Episodes of an evaluation in one message, so that rank 0 never holds all of them."""


def collect(
    collector: Collector,
    generator: np.random.Generator,
    agent: Agent,
    engine: Engine,
    ranks: Ranks,
    log: Log,
) -> Rollout:
    """Collect a rollout on all ranks, and put it together.

    Args:
        collector: of this rank's streams.
        generator: the source of randomness that streams may share.
        agent: who acts.
        engine: writes what is written freely, and is handed the weights at first.
        ranks: in the order of their streams.
        log: is told which worlds failed.

    Raises:
        Exception: a world failed, and that is not borne; or the engine failed. The rollout is
            taken back on all ranks.
        RankError: a world or the engine of another rank failed.
    """
    rollout, failure = None, None
    collector.begin_rollout(generator)  # so that a failure of the engine, too, can be taken back
    try:
        engine.update(ranks)
        rollout = collector.collect(agent.config.horizon, generator)
    except Exception as error:
        if not is_world_fault(error) and not isinstance(error, EngineError):
            raise
        failure = error
    first = ranks.own(agent.config.streams).start  # of the streams of this rank
    faults = [replace(fault, stream=first + fault.stream) for fault in collector.take_faults()]
    told = [failure is not None, [fault_to_json(fault) for fault in faults]]
    heard = ranks.exchange("worlds", told)
    log([fault_from_json(each) for _, some in heard for each in some], failure)
    if rollout is None or any(failed for failed, _ in heard):
        collector.rewind(generator)
        raise failure or ranks.told_by([failed for failed, _ in heard].index(True))
    rollout = share_rollout(rollout, ranks, agent.model.codec)
    return replace(rollout, faults=sum(len(some) for _, some in heard))


def share_rollout(rollout: Rollout, ranks: Ranks, codec: TextCodec) -> Rollout:
    """Put the rollouts of all ranks together: the one that a single process would have collected.

    Args:
        rollout: turns of this rank's streams, the same number in each.
        ranks: in the order of their streams.
        codec: of the model, which all ranks have.
    """
    if ranks.size == 1:
        return rollout
    heard = ranks.exchange("rollout", _to_json(rollout))
    streams = [turns for each in heard for turns in _turns_of(each, codec)]
    firsts = [*accumulate((len(each["streams"]) for each in heard), initial=0)]
    broken = {(firsts[r] + n, t) for r, each in enumerate(heard) for n, t in each["broken"]}
    # Episodes and measures stand in the order in which a single process takes the turns: turn
    # after turn, and in each of them stream after stream.
    episodes, measures = list[Episode](), list[Mapping[str, float]]()
    ended = [iter(each["episodes"]) for each in heard]
    told = [iter(each["measures"]) for each in heard]
    owners = [rank for rank, each in enumerate(heard) for _ in each["streams"]]
    for t in range(max(map(len, streams))):
        for n, (rank, turns) in enumerate(zip(owners, streams, strict=True)):
            measures.append(next(told[rank]))
            if (turns[t].terminated or turns[t].truncated) and (n, t) not in broken:
                episodes.append(Episode(*next(ended[rank])))
    cpu = sum(each["cpu"] for each in heard)
    return Rollout(
        tuple(streams), tuple(episodes), tuple(measures), cpu, rollout.works, tuple(sorted(broken))
    )


def _to_json(rollout: Rollout) -> dict[str, Any]:
    offers: dict[int, int] = {}
    known: list[Any] = []
    streams = []
    for turns in rollout.streams:
        told = []
        for turn in turns:
            trie, line = turn.action.trie, turn_to_json(turn, offered=False)
            if trie is not None and id(trie) not in offers:  # each offer is sent once
                offers[id(trie)] = len(known)
                known.append(offer_to_json(trie.offer))
            told.append({**line, "offered": None if trie is None else offers[id(trie)]})
        streams.append(told)
    return {
        "offers": known,
        "streams": streams,
        "episodes": rollout.episodes,
        "measures": [dict(each) for each in rollout.measures],
        "cpu": rollout.cpu_elsewhere,
        "broken": rollout.broken,
    }


def _turns_of(told: Mapping[str, Any], codec: TextCodec) -> list[tuple[Turn, ...]]:
    offers = [codec.trie(offer_from_json(each)) for each in told["offers"]]
    return [
        tuple(
            turn_from_json(turn, None if turn["offered"] is None else offers[turn["offered"]])
            for turn in turns
        )
        for turns in told["streams"]
    ]


def share_works(works: BestWork, rollout: Rollout, ranks: Ranks) -> None:
    """Consider what was made in a rollout, and let every rank know the best that any has made.

    Each goes on counting its own turns.
    """
    for work in rollout.works:
        works.consider(work)
    if ranks.size == 1:
        return
    heard = ranks.exchange("works", works.state())
    made = [each["best"] for each in heard if each["best"]]
    best = max(made, key=lambda each: each["score"], default=None)
    works.load_state({"best": best, "turns": works.turns})


def share_streams(state: Mapping[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Put the states of all ranks' streams together, as one process would save them.

    Args:
        state: of this rank's; see `poad.learn.resume.collector_state`.
        ranks: in the order of their streams.
    """
    heard = ranks.exchange("streams", dict(state))
    parts = ("streams", "generators", "next_seeds")
    joined = {name: [item for each in heard for item in each[name]] for name in parts}
    # What copies of a world remember differs between ranks, and serves only to save time.
    return {**heard[0], **joined}


def own_streams(state: Mapping[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Pick the states of this rank's streams out of those of all."""
    own = ranks.own(len(state["streams"]))
    parts = ("streams", "generators", "next_seeds")
    return {**state, **{name: state[name][own.start : own.stop] for name in parts}}


def share_episodes(
    played: Iterator[EpisodeRecord], count: int, ranks: Ranks, stopping: Sequence[bool]
) -> Iterator[EpisodeRecord]:
    """Let rank 0 have the episodes of an evaluation that all ranks play.

    Args:
        played: this rank's episodes, `ranks.own(count)` of all.
        count: the number of episodes of all ranks.
        ranks: in the order of their episodes.
        stopping: has an entry once this rank is asked to stop. It plays no further then, and all
            ranks stop when they have played their episodes.

    Yields:
        On rank 0 its own records as they are played, and then those of the others; elsewhere none.

    Raises:
        KeyboardInterrupt: a rank was asked to stop.
    """
    told = []
    for record in played:
        if ranks.is_first:
            yield record
        else:
            told.append(encode(record))
        if stopping:
            break
    if any(ranks.exchange("played", bool(stopping))):
        raise KeyboardInterrupt
    for rank in range(1, ranks.size):
        for begin in range(0, len(Ranks(rank, ranks.size).own(count)), _AT_A_TIME):
            some = told[begin : begin + _AT_A_TIME] if rank == ranks.rank else []
            heard = ranks.exchange("episodes", some)[rank]
            if ranks.is_first:
                yield from (decode(EpisodeRecord, each, "an evaluation") for each in heard)
