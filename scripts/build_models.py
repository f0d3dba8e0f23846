"""Build the embedded language models: `make models`.

Each model learns the language of its worlds from text that a uniformly random policy wrote, and
nothing of the task: every turn of every episode is used, in the order of the seeds, whatever came
of it. The build is deterministic on one CPU thread; `src/poad/assets/NAME/` holds the result:
weights (safetensors), tokenizer, configuration, `making.json` and a model card.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from poad.codec import TextCodec
from poad.envs import make

ASSETS = Path(__file__).parent.parent / "src" / "poad" / "assets"
END, PAD = "<|end|>", "<|pad|>"


@dataclass(frozen=True)
class Recipe:
    """How one embedded model is made."""

    name: str
    worlds: tuple[str, ...]
    episodes: int = 150
    """Random episodes per world."""
    vocabulary: int = 420
    """Upper limit; small worlds have fewer words."""
    width: int = 96
    layers: int = 2
    heads: int = 4
    inner: int = 256
    steps: int = 400
    batch: int = 32
    lr: float = 3e-3
    seed: int = 0


RECIPES = (
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
)


def random_turns(world: str, episodes: int, seed: int) -> list[tuple[str, str]]:
    """(prompt, action) of every turn of some episodes, actions uniform among the offered."""
    chooser = random.Random(seed)
    env = make(world)
    turns = []
    for episode in range(episodes):
        prompt, info = env.reset(seed=seed + episode)
        over = False
        while not over:
            action = chooser.choice(info["admissible_actions"])
            turns.append((prompt, action))
            prompt, _, terminated, truncated, info = env.step(action)
            over = terminated or truncated
    return turns


def train_tokenizer(turns: list[tuple[str, str]], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the worlds' words; any other text still has an encoding, byte by byte."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    bpe.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,  # pyright: ignore
        special_tokens=[END, PAD],  # pyright: ignore
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # pyright: ignore
        show_progress=False,  # pyright: ignore
    )
    texts = sorted({text for prompt, action in turns for text in (prompt, f" {action}")})
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=PAD)


def train_model(
    recipe: Recipe, codec: TextCodec, turns: list[tuple[str, str]]
) -> tuple[LlamaForCausalLM, float]:
    """Next-token prediction on turns drawn uniformly; the model and its last loss in nats."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(codec.tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=codec.end_id,
        pad_token_id=codec.pad_id,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.steps)
    rows = [codec.prompt(prompt) + codec.action(action) for prompt, action in turns]
    loss = torch.zeros(())
    for step in range(recipe.steps):
        picked = [rows[i] for i in torch.randint(len(rows), (recipe.batch,)).tolist()]
        length = max(map(len, picked))
        ids = torch.full((len(picked), length), codec.pad_id)
        mask = torch.zeros_like(ids)
        for b, row in enumerate(picked):
            ids[b, : len(row)] = torch.tensor(row)
            mask[b, : len(row)] = 1
        labels = ids.masked_fill(mask == 0, -100)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"  {recipe.name}: step {step + 1}/{recipe.steps}, loss {loss.item():.3f}")
    return model, loss.item()


def build(recipe: Recipe, out: Path) -> None:
    """Make one model and write it to ``out/NAME``."""
    started = time.process_time()
    turns = [
        turn
        for world in recipe.worlds
        for turn in random_turns(world, recipe.episodes, seed=recipe.seed)
    ]
    tokenizer = train_tokenizer(turns, recipe.vocabulary)
    codec = TextCodec(tokenizer)
    print(f"{recipe.name}: {len(turns)} turns, vocabulary {len(tokenizer)}")
    model, loss = train_model(recipe, codec, turns)
    folder = out / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = sum(p.numel() for p in model.parameters())
    making = {
        "recipe": asdict(recipe),
        "turns": len(turns),
        "distinct_prompts": len({prompt for prompt, _ in turns}),
        "parameters": size,
        "final_loss": round(loss, 4),
    }
    (folder / "making.json").write_text(json.dumps(making, indent=2) + "\n")
    (folder / "README.md").write_text(card(making, folder))
    print(f"{recipe.name}: {size:,} parameters, {time.process_time() - started:.0f} CPU seconds")


def card(making: dict[str, Any], folder: Path) -> str:
    """The model card."""
    recipe = making["recipe"]
    weights = (folder / "model.safetensors").stat().st_size / 1e6
    worlds = ", ".join(f"`{world}`" for world in recipe["worlds"])
    facts = {
        "architecture": f"Llama, {recipe['layers']} layers of width {recipe['width']}, "
        f"{recipe['heads']} heads, tied embeddings",
        "tokenizer": "byte-level BPE trained on the same text",
        "training text": f"{making['turns']:,} turns ({making['distinct_prompts']} distinct "
        f"prompts): {recipe['episodes']} episodes of each world, every action drawn uniformly "
        "among the offered",
        "selection": "none: every turn of every episode, in the order of the seeds, whatever "
        "came of it",
        "objective": f"next-token prediction, {recipe['steps']} steps of {recipe['batch']} turns; "
        f"final loss {making['final_loss']} nats per token",
        "seed": recipe["seed"],
    }
    table = "\n".join(f"| {name} | {fact} |" for name, fact in facts.items())
    return f"""# {recipe["name"]}

A Llama of {making["parameters"]:,} parameters ({weights:.1f} MB) that knows the words of {worlds}
and nothing of their tasks. It exists so that `poad` trains within seconds on a CPU, offline.

| | |
|---|---|
{table}

A test holds that the untrained model succeeds hardly more often than the uniformly random policy.
Rebuild it with `make models`; the result is the same to the byte on the same versions of torch and
tokenizers with one thread.
"""


def main() -> None:
    """Build all models, or those named."""
    parser = argparse.ArgumentParser(description="Build the embedded language models.")
    parser.add_argument("names", nargs="*", help="which models; default: all")
    parser.add_argument("--out", type=Path, default=ASSETS, help="where to write them")
    arguments = parser.parse_args()
    known = {recipe.name: recipe for recipe in RECIPES}
    unknown = set(arguments.names) - set(known)
    if unknown:
        parser.error(f"unknown model {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    torch.set_num_threads(1)
    for name in arguments.names or known:
        build(known[name], arguments.out)


if __name__ == "__main__":
    main()
