"""Compare free writing with `generate` of transformers, in CPU seconds per 1,000 tokens.

Both sample 64 programs of the untrained embedded code model from one prompt, at temperature 1 and
with the same limit of tokens. Poad computes the prompt once and removes a row from the batch when
it ends. `generate` pads all rows to the end of the longest. Poad also records log-probabilities for
training; `generate` does not. The two alternate, and each draws samples of its own.

python benchmarks/free_writing.py
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import numpy as np
import torch

from poad.agent import load_agent
from poad.config import Config
from poad.envs.datasci import text
from poad.turns import Observation

PROMPT = text.prompt("balance scale", 625, 4, 3)


def ours(agent: Any, rows: int, seed: int) -> tuple[int, float]:
    start = time.process_time()
    actions = agent.policy.act([Observation(PROMPT)] * rows, np.random.default_rng(seed))
    return sum(len(a.token_ids) for a in actions), time.process_time() - start


def theirs(agent: Any, rows: int, seed: int) -> tuple[int, float]:
    torch.manual_seed(seed)
    codec, module = agent.model.codec, agent.model.module
    start = time.process_time()
    ids = torch.tensor([codec.prompt(PROMPT)] * rows)
    with torch.no_grad():
        out = module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            max_new_tokens=agent.config.acting.max_action_tokens,
        )
    seconds = time.process_time() - start
    written = out[:, ids.shape[1] :]
    ends = (written == codec.end_id).int()
    length = torch.where(ends.any(1), ends.argmax(1) + 1, written.shape[1])
    return int(length.sum()), seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare free writing with transformers' generate."
    )
    parser.add_argument("--rows", type=int, default=64, help="programs at a time")
    parser.add_argument("--times", type=int, default=5, help="number of rounds")
    options = parser.parse_args()
    agent = load_agent(Config(env="poad/DataScience-v0"))
    ratios, paces = [], []
    for seed in range(-1, options.times):
        costs = []
        for side in (ours, theirs):
            tokens, seconds = side(agent, options.rows, max(seed, 0))
            costs.append(1000 * seconds / tokens)
        if seed >= 0:  # the first round warms up
            ratios.append(costs[1] / costs[0])
            paces.append(costs[0])
    print(f"ours: {median(paces):.2f} CPU seconds per 1,000 tokens")
    print(
        f"generate / ours: {median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}, {options.times} rounds)"
    )


if __name__ == "__main__":
    main()
