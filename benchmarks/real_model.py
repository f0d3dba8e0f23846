"""Train a real pretrained model by its preset alone, and see what it has learned and forgotten.

For each seed: `poad train --env ENV --model.name MODEL --seed N`, nothing else. Prints sampled and
greedy success, the steps and CPU seconds to a rolling 95 %, and the perplexity on a text before and
after. Runs that are already in the directory are not repeated.

python benchmarks/real_model.py --runs runs/real --text /usr/share/common-licenses/GPL-3
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from pathlib import Path

import numpy as np

from poad.agent import load_agent
from poad.display import plot_learning
from poad.runs import Run
from poad.workflows.language import text_loss

ROLLING = 0.95
"""The success over the last 100 training episodes at which a world counts as learned."""


def perplexity(run: Run, text: str, trained: bool) -> float:
    """Measure how well the model of a run predicts a text."""
    tensors = run.load_checkpoint(run.checkpoint_path(None))[0] if trained else None
    nats, tokens = text_loss(load_agent(run.config, tensors).model, text)
    return math.exp(float(np.sum(nats)) / float(np.sum(tokens)))


def first_learned(run: Run) -> str:
    """Return the steps and CPU seconds to the rolling success, or a dash."""
    for row in run.metrics():
        if row["episodes"] >= 100 and row["success"] >= ROLLING:
            return f"{row['env_steps']:,.0f} ({row['cpu_seconds']:.0f})"
    return "–"


def main() -> None:
    """Train what is missing and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="poad/TomatoSalad-v0")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, required=True, help="directory of the runs")
    parser.add_argument("--text", type=Path, help="a text to measure perplexity on")
    parser.add_argument("--figure", type=Path, help="where to draw the learning curves")
    arguments, flags = parser.parse_known_args()
    text = None if arguments.text is None else arguments.text.read_text(encoding="utf-8")
    runs = []
    print("| seed | sampled | greedy | CPU-s | steps (CPU-s) to a rolling 95 % | perplexity |")
    print("|---|---|---|---|---|---|")
    for seed in arguments.seeds:
        path = arguments.runs / f"{arguments.env.partition('/')[2]}-{arguments.model}-{seed}"
        if not (path / "summary.json").exists():
            command = [sys.executable, "-m", "poad", "train", "--env", arguments.env, *flags]
            command += ["--model.name", arguments.model, "--seed", str(seed), "--run", str(path)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        run = Run.open(path)
        runs.append(run)
        summary = run.summary()
        assert summary is not None
        assert summary.evaluation is not None
        rates = [f"{summary.evaluation[mode].success_rate:.0%}" for mode in ("sampled", "greedy")]
        change = "–"
        if text is not None:
            before, after = (perplexity(run, text, trained) for trained in (False, True))
            change = f"{before:.2f} → {after:.2f}"
        cells = [str(seed), *rates, f"{summary.cpu_seconds:.0f}", first_learned(run), change]
        print("| " + " | ".join(cells) + " |", flush=True)
    if arguments.figure is not None:
        plot_learning(runs, arguments.figure, keys=("success",))


if __name__ == "__main__":
    main()
