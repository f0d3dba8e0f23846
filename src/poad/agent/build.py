"""A trained or untrained agent: model, policy and critic, as a configuration describes them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from poad.agent.critic import Critic, FrozenFeatures, read_hidden
from poad.agent.policy import Policy
from poad.agent.settings import Settings, resolve
from poad.config import Config
from poad.errors import ModelError
from poad.lm import LanguageModel, SideAdapter, load_model, shard
from poad.ranks import ALONE, Ranks
from poad.turns import Position

T = TypeVar("T")
Tensors = Mapping[str, Mapping[str, Tensor]]
"""Named groups of named tensors, as a checkpoint holds them."""


@dataclass(frozen=True)
class Agent:
    """A policy and its critic, with the model and the settings they share."""

    settings: Settings
    model: LanguageModel
    policy: Policy
    critic: Critic
    features: FrozenFeatures | None
    """The features that the critic reads; None if it shares the policy's body."""

    @property
    def config(self) -> Config:
        """The resolved configuration, as it is written to files."""
        return self.settings.config

    @torch.no_grad()
    def values(self, positions: Sequence[Position]) -> list[float]:
        """Read V(o, w_<j) at some positions, in their order."""
        if self.features is not None:
            return self.critic(self.features(positions)).tolist()
        hidden = read_hidden(self.model, self.model.read, positions, self.policy.acting.pass_tokens)
        return self.critic(hidden).tolist()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return all trained weights; these are the live tensors, not copies."""
        groups = {"policy": self.model.state(), "critic": dict(self.critic.state_dict())}
        adapter = None if self.features is None else self.features.adapter
        return groups if adapter is None else groups | {"critic_body": dict(adapter.state_dict())}

    def load(self, tensors: Tensors) -> None:
        """Restore what `tensors` returned.

        Raises:
            ModelError: the weights belong to another model.
        """
        self.model.load_state(dict(tensors["policy"]))
        self.critic.load_state_dict(dict(tensors["critic"]))
        if self.features is not None and self.features.adapter is not None:
            self.features.adapter.load_state_dict(dict(tensors["critic_body"]))

    def check_origin(self, state: Mapping[str, Any]) -> None:
        """Check that a checkpoint was made from the model that was loaded.

        Args:
            state: of the checkpoint. Those of earlier versions do not tell.

        Raises:
            ModelError: the model under its name is another one now.
        """
        recorded, now = state.get("model", {}), self.model.identity
        if other := [part for part in recorded if recorded[part] != now.get(part)]:
            raise ModelError(
                f"{self.config.model.name!r} is no longer the model that the run was trained from: "
                f"its {' and its '.join(other)} changed. Put the model of then back into its "
                "place, or train anew."
            )


def load_agent(config: Config, tensors: Tensors | None = None, *, ranks: Ranks = ALONE) -> Agent:
    """Build the agent that a configuration describes.

    Args:
        config: resolved or not.
        tensors: trained weights of a checkpoint. None leaves the agent untrained.
        ranks: the processes that divide the weights of the model among them, if the settings say
            so (`ModelConfig.shard`).

    Raises:
        ConfigError, ModelError: it cannot be built; the message says why.
    """
    settings = resolve(config)
    config = settings.config
    apart = config.critic.apart
    model = load_model(
        config.model,
        config.prompt,
        config.seed,
        keep_frozen=apart,
        keep_reference=config.ppo.kl_reference > 0,
    )
    policy = Policy(model, settings.acting, config.prompt)
    features = adapter = None
    if config.critic.body == "adapter":
        adapter = SideAdapter(model, config.model, config.seed)
    if apart:
        tokens = config.ppo.micro_batch_tokens
        features = FrozenFeatures(model, tokens, config.critic, adapter)
    width = model.width if features is None else features.width
    standardize = apart and config.critic.standardize
    critic = Critic(width, config.critic.hidden, config.seed, standardize).to(model.device)
    if config.model.shard != "none" and ranks.size > 1:
        shard(model, ranks, torch.bfloat16 if config.model.shard == "mixed" else None)
    agent = Agent(settings, model, policy, critic, features)
    if tensors is not None:
        agent.load(tensors)
    return agent


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with some threads for a while, and restore the caller's number after it.

    Args:
        count: how many; 0 leaves torch's own choice.
    """
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_threads(count: int, items: Generator[T, None, None]) -> Iterator[T]:
    """Run a generator with some torch threads, and restore the caller's number between its items.

    Args:
        count: how many; 0 leaves torch's own choice.
        items: closed when this iterator is.
    """
    with closing(items):
        while True:
            with torch_threads(count):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
