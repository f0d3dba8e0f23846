"""Engines: who writes freely. One interface for our decoder, transformers and a vLLM server.

    engine         free writing    offered actions    rows have seeds    learns of new weights
    own            yes             yes                yes                shares them
    transformers   yes             by our decoder     no                 shares them
    vllm           yes             by our decoder     yes                is handed adapters

An engine only writes freely, in the rollouts of a training. Choosing among offered actions needs
the probabilities of the admissible tokens at each node of a tree, which our decoder computes for
all engines. Evaluations write with our decoder, too, so an episode depends on its seed alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from poad.agent.continuous_batching import TransformersEngine
from poad.agent.sampling import write
from poad.agent.settings import Acting
from poad.agent.vllm import VllmEngine
from poad.config import Config
from poad.lm import Decoder, LanguageModel
from poad.ranks import Ranks
from poad.turns import Action, TokenIds


class Engine(Protocol):
    """Writes actions behind prompts, with the log-probabilities they were sampled with."""

    def write(
        self,
        acting: Acting,
        prompts: Sequence[TokenIds],
        generators: Sequence[np.random.Generator],
        decoder: Decoder | None = None,
        /,
    ) -> Iterator[tuple[int, Action]]:
        """Sample a freely written action behind every prompt.

        Args:
            acting: temperature, token budget and stop texts.
            prompts: the token ids before each action.
            generators: the source of randomness of each action.
            decoder: our own, which remembers rows from turn to turn. Other engines need none.

        Yields:
            The index of a prompt and the action behind it. Its log-probabilities are those of the
            distribution it was sampled from: the whole vocabulary at the temperature.

        Raises:
            EngineError: the engine cannot go on; the message says what to do.
            ModelError: the log-probabilities are not finite.
        """
        ...

    def update(self, ranks: Ranks) -> None:
        """Take over the model's weights as they are now. All ranks call it before each rollout.

        Raises:
            EngineError: the engine does not take them; the message says what to do.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


@dataclass(frozen=True)
class OwnEngine:
    """Our decoder, which shares the weights of the model.

    Args:
        model: the language model.
        greedy: take the likeliest token instead of sampling.
    """

    model: LanguageModel
    greedy: bool = False

    def write(
        self,
        acting: Acting,
        prompts: Sequence[TokenIds],
        generators: Sequence[np.random.Generator],
        decoder: Decoder | None = None,
        /,
    ) -> Iterator[tuple[int, Action]]:
        """Write; see `Engine.write`."""
        return write(self.model, acting, prompts, generators, self.greedy, decoder)

    def update(self, ranks: Ranks) -> None:
        """Do nothing: the weights are shared."""

    def close(self) -> None:
        """Do nothing."""


def open_engine(config: Config, model: LanguageModel) -> Engine:
    """Open the engine that a resolved configuration names.

    Raises:
        EngineError: it cannot be used; the message says what to do.
    """
    if config.acting.engine == "transformers":
        return TransformersEngine(model)
    if config.acting.engine == "vllm":
        return VllmEngine(config, model)
    return OwnEngine(model)
