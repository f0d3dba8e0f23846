"""The streams of a training: their worlds, seeds and random numbers, and where they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from poad.envs import Workers
from poad.learn.ahead import open_stream
from poad.learn.assembly import Assembly
from poad.learn.faults import Fault, Log, Table, Tolerance, fault_of, is_world_fault
from poad.learn.stream import Actor, MakeEnv, Mark, WorldStream


@dataclass(frozen=True)
class Position:
    """Seeds, random numbers and episodes at one moment."""

    next_seeds: tuple[int, ...]
    generators: tuple[Mapping[str, Any], ...]
    """The states of the streams' sources of randomness; empty if they share one."""
    shared: Mapping[str, Any]
    """The state of the source that they share."""
    marks: tuple[Mark, ...]
    """How far each stream has come."""
    tolerance: Any
    """The state of `Tolerance`."""


class Streams:
    """N streams of episodes that go on from one rollout to the next.

    Args:
        make_env: makes one world.
        actor: the policy that acts.
        streams: N.
        seed: of the first episode; each new episode takes the next one.
        own: the streams that are played here, if each is to have its own random numbers and to take
            every N-th seed, so that it is the same wherever it is played. None: all are played
            here, and share one source of both.
        workers: where the worlds live; in this thread if None.
        tolerance: for failures of worlds; None bears none.
        group: how many streams begin the same episodes. It divides N, and needs `own`.
        log: is told of failures at the first resets if one of them is not borne; see `log_faults`.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        actor: Actor,
        streams: int,
        seed: int,
        own: range | None = None,
        workers: Workers | None = None,
        tolerance: Tolerance | None = None,
        group: int = 1,
        log: Log | None = None,
    ) -> None:
        distinct = streams // group  # episodes that begin together, if each stream has its own
        self.actor, self._step = actor, 1 if own is None else distinct
        self.workers, self.tolerance = workers or Workers(), tolerance or Tolerance()
        numbers, stride = range(streams) if own is None else own, None if own is None else distinct
        self.next_seeds = [seed + distinct + i // group for i in ((0,) if own is None else own)]
        """Seeds of the next episodes to begin: one, or one for each stream."""
        self.generators = [np.random.default_rng((seed, i)) for i in own or ()]
        """The source of randomness of each stream; none if they share one."""
        self.streams: list[WorldStream] = []
        self.rewound = False
        """Whether the last rollout was taken back."""
        self._before: Position | None = None
        self.assembly = Assembly(len(numbers))
        """The rollout that is being collected, or was collected last."""
        self._faults: list[Fault] = []
        with self.closed_on_error():
            for i in numbers:
                world = make_env, actor.dialogue(), seed + i // group, self.workers
                self.streams.append(open_stream(*world, stride=stride))
            try:
                Table(self.streams, self.next_seed, self.bear).settle()
            except Exception as error:
                if log is not None and is_world_fault(error):
                    log(self.take_faults(), error)
                raise
        self.notes = tuple(dict.fromkeys(n for stream in self.streams for n in stream.notes))
        """Remarks of the worlds about this machine."""

    def begin_rollout(self, generator: np.random.Generator) -> None:
        """Note where the streams are, with the source of randomness that they may share."""
        self.assembly = Assembly(len(self.streams))
        self._before = Position(
            tuple(self.next_seeds),
            tuple(each.bit_generator.state for each in self.generators),
            generator.bit_generator.state,
            tuple(stream.mark() for stream in self.streams),
            self.tolerance.state(),
        )

    def rewind(self, generator: np.random.Generator) -> None:
        """Take back the rollout that failed: its seeds and random numbers, and all notes of it.

        The worlds themselves stay where they are, so nothing can be collected afterwards.
        """
        before = self._before
        assert before is not None, "no rollout was begun"
        self.next_seeds, generator.bit_generator.state = [*before.next_seeds], before.shared
        for own, state in zip(self.generators, before.generators, strict=True):
            own.bit_generator.state = state
        self.tolerance.load_state(before.tolerance)
        self.rewound = True

    @property
    def marks(self) -> tuple[Mark, ...]:
        """How far each stream has come."""
        if self.rewound and self._before is not None:
            return self._before.marks
        return tuple(stream.mark() for stream in self.streams)

    def bear(self, number: int, stream: WorldStream, error: Exception) -> None:
        """Break an episode off whose world has failed; raises if that is not borne."""
        fault = fault_of(number, stream, error)
        self._faults.append(fault)
        self.assembly.break_off(fault)
        self.tolerance.bear(fault, error)

    def begin_anew(self, number: int, error: Exception) -> None:
        """Begin a fresh episode in place of one that cannot be repeated, or raise the error."""
        if self.tolerance.policy == "stop" or not is_world_fault(error):
            raise error
        stream = self.streams[number]
        self._faults.append(fault_of(number, stream, error))
        while True:
            stream.reopen()
            try:
                return stream.reset(self.next_seed(number))
            except Exception as again:
                if not is_world_fault(again):
                    raise
                self.bear(number, stream, again)

    def take_faults(self) -> list[Fault]:
        """Return the failures of worlds since this was asked last, in the order of the streams."""
        taken, self._faults = sorted(self._faults, key=lambda fault: fault.stream), []
        return taken

    def next_seed(self, stream: int) -> int:
        """Take the seed of a stream's next episode."""
        place = stream % len(self.next_seeds)
        self.next_seeds[place] += self._step
        return self.next_seeds[place] - self._step

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Close the worlds if the block fails."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the worlds."""
        for stream in self.streams:
            stream.close()
        self.workers.close()
