"""The agent: a policy over tokens or actions, and its critic."""

from poad.agent.build import Agent, Tensors, load_agent, resolve
from poad.agent.critic import Critic, FrozenFeatures
from poad.agent.decisions import DecisionBatch
from poad.agent.policy import Observation, Policy
from poad.agent.sampling import ActingCache, Categorical

__all__ = [
    "ActingCache",
    "Agent",
    "Categorical",
    "Critic",
    "DecisionBatch",
    "FrozenFeatures",
    "Observation",
    "Policy",
    "Tensors",
    "load_agent",
    "resolve",
]
