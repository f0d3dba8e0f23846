"""Learning: rollouts become experience, experience becomes gradient steps."""

from poad.learn.evaluate import evaluate
from poad.learn.losses import normalize_advantages
from poad.learn.meters import Metrics
from poad.learn.ppo import PPO
from poad.learn.rollout import Collector, play
from poad.learn.rows import lay_out
from poad.learn.stream import Actor, NoPrompts, Step, WorldStream
from poad.learn.train import Trainer, train

__all__ = [
    "PPO",
    "Actor",
    "Collector",
    "Metrics",
    "NoPrompts",
    "Step",
    "Trainer",
    "WorldStream",
    "evaluate",
    "lay_out",
    "normalize_advantages",
    "play",
    "train",
]
