"""A world in a process of its own. Plain values, as JSON, are all that crosses the line to it.

The process holds the world to its contract, so that what comes back is what `CheckedWorld` lets
through; of `info` that is what poad reads. It ends with its world, and with the process that plays.
The line is a pipe of this machine, or leads to an actor of a Ray cluster (:mod:`poad.envs.actors`).
"""

from __future__ import annotations

import builtins
import contextlib
import json
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from multiprocessing import util
from multiprocessing.connection import Connection
from typing import Any, Final, Protocol

import gymnasium

import poad.errors
from poad.envs.contract import CheckedWorld, Happened, Shown, Whereabouts, number
from poad.envs.watch import WATCH
from poad.errors import ConfigError, PoadError, WorldError, WorldNote, explained
from poad.trie import Form, Grammar, Offer

MakeEnv = Callable[[], gymnasium.Env[str, str]]

_PRELOADED: Final = ["__main__", "poad.envs"]
"""Modules that the server loads from which the processes of worlds are forked."""
_STARTING: Final = threading.Lock()
"""Held while a process starts: the threads of several worlds may want to start one."""


class Line(Protocol):
    """What connects a world's process with the one that plays."""

    def exchange(self, request: bytes) -> bytes:
        """Let the other side carry out a call, and return its answer.

        Raises:
            EOFError: the other side is gone; or OSError.
        """
        ...

    def how_it_ended(self) -> str:
        """Say in a sentence what became of the other side."""
        ...

    def end(self) -> object:
        """End the other side at once, whatever it does."""
        ...

    def close(self) -> None:
        """Let go of the other side, which has closed its world."""
        ...


class RemoteWorld(Whereabouts):
    """A world in another process. Its calls and errors are those of `CheckedWorld`.

    The first call starts the process and opens the world.

    Args:
        make_env: makes the world, over there: a function that the other process can import, or a
            `functools.partial` of one.
        connect: starts the process; default: one of this machine.
    """

    def __init__(self, make_env: MakeEnv, connect: Callable[[MakeEnv], Line] | None = None) -> None:
        super().__init__(name_of(make_env), None)
        self.prepares = False
        self.step_discount: float | None = None
        self._make_env = make_env
        self._connect = connect or Pipe
        self._line: Line | None = None

    def reset(self, seed: int) -> Shown:
        """Begin the episode of a seed.

        Raises:
            PoadError: as `CheckedWorld.reset`; what a world raises over there is a WorldError here.
            ConfigError: the process cannot be handed what makes the world.
        """
        self.begin(seed)
        told = self._ask("reset", seed)
        self.seen.append(told["seen"])
        return Shown(told["prompt"], _offers(told["actions"]), told["info"])

    def step(self, action: str) -> Happened:
        """Act; errors are those of `reset`."""
        self.actions.append(action)
        told = self._ask("step", action)
        self.seen.append(told.pop("seen"))
        return Happened(**{**told, "actions": _offers(told["actions"])})

    def prepare(self, action: str) -> None:
        """Announce the next action to the world."""
        if self.prepares:
            self._ask("prepare", action)

    def memory(self) -> Any:
        """Return what the world's copies remember between episodes, as JSON values, or None."""
        return self._ask("memory")

    def load_memory(self, memory: Any) -> None:
        """Hand the world what `memory` returned."""
        self._ask("load_memory", memory)

    def close(self) -> None:
        """Close the world, and end its process."""
        if self._line is None:
            return
        line = self._line
        try:
            self._exchange(line, "close")
        except WorldError:  # it ended before
            pass
        finally:
            line.close()
            self._line = None

    def end(self) -> None:
        """End the process at once, whatever it does."""
        if self._line is not None:
            self._line.end()

    def _ask(self, method: str, *arguments: Any) -> Any:
        return self._exchange(self._line or self._open(), method, *arguments)

    def _open(self) -> Line:
        self._line = line = self._connect(self._make_env)
        told, seed = self._exchange(line, "open"), self.seed
        self.prepares, self.step_discount = told["prepares"], told["step_discount"]
        self.name, self.full_name, self.seed = told["name"], told["full_name"], seed
        return line

    def _exchange(self, line: Line, method: str, *arguments: Any) -> Any:
        """Let the other process carry out a call, and return or raise what came of it."""
        try:
            with WATCH.over(self.place):
                answer = json.loads(line.exchange(json.dumps([method, *arguments]).encode()))
        except (EOFError, OSError):
            raise WorldError(f"{line.how_it_ended()} {self.place()}") from None
        for text, category in answer["warnings"]:
            warnings.warn(text, getattr(builtins, category, UserWarning), stacklevel=2)
        if (failure := answer["error"]) is not None:
            kind = getattr(poad.errors, failure["kind"], WorldError)
            error = (kind if issubclass(kind, PoadError) else WorldError)(failure["text"])
            if method in ("reset", "step") and not isinstance(error, WorldError):
                error.add_note(WorldNote(self.place(), ""))  # it is the world that raised it
            raise error from _ElsewhereError(failure["traceback"])
        return answer["value"]


class Pipe:
    """A line to a process of this machine.

    Args:
        make_env: makes the world over there.

    Raises:
        ConfigError: it cannot be handed to another process.
    """

    def __init__(self, make_env: MakeEnv) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        with theirs:
            try:
                self._process = _start(theirs, make_env)
            except BaseException:
                self._ours.close()
                raise
        # At the end of this process, before multiprocessing waits for all others.
        self.end = util.Finalize(self, self._process.kill, exitpriority=10)

    def exchange(self, request: bytes) -> bytes:
        """Send a request, and wait for its answer."""
        self._ours.send_bytes(request)
        return self._ours.recv_bytes()

    def how_it_ended(self) -> str:
        """Say how the process has ended."""
        with _STARTING:  # who starts another process looks after those that ended
            self._process.join(5.0)
            code = self._process.exitcode
        how = f"with exit status {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how = f"by the signal {signal.Signals(-code).name}"
        return f"The process of the world has ended, {how}."

    def close(self) -> None:
        """Wait for the process, end it if it takes long, and close the pipe."""
        self._process.join(1.0)
        self.end()
        self._ours.close()


def name_of(make_env: MakeEnv) -> str:
    """Name a world that is not open yet, as well as that can be."""
    arguments = getattr(make_env, "args", ())
    if arguments and isinstance(arguments[0], str):
        return arguments[0]
    return getattr(getattr(make_env, "func", make_env), "__name__", type(make_env).__name__)


class _ElsewhereError(Exception):
    """Shows a traceback of the other process above that of this one."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _start(connection: Connection, make_env: MakeEnv) -> Any:
    """Start the process of a world."""
    known = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in known else "spawn")
    with contextlib.suppress(AttributeError):
        context.set_forkserver_preload(_PRELOADED)
    process = context.Process(
        target=serve, args=(connection, make_env), name="poad: a world", daemon=True
    )
    try:
        with _STARTING:
            process.start()
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"workers = processes:N: the world cannot be handed to another process ({error}). Let "
            "it be made by a function at the top of a module, or use workers = threads:N."
        ) from error
    return process


def _offers(told: Any) -> Offer | None:
    if isinstance(told, dict):
        return Form(tuple(map(tuple, told["parts"]))) if "parts" in told else Grammar(**told)
    return None if told is None else tuple(told)


# The other side.


def serve(connection: Connection, make_env: MakeEnv) -> None:
    """Carry out the calls of the process that plays, until it closes the world or is gone."""
    for each in (signal.SIGINT, signal.SIGTERM):  # these are for the process that plays
        # Programs that a world starts do not inherit a handler that does nothing, but SIG_IGN.
        signal.signal(each, lambda *_: None)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, requests), daemon=True).start()
    keeper = Keeper(make_env)
    while not keeper.closed:
        answer = keeper.answer(requests.get())
        with contextlib.suppress(OSError):  # nobody listens any more
            connection.send_bytes(answer)


class Keeper:
    """Keeps a world in its process, and answers the calls of the one that plays.

    Args:
        make_env: makes the world at the first call.
    """

    def __init__(self, make_env: MakeEnv) -> None:
        WATCH.patience = 1e9  # the other side watches
        self.closed = False
        self._make_env = make_env
        self._world: CheckedWorld | None = None
        self._counted = 0.0

    def answer(self, request: bytes) -> bytes:
        """Carry out a call, and say what came of it."""
        method, *arguments = json.loads(request)
        value, failure = None, None
        with warnings.catch_warnings(record=True) as remarks:
            try:
                value = self._carry_out(method, arguments)
            except BaseException as error:
                failure = _told(error, self._world)
        self.closed = method == "close"
        said = [(str(each.message), each.category.__name__) for each in remarks]
        return json.dumps({"value": value, "error": failure, "warnings": said}).encode()

    def _carry_out(self, method: str, arguments: list[Any]) -> Any:
        if self._world is None:
            if method == "close":
                return None
            self._world = CheckedWorld(self._make_env())
        value = _carry_out(self._world, method, arguments)
        if value is not None and method == "step":
            # With the opening, the resets and the guesses since the last step.
            spent = time.process_time()
            value["info"].setdefault("cpu_seconds", 0.0)
            value["info"]["cpu_seconds"] += spent - self._counted
            self._counted = spent
        return value


def _listen(connection: Connection, requests: queue.SimpleQueue[bytes]) -> None:
    """Take in what is asked; end this process when the other one is gone."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            requests.put(connection.recv_bytes())
    os._exit(0)


def _carry_out(world: CheckedWorld, method: str, arguments: list[Any]) -> Any:
    """Carry out one call, and return what came of it as JSON values."""
    if method == "open":
        names = ("name", "full_name", "prepares", "step_discount")
        return {name: getattr(world, name) for name in names}
    found = getattr(world, method)(*arguments)
    if not isinstance(found, Shown | Happened):
        return found
    info = _plain(found.info)
    told: Any = found.actions
    if isinstance(told, Form | Grammar):
        told = vars(told) if isinstance(told, Grammar) else {"parts": told.parts}
    return {**found._asdict(), "info": info, "actions": told, "seen": world.seen[-1]}


def _plain(info: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what poad reads of an `info` that was checked, in plain types."""
    plain: dict[str, Any] = {}
    if "duration" in info:
        plain["duration"] = info["duration"]
    if "episode" in info:
        plain["episode"] = {name: info["episode"][name] for name in ("r", "l", "success")}
    if info.get("goal") is not None:
        plain["goal"] = str(info["goal"])
    if "invalid_action" in info:
        plain["invalid_action"] = str(info["invalid_action"])
    if "notes" in info:
        plain["notes"] = list(map(str, info["notes"]))
    if "cpu_seconds" in info:
        plain["cpu_seconds"] = number(info["cpu_seconds"])
    if "measures" in info:
        plain["measures"] = {name: number(value) for name, value in info["measures"].items()}
    if info.get("work") is not None:
        plain["work"] = {
            name: number(value) if name in ("score", "deviation") else str(value)
            for name, value in info["work"].items()
        }
    return plain


def _told(error: BaseException, world: CheckedWorld | None) -> dict[str, str]:
    """Describe an error so that the other side can raise one that says the same."""
    text = explained(error) if isinstance(error, Exception) else None
    if text is None:
        place = "" if world is None else f" {world.place()}"
        text = f"The world raised {type(error).__name__}: {error}.{place}"
    trace = "".join(traceback.format_exception(error))
    return {"kind": type(error).__name__, "text": text, "traceback": trace}
