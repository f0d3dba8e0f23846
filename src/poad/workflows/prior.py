"""The prior: how a model acts before any training, beside an agent that chooses uniformly.

Reinforcement learning finds only what is tried. A pretrained model may all but exclude the actions
that succeed, and then no rate and no critic helps, so this is worth a look before training.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Literal

import numpy as np
from rich.console import Console

from poad.agent import ActingCache, Agent, Policy, load_agent, resolve, torch_threads
from poad.config import Config
from poad.display import Screen, Table, bounds, number, percent
from poad.envs import draw, make, size_of
from poad.learn import Actor, NoPrompts, Step, WorldStream, play
from poad.runs import Evaluation, summarize
from poad.turns import Action, Observation

LOOK_EPISODES = 32
"""Episodes of the look before a training."""
_MOST_TURNS = 1000
"""Where an episode is given up, and counts as a failure. Some worlds never end by themselves."""
_COMMON_STATES = 50
"""States over which entropies are averaged."""
_SHOWN_STATES = 4
"""States whose offered actions are shown."""


@dataclass(frozen=True)
class Offered:
    """A state in which actions were offered."""

    observation: Observation
    actions: tuple[str, ...]
    chances: list[float]
    """The probability of each action."""
    count: int
    """How often the state came up."""

    @property
    def entropy(self) -> float:
        """The entropy of the choice, in nats."""
        return -sum(p * math.log(p) for p in self.chances if p > 0)


@dataclass(frozen=True)
class Prior:
    """How an agent acts."""

    outcome: Evaluation
    entropy: float
    """Mean entropy of the choice among the offered actions in the commonest states, in nats; NaN if
    no actions are listed."""
    step_cost: float = 0.0
    """What most turns cost: the commonest negative reward, as a positive number; 0 if most turns
    cost nothing."""


class _WritesFreelyError(Exception):
    """The world offers nothing to draw from."""


class _Uniform:
    """An actor that takes every offered action with the same chance."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)  # also draws from forms of more than 2⁶³ actions

    def dialogue(self) -> NoPrompts:
        return NoPrompts()

    def act_each(
        self, observations: Sequence[Observation], generator: object, **_: object
    ) -> Iterator[tuple[int, Action]]:
        for i, observation in enumerate(observations):
            offered = observation.admissible_actions
            if offered is None:
                raise _WritesFreelyError
            yield i, Action(draw(offered, self._rng), (), (), ())


def _steps(
    actor: Actor, config: Config, episodes: int, streams: int, cache: ActingCache | None = None
) -> Iterator[Step]:
    """Play sampled episodes from the first evaluation seed on."""
    seeds = iter(range(config.eval.seed, config.eval.seed + episodes))
    world = partial(make, config.env, **config.env_args)
    playing = [
        WorldStream(world, actor.dialogue(), seed, max_turns=_MOST_TURNS)
        for seed in islice(seeds, streams)
    ]
    try:
        yield from play(actor, playing, lambda _: next(seeds, None), cache=cache)
    finally:
        for stream in playing:
            stream.close()


def uniform_prior(config: Config, episodes: int = LOOK_EPISODES) -> Prior | None:
    """Play a world with actions that are drawn uniformly from those offered.

    Args:
        config: the world, and the seed of its evaluation episodes.
        episodes: how many to play.

    Returns:
        How they went; None if the world lets the agent write freely.
    """
    try:
        steps = [*_steps(_Uniform(config.eval.seed), config, episodes, streams=1)]
    except _WritesFreelyError:
        return None
    offers = (step.observation.admissible_actions for step in steps)
    entropy = float(np.mean([math.log(size_of(offered)) for offered in offers if offered]))
    entropy = entropy if math.isfinite(entropy) else math.nan  # nobody counts a grammar's texts
    ((commonest, _),) = Counter(step.reward for step in steps).most_common(1)
    outcome = summarize(step.episode() for step in steps if step.ended)
    return Prior(outcome, entropy, max(0.0, -commonest))


def model_prior(
    policy: Policy, config: Config, episodes: int = LOOK_EPISODES
) -> tuple[Prior, list[Offered]]:
    """Play sampled episodes with an untrained policy.

    Args:
        policy: the policy.
        config: the world, the seed of its evaluation episodes, and the threads of torch.
        episodes: how many to play.

    Returns:
        How they went; and the states that came up, the commonest first.
    """
    cache, common, played = ActingCache(), Counter[Observation](), []
    with torch_threads(config.threads):
        for step in _steps(policy, config, episodes, config.eval.streams, cache):
            common[step.observation] += 1
            if step.ended:
                played.append(step.episode())
        states = [
            Offered(seen, tuple(seen.admissible_actions), policy.probabilities(seen, cache), count)
            for seen, count in common.most_common(_COMMON_STATES)
            if isinstance(seen.admissible_actions, tuple)
        ]
    turns = sum(state.count for state in states)
    entropy = sum(state.count * state.entropy for state in states) / turns if turns else math.nan
    return Prior(summarize(played), entropy), states


def remarks_on_prior(config: Config, model: Prior, uniform: Prior | None) -> Iterator[str]:
    """Yield what is wrong with how an untrained agent acts, and which setting mends it."""
    if uniform is None:
        if model.outcome.success_rate == 0 and model.outcome.mean_return <= 0:
            yield (
                "None of the untrained agent's episodes earned anything, so there is nothing to "
                "learn from yet. Give examples with prompt.examples, or try prompt.format = chat."
            )
        return
    if all(each.outcome.success_rate == 0 >= each.outcome.mean_return for each in (model, uniform)):
        yield (
            "Neither the untrained agent nor a uniformly random one earned anything in "
            f"{model.outcome.episodes} episodes. Rewards may be too rare to learn from: look at "
            "more episodes, give examples with prompt.examples, or begin with an easier task."
        )
    mine, theirs = model.outcome.success_interval, uniform.outcome.success_interval
    if mine and theirs and mine[1] < theirs[0]:
        yield (
            f"The untrained model succeeds in {percent(model.outcome.success_rate)} of the "
            f"episodes, and a uniformly random agent in {percent(uniform.outcome.success_rate)}: "
            "its prior all but excludes what is rewarded. Raise acting.temperature (now "
            f"{config.acting.temperature:g}), or compare prompts with `poad eval MODEL --untrained`"
            "."
        )
    worth = config.ppo.entropy * config.ppo.std_floor
    if 0 < worth <= uniform.step_cost:
        yield (
            f"A nat of entropy is worth {worth:.2g} of reward at least (ppo.entropy × "
            f"ppo.std_floor), no more than a turn costs ({uniform.step_cost:.2g}). An agent that "
            "finds no reward then learns to end its episodes early. Use ppo.entropy = "
            f"{2 * uniform.step_cost / config.ppo.std_floor:.2g} or more."
        )


def describe_prior(model: Prior, uniform: Prior | None) -> str:
    """Say in a sentence how an untrained agent does, beside a uniform one."""
    text = f"Untrained, it succeeds in {_rate(model)} of {model.outcome.episodes} episodes"
    if not math.isnan(model.entropy):
        text += f" (entropy {model.entropy:.2f} nats an action)"
    if uniform is not None:
        text += f"; a uniformly random agent in {_rate(uniform)} ({uniform.entropy:.2f} nats)"
    return text + "."


def show_prior(config: Config, preset: str, *, episodes: int = 100, quiet: bool = False) -> int:
    """Print how a model acts before training: by prompt format and temperature, and in examples.

    Args:
        config: the world, the model and the way of acting.
        preset: the name of the preset that the configuration starts from.
        episodes: how many are played each time.
        quiet: print one plain line per way of acting.

    Returns:
        The exit status.
    """
    config = resolve(config).config  # `auto` has a name from here on
    console = Screen(quiet=quiet)
    console.print(f"{config.model.name} before any training, in {config.env} ...", soft_wrap=True)
    uniform = uniform_prior(config, episodes)
    rows = [] if uniform is None else [("uniformly random", "–", *_cells(uniform))]
    chosen, states = None, list[Offered]()
    agent = load_agent(config)
    for shape in _formats(agent):
        if shape != agent.config.prompt.format:
            agent = load_agent(replace(config, prompt=replace(config.prompt, format=shape)))
        for temperature in sorted({1.0, config.acting.temperature}):
            acting = replace(agent.settings.acting, temperature=temperature)
            policy = Policy(agent.model, acting, agent.config.prompt)
            prior, seen = model_prior(policy, config, episodes)
            rows.append((shape, f"{temperature:g}", *_cells(prior)))
            if quiet:
                print(*rows[-1])
            if (shape, temperature) == (config.prompt.format, config.acting.temperature):
                chosen, states = prior, seen
    heads = ("prompt", "temperature", "success", "95 % interval", "return", "entropy (nats)")
    console.print(Table(heads, rows).to_terminal())
    _show_states(console, states)
    assert chosen is not None
    remarks = [*remarks_on_prior(config, chosen, uniform)]
    verdict = remarks or ["There is reward to learn from."]
    console.print(
        f"\nPreset {preset}, temperature {config.acting.temperature:g}: " + " ".join(verdict),
        soft_wrap=True,
    )
    return 0


def _formats(agent: Agent) -> list[Literal["plain", "chat"]]:
    """List the prompt formats to compare: both only where the model has a template."""
    if getattr(agent.model.codec.tokenizer, "chat_template", None):
        return ["plain", "chat"]
    return [agent.config.prompt.format]


def _show_states(console: Console, states: Sequence[Offered]) -> None:
    """Print the likeliest and the least likely offered actions of the commonest states."""
    for state in states[:_SHOWN_STATES]:
        ranked = sorted(zip(state.actions, state.chances, strict=True), key=lambda pair: -pair[1])
        console.print(f"\n{state.observation.prompt}", soft_wrap=True)
        for action, chance in ranked if len(ranked) <= 6 else [*ranked[:3], *ranked[-3:]]:
            console.print(f"  {percent(chance):>7}  {action}", soft_wrap=True)


def _rate(prior: Prior) -> str:
    return percent(prior.outcome.success_rate)


def _cells(prior: Prior) -> tuple[str, str, str, str]:
    outcome = prior.outcome
    return (
        percent(outcome.success_rate),
        bounds(outcome.success_interval),
        number(outcome.mean_return),
        number(prior.entropy, ".2f"),
    )
