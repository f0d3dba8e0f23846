"""Snapshots: everything that a stopped run needs to go on exactly where it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poad.agent import Agent, Tensors
from poad.learn.ppo import PPO
from poad.learn.rollout import Collector
from poad.lm import TextCodec
from poad.trie import Form
from poad.turns import Action, Turn


def take_snapshot(
    agent: Agent, learner: PPO, collector: Collector, generator: np.random.Generator
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return the tensors of a checkpoint, by file, and the rest of its state as JSON values.

    The tensors are the live ones: write or copy them before training goes on.
    """
    optimizer = learner.optimizer.state_dict()
    moments = {
        f"{index}.{name}": tensor
        for index, slots in optimizer["state"].items()
        for name, tensor in slots.items()
    }
    tensors = agent.tensors() | {
        "optimizer": moments,
        "random": {"learner": learner.generator.get_state()},
    }
    state = {
        "generator": generator.bit_generator.state,
        "collector": collector.state(),
        "waiting": [[_turn_to_json(turn) for turn in turns] for turns in learner.waiting],
    }
    return tensors, state


def restore_snapshot(
    tensors: Tensors,
    state: dict[str, Any],
    agent: Agent,
    learner: PPO,
    collector: Collector,
    generator: np.random.Generator,
) -> None:
    """Restore what `take_snapshot` returned."""
    agent.load(tensors)
    optimizer = learner.optimizer.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors["optimizer"].items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = tensor
    learner.optimizer.load_state_dict(optimizer | {"state": moments})
    learner.generator.set_state(tensors["random"]["learner"].to(torch.uint8))
    generator.bit_generator.state = state["generator"]
    collector.load_state(state["collector"])
    codec = agent.model.codec
    learner.waiting = [
        tuple(_turn_from_json(turn, codec) for turn in turns) for turns in state["waiting"]
    ]


def _turn_to_json(turn: Turn) -> dict[str, Any]:
    action = turn.action
    return {
        "prompt_ids": turn.prompt_ids,
        "offered": None if action.trie is None else _offer_to_json(action.trie.offer),
        "text": action.text,
        "token_ids": action.token_ids,
        "choice": action.choice,
        "logprob": action.logprob,
        "thought": action.thought,
        "reward": turn.reward,
        "duration": turn.duration,
        "next_prompt_ids": turn.next_prompt_ids,
    }


def _offer_to_json(offer: tuple[str, ...] | Form) -> Any:
    return {"parts": offer.parts} if isinstance(offer, Form) else offer


def _offer_from_json(saved: Any) -> tuple[str, ...] | Form:
    return Form(tuple(map(tuple, saved["parts"]))) if isinstance(saved, dict) else tuple(saved)


def _turn_from_json(saved: dict[str, Any], codec: TextCodec) -> Turn:
    action = Action(
        saved["text"],
        tuple(saved["token_ids"]),
        tuple(saved["choice"]),
        tuple(saved["logprob"]),
        thought=saved["thought"],
    )
    if saved["offered"] is not None:
        trie = codec.trie(_offer_from_json(saved["offered"]))
        nodes = (*(-1,) * action.thought, *trie.walk(action.token_ids[action.thought :]))
        action = replace(action, trie=trie, nodes=nodes)
    return Turn(
        tuple(saved["prompt_ids"]),
        action,
        saved["reward"],
        saved["duration"],
        next_prompt_ids=tuple(saved["next_prompt_ids"]),
    )
