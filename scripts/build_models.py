"""Build the embedded language models: `make models`.

Each model learns the language of its worlds from the episodes of a uniformly random policy. It
learns nothing about the task, because every turn of every episode is used, whatever its reward. For
worlds where the agent writes freely, a grammar takes the place of the policy (`code_model.py`).

The build is deterministic on one CPU thread. `src/poad/assets/NAME/` holds the result: the weights
(safetensors), the tokenizer, the configuration, `making.json` and a model card.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import code_model
import torch
from code_model import CodeRecipe, shown
from transformers import LlamaForCausalLM

from poad.envs import CheckedWorld, make
from poad.lm import TextCodec
from poad.workflows.pretrain import play_randomly, train_tokenizer
from poad.workflows.tiny import Row, describe, drawn, fit, new_llama, save

ASSETS = Path(__file__).parent.parent / "src" / "poad" / "assets"


@dataclass(frozen=True)
class Recipe:
    """The settings for one embedded model."""

    name: str
    worlds: tuple[str, ...]
    arguments: tuple[dict[str, Any], ...] = ({},)
    """Each world is opened with each of these."""
    gradually: bool = False
    """Train on actions only, and begin with the first of `arguments`; the others join one by one.
    A model learns to attend to the prompt with short actions, and then keeps it for long ones."""
    episodes: int = 150
    """Random episodes per world and arguments."""
    vocabulary: int = 420
    """The largest size of the vocabulary. Small worlds have fewer words."""
    width: int = 96
    layers: int = 2
    heads: int = 4
    inner: int = 256
    steps: int = 400
    batch: int = 32
    lr: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class StretchRecipe(Recipe):
    """A recipe whose rows are consecutive turns, so that the model learns to find things again.

    A batch has rows of one of `arguments`, which join the training as with `gradually`.
    """

    tokens: int = 256
    """The largest number of tokens in a row of several turns."""


RECIPES: tuple[Recipe | CodeRecipe, ...] = (
    Recipe("tiny-kitchen", ("poad/TomatoSalad-v0", "poad/TomatoLettuceSalad-v0")),
    Recipe(
        "tiny-household",
        (
            "poad/FoodPreparation-v0",
            "poad/Entertainment-v0",
            "poad/Cheese-v0",
            "poad/Hamburger-v0",
            "poad/ApplePie-v0",
            "poad/Pizza-v0",
            "poad/WashingPlate-v0",
            "poad/Laundry-v0",
            "poad/EntertainmentSparseText-v0",
            "poad/EntertainmentAllActions-v0",
        ),
        episodes=60,
        steps=600,
    ),
    Recipe(
        "tiny-length",
        ("poad/Length-v0",),
        arguments=tuple({"words": 2**k} for k in range(1, 8)),
        episodes=100,
        vocabulary=800,
        width=64,
        inner=160,
        steps=4000,
        gradually=True,
    ),
    Recipe(
        "tiny-order",
        ("poad/Order-v0",),
        arguments=tuple(
            {"choices": 2**k, "words": 2**n, "turns": 3}
            # First forms of two words per choice, where most can be learned from the prompt.
            for n, k in sorted(
                ((n, k) for n in range(1, 8) for k in range(1, min(n, 4) + 1)),
                key=lambda size: (size[0] - size[1] != 1, size),
            )
            for _ in range(1 + (n == 7))  # the longest are harder to spell, so they come twice
        ),
        episodes=60,
        vocabulary=800,
        width=64,
        inner=160,
        steps=4500,
        batch=24,
        gradually=True,
    ),
    StretchRecipe(
        "tiny-tooldesk",
        ("poad/ToolDesk-v0",),
        arguments=(
            {"families": "train"},
            {"families": "unseen"},
            {"families": "all", "customers": 8},
            {"families": "all", "masked": True},
        ),
        episodes=500,
        vocabulary=1000,
        steps=1000,
        batch=8,
    ),
    CodeRecipe("tiny-code", ("poad/DataScience-v0",)),
)


Turn = tuple[str, str]
"""A prompt and the action taken."""


def random_turns(world: str, episodes: int, seed: int, **arguments: Any) -> list[Turn]:
    """Play episodes with uniformly random admissible actions, and return all turns."""
    turns, ended = [], 0
    for turn in play_randomly(CheckedWorld(make(world, **arguments)), seed, reads=False):
        turns.append((turn.prompt, turn.action))
        ended += turn.success is not None
        if ended == episodes:
            break
    return turns


def train_model(
    recipe: Recipe, codec: TextCodec, parts: list[list[Turn]]
) -> tuple[LlamaForCausalLM, float]:
    """Train next-token prediction on random turns. Returns the model and its last loss in nats."""
    torch.manual_seed(recipe.seed)
    model = new_llama(recipe, codec, positions=512)
    if isinstance(recipe, StretchRecipe):
        rows = [stretches(codec, turns, recipe.tokens) for turns in parts]
    else:
        rows = [[_row(codec, turn, recipe.gradually) for turn in turns] for turns in parts]
    if recipe.gradually or isinstance(recipe, StretchRecipe):
        batches = joining(rows, recipe.batch, recipe.steps)
    else:
        batches = drawn([row for part in rows for row in part], recipe.batch)
    losses = list(shown(fit(model, batches, recipe.steps, recipe.lr), recipe.name))
    return model, losses[-1]


def _row(codec: TextCodec, turn: Turn, read: bool) -> Row:
    prompt = codec.prompt(turn[0])
    return prompt + codec.action(turn[1]), len(prompt) if read else 0


def stretches(codec: TextCodec, turns: list[Turn], longest: int) -> list[Row]:
    """Lay consecutive turns out in rows, as many in each as fit."""
    rows: list[list[int]] = []
    for prompt, action in turns:
        ids = codec.prompt(prompt) + codec.action(action)
        if rows and len(rows[-1]) + len(ids) <= longest:
            rows[-1] += ids
        else:
            rows.append(list(ids))
    return [(row, 0) for row in rows]


def joining(parts: list[list[Row]], batch: int, steps: int) -> Iterator[list[Row]]:
    """Yield batches of one part each. Training starts with three parts; all join by half-time."""
    for step in range(steps):
        there = min(3 + 2 * step * (len(parts) - 2) // steps, len(parts))
        yield next(drawn(parts[int(torch.randint(there, ()))], batch))


def build(recipe: Recipe, out: Path) -> None:
    """Build one model and write it to `out/NAME`."""
    parts = [
        random_turns(world, recipe.episodes, seed=recipe.seed, **arguments)
        for world in recipe.worlds
        for arguments in recipe.arguments
    ]
    turns = [turn for part in parts for turn in part]
    tokenizer = train_tokenizer(turns, recipe.vocabulary)
    codec = TextCodec(tokenizer)
    print(f"{recipe.name}: {len(turns)} turns, vocabulary {len(tokenizer)}")
    model, loss = train_model(recipe, codec, parts)
    making = {
        "recipe": asdict(recipe),
        "turns": len(turns),
        "distinct_prompts": len({prompt for prompt, _ in turns}),
        "parameters": sum(p.numel() for p in model.parameters()),
        "final_loss": round(loss, 4),
    }
    folder = out / recipe.name
    save(folder, model, tokenizer)
    describe(folder, making, card(making, folder))


def card(making: dict[str, Any], folder: Path) -> str:
    """Write the model card."""
    recipe = making["recipe"]
    weights = (folder / "model.safetensors").stat().st_size / 1e6
    worlds = ", ".join(f"`{world}`" for world in recipe["worlds"])
    used = [f"`{name}={value}`" for a in recipe["arguments"] for name, value in a.items()]
    count = len({str(arguments) for arguments in recipe["arguments"]})
    ways = f"{count} combinations" if len(used) > count else "each"
    opened = f" with {ways} of {', '.join(dict.fromkeys(used))}" if used else ""
    among, rows = "those offered", f"{recipe['batch']} turns"
    if "tokens" in recipe:
        among = "the tools, then among the values of each argument"
        rows = f"{recipe['batch']} rows of consecutive turns, up to {recipe['tokens']} tokens each"
    gradually = " of actions, short ones first" if recipe["gradually"] else ""
    facts = {
        "architecture": f"Llama, {recipe['layers']} layers of width {recipe['width']}, "
        f"{recipe['heads']} heads, tied embeddings",
        "tokenizer": "byte-level BPE, trained on the same text",
        "training text": f"{making['turns']:,} turns ({making['distinct_prompts']} distinct "
        f"prompts): {recipe['episodes']} episodes of each world{opened}, with actions drawn "
        f"uniformly among {among}",
        "selection": "none: every turn of every episode, in the order of the seeds, whatever its "
        "reward",
        "objective": f"next-token prediction{gradually}, {recipe['steps']} steps of {rows}; "
        f"final loss {making['final_loss']} nats per token",
        "seed": recipe["seed"],
    }
    table = "\n".join(f"| {name} | {fact} |" for name, fact in facts.items())
    return f"""# {recipe["name"]}

A Llama of {making["parameters"]:,} parameters ({weights:.1f} MB) that knows the words of {worlds},
but not their tasks. With it, `poad` trains within seconds on a CPU, without a network.

| | |
|---|---|
{table}

A test checks that the untrained model succeeds hardly more often than a uniformly random policy.
Rebuild the model with `make models`. With one thread and the same versions of torch and tokenizers,
the result is identical to the byte.
"""


def main() -> None:
    """Build the models named on the command line, or all of them."""
    parser = argparse.ArgumentParser(description="Build the embedded language models.")
    parser.add_argument("names", nargs="*", help="the models to build; default: all")
    parser.add_argument("--out", type=Path, default=ASSETS, help="the directory to write to")
    arguments = parser.parse_args()
    known = {recipe.name: recipe for recipe in RECIPES}
    unknown = set(arguments.names) - set(known)
    if unknown:
        parser.error(f"unknown model {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    torch.set_num_threads(1)
    for name in arguments.names or known:
        recipe, started = known[name], time.process_time()
        if isinstance(recipe, CodeRecipe):
            code_model.build(recipe, arguments.out)
        else:
            build(recipe, arguments.out)
        print(f"{name}: {time.process_time() - started:.0f} CPU seconds")


if __name__ == "__main__":
    main()
