"""Train a real pretrained model by its preset alone, and see what it has learned and forgotten.

For each seed: `poad train --env ENV --model.name MODEL --seed N`, nothing else. Prints sampled and
greedy success, the steps and CPU seconds to a rolling 95 %, and the perplexity on a text before and
after. The KL divergence from the untrained model is that of the next token in this text, and that
of the choices in the last rollout if --ppo.kl-reference is set (1e-9 measures, and weighs nothing).
Runs that are already in the directory are not repeated.

python benchmarks/real_model.py --runs runs/real --text /usr/share/common-licenses/GPL-3
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from poad.agent import load_agent
from poad.display import plot_learning
from poad.lm import LanguageModel, pack
from poad.runs import Run
from poad.workflows.language import text_loss

ROLLING = 0.95
"""The success over the last 100 training episodes at which a world counts as learned."""
WINDOW = 512
"""Tokens of a text that are read at once to measure the divergence."""


def perplexity(model: LanguageModel, text: str) -> float:
    """Measure how well a model predicts a text."""
    nats, tokens = text_loss(model, text)
    return math.exp(float(np.sum(nats)) / float(np.sum(tokens)))


@torch.no_grad()
def divergence(model: LanguageModel, text: str) -> float:
    """Measure KL(trained ‖ untrained) of the next token, in nats, as a mean over a text."""
    ids = model.codec.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    found = []
    for begin in range(0, len(ids), WINDOW):
        window = ids[begin : begin + WINDOW]
        places = [(tuple(window[: n + 1]), ()) for n in range(len(window))]
        packed = pack(places, model.codec.pad_id, branching=False)
        new = model.logits(model.read(packed)).log_softmax(-1)  # [n, V]
        old = model.frozen_logits(model.read_frozen(packed)).log_softmax(-1)
        found.append(torch.nn.functional.kl_div(old, new, reduction="none", log_target=True).sum(1))
    return float(torch.cat(found).mean())


def language(run: Run, text: str | None) -> list[str]:
    """Return the perplexity before and after, and both divergences; a dash for what is unknown."""
    cells = ["–", "–"]
    if text is not None:
        before = perplexity(load_agent(run.config, None).model, text)
        tensors, _ = run.load_checkpoint(run.checkpoint_path(None))
        model = load_agent(run.config, tensors).model
        cells = [f"{before:.2f} → {perplexity(model, text):.2f}", f"{divergence(model, text):.3f}"]
    last = [row for row in run.metrics() if row["kl_reference"]][-1:]
    return [*cells, *([f"{row['kl_reference']:.3f}" for row in last] or ["–"])]


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
    names = ("seed", "sampled", "greedy", "CPU-s", "steps (CPU-s) to a rolling 95 %")
    names = (*names, "perplexity", "KL, text", "KL, choices")
    print("| " + " | ".join(names) + " |")
    print("|---" * len(names) + "|")
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
        cells = [str(seed), *rates, f"{summary.cpu_seconds:.0f}", first_learned(run)]
        cells += language(run, text)
        print("| " + " | ".join(cells) + " |", flush=True)
    if arguments.figure is not None:
        plot_learning(runs, arguments.figure, keys=("success",))


if __name__ == "__main__":
    main()
