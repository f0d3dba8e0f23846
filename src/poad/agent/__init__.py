"""The agent: a policy over tokens or actions, and its critic."""

from poad.agent.build import Agent, Tensors, in_threads, load_agent, torch_threads
from poad.agent.critic import Critic, FrozenFeatures, Standardizer, critic_width, read_hidden
from poad.agent.decisions import DecisionBatch, DecisionTable, listed_leaves
from poad.agent.engines import Engine, OwnEngine, open_engine
from poad.agent.policy import Policy
from poad.agent.sampling import ActingCache
from poad.agent.settings import Acting, CreditSettings, Settings, refuse_free_writing, resolve

__all__ = [
    "Acting",
    "ActingCache",
    "Agent",
    "CreditSettings",
    "Critic",
    "DecisionBatch",
    "DecisionTable",
    "Engine",
    "FrozenFeatures",
    "OwnEngine",
    "Policy",
    "Settings",
    "Standardizer",
    "Tensors",
    "critic_width",
    "in_threads",
    "listed_leaves",
    "load_agent",
    "open_engine",
    "read_hidden",
    "refuse_free_writing",
    "resolve",
    "torch_threads",
]
