"""Make a tiny model that knows the words of a world, from random play.

A model that has never read a world's words learns little from its prompts at first. So a small
Llama with a tokenizer of its own is trained to continue the prompts of random episodes, and the
actions in them, and to remember what it has read. It learns nothing about the task, because every
turn of every episode is used, whatever its reward. The result is an ordinary model directory:

    config.json, model.safetensors     the model in the Hugging Face layout
    tokenizer.json, …                  its tokenizer
    making.json, README.md             what it was made from, and by which versions
"""

from __future__ import annotations

import math
import os
import shlex
import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch

from poad.agent import torch_threads
from poad.config import PromptConfig, world_seed, write_value
from poad.display import Screen, counted, percent, watch
from poad.envs import CheckedWorld, draw, make
from poad.errors import ConfigError, ModelError
from poad.lm import Dialogue, TextCodec, codec_for, seeded
from poad.runs import atomic_directory, plain, versions
from poad.trie import Offer
from poad.turns import Action
from poad.workflows.tiny import (
    SMALLEST_VOCABULARY,
    Row,
    describe,
    drawn,
    fit,
    new_llama,
    save,
    train_bpe,
)

LONGEST_EPISODE = 250
"""Turns after which a random episode is abandoned, since some worlds never end by themselves."""
_CONTEXT = {"none": 4096, "last": 4096, "episode": 1024}
"""Tokens of the longest row, by `history`, unless another number is asked for."""
_LEAST_CONTEXT = 512
_BATCH, _BATCH_TOKENS = 32, 4096
"""Turns of a training step, and about how many tokens they may have together."""
_LR = 3e-3
_HEADS = 4
_CPU = torch.device("cpu")
_FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "making.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
"""What a directory of this module holds, at most."""


@dataclass(frozen=True)
class TinyModel:
    """What to make a tiny model from, and how."""

    env: str
    """The world, by a name for `poad.envs.make`."""
    env_args: dict[str, Any] = field(default_factory=dict)
    turns: int = 10_000
    """Random turns to play."""
    steps: int = 400
    """Training steps."""
    minutes: float | None = None
    """Train about so long instead. The number of steps is estimated beforehand."""
    vocabulary: int = 1000
    """The largest number of tokens. Small worlds have fewer words."""
    width: int = 96
    """The size of a hidden state, a multiple of 8."""
    layers: int = 2
    history: Literal["none", "last", "episode"] = "none"
    """The form of the prompts, as in `prompt.history`."""
    last: int = 4
    context: int | None = None
    """Tokens that the model reads; None for as many as random play needs, and more."""
    seed: int = 0
    recalls: bool = True
    """Also train hidden states to hold what was read; see `fit`."""

    def __post_init__(self) -> None:
        least = {
            "turns": 1,
            "steps": 1,
            "vocabulary": SMALLEST_VOCABULARY,
            "width": 8,
            "layers": 1,
            "last": 1,
            "context": 16,
            "seed": 0,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ConfigError(f"--{name} {value}: it must be at least {bound}.")
        if self.width % (2 * _HEADS):
            raise ConfigError(f"--width {self.width}: it must be a multiple of {2 * _HEADS}.")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ConfigError(f"--minutes {self.minutes:g}: it must be above 0.")

    @property
    def heads(self) -> int:
        """Attention heads of each layer."""
        return _HEADS

    @property
    def inner(self) -> int:
        """The width of the feed-forward layers, about 8/3 of the model's."""
        return max(32, self.width * 8 // 3 // 32 * 32)

    @property
    def prompt(self) -> PromptConfig:
        """The form of its prompts."""
        return PromptConfig(history=self.history, last=self.last)


# --- random play ------------------------------------------------------------------------------


class RandomTurn(NamedTuple):
    """A turn of uniformly random play."""

    prompt: str
    action: str
    goal: str | None
    """`info["goal"]`, if the world gave one with this prompt."""
    begins: bool
    """True for the first turn of an episode."""
    success: bool | None
    """How the episode went; None if it goes on, or was abandoned."""


def play_randomly(
    world: CheckedWorld, seed: int, longest: int | None = None, *, reads: bool = True
) -> Generator[RandomTurn, None, None]:
    """Play episode after episode with random actions from those offered.

    Args:
        world: is closed with this generator.
        seed: of the first episode, and of the actions; each new episode takes the next one.
        longest: turns after which an episode is abandoned; None for no limit.
        reads: half of the arguments of tools repeat what stands in the prompt, if something there
            fits (`draw`). A model of such calls knows how to look into a prompt, and not what for.
            Otherwise all actions have the same chance.

    Raises:
        ConfigError: the world lets the agent write freely.
        WorldError: the world breaks the contract.
    """
    rng = Random(seed)
    try:
        while True:
            prompt, offers, info = world.reset(world_seed(seed))
            turn, success = 0, None
            while success is None and turn != longest:
                action = random_action(offers, rng, world.name, prompt if reads else "")
                happened = world.step(action)
                if happened.terminated or happened.truncated:
                    success = bool(happened.info["episode"]["success"])
                yield RandomTurn(prompt, action, info.get("goal"), turn == 0, success)
                prompt, offers, info = happened.prompt, happened.actions, happened.info
                turn += 1
            seed += 1
    finally:
        world.close()


def random_action(offer: Offer | None, rng: Random, world: str, reading: str) -> str:
    """Draw one of the offered actions for an agent that reads a prompt.

    Raises:
        ConfigError: there are none, so the agent writes freely.
    """
    if offer is None:
        raise ConfigError(
            f"The world {world!r} lets the agent write freely, so there is no uniformly random "
            "play, and random letters would teach a model nothing. Let the world offer actions in "
            "info['admissible_actions'], or describe them in info['action_grammar'], or train a "
            "model that knows the language: `poad models` lists some."
        )
    return draw(offer, rng, reading)


# --- rows of tokens ---------------------------------------------------------------------------


def train_tokenizer(turns: Sequence[tuple[str, str]], vocabulary: int) -> Any:
    """Train a byte-level BPE on prompts and actions."""
    texts = sorted({text for prompt, action in turns for text in (prompt, f" {action}")})
    return train_bpe(texts, vocabulary)


def rows_of(
    turns: Sequence[RandomTurn], codec: TextCodec, prompt: PromptConfig, context: int
) -> tuple[list[Row], str | None]:
    """Encode turns as an agent reads and writes them: each prompt with its action and the end.

    Args:
        turns: in the order in which they were played.
        codec: made for these prompts.
        prompt: their form.
        context: tokens of the longest row.

    Returns:
        A row for each turn; and a remark, if prompts were too long.

    Raises:
        ModelError: all actions are too long.
    """
    # A grammar may allow actions that leave no room for a prompt. These get no row.
    sizes = [len(codec.action(turn.action)) for turn in turns]
    longest = max((size for size in sizes if size <= context // 2), default=context // 2)
    talk = Dialogue(codec, prompt, context - longest, longest)
    rows: list[Row] = []
    action = Action("", (), (), ())
    for turn in turns:
        if turn.begins:
            ids = talk.first_prompt(turn.prompt, None, turn.goal)
        else:
            ids = talk.next_prompt(action, turn.prompt, None, turn.goal)
        written = codec.action(turn.action)
        action = Action(turn.action, written, (), ())
        if len(written) <= longest:
            rows.append(((*ids, *written), 0))
    if not rows:
        raise ModelError(
            f"No random action has fewer than {min(sizes):,} tokens, more than half of what the "
            f"model reads ({context:,}): raise --context."
        )
    return rows, talk.note


def context_for(rows: Sequence[Row], most: int) -> int:
    """Return a power of two with room for rows twice as long as these, if `most` allows it."""
    longest = max(len(ids) for ids, _ in rows)
    return max(longest, min(most, max(_LEAST_CONTEXT, 2 ** math.ceil(math.log2(2 * longest)))))


# --- the story --------------------------------------------------------------------------------


def pretrain_model(
    model: TinyModel, to: Path, *, overwrite: bool = False, quiet: bool = False
) -> int:
    """Make a tiny model for a world, and print how to train it further; the exit status.

    The same settings give the same bytes on the same machine. Whatever interrupts it, ``to`` is
    complete, or as it was.

    Args:
        model: what to make.
        to: the directory to write, which is new or empty.
        overwrite: replace a model that was made by this function.
        quiet: print nothing.

    Raises:
        ConfigError: the world lets the agent write freely, or cannot be opened.
        ModelError: the directory cannot be written.
    """
    to = Path(os.path.abspath(to))
    _check_free(to, overwrite=overwrite)
    screen = Screen(quiet=quiet)
    world = CheckedWorld(make(model.env, **model.env_args))
    with closing(play_randomly(world, model.seed, LONGEST_EPISODE)) as playing:
        first = islice(playing, model.turns)
        turns = [*watch(first, model.turns, "random play", screen, unit="turns")]
    facts = _facts_of(turns)
    screen.print(_describe_play(facts), soft_wrap=True)
    with torch_threads(1), seeded(model.seed, _CPU):
        llama, tokenizer, training = _train(model, turns, screen)
    facts |= training
    done = {**asdict(model), "steps": facts["steps"], "minutes": None}
    making = {"pretrained": done, **facts, "versions": _versions()}
    try:
        with atomic_directory(to, replace=overwrite) as partial:
            save(partial, llama, tokenizer)
            describe(partial, plain(making), card(model, facts))
    except OSError as error:
        raise ModelError(f"Cannot write {to}: {error}. Nothing of it is left.") from error
    screen.print(_closing(model, to, facts), soft_wrap=True)
    return 0


def _train(
    model: TinyModel, turns: Sequence[RandomTurn], screen: Screen
) -> tuple[Any, Any, dict[str, Any]]:
    """Make a tokenizer and a model of random turns; return them, and facts about the training."""
    tokenizer = train_tokenizer([turn[:2] for turn in turns], model.vocabulary)
    codec = codec_for(tokenizer, model.prompt)
    most = model.context or _CONTEXT[model.history]
    rows, remark = rows_of(turns, codec, model.prompt, most)
    if remark is not None:
        warnings.warn(remark, stacklevel=3)
    positions = model.context or context_for(rows, most)
    batch = max(4, min(_BATCH, _BATCH_TOKENS // round(fmean(len(ids) for ids, _ in rows))))
    steps = model.steps if model.minutes is None else _steps_in(model, codec, rows, batch)
    llama = new_llama(model, codec, positions)
    training = fit(llama, drawn(rows, batch), steps, _LR, recalls=model.recalls)
    shown = watch(
        training, steps, "training", screen, unit="steps", tell=lambda loss: f"loss {loss:.3f}"
    )
    losses = [*shown]
    facts = {
        "steps": steps,
        "batch": batch,
        "tokens": len(tokenizer),
        "positions": positions,
        "parameters": sum(p.numel() for p in llama.parameters()),
        "final_loss": round(fmean(losses[-20:]), 4),
    }
    return llama, tokenizer, facts


def _check_free(to: Path, *, overwrite: bool) -> None:
    """Raise ModelError unless a directory is new, empty, or a model to replace."""
    if to.is_dir():
        files = {path.name for path in to.iterdir()}
        ours = "making.json" in files and files <= _FILES
        if not files or (ours and overwrite):
            return
        advice = "Add --overwrite to replace the model there, or name another directory."
        if not ours:
            advice = "It holds files of others, so name another directory."
        raise ModelError(f"{to} is in the way, and nothing was done. {advice}")
    above = next(path for path in (to, *to.parents) if path.exists())
    try:  # before minutes are spent
        with TemporaryDirectory(dir=above):
            pass
    except OSError as error:
        raise ModelError(f"Cannot write {to}: {error.strerror}.") from error


def _steps_in(model: TinyModel, codec: TextCodec, rows: Sequence[Row], batch: int) -> int:
    """Estimate how many steps fit into the minutes of a model, by taking a few and forgetting them.

    With this number in ``steps``, the model is the same.
    """
    assert model.minutes is not None
    with seeded(model.seed, _CPU):
        trial = new_llama(model, codec, _LEAST_CONTEXT)
        seconds, began = [], time.perf_counter()
        for _ in fit(trial, drawn(rows, batch), 50, _LR, recalls=model.recalls):
            seconds.append(time.perf_counter() - began)
            began += seconds[-1]
            if sum(seconds) > 3 and len(seconds) > 4:
                break
    return max(1, round(60 * model.minutes / fmean(seconds[1:])))


# --- words ------------------------------------------------------------------------------------


def _facts_of(turns: Sequence[RandomTurn]) -> dict[str, Any]:
    """Count what was played."""
    outcomes = [turn.success for turn in turns if turn.success is not None]
    return {
        "turns": len(turns),
        "distinct_prompts": len({turn.prompt for turn in turns}),
        "episodes": len(outcomes),
        "successes": sum(outcomes),
    }


def _describe_play(facts: Mapping[str, Any]) -> str:
    ended = facts["episodes"]
    rate = percent(facts["successes"] / ended) if ended else "–"
    told = (
        f"Played {facts['turns']:,} turns at random: {counted(facts['distinct_prompts'], 'prompt')}"
        f", {counted(ended, 'whole episode')}, success {rate}."
    )
    if not facts["successes"]:
        told += (
            " What random play never finds is hard to learn: see “What the model must know” in "
            "docs/your-own-world.md."
        )
    return told


def _versions() -> dict[str, str | None]:
    """The versions that decide the bytes of a model."""
    import tokenizers

    known = versions()
    names = ("poad", "python", "torch", "transformers")
    return {**{name: known[name] for name in names}, "tokenizers": tokenizers.__version__}


def _world_flags(model: TinyModel) -> str:
    """The flags that name the world of a model on a command line."""
    words = ["--env", model.env]
    if model.env_args:
        words += ["--env-args", *_arguments(model)]
    return shlex.join(words)


def _closing(model: TinyModel, to: Path, facts: Mapping[str, Any]) -> str:
    """Say what was made and what to do with it."""
    try:
        shown = to.relative_to(Path.cwd())
    except ValueError:
        shown = to
    name = shlex.quote(f"{shown}")
    history = "" if model.history == "none" else f" --prompt.history {model.history}"
    history += f" --prompt.last {model.last}" if model.history == "last" else ""
    return (
        f"Made {shown}: {facts['parameters']:,} parameters, {facts['tokens']:,} tokens, loss "
        f"{facts['final_loss']:.3f} nats per token. It knows the words, but not the task.\n"
        f"  poad train {_world_flags(model)} --model.name {name}{history}   train it"
    )


def card(model: TinyModel, facts: Mapping[str, Any]) -> str:
    """Write the model card."""
    world = " ".join([model.env, *_arguments(model)])
    history = {
        "none": "the observation alone",
        "last": f"the last {counted(model.last, 'turn')} and the observation",
        "episode": "the whole episode so far",
    }[model.history]
    recall = ", and a linear map from hidden states to what was read" if model.recalls else ""
    rows = {
        "architecture": f"Llama, {counted(model.layers, 'layer')} of width {model.width}, "
        f"{model.heads} heads, {facts['positions']:,} positions, tied embeddings; "
        f"{facts['parameters']:,} parameters in float32",
        "tokenizer": f"byte-level BPE of {facts['tokens']:,} tokens, trained on the same text",
        "training text": f"{facts['turns']:,} turns ({facts['distinct_prompts']:,} distinct "
        "prompts) with actions drawn uniformly among those offered; "
        f"{facts['successes']:,} of {counted(facts['episodes'], 'whole episode')} succeeded",
        "prompts": history,
        "selection": "none: every turn of every episode, whatever its reward",
        "objective": f"next-token prediction{recall}; {counted(facts['steps'], 'step')} of "
        f"{facts['batch']} turns; final loss {facts['final_loss']} nats per token",
        "seed": model.seed,
        "versions": ", ".join(f"{name} {version}" for name, version in _versions().items()),
    }
    table = "\n".join(f"| {name} | {fact} |" for name, fact in rows.items())
    return f"""# A tiny model for {model.env}

It knows the words of `{world}`, but not the task. `poad pretrain` made it from uniformly random \
play.

| | |
|---|---|
{table}

With the settings in `making.json`, one thread and the same versions, the result is identical to the
byte.
"""


def _arguments(model: TinyModel) -> list[str]:
    """The arguments of the world, as they are typed."""
    return [f"{name}={write_value(value)}" for name, value in model.env_args.items()]
