"""Where worlds live: in the thread that plays them, in threads, in processes of their own or in
actors of a Ray cluster.

A world in a thread or a process has it to itself for its whole life, so a world with state of its
thread or process works as if it were alone. The number of workers says how many worlds may be at
work at the same time. Whoever plays begins a call, does something else, and asks for its result
later.
"""

from __future__ import annotations

import contextlib
import math
import queue
import re
import threading
import time
import warnings
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Final, Protocol

from poad.envs.actors import Actor
from poad.envs.contract import CheckedWorld
from poad.envs.remote import MakeEnv, RemoteWorld, name_of
from poad.errors import ConfigError, WorldError, explained

World = CheckedWorld | RemoteWorld

GRACE: Final = 5.0
"""Seconds that worlds may take to close. Then a process is ended, and a thread left behind."""
_TICK: Final = 0.5
"""Seconds after which whoever waits looks around."""


class Host(Protocol):
    """A world in the place where it lives. Its calls are those of `CheckedWorld`, by name."""

    @property
    def world(self) -> World:
        """The open world. Look at it only while no call is under way."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        ...

    def prepare(self, action: str) -> None:
        """Announce the action of the next step, without waiting."""
        ...

    def begin(self, method: str, *arguments: Any) -> None:
        """Begin a call; one at a time."""
        ...

    def result(self) -> Any:
        """Wait for the call that was begun, and return or raise what came of it."""
        ...

    def reopen(self) -> None:
        """Close the world, however it is. The next reset opens another copy."""
        ...

    def close(self) -> None:
        """Close the world, for good. Closing it again does nothing."""
        ...


def _again(open_world: Callable[[], World]) -> Callable[[], World]:
    """Open a world that has failed before: if that fails, too, it is another failure of it."""

    def opened() -> World:
        try:
            return open_world()
        except ConfigError as error:
            raise WorldError(f"The world could not be opened anew: {error}") from error

    return opened


class Here:
    """A world in the thread that plays it. A call is carried out when its result is asked for."""

    busy = False

    def __init__(self, open_world: Callable[[], World]) -> None:
        self._open_world = open_world
        self._world: World | None = open_world()
        self._call: tuple[str, tuple[Any, ...]] = ("", ())

    @property
    def world(self) -> World:
        """The open world."""
        assert self._world is not None, "this world was closed"
        return self._world

    def prepare(self, action: str) -> None:
        """Announce the action of the next step."""
        self.world.prepare(action)

    def begin(self, method: str, *arguments: Any) -> None:
        """Note a call."""
        self._call = method, arguments

    def result(self) -> Any:
        """Carry the call out."""
        if self._world is None:
            self._world = self._open_world()
        method, arguments = self._call
        return getattr(self._world, method)(*arguments)

    def reopen(self) -> None:
        """Close the world, however it is. The next call opens another copy."""
        self._open_world = _again(self._open_world)
        with contextlib.suppress(Exception):
            self.close()

    def close(self) -> None:
        """Close the world. Closing it again does nothing."""
        if self._world is not None:
            closing, self._world = self._world, None
            closing.close()


class Workers:
    """Opens worlds, and looks after those that live elsewhere.

    Args:
        kind: `serial`, `threads:N`, `processes:N` or `ray:N`. At most N worlds work at the same
            time.
        step_timeout: seconds that a step may take; 0 sets no limit. With a limit, `serial` means
            `threads:1`, since a thread cannot give up a call of its own.
        reset_timeout: the same for a reset; the first one opens the world.

    Raises:
        ConfigError: there is no such kind, or no cluster.
    """

    def __init__(
        self, kind: str = "serial", step_timeout: float = 0.0, reset_timeout: float = 0.0
    ) -> None:
        self.kind, count = parse_workers(kind)
        if self.kind == "serial" and (step_timeout or reset_timeout):
            self.kind = "threads"
        self.limits = {
            name: seconds
            for name, seconds in (("step", step_timeout), ("reset", reset_timeout))
            if seconds
        }
        """Seconds that a call may take, by its name."""
        if self.kind == "ray":
            from poad.cluster import connect

            connect(count)
        self.slots = threading.Semaphore(count)
        """As many as may work at the same time."""
        self.news = threading.Event()
        """Set whenever a call is over."""
        self._hosts: list[Elsewhere] = []

    @property
    def elsewhere(self) -> bool:
        """Whether worlds live in other threads or processes."""
        return self.kind != "serial"

    def open(self, make_env: MakeEnv) -> Host:
        """Open a world where it is to live. Elsewhere, its first reset does so.

        Args:
            make_env: makes the world. For a process or an actor it must be a function that another
                process can import, or a `functools.partial` of one.
        """
        if not self.elsewhere:
            return Here(lambda: CheckedWorld(make_env()))
        places: dict[str, Callable[[], World]] = {
            "threads": lambda: CheckedWorld(make_env()),
            "processes": partial(RemoteWorld, make_env),
            "ray": partial(RemoteWorld, make_env, Actor),
        }
        host = Elsewhere(places[self.kind], self, name_of(make_env))
        self._hosts.append(host)
        return host

    def wait(self, hosts: Collection[Host], seconds: float = math.inf) -> None:
        """Wait until the call of one of some hosts is over, or so many seconds have passed."""
        end = time.monotonic() + seconds
        while True:
            self.news.clear()
            if not hosts or any(not host.busy for host in hosts):
                return
            tick = min(_TICK, end - time.monotonic())
            if self.limits:
                tick = min(tick, *(host.check(self.limits) for host in self._hosts))
            if not self.news.wait(max(0.0, tick)) and time.monotonic() >= end:
                return

    def close(self) -> None:
        """Close all worlds; after `GRACE`, end their processes, or leave their threads behind."""
        hosts, self._hosts = self._hosts, []
        for host in hosts:
            host.close()
        end = time.monotonic() + GRACE
        for host in hosts:
            if not host.join(end - time.monotonic()):
                host.end()
        left = sum(not host.join(GRACE if host.ends else 0.0) for host in hosts)
        if left:
            warnings.warn(
                f"{left} of {len(hosts)} worlds did not close within {GRACE:g} s. Their threads "
                "remain until the program ends; with workers = processes:N, they would be ended.",
                stacklevel=2,
            )


def parse_workers(kind: str) -> tuple[str, int]:
    """Read `serial`, `threads:N`, `processes:N` or `ray:N`.

    Raises:
        ConfigError: it is none of these.
    """
    found = re.fullmatch(r"serial|(threads|processes|ray):([1-9][0-9]{0,5})", kind)
    if found is None:
        raise ConfigError(
            f"workers = {kind}: write serial, or threads:N, processes:N or ray:N with a whole "
            "number N from 1, for example threads:8."
        )
    return found[1] or "serial", int(found[2] or 1)


class _Call:
    """A call of a world, and what came of it."""

    def __init__(self, method: str, arguments: tuple[Any, ...]) -> None:
        self.method, self.arguments = method, arguments
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None

    def end(self, value: Any, error: BaseException | None) -> None:
        """Note what came of it."""
        self.value, self.error, self.done = value, error, True


class Elsewhere:
    """A world in a thread of its own, which may speak for a process.

    Args:
        open_world: opens the world, in that thread.
        workers: whose slots it takes while it works.
        name: of the world, for errors before it is open.
    """

    def __init__(self, open_world: Callable[[], World], workers: Workers, name: str) -> None:
        self._open_world, self._workers, self._name = open_world, workers, name
        self._thread = _WorldThread(open_world, workers)
        self._call = _Call("", ())

    @property
    def world(self) -> World:
        """The open world."""
        assert self._thread.world is not None, "this world was not opened, or closed"
        return self._thread.world

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return not self._call.done

    @property
    def ends(self) -> bool:
        """Whether the world can be ended from outside."""
        return isinstance(self._thread.world, RemoteWorld)

    def prepare(self, action: str) -> None:
        """Announce the action of the next step."""
        if self.world.prepares:
            self._thread.inbox.put(_Call("prepare", (action,)))

    def begin(self, method: str, *arguments: Any) -> None:
        """Begin a call."""
        self._call = _Call(method, arguments)
        if self._thread.left_behind:
            self._call.end(None, WorldError(f"The world {self._name!r} was left behind."))
        self._thread.inbox.put(self._call)

    def result(self) -> Any:
        """Wait for the call, and return or raise what came of it."""
        self._workers.wait([self])
        if self._call.error is not None:
            raise self._call.error
        return self._call.value

    def check(self, limits: dict[str, float]) -> float:
        """Give the call up if it takes too long; return the seconds that it has left otherwise."""
        working = self._thread.working
        if working is None or working[0].method not in limits:
            return math.inf
        (call, since), limit = working, limits[working[0].method]
        left = since + limit - time.monotonic()
        if left <= 0 and self._thread.leave_behind():
            world = self._thread.world
            place = f"This was the world {self._name!r}." if world is None else world.place()
            late = f"The world did not return from {call.method} within {limit:g} s"
            call.end(None, WorldError(f"{late} ({call.method}_timeout). {place}"))
            self.end()
        return max(left, 0.01)

    def reopen(self) -> None:
        """Close the world, however it is. The next reset opens another copy."""
        self.close()
        if not self._thread.left_behind:
            self.join(GRACE)
        self.end()
        self._open_world = _again(self._open_world)
        self._thread = _WorldThread(self._open_world, self._workers)

    def close(self) -> None:
        """Let the thread close the world and end, once it is done with its call."""
        self._thread.leaving = True
        self._thread.inbox.put(None)

    def join(self, seconds: float) -> bool:
        """Wait for the end of the thread, and tell whether it has ended."""
        if self._thread.left_behind and not self.ends:
            return True  # nobody waits for it any more, as was told
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def end(self) -> None:
        """End the world's process, if it has one."""
        if isinstance(self._thread.world, RemoteWorld):
            self._thread.world.end()


class _WorldThread(threading.Thread):
    """The thread of a world: it opens, plays and closes it."""

    def __init__(self, open_world: Callable[[], World], workers: Workers) -> None:
        super().__init__(name="poad: a world", daemon=True)
        self.world: World | None = None
        self.inbox: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self.working: tuple[_Call, float] | None = None
        """The call that is under way, and since when."""
        self.leaving = self.left_behind = False
        self._open_world, self._slots, self._news = open_world, workers.slots, workers.news
        self._lock = threading.Lock()
        self.start()

    def run(self) -> None:
        """Carry out the calls, one after the other."""
        trouble: BaseException | None = None
        while (call := self.inbox.get()) is not None and not self.left_behind:
            if call.method == "prepare":  # it takes no slot, since it does not wait
                trouble = self._carry_out(call)[1]
                continue
            while not self._slots.acquire(timeout=_TICK):
                if self.leaving:
                    break
            else:
                self._work(call, trouble)
                trouble = None
        try:
            if self.world is not None:
                self.world.close()
        except Exception as error:
            if not self.left_behind:
                warnings.warn(
                    f"A world failed to close. {explained(error) or error!r}", stacklevel=2
                )

    def _work(self, call: _Call, trouble: BaseException | None) -> None:
        self.working = call, time.monotonic()
        value, error = (None, trouble) if trouble else self._carry_out(call)
        with self._lock:
            self.working = None
            if self.left_behind:  # somebody else has given the slot back
                return
            self._slots.release()
        call.end(value, error)
        self._news.set()

    def _carry_out(self, call: _Call) -> tuple[Any, BaseException | None]:
        try:
            if self.world is None:
                self.world = self._open_world()
            return getattr(self.world, call.method)(*call.arguments), None
        except BaseException as error:
            return None, error

    def leave_behind(self) -> bool:
        """Give the slot of a call that does not end to others; tell whether it was under way."""
        with self._lock:
            if self.working is None:
                return False
            self.left_behind, self.working = True, None
            self._slots.release()
        return True
