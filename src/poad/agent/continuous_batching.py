"""Free writing by the continuous batching of transformers, with a paged cache.

An option for many long rows on a GPU (``acting.engine = transformers``). The engine has a forward
pass of its own. The learner measures how far its log-probabilities are from the learner's, as for
any other sampler.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from poad.agent.sampling import as_action
from poad.agent.settings import Acting
from poad.errors import EngineError
from poad.lm import Decoder, LanguageModel
from poad.ranks import Ranks
from poad.turns import Action, TokenIds

_PAGE = 32
"""Tokens per page of the cache on a CPU. On GPUs transformers chooses."""
_TOO_OLD = (
    "acting.engine = transformers needs a transformers with continuous batching (5.18 or newer); "
    "leave acting.engine at own."
)


@dataclass(frozen=True)
class TransformersEngine:
    """The continuous batching of transformers, which shares the weights of the model.

    It does not know stop texts. The tokens behind one are dropped; those before it are a fair
    sample nevertheless. One seed serves a whole batch.

    Args:
        model: the language model.
    """

    model: LanguageModel

    def write(
        self,
        acting: Acting,
        prompts: Sequence[TokenIds],
        generators: Sequence[np.random.Generator],
        decoder: Decoder | None = None,
        /,
    ) -> Iterator[tuple[int, Action]]:
        """Write with one seed, drawn from the first generator; see `poad.agent.Engine`.

        Raises:
            EngineError: transformers is too old, or wrote nothing behind a prompt.
        """
        # It answers by request number, in any order, and returns what follows a stop text, too.
        written = _generate(self.model, acting, prompts, int(generators[0].integers(2**31)))
        for i, prompt in enumerate(prompts):
            row = written.get(f"req_{i}")
            if row is None or row.error or len(row.logprobs) != len(row.generated_tokens):
                raise EngineError(
                    f"transformers' continuous batching wrote nothing behind prompt {i}"
                    f"{f' ({row.error})' if row is not None and row.error else ''}; "
                    "leave acting.engine at own."
                )
            tokens = [int(token) for token in row.generated_tokens]
            yield i, as_action(self.model, acting, prompt, tokens, row.logprobs)

    def update(self, ranks: Ranks) -> None:
        """Do nothing: the weights are shared."""

    def close(self) -> None:
        """Do nothing."""


def _generate(
    model: LanguageModel, acting: Acting, prompts: Sequence[TokenIds], seed: int
) -> dict[str, Any]:
    """Run the engine; map ``req_<index of the prompt>`` to what it wrote."""
    try:
        from transformers import ContinuousBatchingConfig, GenerationConfig
    except ImportError as error:
        raise EngineError(_TOO_OLD) from error
    budget = acting.max_action_tokens
    sampling = GenerationConfig(
        max_new_tokens=budget,
        do_sample=True,
        temperature=acting.free_temperature,
        top_k=0,
        top_p=1.0,
        eos_token_id=model.codec.end_id,
        pad_token_id=model.codec.pad_id,
        suppress_tokens=model.codec.without_token(model.vocabulary) or None,
    )
    batching: dict[str, Any] = {"return_logprobs": True, "seed": seed}
    if model.device.type == "cpu":
        # Pages for every prompt and its action, with one to spare, instead of a share of a GPU.
        pages = sum(math.ceil((len(prompt) + budget) / _PAGE) + 1 for prompt in prompts)
        batching |= {"page_size": _PAGE, "num_blocks": pages, "max_batch_tokens": 512}
    try:
        batching_config = ContinuousBatchingConfig(**batching)
    except TypeError as error:  # before 5.18 it had neither a seed nor a page size
        raise EngineError(_TOO_OLD) from error
    return model.causal_lm.generate_batch(
        inputs=[list(prompt) for prompt in prompts],
        generation_config=sampling,
        continuous_batching_config=batching_config,
        progress_bar=False,
        warmup=False,
    )
