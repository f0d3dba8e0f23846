"""Watch an episode turn by turn, or play one yourself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from poad.agent import Agent, Observation, load_agent
from poad.config import Config
from poad.display import Screen, show_ending, show_turn
from poad.envs import make
from poad.learn import evaluate, observe
from poad.workflows import check_world, load_run


def play_run(
    path: Path, *, seed: int | None, greedy: bool, checkpoint: int | None, untrained: bool
) -> int:
    """Show an episode of a run's agent: the same one that an evaluation of that seed plays."""
    run, agent, iteration = load_run(path, checkpoint, untrained)
    _show(agent, run.config.eval.seed if seed is None else seed, greedy, iteration)
    return 0


def play_untrained(config: Config, *, seed: int, greedy: bool) -> int:
    """Show an episode of the world's untrained model."""
    check_world(config)
    _show(load_agent(config), seed, greedy, None)
    return 0


def _show(agent: Agent, seed: int, greedy: bool, checkpoint: int | None) -> None:
    console = Screen()
    record = next(
        evaluate(agent, episodes=1, seed=seed, greedy=greedy, streams=1, checkpoint=checkpoint)
    )
    for number, turn in enumerate(record.turns, 1):
        show_turn(console, turn, number)
    show_ending(console, record)


def play_human(env_id: str, env_args: Mapping[str, Any], seed: int) -> int:
    """Let a person choose the actions; an empty line, Ctrl-D or Ctrl-C leaves."""
    check_world(Config(env=env_id, env_args=dict(env_args)))
    console = Screen()
    env = make(env_id, **env_args)
    prompt, info = env.reset(seed=seed)
    console.print(
        f"[bold]{env_id}[/]: answer with a number or in words; an empty line leaves.\n",
        highlight=False,
    )
    turns, total = 0, 0.0
    while True:
        observation = observe(prompt, info)
        answer = _ask(console, observation)
        if not answer:
            console.print("\nLeft in the middle.")
            return 0
        prompt, reward, terminated, truncated, info = env.step(answer)
        turns, total = turns + 1, total + float(reward)
        console.print(f"  reward {float(reward):+.3f}\n", highlight=False)
        if "invalid_action" in info:
            console.print(f"  {info['invalid_action']!r} is none of the offered actions.\n")
        if terminated or truncated:
            episode = info["episode"]
            word = "[bold green]Success[/]" if episode["success"] else "[bold red]No success[/]"
            console.print(f"{word} after {turns} turns; return {episode['r']:.3f}", highlight=False)
            return 0


def _ask(console: Console, observation: Observation) -> str:
    """The person's action; empty to leave."""
    console.print(Text(observation.prompt))
    offered = observation.admissible_actions or ()
    for number, action in enumerate(offered, 1):
        console.print(f"  {number:2d}  {action}", highlight=False, markup=False)
    try:
        answer = input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        return ""
    if answer.isdecimal() and 1 <= int(answer) <= len(offered):
        return offered[int(answer) - 1]
    return answer
