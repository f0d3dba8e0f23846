"""A line to a world in an actor of a Ray cluster, perhaps on another machine.

Every actor is a process of its own, as with `processes:N`. Ray spreads the actors over the machines
and counts no CPU for them, since N of them work at a time, whatever their number.
"""

from __future__ import annotations

import re
from typing import Any

from poad.envs.remote import Keeper, MakeEnv


class Actor:
    """A line to an actor.

    Args:
        make_env: makes the world over there, where its module has to be found.
    """

    def __init__(self, make_env: MakeEnv) -> None:
        from poad.cluster import connect

        self._ray, self._cause = connect(), ""
        keeper = self._ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(Keeper)
        self._actor: Any = keeper.remote(make_env)

    def exchange(self, request: bytes) -> bytes:
        """Send a request, and wait for its answer."""
        try:
            return self._ray.get(self._actor.answer.remote(request))
        except self._ray.exceptions.RayError as error:
            self._cause = _cause_of(error)
            raise EOFError from error

    def how_it_ended(self) -> str:
        """Say how the actor has ended."""
        return f"The Ray actor of the world has ended: {self._cause}."

    def end(self) -> None:
        """End the actor at once."""
        if self._ray.is_initialized():  # otherwise it ended with the connection
            self._ray.kill(self._actor)

    def close(self) -> None:
        """End the actor, which has closed its world."""
        self.end()


def _cause_of(error: Exception) -> str:
    """Find what matters in what ray says of an actor, which is a page."""
    from poad.cluster import last_line

    text = str(error)
    found = re.search(r"(?:actor is dead because|creation task.*?:) ?(.*)", text)
    if found is None or "creation task" in text:
        return last_line(error)
    return re.split(r"[.:](?= |$)", found[1])[0].rstrip(".")
