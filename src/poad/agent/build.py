"""A trained (or untrained) agent: model, policy and critic, as a configuration describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from poad.agent.critic import Critic, FrozenFeatures
from poad.agent.policy import Policy, Score
from poad.config import Config
from poad.credit import Method, find_method
from poad.envs import free_text_of
from poad.errors import ConfigError
from poad.lm import LanguageModel, codec_for, load_model, pack, resolve_model
from poad.turns import Position

Tensors = Mapping[str, Mapping[str, Tensor]]
"""Named groups of named tensors, as a checkpoint holds them."""


@dataclass(frozen=True)
class Agent:
    """Who acts, and who judges."""

    config: Config
    """As resolved: no ``auto`` is left in it."""
    method: Method
    model: LanguageModel
    policy: Policy
    critic: Critic
    features: FrozenFeatures | None
    """What the critic reads; none where it shares the policy's body."""

    @torch.no_grad()
    def values(self, positions: Sequence[Position]) -> list[float]:
        """V(o, w_<j) at some positions."""
        if self.features is not None:
            return self.critic(self.features(positions)).tolist()
        packed = pack(positions, self.model.codec.pad_id)
        return self.critic(self.model.read(packed)).tolist()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All trained weights."""
        return {"policy": self.model.state(), "critic": dict(self.critic.state_dict())}

    def load(self, tensors: Tensors) -> None:
        """Put back what :meth:`tensors` gave."""
        self.model.load_state(dict(tensors["policy"]))
        self.critic.load_state_dict(dict(tensors["critic"]))


def resolve(config: Config) -> Config:
    """The configuration with every ``auto`` replaced by what it means.

    Raises:
        ConfigError: settings that contradict each other.
        poad.lm.loading.ModelError: a world without an embedded model.
    """
    method = _method(config)
    acting, credit = config.acting, config.credit
    if acting.scheme == "auto":
        acting = replace(acting, scheme="trie" if method.score == "trie" else "score")
    if acting.score == "auto":
        acting = replace(acting, score=method.score if method.score in get_args(Score) else "word")
    if method.whole_action and acting.scheme != "score":
        raise ConfigError(
            f"acting.scheme = {acting.scheme} decides token by token, but {method.name} credits "
            "the action as one decision; use score."
        )
    if method.decision == "token" and acting.scheme == "score":
        raise ConfigError(
            f"acting.scheme = score makes the whole action one decision, but {method.name} credits "
            "its tokens; use trie (exact) or published (as the paper's code)."
        )
    if config.ppo.ratio == "turn" and method.decision != "turn":
        raise ConfigError(
            f"ppo.ratio = turn is one ratio for the whole action, but {method.name} gives each of "
            "its tokens an advantage of its own; use credit.method = turn_ppo, or ratio = token."
        )
    if config.prompt.thinking and acting.scheme != "trie":
        raise ConfigError(
            f"acting.scheme = {acting.scheme} scores whole actions, so prompt.thinking has no "
            "place before them; use acting.scheme = trie and a method that judges tokens, such as "
            "poad."
        )
    if credit.slots == "auto":
        credit = replace(credit, slots=method.slots)
    if credit.lam_token is None:  # what is not discounted inside an action does not fade there
        fades = method.gamma_token is None
        credit = replace(credit, lam_token=credit.lam if fades else 1.0)
    if credit.gamma_token is None:
        rate = credit.gamma if method.gamma_token is None else method.gamma_token
        credit = replace(credit, gamma_token=rate)
    name = resolve_model(config.model.name, config.env)
    if acting.stop is None:
        acting = replace(acting, stop=free_text_of(config.env).stop)
    if acting.max_action_tokens is None:
        acting = replace(acting, max_action_tokens=free_text_of(config.env).max_tokens)
    return replace(config, acting=acting, credit=credit, model=replace(config.model, name=name))


def load_agent(config: Config, tensors: Tensors | None = None) -> Agent:
    """Build the agent a configuration describes.

    Args:
        config: resolved or not.
        tensors: trained weights of a checkpoint; none leaves the agent untrained.

    Raises:
        ConfigError, poad.lm.loading.ModelError: it cannot be built; the message says why.
    """
    config = resolve(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    frozen = config.critic.body == "frozen"
    reference = config.ppo.kl_reference > 0
    model = load_model(
        config.model,
        config.env,
        config.seed,
        frozen,
        reference,
        partial(codec_for, config=config.prompt),
    )
    policy = Policy(model, config.acting, config.prompt)
    critic = Critic(model.width, config.critic.hidden, config.seed).to(model.device)
    features = FrozenFeatures(model) if frozen else None
    agent = Agent(config, _method(config), model, policy, critic, features)
    if tensors is not None:
        agent.load(tensors)
    return agent


def _method(config: Config) -> Method:
    try:
        return find_method(config.credit.method)
    except ValueError as error:
        raise ConfigError(f"credit.method: {error}") from error
