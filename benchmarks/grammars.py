"""Compare the price of a decision among few calls of a tool and among a thousand million.

Every call has nine arguments, each an identifier of the same length. In the small world, one of
them has ten values and the others one; in the large one, all have ten, which makes 10⁹ calls. Both
are acted by the same model in turn, in a tree that has never been walked, so that everything a
grammar costs is counted. Prints CPU seconds per action and per decision, as medians over rounds,
and the ratio of the large world to the small one; also of a list of the same ten calls.

python benchmarks/grammars.py [--model tiny-kitchen]
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import numpy as np
import torch

from poad.agent import Acting, Policy
from poad.config import ModelConfig
from poad.envs import Grammar
from poad.lm import load_model
from poad.turns import Observation

ARGUMENTS = 9
PROMPT = "You see a desk with a request on it. Now"


def calls(free: int, number: int) -> Grammar:
    """Describe calls of which some arguments have ten values; numbered, so that none is known."""
    parameters: dict[str, Any] = {
        f"a{i}": {"enum": [f"C{value}" for value in range(10 if i < free else 1)]}
        for i in range(ARGUMENTS)
    }
    schema = {"type": "object", "properties": parameters, "required": list(parameters)}
    return Grammar.of({"tools": [{"name": f"bring{number:03}", "parameters": schema}]})


def spent(policy: Policy, offer: Any, seed: int) -> tuple[float, int]:
    """Act once, and return the CPU seconds and the number of decisions."""
    start = time.process_time()
    (action,) = policy.act([Observation(PROMPT, offer)], np.random.default_rng(seed))
    return time.process_time() - start, sum(action.choice)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="tiny-kitchen")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    policy = Policy(load_model(ModelConfig(name=arguments.model)), Acting())
    spent(policy, calls(1, 999), 0)  # builds the reader of the vocabulary
    rows: dict[str, list[tuple[float, int]]] = {"list of 10": [], "10 calls": [], "10^9 calls": []}
    for number in range(arguments.rounds):
        small, large = calls(1, 2 * number), calls(ARGUMENTS, 2 * number + 1)
        tree = policy.codec.trie(calls(1, 500 + number))
        listed = tuple(tree.text(leaf) for leaf in tree.all_leaves())
        for name, offer in zip(rows, (listed, small, large), strict=True):
            rows[name].append(spent(policy, offer, number))
    per = {name: median(s / max(1, n) for s, n in row) for name, row in rows.items()}
    print(f"{arguments.model}, medians of {arguments.rounds}, fresh trees")
    for name, row in rows.items():
        action = median(seconds for seconds, _ in row)
        decisions = median(n for _, n in row)
        print(f"{name:>10}: {1e3 * action:7.1f} ms an action, {decisions:.0f} decisions, "
              f"{1e3 * per[name]:6.2f} ms a decision")  # fmt: skip
    print(f"a decision among 10^9 calls costs {per['10^9 calls'] / per['10 calls']:.2f} times one")
    print("among 10 calls; asked: at most 1.5")


if __name__ == "__main__":
    main()
