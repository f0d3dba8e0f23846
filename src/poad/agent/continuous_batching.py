"""Free writing by transformers' continuous batching: a paged cache, rows that come and go.

An option for many long rows on a GPU (``acting.engine = transformers``). What it samples with is
its own forward pass; how far that is from the learner's is measured like any other sampler's drift.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from poad.agent.sampling import is_over, spoken
from poad.config import ActingConfig
from poad.errors import ModelError
from poad.lm import LanguageModel
from poad.turns import Action, TokenIds

_PAGE = 32
"""Tokens to a page of the cache, on a CPU; on GPUs transformers chooses."""
_TOO_OLD = (
    "acting.engine = transformers needs a transformers with continuous batching (5.18 or newer); "
    "leave acting.engine at own."
)


def write_with_transformers(
    model: LanguageModel,
    acting: ActingConfig,
    prompts: Sequence[TokenIds],
    generator: np.random.Generator,
) -> Iterator[tuple[int, Action]]:
    """Write freely behind every prompt, sampled.

    What stands behind a stop text was written in vain and is dropped; what stands before it is a
    fair sample all the same.

    Args:
        model: the language model.
        acting: temperature, token budget and stop texts.
        prompts: of each decision.
        generator: the source of the engine's seed.

    Yields:
        The index of a prompt and the action behind it, in the prompts' order.

    Raises:
        ModelError: transformers is too old, or the engine gave up.
    """
    try:
        from transformers import ContinuousBatchingConfig, GenerationConfig
    except ImportError as error:
        raise ModelError(_TOO_OLD) from error
    budget = acting.max_action_tokens or 64
    sampling = GenerationConfig(
        max_new_tokens=budget,
        do_sample=True,
        temperature=acting.temperature,
        top_k=0,
        top_p=1.0,
        eos_token_id=model.codec.end_id,
        pad_token_id=model.codec.pad_id,
    )
    batching: dict[str, Any] = {
        "return_logprobs": True,
        "seed": int(generator.integers(2**31)),
    }
    if model.device.type == "cpu":
        pages = sum(math.ceil((len(prompt) + budget) / _PAGE) + 1 for prompt in prompts)
        batching |= {"page_size": _PAGE, "num_blocks": pages, "max_batch_tokens": 512}
    try:
        batching_config = ContinuousBatchingConfig(**batching)
    except TypeError as error:  # before 5.18 it had neither a seed nor a page size
        raise ModelError(_TOO_OLD) from error
    causal: Any = model.plain
    written = causal.generate_batch(
        inputs=[list(prompt) for prompt in prompts],
        generation_config=sampling,
        continuous_batching_config=batching_config,
        progress_bar=False,
        warmup=False,
    )
    for i in range(len(prompts)):
        row = written.get(f"req_{i}")
        if row is None or row.error or len(row.logprobs) != len(row.generated_tokens):
            raise ModelError(
                f"transformers' continuous batching wrote nothing behind prompt {i}"
                f"{f' ({row.error})' if row is not None and row.error else ''}; "
                "leave acting.engine at own."
            )
        tokens: list[int] = []
        for token in row.generated_tokens:
            tokens.append(int(token))
            if is_over(model, acting, tokens):
                break
        ids = tuple(tokens)
        logprob = tuple(float(value) for value in row.logprobs[: len(ids)])
        yield i, Action(spoken(model, acting, ids), ids, (True,) * len(ids), logprob)
