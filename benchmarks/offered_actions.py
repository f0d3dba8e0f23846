"""Measure the cost of a decision by the number of offered actions.

The trie policy and, for comparison, scores of whole actions act on the same observations with 5 to
50 offered actions, without remembering anything. The trie policy computes the chosen path only. Its
cost grows with the number of choices on the path, since each is a forward pass. Scores compute all
actions, with the prompt once and packed. The figures are CPU times, and the sizes alternate.

python benchmarks/offered_actions.py
"""

from __future__ import annotations

import argparse
import time
from itertools import product
from statistics import median

import numpy as np
import order_desk
import torch
from iteration import TOKENIZER, million
from transformers import AutoTokenizer

from poad.agent import Acting, Policy
from poad.envs import make
from poad.lm import LanguageModel, TextCodec
from poad.turns import Observation

COUNTS = (5, 10, 20, 50)
OFFERS = [
    *(f"get the {state} {food}" for state, food in product(("raw", "chopped"), order_desk.FOODS)),
    *(f"add the {food} to {place}" for food, place in product(order_desk.FOODS, order_desk.PLACES)),
    *(f"put the {food} on the {n} board" for food in order_desk.FOODS for n in ("first", "second")),
    *(f"put the {food} on the {n} dish" for food in order_desk.FOODS for n in ("first", "second")),
    *(f"chop the {food} on {place}" for food, place in product(order_desk.FOODS, ("the board",))),
    *(f"deliver {place}" for place in order_desk.PLACES),
    *(f"go to {place}" for place in order_desk.PLACES),
    *("chop nothing", "deliver nothing", "put nothing", "hold nothing"),
]
"""50 actions in the kitchen's vocabulary."""


def prompts(count: int, sentences: int) -> list[str]:
    """Collect distinct observations."""
    desk = make(order_desk.WORLD, sentences=sentences)
    prompt, info = desk.reset(seed=0)
    texts = [prompt]
    while len(texts) < count:
        prompt, _, over, _, info = desk.step(info["admissible_actions"][0])
        texts.append(desk.reset()[0] if over else prompt)
    return texts


def measure(
    policy: Policy, texts: list[str], batch: int, times: int
) -> tuple[dict[int, float], dict[int, float]]:
    """Measure CPU milliseconds per decision and choices per action, by the size of the offer."""
    shuffled = np.random.default_rng(0).permutation(OFFERS).tolist()
    seconds: dict[int, list[float]] = {count: [] for count in COUNTS}
    choices: dict[int, list[float]] = {count: [] for count in COUNTS}
    generator = np.random.default_rng(0)
    for turn in range(times + 1):
        for count in COUNTS:
            offered = tuple(shuffled[:count])
            some = [texts[(turn * batch + i) % len(texts)] for i in range(batch)]
            observations = [Observation(text, offered) for text in some]
            start = time.process_time()
            actions = policy.act(observations, generator)
            if turn > 0:  # the first round tokenizes
                seconds[count].append((time.process_time() - start) / batch)
                choices[count].append(sum(sum(a.choice) for a in actions) / batch)
    return (
        {count: 1000 * median(values) for count, values in seconds.items()},
        {count: sum(values) / len(values) for count, values in choices.items()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure the cost of a decision by offered actions."
    )
    parser.add_argument("--times", type=int, default=60, help="number of rounds")
    parser.add_argument("--batch", type=int, default=16, help="observations acted on together")
    parser.add_argument("--sentences", type=int, default=9, help="sentences of an observation")
    parser.add_argument("--width", type=int, default=192, help="width of the model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = LanguageModel(
        million(options.width), TextCodec(AutoTokenizer.from_pretrained(TOKENIZER))
    )
    texts = prompts(options.batch * 4, options.sentences)
    for text in texts:
        model.codec.prompt(text)
    tokens = np.mean([len(model.codec.prompt(text)) for text in texts])
    print(f"{len(texts)} observations of {tokens:.0f} tokens, {options.batch} at a time\n")
    print(
        "| offered | trie, ms | times 5's | choices on the path | whole actions, ms | times 5's |"
    )
    print("|---|---|---|---|---|---|")
    trie, choices = measure(Policy(model), texts, options.batch, options.times)
    scores = Policy(model, Acting(scheme="score", score="word"))
    whole, _ = measure(scores, texts, options.batch, max(1, options.times // 4))
    for count in COUNTS:
        print(
            f"| {count} | {trie[count]:.2f} | {trie[count] / trie[5]:.2f} | {choices[count]:.1f} "
            f"| {whole[count]:.2f} | {whole[count] / whole[5]:.2f} |"
        )


if __name__ == "__main__":
    main()
