"""Show what `ppo.kl_limit` does where a rollout holds few prompts: FrozenLake, which has 11.

Trains on the frozen lake of gymnasium (4 x 4, not slippery) as a text world, with and without the
limit (a huge one only measures). Prints the largest KL divergence that an update ended at, how many
updates were shortened, and the success of the last 100 episodes as training goes on.

python benchmarks/frozen_lake.py --seeds 0 1 2
"""

from __future__ import annotations

import argparse
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from poad.config import Config, from_dict
from poad.learn import train

MOVES = ("go left", "go down", "go right", "go up")
"""In the order of gymnasium's actions."""
WORLD = "TextLake-v0"


class TextLake(gymnasium.Env[str, str]):
    """FrozenLake in words: where you stand, and four moves."""

    observation_space = action_space = Text(max_length=200, min_length=0)

    def __init__(self, **_: object) -> None:
        self.lake = gymnasium.make("FrozenLake-v1", is_slippery=False)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin at the top left."""
        super().reset(seed=seed)
        place, _ = self.lake.reset(seed=seed)
        self.steps = 0
        return self._show(int(place)), {"admissible_actions": MOVES}

    def step(self, action: str) -> Any:
        """Move; the goal at the bottom right pays 1, a hole ends the episode."""
        place, reward, terminated, truncated, _ = self.lake.step(MOVES.index(action))
        self.steps += 1
        info: dict[str, Any] = {"admissible_actions": MOVES}
        if terminated or truncated:
            info["episode"] = {"r": float(reward), "l": self.steps, "success": float(reward) > 0}
        return self._show(int(place)), float(reward), terminated, truncated, info

    @staticmethod
    def _show(place: int) -> str:
        row, column = divmod(place, 4)
        return f"You stand on a frozen lake, in row {row + 1} and column {column + 1}. You"


def settings(model: str, seed: int, limit: float, steps: int) -> Config:
    if WORLD not in gymnasium.registry:
        gymnasium.register(WORLD, entry_point=TextLake, order_enforce=False)
    ppo = {"kl_limit": limit, "anneal": False}  # annealing hides the collapse late in a run
    run = {"env": WORLD, "seed": seed, "steps": steps, "model": {"name": model}, "ppo": ppo}
    return from_dict(run)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on FrozenLake with and without a limit.")
    parser.add_argument("--model", default="tiny-household", help="an embedded model, a directory")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=24_576, help="turns of each run")
    parser.add_argument("--limits", type=float, nargs="+", default=[1e9, Config().ppo.kl_limit])
    options = parser.parse_args()
    print("limit seed  largest KL  shortened  success, every fourth iteration")
    for limit in options.limits:
        for seed in options.seeds:
            run = list(train(settings(options.model, seed, limit, options.steps)))
            far, cut = max(m["kl_after"] for m in run), sum(m["kept"] < 1 for m in run)
            curve = " ".join(f"{m['success']:.2f}" for m in run[3::4])
            print(f"{limit:5g} {seed:4} {far:11.3f} {cut:6}/{len(run)}  {curve}", flush=True)


if __name__ == "__main__":
    main()
