"""Compare one iteration of a real pretrained model with plain transformers and PEFT code.

Ours is an iteration by the model's preset. The rival (`large_models.Published`) computes the same
turns as the trainers published with TWOSOME and POAD do, with adapters on queries and values of all
layers in float32. Its cost is linear in the turns, so it computes some of them and is scaled up.
Both are CPU seconds of one thread, and alternate.

python benchmarks/real_iteration.py
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from statistics import median

from large_models import Published

from poad.config import Config, from_dict, preset
from poad.learn import Trainer


def settings(env: str, model: str, streams: int) -> tuple[Config, Config]:
    """Configure our side by the preset, and the rival's model as published."""
    own = {"env": env, "streams": streams, "horizon": 32, "model": {"name": model}}
    ours = from_dict({**own, "ppo": {"kl_stop": None}}, preset("small"))
    plain = {"tuning": "lora", "lora_rank": 8, "lora_targets": [], "lora_layers": None}
    return ours, from_dict({**own, "model": {"name": model, **plain}})


def main() -> None:
    """Measure both sides in turns, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="poad/TomatoSalad-v0")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--streams", type=int, default=4, help="of 32 turns; the paper has 4")
    parser.add_argument("--turns", type=int, default=8, help="turns that the rival computes")
    parser.add_argument("--times", type=int, default=3, help="number of rounds")
    options = parser.parse_args()
    ours, theirs = settings(options.env, options.model, options.streams)
    trainer = Trainer(ours)
    rival = Published(Trainer(replace(theirs, threads=1)))
    trainer.iterate()  # a warm-up
    ratios = []
    for _ in range(options.times):
        begin = time.process_time()
        # As `Trainer.iterate` does: what acting computed below the adapters, learning uses again.
        with trainer.agent.model.lower.remembered():
            rollout = trainer.collector.collect(32, trainer.generator)
            trainer.learner.update(rollout)
        own = time.process_time() - begin
        turns = [turn for stream in rollout.streams for turn in stream]
        some = turns[:: len(turns) // options.turns][: options.turns]
        begin = time.process_time()
        rival.act([[turn] for turn in some])
        rival.update(some)
        other = (time.process_time() - begin) * len(turns) / len(some)
        ratios.append(other / own)
        print(
            f"{len(turns)} turns: ours {own:.1f} CPU-s, published style {other:.0f} (from "
            f"{len(some)} turns), ratio {ratios[-1]:.0f}",
            flush=True,
        )
    print(f"median ratio {median(ratios):.0f}")


if __name__ == "__main__":
    main()
