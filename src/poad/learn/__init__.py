"""Learning: rollouts become experience, experience becomes gradient steps."""

from poad.learn.evaluate import evaluate
from poad.learn.experience import lay_out
from poad.learn.losses import normalize_advantages
from poad.learn.play import Actor, Step, WorldStream, play
from poad.learn.ppo import PPO
from poad.learn.rollout import Collector
from poad.learn.train import Metrics, Trainer, train

__all__ = [
    "PPO",
    "Actor",
    "Collector",
    "Metrics",
    "Step",
    "Trainer",
    "WorldStream",
    "evaluate",
    "lay_out",
    "normalize_advantages",
    "play",
    "train",
]
