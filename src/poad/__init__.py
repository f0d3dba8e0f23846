"""Train language agents by reinforcement learning, with credit for every token (POAD).

The names below are loaded when they are first used, so ``import poad`` costs no torch:

    import poad

    for metrics in poad.train(poad.Config(), poad.Run.create("runs/first", poad.Config())):
        print(metrics["env_steps"], metrics["success"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poad.agent import Critic, Policy
    from poad.config import Config
    from poad.credit import METHODS, Credit, Method, recursion, token_credit
    from poad.envs import TextAdapter, check_env, make
    from poad.errors import PoadError
    from poad.learn import evaluate, train
    from poad.runs import Run
    from poad.trie import ActionTrie

    __version__: str

_HOME = {
    "Critic": "poad.agent",
    "Policy": "poad.agent",
    "Config": "poad.config",
    "METHODS": "poad.credit",
    "Credit": "poad.credit",
    "Method": "poad.credit",
    "recursion": "poad.credit",
    "token_credit": "poad.credit",
    "TextAdapter": "poad.envs",
    "check_env": "poad.envs",
    "make": "poad.envs",
    "PoadError": "poad.errors",
    "evaluate": "poad.learn",
    "train": "poad.learn",
    "Run": "poad.runs",
    "ActionTrie": "poad.trie",
}

__all__ = [
    "METHODS",
    "ActionTrie",
    "Config",
    "Credit",
    "Critic",
    "Method",
    "PoadError",
    "Policy",
    "Run",
    "TextAdapter",
    "check_env",
    "evaluate",
    "make",
    "recursion",
    "token_credit",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from poad.runs import versions

        return versions()["poad"] or "unknown"
    if name not in _HOME:
        raise AttributeError(f"module 'poad' has no attribute {name!r}; it has {__all__}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
