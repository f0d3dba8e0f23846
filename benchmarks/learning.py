"""Train seeds 0-4 on each world, and evaluate each of them on 1,000 episodes.

    python benchmarks/learning.py                        # all worlds; skips finished runs
    python benchmarks/learning.py tomato_salad --seeds 0 1

Seeds 0-4 were not used to choose any setting (tuning used seeds from 100 on). Each run is an
ordinary `poad train` with the shipped configuration. The table comes from the files of the runs.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from poad.config import load
from poad.display import plot_learning
from poad.errors import RunError
from poad.runs import Run
from poad.workflows import train_run

ROOT = Path(__file__).parent.parent
WORLDS = ("tomato_salad", "tomato_lettuce_salad", "food_preparation", "entertainment")
EPISODES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and evaluate seeds on the shipped worlds.")
    parser.add_argument(
        "worlds", nargs="*", default=WORLDS, help=f"worlds among {', '.join(WORLDS)}"
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=range(5))
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "learning")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--figure", type=Path, help="also draw the learning curves into this file")
    arguments = parser.parse_args()
    for name in arguments.worlds:
        for seed in arguments.seeds:
            ensure(name, seed, arguments.runs)
        rows = [row(arguments.runs / f"{name}-{seed}") for seed in arguments.seeds]
        arguments.out.mkdir(parents=True, exist_ok=True)
        target = arguments.out / f"learning-{name}.json"
        target.write_text(json.dumps(rows, indent=1) + "\n")
        print(table(name, rows))
    if arguments.figure:
        paths = [arguments.runs / f"{n}-{s}" for n in arguments.worlds for s in arguments.seeds]
        plot_learning([Run.open(path) for path in paths], arguments.figure, keys=("success",))


def ensure(name: str, seed: int, runs: Path) -> None:
    """Train a run unless it is finished."""
    path = runs / f"{name}-{seed}"
    try:
        if (summary := Run.open(path).summary()) is not None and summary.status == "finished":
            return
    except RunError:
        pass
    config = load(ROOT / "configs" / f"{name}.yaml")
    config = replace(config, seed=seed, eval=replace(config.eval, episodes=EPISODES))
    train_run(config, path, quiet=True)


def row(path: Path) -> dict[str, Any]:
    """Read a row of the table from the files of a run."""
    run = Run.open(path)
    summary = run.summary()
    assert summary is not None
    assert summary.evaluation is not None
    sampled, greedy = summary.evaluation["sampled"], summary.evaluation["greedy"]
    turns = [len(e.turns) for e in run.episodes() if e.mode == "greedy" and e.success]
    goal = 0.9 if "lettuce" in path.name else 0.95
    reached = [m for m in run.metrics() if m["episodes"] >= 100 and m["success"] >= goal]
    return {
        "seed": run.config.seed,
        "success": sampled.success_rate,
        "interval": sampled.success_interval,
        "return": sampled.mean_return,
        "greedy_success": greedy.success_rate,
        "greedy_actions": turns[0] if turns else None,
        "cpu_seconds": summary.cpu_seconds,
        "env_steps": summary.env_steps,
        "rolling_goal": goal,
        "steps_to_goal": reached[0]["env_steps"] if reached else None,
        "cpu_seconds_to_goal": reached[0]["cpu_seconds"] if reached else None,
    }


def table(name: str, rows: list[dict[str, Any]]) -> str:
    goal = rows[0]["rolling_goal"]
    lines = [
        f"\n### {name}, {EPISODES} sampled episodes per seed\n",
        "| seed | success | 95 % interval | greedy | greedy actions | CPU-s | steps "
        f"| steps (CPU-s) to a rolling {goal:.0%} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        low, high = r["interval"]
        when = "never"
        if r["steps_to_goal"] is not None:
            when = f"{r['steps_to_goal']:,.0f} ({r['cpu_seconds_to_goal']:.1f})"
        lines.append(
            f"| {r['seed']} | {r['success']:.1%} | {low:.1%} – {high:.1%} | "
            f"{r['greedy_success']:.0%} | {r['greedy_actions'] or '–'} | {r['cpu_seconds']:.1f} | "
            f"{r['env_steps']:,.0f} | {when} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
