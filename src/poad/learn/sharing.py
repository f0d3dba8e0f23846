"""What the ranks of a training share: the turns of a rollout, and the state of their streams.

Turns are small, and the passes that learn from them are not. So every rank hears of all turns, and
then computes the same credit; only the passes are divided.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from poad.envs import BestWork
from poad.learn.resume import offer_from_json, offer_to_json, turn_from_json, turn_to_json
from poad.lm import TextCodec
from poad.ranks import Ranks
from poad.turns import Episode, Rollout, Turn


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
    # Episodes and measures stand in the order in which a single process takes the turns: turn
    # after turn, and in each of them stream after stream.
    episodes, measures = list[Episode](), list[Mapping[str, float]]()
    ended = [iter(each["episodes"]) for each in heard]
    told = [iter(each["measures"]) for each in heard]
    owners = [rank for rank, each in enumerate(heard) for _ in each["streams"]]
    for t in range(max(map(len, streams))):
        for rank, turns in zip(owners, streams, strict=True):
            measures.append(next(told[rank]))
            if turns[t].terminated or turns[t].truncated:
                episodes.append(Episode(*next(ended[rank])))
    cpu = sum(each["cpu"] for each in heard)
    return Rollout(tuple(streams), tuple(episodes), tuple(measures), cpu)


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


def share_works(works: BestWork, ranks: Ranks) -> None:
    """Let every rank know the best that any has made; each goes on counting its own turns."""
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
