"""Train language agents by reinforcement learning, with credit for every token (POAD).

The names below are loaded when they are first used, so ``import poad`` costs no torch:

    from poad import Config, Run, train
    for metrics in train(Config(), Run.create("runs/first", Config())):
        print(metrics["env_steps"], metrics["success"])
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poad.config import Config
    from poad.credit import Credit, Trajectory, recursion
    from poad.critic import Critic
    from poad.envs import make
    from poad.envs.check import check_env
    from poad.evaluate import evaluate
    from poad.methods import METHODS, token_credit
    from poad.policy import Policy
    from poad.run import Run
    from poad.train import train
    from poad.trie import ActionTrie

    __version__: str

_HOME = {
    "Config": "poad.config",
    "Credit": "poad.credit",
    "Trajectory": "poad.credit",
    "recursion": "poad.credit",
    "token_credit": "poad.methods",
    "Critic": "poad.critic",
    "check_env": "poad.envs.check",
    "make": "poad.envs",
    "evaluate": "poad.evaluate",
    "METHODS": "poad.methods",
    "Policy": "poad.policy",
    "Run": "poad.run",
    "train": "poad.train",
    "ActionTrie": "poad.trie",
}

__all__ = [
    "METHODS",
    "ActionTrie",
    "Config",
    "Credit",
    "Critic",
    "Policy",
    "Run",
    "Trajectory",
    "check_env",
    "evaluate",
    "make",
    "recursion",
    "token_credit",
    "train",
]


class _Package(types.ModuleType):
    """Two public functions bear the name of their module; here the name always means the function.

    Without this, importing ``poad.train`` anywhere would turn ``poad.train`` into the module.
    ``from poad.train import ...`` reaches the module as ever.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from poad.versions import versions

        return versions()["poad"] or "unknown"
    if name not in _HOME:
        raise AttributeError(f"module 'poad' has no attribute {name!r}; it has {__all__}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
