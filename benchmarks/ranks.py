"""Compare what `poad plan` predicts that more processes gain with what they gain.

A Llama of random weights with the words of tiny-kitchen is trained in full. Measured are CPU
seconds of rank 0 for an iteration, which leave out waiting for the others, as shares of what one
process takes. Processes take turns, so that what else the machine does is spread over all of them.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from soak import start
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from poad.agent import resolve
from poad.config import Config, EvalConfig, ModelConfig, PPOConfig, dump
from poad.lm import ASSETS
from poad.plan.predict import predict
from poad.plan.scale import LINK, Machines, step_of

SHAPE = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1024}
ROWS = ((1, "none"), (2, "none"), (3, "none"), (2, "full"))
"""Numbers of processes, and how they divide the weights."""


def save_model(folder: Path) -> None:
    """Write a model of random weights."""
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny-kitchen")
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    shape = LlamaConfig(**SHAPE, vocab_size=len(tokenizer), num_attention_heads=6, **ends)
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def planned(config: Config, ranks: int, speed: float) -> float:
    """Predict seconds of an iteration."""
    plan = predict(config, flops=speed, ranks=ranks)
    return step_of(config, plan, Machines(devices=ranks, link=LINK["cpu"])).seconds


def measure(config: Config, ranks: int, folder: Path) -> list[float]:
    """Train; return CPU seconds of each iteration behind the first."""
    (folder / "run.yaml").write_text(dump(config))
    words = ("train", "--quiet", "--overwrite", "--config", str(folder / "run.yaml"), "--run")
    for process in start((*words, str(folder / "run")), ranks, folder / "log"):
        assert process.wait() == 0, (folder / "log").read_text()[-2000:]
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    spent = [json.loads(line)["cpu_seconds"] for line in lines]
    return [after - before for before, after in pairwise(spent)]


def main() -> None:
    """Print a row for each number of passes and of processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 4], help="of an update")
    parser.add_argument("--repeats", type=int, default=3, help="trainings of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder / "model")
        model = ModelConfig(name=str(folder / "model"), device="cpu")
        base = Config("poad/TomatoLettuceSalad-v0", model=model, streams=16, horizon=16)
        base = replace(base, steps=16 * 16 * 3, eval=EvalConfig(episodes=0), randomness="stream")
        for passes in options.passes:
            # The plan counts all passes; with kl_stop, a training may leave some out.
            config = replace(base, ppo=PPOConfig(epochs=passes, kl_stop=None))
            configs = [
                resolve(replace(config, model=replace(model, shard=shard))).config
                for _, shard in ROWS
            ]
            spent: list[list[float]] = [[] for _ in ROWS]
            for _ in range(options.repeats):
                for each, (ranks, _), found in zip(configs, ROWS, spent, strict=True):
                    found += measure(each, ranks, folder)
            speed = predict(config).speed
            times = [planned(c, r, speed) for c, (r, _) in zip(configs, ROWS, strict=True)]
            medians = [statistics.median(found) for found in spent]
            for (ranks, shard), time, median in zip(ROWS, times, medians, strict=True):
                print(
                    f"{passes} passes, {ranks} processes, shard = {shard}: predicted "
                    f"{time / times[0]:.2f}, measured {median / medians[0]:.2f} "
                    f"({median:.2f} CPU-s) of one process",
                    flush=True,
                )


if __name__ == "__main__":
    main()
