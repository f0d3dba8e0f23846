"""Learning: rollouts become experience, experience becomes gradient steps."""

from poad.learn.evaluate import evaluate, summarize
from poad.learn.experience import lay_out, read_where
from poad.learn.losses import normalize_advantages
from poad.learn.ppo import PPO
from poad.learn.rollout import Collector, observe
from poad.learn.train import Metrics, Trainer, train

__all__ = [
    "PPO",
    "Collector",
    "Metrics",
    "Trainer",
    "evaluate",
    "lay_out",
    "normalize_advantages",
    "observe",
    "read_where",
    "summarize",
    "train",
]
