"""Compare what `poad plan` predicts of one and two processes with what they take.

A Llama of random weights with the words of tiny-kitchen is trained in full. Seconds are CPU seconds
of rank 0 (median of the iterations behind the first), which leave out waiting for the other one.
The machine should be idle: its speed is measured by the clock.
"""

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
from poad.plan.scale import Machines, step_of

SHAPE = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1024}
LOOPBACK = 1e9
"""Bytes per second of gloo between two processes of this machine, an assumption."""


def save_model(folder: Path) -> None:
    """Write a model of random weights."""
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny-kitchen")
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    shape = LlamaConfig(**SHAPE, vocab_size=len(tokenizer), num_attention_heads=6, **ends)
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measure(config: Config, ranks: int, folder: Path) -> tuple[float, float]:
    """Train; return CPU seconds of an iteration and the largest resident set, in MB."""
    (folder / "run.yaml").write_text(dump(config))
    words = ("train", "--quiet", "--config", str(folder / "run.yaml"), "--run")
    run = folder / f"{ranks}{config.model.shard}"
    for process in start((*words, str(run)), ranks, folder / "log"):
        assert process.wait() == 0, (folder / "log").read_text()[-2000:]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    spent = [line["cpu_seconds"] for line in lines]
    each = [after - before for before, after in pairwise(spent)]
    plan = json.loads((run / "summary.json").read_text())["plan"]
    return statistics.median(each), plan["measured_memory"] / 1e6


def main() -> None:
    """Print a row for each number of processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder / "model")
        model = ModelConfig(name=str(folder / "model"), device="cpu")
        base = Config("poad/TomatoLettuceSalad-v0", model=model, streams=16, horizon=16)
        base = replace(base, steps=16 * 16 * 4, eval=EvalConfig(episodes=0), randomness="stream")
        base = replace(base, ppo=PPOConfig(kl_stop=None))  # as many passes as the plan counts
        speed = predict(base).speed
        for ranks, shard in ((1, "none"), (2, "none"), (2, "full")):
            config = resolve(replace(base, model=replace(model, shard=shard))).config
            plan = predict(config, flops=speed, ranks=ranks)
            told = step_of(config, plan, Machines(devices=ranks, link=LOOPBACK))
            seconds, size = measure(config, ranks, folder)
            print(
                f"{ranks} processes, shard = {shard}: predicted {told.seconds:.2f} s (of them "
                f"{told.messages:.2f} s for messages) and {told.memory / 1e6:.0f} MB, measured "
                f"{seconds:.2f} CPU-s and {size:.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
