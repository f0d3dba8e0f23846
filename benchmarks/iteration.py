"""Compare one training iteration, collecting and updating, with a rival in the published style.

First the script checks that both compute the same: on one rollout, with weights that have moved on,
the rival with any savings has the losses and gradients of ours. Then it measures CPU seconds of one
iteration with the untrained policy, where the two alternate. `--ladder` adds the savings to the
rival one by one, and removes each of them from the complete set, to show the effect of each.

python benchmarks/iteration.py --ladder
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import numpy as np
import order_desk
import torch
from rival import Rival
from rival_actor import Actor
from rival_reader import Savings
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import poad
from poad.agent import Agent, Critic, FrozenFeatures, Policy, resolve
from poad.config import Config, ModelConfig, PPOConfig
from poad.envs import make
from poad.learn import PPO, Collector
from poad.lm import LanguageModel, TextCodec

WORLDS = ("poad/TomatoSalad-v0", "poad/TomatoLettuceSalad-v0", order_desk.WORLD)
TOKENIZER = Path(poad.__file__).parent / "assets" / "tiny-kitchen"
NAMES = [field.name for field in fields(Savings)]
ALL = Savings(**dict.fromkeys(NAMES, True))


def settings(world: str, micro_batch: int, **ppo: Any) -> Config:
    """4 environments, 32 steps, 5 epochs of 2 minibatches, no early stop."""
    # The check learns from a rollout by weights that have moved on, so nothing may stop it early.
    ppo = {
        "epochs": 5,
        "minibatches": 2,
        "kl_stop": None,
        "anneal": False,
        "drift_stop": None,
    } | ppo
    learner = PPOConfig(micro_batch_tokens=micro_batch, **ppo)
    name = ModelConfig(name="tiny-kitchen", device="cpu")  # used for its tokenizer only
    return resolve(Config(env=world, streams=4, horizon=32, model=name, ppo=learner)).config


def million(width: int = 192, layers: int = 2) -> LlamaForCausalLM:
    """Create a Llama of about a million random weights: the embedded model, twice as wide."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class Side(NamedTuple):
    """A learner with a fresh model, ready for its first iteration."""

    model: LanguageModel
    critic: Critic
    policy: Any
    update: Callable[[Any], Any]


def build(causal: LlamaForCausalLM, codec: TextCodec, config: Config, how: Savings | None) -> Side:
    """Build ours (None), or the rival with some savings."""
    model = LanguageModel(copy.deepcopy(causal), codec)
    critic = Critic(model.width, config.critic.hidden, seed=0)
    if how is None:
        resolved = resolve(config)
        policy = Policy(model, resolved.acting)
        features = FrozenFeatures(model, config.ppo.micro_batch_tokens)
        learner = PPO(Agent(resolved, model, policy, critic, features))
        return Side(model, critic, policy, learner.update)
    rival = Rival(model, critic, config, how)
    return Side(model, critic, Actor(model, how), lambda rollout: rival.update(rollout.streams)[-1])


def collect(side: Side, config: Config, seed: int) -> Any:
    collector = Collector(lambda: make(config.env), cast(Policy, side.policy), config.streams, seed)
    return collector.collect(config.horizon, np.random.default_rng(seed))


# --- the check ------------------------------------------------------------------------------------


def push(side: Side) -> None:
    """Move the weights, in the same way each time, so that the ratios differ from 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in [*side.model.parameters(), *side.critic.parameters()]:
            p += 0.1 * torch.randn(p.shape, generator=generator)


def gradients(side: Side) -> Tensor:
    both = [*side.model.parameters(), *side.critic.parameters()]
    return torch.cat([p.grad.flatten() for p in both if p.grad is not None])


def prove(
    causal: LlamaForCausalLM, codec: TextCodec, config: Config
) -> Iterator[tuple[str, float]]:
    """Yield, for each set of savings, the largest difference of losses and relative gradients."""
    one_step = {"epochs": 1, "minibatches": 1, "max_grad_norm": 1e9, "entropy": 0.1}
    one_fit = replace(config.critic, epochs=1, minibatches=1, coefficient=1.0)
    config = replace(config, ppo=replace(config.ppo, **one_step), critic=one_fit)
    ours = build(causal, codec, config, None)
    rollout = collect(ours, config, seed=7)
    push(ours)
    mine, expected = ours.update(rollout), gradients(ours)
    yield "share of clipped ratios", mine["clip_fraction"]
    for name, savings in [("none", Savings()), *ladder(False), ("all", ALL)]:
        theirs = build(causal, codec, config, savings)
        push(theirs)
        found = theirs.update(rollout)
        apart = [abs(mine[k] - found[k]) for k in ("policy_loss", "entropy")]
        apart.append(float((gradients(theirs) - expected).abs().max() / expected.abs().max()))
        yield name, max(apart)


# --- the measurement ------------------------------------------------------------------------------


def ladder(cumulative: bool) -> Iterator[tuple[str, Savings]]:
    """Yield the savings cumulatively, or all of them but one."""
    for i, name in enumerate(NAMES):
        if cumulative:
            yield f"+ {name}", Savings(**dict.fromkeys(NAMES[: i + 1], True))
        else:
            yield f"all but {name}", replace(ALL, **{name: False})


def clock(causal: LlamaForCausalLM, codec: TextCodec, config: Config, how: Any) -> float:
    """Measure the CPU seconds of one iteration: the median over fresh learners for 3 seconds.

    The median ignores the first one, which finds cold caches after the other side has run.
    """
    seconds = []
    while sum(seconds) < 3:
        side = build(causal, codec, config, how)
        start = time.process_time()
        side.update(collect(side, config, config.seed))
        seconds.append(time.process_time() - start)
    return median(seconds)


def measure(
    causal: LlamaForCausalLM, codec: TextCodec, config: Config, sides: dict[str, Any], times: int
) -> dict[str, list[float]]:
    """Measure CPU seconds by side. The sides alternate, and each round has another seed."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    clock(causal, codec, config, None)  # warm up
    for seed in range(times):
        for name, how in sides.items():
            seconds[name].append(clock(causal, codec, replace(config, seed=seed), how))
    return seconds


def report(seconds: dict[str, list[float]]) -> None:
    """Print a row per side: seconds, and the ratio to ours, as median (minimum to maximum)."""
    print("\n| side | CPU seconds | ratio to ours (min to max) |\n|---|---|---|")
    for name, mine in seconds.items():
        ratios = [a / b for a, b in zip(mine, seconds["ours"], strict=True)]
        spread = f"{median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        print(f"| {name} | {median(mine):.3f} | {spread} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare one training iteration with a rival.")
    parser.add_argument("--worlds", nargs="+", default=WORLDS, choices=WORLDS)
    parser.add_argument("--times", type=int, default=5, help="number of rounds")
    parser.add_argument("--ladder", action="store_true", help="also measure the savings one by one")
    parser.add_argument("--width", type=int, default=192, help="width of the model")
    parser.add_argument("--layers", type=int, default=2, help="layers of the model")
    parser.add_argument("--micro-batch", type=int, default=1024, help="tokens per forward pass")
    parser.add_argument("--steps", type=int, default=32, help="turns per environment")
    options = parser.parse_args()
    torch.set_num_threads(1)
    causal = million(options.width, options.layers)
    codec = TextCodec(AutoTokenizer.from_pretrained(TOKENIZER))
    print(f"Llama with {sum(p.numel() for p in causal.parameters()):,} weights, one thread")
    for world in options.worlds:
        config = replace(settings(world, options.micro_batch), horizon=options.steps)
        print(
            f"\n{world}\n\nLargest difference to ours in losses and relative gradients, by savings:"
        )
        for name, apart in prove(causal, codec, config):
            print(f"  {name:24} {apart:.1e}", flush=True)
            if not name.startswith("share") and apart > 1e-4:
                raise SystemExit(f"{world}, {name}: the rival computes something different.")
        sides: dict[str, Any] = {"rival": Savings(), "ours": None}
        if options.ladder:
            sides |= dict(ladder(True)) | dict(ladder(False))
        report(measure(causal, codec, config, sides, options.times))


if __name__ == "__main__":
    main()
