"""Play with worlds that live elsewhere: no world waits for another, and the results stay the same.

A serial actor decides for all streams at once, round after round. With workers, the worlds of a
round work at the same time. While slow ones are still at work, the actor guesses what it will
decide in the next rounds for those that are ready, and their worlds go on with that. When a round
is complete, it is decided as ever, in one batch. What a guess has got right, and that is nearly
always, has been played already. Where rounding has made it wrong, the episode is repeated from its
seed and actions up to there. So the same turns come out, to the last bit, whatever the time.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from poad.agent import ActingCache
from poad.envs import Workers
from poad.errors import WorldError
from poad.learn.stream import Actor, MakeEnv, Prompts, Step, WorldStream
from poad.turns import Action, Observation


@dataclass
class _Turn:
    """A turn that was decided or guessed, and what came of it once that is known."""

    action: Action
    before: Observation
    step: Step | None = None
    error: Exception | None = None

    @property
    def over(self) -> bool:
        """Whether its outcome is known."""
        return self.step is not None or self.error is not None


class AheadStream(WorldStream):
    """A stream whose world may be some turns ahead of what was decided.

    The first of these turns was decided, once its `begin` was called; all others are guesses.

    Args:
        make_env: as for a `WorldStream`, with all others that are not listed here.
        prompts: makes its prompts.
        seed: of the first episode.
        workers: where the world lives.
        max_turns: cut episodes off after so many turns; 0 never does.
        stride: the distance to the seed of the stream's next episode; None if only the player knows
            it, so that the world waits at the end of an episode.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        prompts: Prompts,
        seed: int,
        workers: Workers,
        max_turns: int = 0,
        stride: int | None = None,
    ) -> None:
        self._stride = stride
        self._ahead: deque[_Turn] = deque()
        self._gone_on: int | None = None  # the seed of the next episode, if the world is in it
        self._trouble: Exception | None = None  # of a reset that was begun ahead
        self._guesser: np.random.Generator | None = None
        self._past: tuple[int, list[Action]] = seed, []  # the episode as it was decided
        super().__init__(make_env, prompts, seed, workers, max_turns)

    @property
    def observation(self) -> Observation:
        """What the actor reads when it decides next."""
        return self._ahead[0].before if self._ahead else self._observation

    def begin_reset(self, seed: int) -> None:
        """Begin the first half of a reset, unless the world has gone on by itself."""
        self._past = seed, []
        if self._gone_on == seed:
            self._gone_on = None
            return
        if self._ahead and self._failed_meanwhile():
            self.reopen()
        self._ahead.clear()
        self._gone_on, self._trouble = None, None
        super().begin_reset(seed)

    def settle(self) -> None:
        """Wait for the end of a reset. Errors are those of `reset`."""
        if self._ahead:
            return
        if self._trouble is not None:
            trouble, self._trouble = self._trouble, None
            raise trouble
        super().settle()

    def step(self, stream: int, action: Action) -> Step:
        """Act, as a `WorldStream` does."""
        self.begin(action)
        return self.finish(stream, action)

    def begin(self, action: Action) -> None:
        """Let the world work on an action, unless it has guessed it."""
        if self._ahead and self._ahead[0].action.token_ids == action.token_ids:
            return
        try:
            if self._ahead:
                self._go_back()
            self._start(action)
        except Exception as error:  # told when the turn is asked for, as a failure of that turn
            self.seed, self.actions = self._past[0], [*self._past[1], action]
            self._ahead.append(_Turn(action, self._observation, error=error))

    def finish(self, stream: int, action: Action) -> Step:
        """Wait for the turn that was begun. The arguments and errors are those of `step`."""
        turn = self._ahead[0]
        while not turn.over:
            self.workers.wait([self.host])
            self.advance()
        self._ahead.popleft()
        if turn.error is not None:
            raise turn.error
        assert turn.step is not None
        self.allowance -= 1
        self._past[1].append(action)
        return replace(turn.step, stream=stream, action=action)

    @property
    def waits(self) -> bool:
        """Whether the turn that was decided last is still under way."""
        return bool(self._ahead) and not self._ahead[0].over

    def advance(self) -> None:
        """Take in what the world has answered, if it has."""
        if self.host.busy:
            return
        if self._arriving:
            try:
                super().settle()
            except Exception as error:
                self._trouble = error
        elif self._ahead and not self._ahead[-1].over:
            turn = self._ahead[-1]
            try:
                turn.step = super().finish(0, turn.action)
            except Exception as error:
                turn.error = error
                return
            ended, more = turn.step.ended, len(self._ahead) < self.allowance
            if ended and more and self._stride is not None and self._gone_on is None:
                self._gone_on = self.seed + self._stride
                super().begin_reset(self._gone_on)

    @property
    def may_guess(self) -> bool:
        """Whether the world could go on if it knew the next action."""
        if not self._ahead or len(self._ahead) >= self.allowance:
            return False
        if self.host.busy or self._arriving or self._trouble is not None:
            return False
        last = self._ahead[-1]
        gone_on = last.step is not None and last.step.seed != self.seed
        return last.step is not None and (gone_on or not last.step.ended)

    def guesser(self, generator: np.random.Generator) -> np.random.Generator:
        """Return a copy of the stream's source of randomness, as it will be for the next guess."""
        if len(self._ahead) == 1 or self._guesser is None:  # all that was drawn was decided
            self._guesser = copy.deepcopy(generator)
        return self._guesser

    def guess(self, action: Action) -> None:
        """Let the world go on with an action that will probably be decided."""
        self._start(action)

    @property
    def front(self) -> Observation:
        """What the world shows now."""
        return self._observation

    def _start(self, action: Action) -> None:
        super().begin(action)
        self._ahead.append(_Turn(action, self._observation))

    def _failed_meanwhile(self) -> bool:
        """Wait until the world rests; tell whether it failed at something that was only guessed."""
        while self.host.busy:
            self.workers.wait([self.host])
            self.advance()
        return any(turn.error for turn in self._ahead) or self._trouble is not None

    def _go_back(self) -> None:
        """Bring the world back to where the actor has decided something else.

        Raises:
            WorldError: the world shows something else than it did.
        """
        expected, (seed, actions) = self.observation, self._past
        failed = self._failed_meanwhile()
        self._ahead.clear()
        self._gone_on, self._trouble, self._arriving, source = None, None, False, self.generator
        if failed:
            self.reopen()
        super().begin_reset(seed)
        super().settle()
        for action in actions:
            super().begin(action)
            super().finish(0, action)
        self.generator = source
        if self._observation != expected:
            raise WorldError(
                "The world does not repeat what it showed before, so its episodes depend on more "
                f"than the seed and the actions. Use workers = serial. {self.world.place()}"
            )

    def reopen(self) -> None:
        """Close a world that has failed. The next reset opens another copy."""
        self._ahead.clear()
        self._gone_on, self._trouble = None, None
        super().reopen()


def open_stream(
    make_env: MakeEnv,
    prompts: Prompts,
    seed: int,
    workers: Workers,
    *,
    max_turns: int = 0,
    stride: int | None = None,
) -> WorldStream:
    """Open a stream whose world lives where the workers say; see `AheadStream`."""
    if workers.elsewhere:
        return AheadStream(make_env, prompts, seed, workers, max_turns, stride)
    return WorldStream(make_env, prompts, seed, workers, max_turns)


class Ahead:
    """Guesses the actor's next decisions while slow worlds are still at work.

    Args:
        actor: the policy that acts. Its weights must not change.
        greedy: whether it takes the likeliest token or action.
    """

    def __init__(self, actor: Actor, greedy: bool) -> None:
        self._actor, self._greedy = actor, greedy
        # Of its own: what is decided must not depend on what was guessed.
        self._cache = ActingCache()

    def wait(
        self,
        streams: Mapping[int, WorldStream],
        sources: Mapping[int, np.random.Generator] | None,
        patience: float,
    ) -> None:
        """Wait until the turns of a round are over, and let the quicker worlds go on meanwhile.

        Args:
            streams: those that play this round, by number.
            sources: the source of randomness of each; None if they share one, which nobody can
                guess.
            patience: seconds to wait before anything is guessed. A guess costs the time of a
                decision, so it is not worth it where all worlds are about to answer.
        """
        playing = {n: each for n, each in streams.items() if isinstance(each, AheadStream)}
        if not playing:
            return
        begun = time.perf_counter()
        while True:
            for stream in playing.values():
                stream.advance()
            if not any(stream.waits for stream in playing.values()):
                return
            left = begun + patience - time.perf_counter()
            ready = [n for n, each in playing.items() if sources and each.may_guess]
            if ready and sources and left <= 0:
                self._guess([playing[n] for n in ready], [sources[n] for n in ready])
                continue
            busy = [each.host for each in playing.values() if each.host.busy]
            next(iter(playing.values())).workers.wait(busy, left if ready else np.inf)

    def _guess(
        self, streams: Sequence[AheadStream], sources: Sequence[np.random.Generator]
    ) -> None:
        copies = [each.guesser(s) for each, s in zip(streams, sources, strict=True)]
        decided: Any = self._actor.act_each(
            [each.front for each in streams], copies, greedy=self._greedy, cache=self._cache
        )
        for i, action in decided:
            streams[i].guess(action)
