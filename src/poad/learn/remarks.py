"""Remarks: what a user should know about a world before or while an agent trains in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from poad.agent import Agent, refuse_free_writing
from poad.learn.rollout import Collector
from poad.learn.stream import WorldStream


def remarks(agent: Agent, collector: Collector) -> Iterator[str]:
    """Yield what should be said before training begins.

    Raises:
        ConfigError: the world lets the agent write freely, and its method cannot learn from that.
    """
    config = agent.config
    if any(stream.observation.admissible_actions is None for stream in collector.streams):
        refuse_free_writing(agent.settings.credit.method, f"the world {config.env}")
    # A world may discount the primitive steps inside an action by itself.
    inner = collector.streams[0].world.step_discount if collector.streams else None
    gamma = config.credit.gamma
    if config.credit.discount == "duration" and inner is not None and inner != gamma:
        yield (
            f"{config.env} discounts by {inner} per primitive step inside an action. With "
            f"discount = duration and gamma = {gamma} the same step counts differently "
            f"inside and between actions. Use gamma = {inner}, or discount = turn."
        )
    yield from agent.model.notes
    yield from collector.notes


def prompt_remark(streams: Iterable[WorldStream]) -> str | None:
    """Return what is unexpected about the prompts so far, if anything is."""
    return next((stream.prompts.note for stream in streams if stream.prompts.note), None)
