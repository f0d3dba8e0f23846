"""Snapshots: everything that a stopped run needs to go on exactly where it was."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poad.agent import Agent, Tensors
from poad.errors import WorldError
from poad.learn.ppo import PPO
from poad.learn.rollout import Collector
from poad.learn.stream import WorldStream
from poad.learn.value import Readings
from poad.lm import TextCodec, all_whole, part_of
from poad.trie import Form, Grammar, Offer, TokenTree
from poad.turns import Action, Turn


def take_snapshot(
    agent: Agent, learner: PPO, collector: Collector, generator: np.random.Generator
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return the tensors of a checkpoint, by file, and the rest of its state as JSON values.

    The tensors are the live ones: write or copy them before training goes on. Only rank 0 gets
    those that are sharded.
    """
    tensors = agent.tensors() | {
        "optimizer": _moments(learner.optimizer),
        "returns": dict(learner.returns.state_dict()),
        "random": {"learner": learner.generator.get_state()},
    }
    if learner.reliance is not None:
        tensors["reliance"] = dict(learner.reliance.state_dict())
    if learner.regression is not None:
        tensors["regression"] = learner.regression.state_dict()
    if learner.values is not None:
        tensors["critic_optimizer"] = _moments(learner.values.optimizer)
        tensors["random"]["critic"] = learner.values.generator.get_state()
        tensors["critic_memory"] = {
            f"{i}.{name}": tensor
            for i, readings in enumerate(learner.values.memory)
            for name, tensor in readings._asdict().items()
        }
    if learner.body is not None:
        tensors["critic_body_optimizer"] = _moments(learner.body.optimizer)
        tensors["random"]["critic_body"] = learner.body.generator.get_state()
    state = {
        "generator": generator.bit_generator.state,
        "collector": collector_state(collector),
        "updates": learner.updates,
        "lr_scale": learner.lr_scale,
        "pass_tokens": agent.model.passes.tokens,
        "model": agent.model.identity,
        "waiting": [[turn_to_json(turn) for turn in turns] for turns in learner.waiting.turns],
    }
    whole = {group: all_whole(named, learner.ranks) for group, named in tensors.items()}
    return whole, state


def restore_snapshot(
    tensors: Tensors,
    state: dict[str, Any],
    agent: Agent,
    learner: PPO,
    collector: Collector,
    generator: np.random.Generator,
) -> None:
    """Restore what `take_snapshot` returned.

    Raises:
        ModelError: it was made from another model than the agent's.
    """
    agent.check_origin(state)
    agent.load(tensors)
    _restore(learner.optimizer, tensors["optimizer"])
    learner.generator.set_state(tensors["random"]["learner"].to(torch.uint8))
    learner.returns.load_state_dict(dict(tensors["returns"]))
    if learner.reliance is not None and "reliance" in tensors:  # earlier runs have none
        learner.reliance.load_state_dict(dict(tensors["reliance"]))
    if learner.regression is not None:
        learner.regression.load_state_dict(dict(tensors["regression"]))
    learner.updates = int(state["updates"])
    learner.lr_scale = float(state.get("lr_scale", 1.0))  # earlier runs have none
    agent.model.passes.tokens = int(state["pass_tokens"])
    if learner.values is not None:
        _restore(learner.values.optimizer, tensors["critic_optimizer"])
        learner.values.generator.set_state(tensors["random"]["critic"].to(torch.uint8))
        device = agent.model.device
        learner.values.memory = [
            Readings(**{name: tensor.to(device) for name, tensor in readings.items()})
            for _, readings in sorted(_by_number(tensors["critic_memory"]).items())
        ]
    if learner.body is not None:
        _restore(learner.body.optimizer, tensors["critic_body_optimizer"])
        learner.body.generator.set_state(tensors["random"]["critic_body"].to(torch.uint8))
    generator.bit_generator.state = state["generator"]
    broken = load_collector(collector, state["collector"])
    codec = agent.model.codec
    learner.waiting.turns = [
        tuple(turn_from_json(turn, _tree_of(turn, codec)) for turn in turns)
        for turns in state["waiting"]
    ]
    # Each rank replays its own streams, and all of them keep the turns that wait in every stream.
    first = learner.ranks.own(len(learner.waiting.turns)).start
    heard = learner.ranks.exchange("broken off", [first + n for n in broken])
    learner.waiting.break_off(n for each in heard for n in each)


def collector_state(collector: Collector) -> dict[str, Any]:
    """Return everything that the worlds need to go on from here, as JSON values.

    That is only seeds and actions: worlds are deterministic in both. A world may add what its
    copies remember between episodes.
    """
    return {
        "next_seeds": list(collector.next_seeds),
        "generators": [each.bit_generator.state for each in collector.generators],
        "memory": _memory(collector),
        "streams": [mark.to_json() for mark in collector.marks],
    }


def _memory(collector: Collector) -> Any:
    """Return what the first world remembers that can tell it."""
    for stream in collector.streams:
        if not stream.host.busy:
            with suppress(WorldError, *([Exception] if collector.rewound else [])):
                return stream.memory()
    return None


def load_collector(collector: Collector, state: Mapping[str, Any]) -> list[int]:
    """Restore what `collector_state` returned, by replaying unfinished episodes.

    Returns:
        The streams whose episodes could not be repeated, where that is borne. They have begun
        fresh episodes.

    Raises:
        WorldError: a world does not repeat what it showed before, and that is not borne.
    """
    collector.next_seeds = [int(seed) for seed in state["next_seeds"]]
    for generator, saved in zip(collector.generators, state["generators"], strict=True):
        generator.bit_generator.state = saved
    if state["memory"] is not None:
        for stream in collector.streams:
            stream.load_memory(state["memory"])
    failed = _replay(dict(enumerate(zip(collector.streams, state["streams"], strict=True))))
    for number, error in failed.items():
        collector.begin_anew(number, error)
    if failed:
        warnings.warn(
            f"{len(failed)} of {len(collector.streams)} unfinished episodes could not be repeated, "
            f"so fresh ones begin in their place. The first: {next(iter(failed.values()))}",
            stacklevel=2,
        )
    return list(failed)


def _replay(streams: dict[int, tuple[WorldStream, Any]]) -> dict[int, Exception]:
    """Begin episodes and repeat their actions, in all streams turn by turn.

    Args:
        streams: by number, each with its `Mark` in JSON values.

    Returns:
        What went wrong, by number of the stream.
    """
    failed: dict[int, Exception] = {}
    turn = 0
    while streams := {
        n: (stream, mark)
        for n, (stream, mark) in streams.items()
        if n not in failed and turn <= len(mark["actions"])
    }:
        for half in (_begin_again, _end_again):
            for n, (stream, mark) in streams.items():
                try:
                    if n not in failed:
                        half(n, stream, mark, turn)
                except Exception as error:
                    failed[n] = error
        turn += 1
    return failed


def _begin_again(number: int, stream: WorldStream, mark: Any, turn: int) -> None:
    """Begin to repeat a turn, or a reset if its number is 0."""
    if turn:
        stream.begin(_action(mark, turn))
    else:
        stream.begin_reset(int(mark["seed"]))


def _end_again(number: int, stream: WorldStream, mark: Any, turn: int) -> None:
    """Wait for the end of a repeated turn.

    Raises:
        WorldError: it is not as it was.
    """
    if turn:
        stream.finish(number, _action(mark, turn))
    else:
        stream.settle()
    world, fresh = stream.world, "To begin fresh episodes instead, set on_world_error = restart."
    if world.seen != mark["seen"][: turn + 1]:
        raise WorldError(
            "The world does not repeat what it showed before the run was stopped, so the run "
            "cannot go on from there. Either the world has been changed since, or its episodes "
            f"depend on more than the seed and the actions. {fresh} {world.place()}"
        )
    if stream.read[turn] != mark["read"][turn]:
        raise WorldError(
            "The world shows what it showed before the run was stopped, but the model reads "
            "another prompt, so its tokenizer, its chat template or a library has been changed "
            f"since. versions.json has the versions of then. {fresh} {world.place()}"
        )


def _action(mark: Any, turn: int) -> Action:
    return Action(mark["actions"][turn - 1], tuple(mark["tokens"][turn - 1]), (), ())


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what an optimizer remembers, as "NUMBER OF THE WEIGHT.NAME"."""
    return {
        f"{index}.{name}": tensor
        for index, slots in optimizer.state_dict()["state"].items()
        for name, tensor in slots.items()
    }


def _restore(optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Restore what `_moments` returned, whole. Of sharded weights, take this rank's part."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = {
        n: {name: part_of(t, weights[n]) if t.dim() else t for name, t in slots.items()}
        for n, slots in _by_number(moments).items()
    }
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def _by_number(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Group tensors that are named "NUMBER.NAME" by their number."""
    groups: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        groups.setdefault(int(number), {})[name] = tensor
    return groups


def turn_to_json(turn: Turn, *, offered: bool = True) -> dict[str, Any]:
    """Describe a turn in JSON values, with what was offered or without it."""
    action = turn.action
    tree = action.trie if offered else None
    return {
        "prompt_ids": turn.prompt_ids,
        "offered": None if tree is None else offer_to_json(tree.offer),
        "text": action.text,
        "token_ids": action.token_ids,
        "choice": action.choice,
        "logprob": action.logprob,
        "thought": action.thought,
        "reward": turn.reward,
        "duration": turn.duration,
        "next_prompt_ids": turn.next_prompt_ids,
        "terminated": turn.terminated,
        "truncated": turn.truncated,
    }


def offer_to_json(offer: Offer) -> Any:
    """Describe an offer in JSON values."""
    if isinstance(offer, Grammar):
        return {"grammar": vars(offer)}
    return {"parts": offer.parts} if isinstance(offer, Form) else offer


def offer_from_json(saved: Any) -> Offer:
    """Restore what `offer_to_json` returned."""
    if isinstance(saved, dict) and "grammar" in saved:
        return Grammar(**saved["grammar"])
    return Form(tuple(map(tuple, saved["parts"]))) if isinstance(saved, dict) else tuple(saved)


def _tree_of(saved: Mapping[str, Any], codec: TextCodec) -> TokenTree | None:
    offered = saved["offered"]
    return None if offered is None else codec.trie(offer_from_json(offered))


def turn_from_json(saved: Mapping[str, Any], trie: TokenTree | None) -> Turn:
    """Restore what `turn_to_json` returned, with the tree of what was offered."""
    action = Action(
        saved["text"],
        tuple(saved["token_ids"]),
        tuple(saved["choice"]),
        tuple(saved["logprob"]),
        thought=saved["thought"],
    )
    if trie is not None:
        nodes = (*(-1,) * action.thought, *trie.walk(action.token_ids[action.thought :]))
        action = replace(action, trie=trie, nodes=nodes)
    return Turn(
        tuple(saved["prompt_ids"]),
        action,
        saved["reward"],
        saved["duration"],
        terminated=saved["terminated"],
        truncated=saved["truncated"],
        next_prompt_ids=tuple(saved["next_prompt_ids"]),
    )
