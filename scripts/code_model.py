"""The embedded code model: its training text, its training, and a measurement of its programs.

The training text consists of first turns and repairs. A first turn is a prompt about an invented
data set and a body from the grammar, some of which contain a fault. A repair is the prompt after a
failure, with the error from the sandbox, and the body without the fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from code_grammar import draw_body, draw_data, plant_fault
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from poad.agent import Acting, Policy
from poad.config import ModelConfig
from poad.envs.datasci import Sandbox, Scorer, datasets, program, prompt
from poad.lm import TextCodec, load_model
from poad.turns import Observation
from poad.workflows.tiny import Row, describe, fit, new_llama, save, train_bpe

WORDS = r"\n *| ?[A-Za-z_]+| ?[0-9]+(?:\.[0-9]+)?| ?[^\s\w]+|\s+"
"""The limits of a token: a line break with its indentation, a name with its underscores, a number,
or brackets and quotes in a row. A common name is thus one token."""
MAX_TOKENS = 128
"""The largest number of tokens in a program when the model is measured."""

Turn = tuple[str, str]
"""A prompt and the body that follows it."""


@dataclass(frozen=True)
class CodeRecipe:
    """The settings for the code model."""

    name: str
    worlds: tuple[str, ...]
    programs: int = 6500
    """The number of first turns."""
    faults: float = 0.2
    """The share of them with a fault."""
    repairs: int = 2000
    """The number of repairs. Those whose broken program runs are left out."""
    vocabulary: int = 1000
    width: int = 256
    layers: int = 4
    heads: int = 4
    inner: int = 672
    steps: int = 1300
    batch: int = 8
    lr: float = 2e-3
    seed: int = 0
    samples: tuple[tuple[str, int], ...] = (
        ("balance-scale-125", 500),
        ("balance-scale", 200),
        ("breast-cancer", 100),
        ("wine", 100),
        ("iris", 100),
        ("digits", 50),
    )
    """The data sets and numbers of programs for the measurement."""


# --- the training text ---


def first_turns(recipe: CodeRecipe, rng: Random) -> list[Turn]:
    """Draw first turns, some of them with a fault."""
    turns = []
    for _ in range(recipe.programs):
        body = draw_body(rng)
        faulty = rng.random() < recipe.faults
        written = plant_fault(rng, body)[1] if faulty else body.text
        turns.append((prompt(*draw_data(rng)), written))
    return turns


def repair_turns(recipe: CodeRecipe, rng: Random, sandbox: Sandbox) -> list[Turn]:
    """Draw repairs, and run their broken programs to get the error messages."""
    scorer = Scorer(made_up_table(), sandbox, seeds=(0,))
    drawn = []
    for _ in range(recipe.repairs):
        body = draw_body(rng)
        broken = plant_fault(rng, body)[1]
        scorer.prepare(program(broken))
        drawn.append((body.text, broken, draw_data(rng)))
    turns = []
    for text, broken, data in drawn:
        result = scorer.score(program(broken))
        if result.score is None:
            turns.append((prompt(*data, previous=(broken, result.message)), text))
    return turns


def made_up_table() -> datasets.Table:
    """Make a table of random numbers for the broken programs: 120 rows, 4 columns, 3 classes."""
    x = np.random.RandomState(0).normal(size=(120, 4))
    return datasets.Table("made-up", "made up", x, np.arange(120) % 3, ("a", "b", "c"))


# --- training ---


def build(recipe: CodeRecipe, out: Path) -> None:
    """Build the model, measure it, and write it to `out/NAME`."""
    rng = Random(recipe.seed)
    with Sandbox() as sandbox:
        first = first_turns(recipe, rng)
        repairs = repair_turns(recipe, rng, sandbox)
        turns = first + repairs
        tokenizer = train_tokenizer(turns, recipe.vocabulary)
        print(f"{recipe.name}: {len(turns)} turns, vocabulary {len(tokenizer)}")
        model, loss = train_model(recipe, TextCodec(tokenizer), turns)
        lengths = [len(tokenizer(body)["input_ids"]) for _, body in first]
        making = {
            "recipe": asdict(recipe),
            "turns": len(turns),
            "repairs": len(repairs),
            "distinct_prompts": len({shown for shown, _ in turns}),
            "parameters": sum(p.numel() for p in model.parameters()),
            "final_loss": round(loss, 4),
            "tokens": {
                "5 %": int(np.percentile(lengths, 5)),
                "median": int(np.median(lengths)),
                "95 %": int(np.percentile(lengths, 95)),
                "longest": max(lengths),
            },
        }
        folder = out / recipe.name
        save(folder, model.half(), tokenizer)
        making["measured"] = measure(folder, recipe, sandbox)
    describe(folder, making, card(making, folder))


def train_tokenizer(turns: list[Turn], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on prompts, bodies and errors."""
    return train_bpe(sorted({text for turn in turns for text in turn}), vocabulary, WORDS)


def train_model(
    recipe: CodeRecipe, codec: TextCodec, turns: list[Turn]
) -> tuple[LlamaForCausalLM, float]:
    """Train next-token prediction of bodies. Returns the model and the mean of its last losses."""
    torch.manual_seed(recipe.seed)
    model = new_llama(recipe, codec, positions=1024)
    rows = [row(codec, *turn) for turn in turns]
    batches = alike(rows, recipe.batch)
    losses = list(shown(fit(model, batches, recipe.steps, recipe.lr), recipe.name))
    return model, float(np.mean(losses[-100:]))


def shown(losses: Iterable[float], name: str) -> Iterator[float]:
    """Pass on the losses of a training, and print every hundredth."""
    for step, loss in enumerate(losses, 1):
        if step % 100 == 0:
            print(f"  {name}: step {step}, loss {loss:.3f}")
        yield loss


def row(codec: TextCodec, shown: str, body: str) -> Row:
    """Encode a turn as a policy sees it: the prompt, the body, and the end token."""
    read = codec.prompt(shown)
    written = codec.tokenizer(body, add_special_tokens=False)["input_ids"]
    return (*read, *written, codec.end_id), len(read)


def alike(rows: Sequence[Row], batch: int, pool: int = 20) -> Iterator[list[Row]]:
    """Yield batches forever, each row once per pass. Rows of a batch have similar lengths."""
    while True:
        order = torch.randperm(len(rows)).tolist()
        for start in range(0, len(order), batch * pool):
            near = sorted(order[start : start + batch * pool], key=lambda i: len(rows[i][0]))
            chunks = [near[i : i + batch] for i in range(0, len(near), batch)]
            for i in torch.randperm(len(chunks)).tolist():
                yield [rows[j] for j in chunks[i]]


# --- measurement ---


def measure(folder: Path, recipe: CodeRecipe, sandbox: Sandbox) -> dict[str, dict[str, float]]:
    """Run programs that the untrained model writes at temperature 1, and as many of the grammar.

    Returns, for each data set: the number of programs, the share of them that run, the mean reward
    with -1 for failures, and the mean score of those that run. For the grammar's bodies without
    faults, it returns the share and the mean score.
    """
    model = load_model(ModelConfig(name=str(folder), device="cpu"))
    policy = Policy(model, Acting(max_action_tokens=MAX_TOKENS, stop=()))
    generator, rng = np.random.default_rng(recipe.seed), Random(recipe.seed + 1)
    measured = {}
    for name, number in recipe.samples:
        table = datasets.load(name)
        rows, features = table.x.shape
        shown = prompt(table.title, rows, features, len(table.classes))
        actions = policy.act([Observation(shown)] * number, generator)
        own = scores([action.text for action in actions], table, sandbox)
        drawn = scores([draw_body(rng).text for _ in range(number)], table, sandbox)
        measured[name] = {
            "programs": number,
            "executable": share(own),
            "reward": mean([-1.0 if score is None else score for score in own]),
            "score": mean(own),
            "grammar_executable": share(drawn),
            "grammar_score": mean(drawn),
        }
        print(f"  {name}: {measured[name]}")
    return measured


def scores(bodies: Sequence[str], table: datasets.Table, sandbox: Sandbox) -> list[float | None]:
    """Compute the mean ROC-AUC of each program; None if it fails."""
    scorer = Scorer(table, sandbox)
    sources = [program(body) for body in bodies]
    for source in sources:
        scorer.prepare(source)
    return [scorer.score(source).score for source in sources]


def share(found: Sequence[float | None]) -> float:
    """Compute the share of programs that have a score."""
    return mean([float(score is not None) for score in found])


def mean(found: Sequence[float | None]) -> float:
    """Average the scores that exist, rounded to three digits, which other machines reproduce."""
    return round(float(np.mean([score for score in found if score is not None] or [0.0])), 3)


def card(making: dict[str, Any], folder: Path) -> str:
    """Write the model card."""
    recipe, tokens = making["recipe"], making["tokens"]
    weights = (folder / "model.safetensors").stat().st_size / 1e6
    worlds = ", ".join(f"`{world}`" for world in recipe["worlds"])
    facts = {
        "architecture": f"Llama, {recipe['layers']} layers of width {recipe['width']}, "
        f"{recipe['heads']} heads, tied embeddings, 1024 positions; weights in half precision",
        "tokenizer": f"byte-level BPE of up to {recipe['vocabulary']} tokens, trained on the same "
        "text; a common name is one token",
        "training text": f"{making['turns']:,} turns ({making['distinct_prompts']:,} distinct "
        f"prompts): {recipe['programs']:,} bodies from the grammar in `scripts/code_grammar.py`, "
        f"{recipe['faults']:.0%} of them with a fault, and {making['repairs']:,} repairs: a broken "
        "program with its error from the sandbox, then the program without the fault",
        "selection": "none: forms, estimators, transformers and settings are drawn uniformly, "
        "whatever their score; the data sets in the prompts are invented",
        "bodies": f"{tokens['5 %']} to {tokens['95 %']} tokens (5 % to 95 %), median "
        f"{tokens['median']}, longest {tokens['longest']}",
        "objective": f"next-token prediction of bodies and their end, {recipe['steps']} steps of "
        f"{recipe['batch']} turns; final loss {making['final_loss']} nats per token",
        "seed": recipe["seed"],
    }
    table = "\n".join(f"| {name} | {fact} |" for name, fact in facts.items())
    measured = "\n".join(
        f"| {name} | {m['programs']} | {m['executable']:.1%} | {m['reward']:.3f} | "
        f"{m['score']:.3f} | {m['grammar_executable']:.1%} | {m['grammar_score']:.3f} |"
        for name, m in making["measured"].items()
    )
    return f"""# {recipe["name"]}

A Llama of {making["parameters"]:,} parameters ({weights:.1f} MB) that knows how programs for
{worlds} are written, but not how they score. With it, `poad` trains on a CPU, without a network.

| | |
|---|---|
{table}

The table shows programs of the untrained model at temperature 1, with up to {MAX_TOKENS} tokens and
run in the sandbox, and as many bodies of the grammar without a fault. The reward counts a failure
as -1. The score is the mean ROC-AUC of the programs that run.

| data set | programs | run | reward | score | grammar: run | score |
|---|---|---|---|---|---|---|
{measured}

A test checks that about half of its programs run, and that these score no better than those of the
grammar. Rebuild the model with `make models`. With one thread and the same versions of torch,
tokenizers and scikit-learn, the result is identical to the byte. The programs need scikit-learn 1.8
or newer.
"""
