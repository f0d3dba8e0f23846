"""What the processes of a training do together: agree on what they train, evaluate it, stop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

from rich.console import Console

from poad.config import dump
from poad.display import Screen
from poad.errors import RankError
from poad.learn import Trainer
from poad.runs import EpisodeRecord, Evaluation, Mode
from poad.workflows.evaluate import evaluate_modes

STOPPING: ContextVar[list[bool]] = ContextVar("STOPPING")
"""Where whoever runs a training outside the main thread asks it to stop, by an entry."""


def follow(trainer: Trainer) -> int:
    """Train along with rank 0, which writes and speaks.

    Returns:
        The exit status: 0, or 130 if Ctrl-C or SIGTERM stopped the training.
    """
    with deferred_interrupt(told=False) as interrupts:
        for _ in trainer.train():
            if any(trainer.ranks.exchange("stop", bool(interrupts))):
                return 130
    try:
        evaluate_last(trainer, lambda _: None, Screen(quiet=True))
    except KeyboardInterrupt:
        return 130
    return 0


def evaluate_last(
    trainer: Trainer, keep: Callable[[EpisodeRecord], None], console: Console
) -> dict[Mode, Evaluation]:
    """Evaluate the agent at the end of its training, on all ranks.

    Several of them have to stop together, so the first Ctrl-C or SIGTERM lets each end its episode.

    Args:
        trainer: has ended its training.
        keep: receives every record, on rank 0.
        console: where to print.

    Returns:
        The results on rank 0; empty if none are wanted.

    Raises:
        KeyboardInterrupt: a rank was stopped.
    """
    ranks, config = trainer.ranks, trainer.config
    if not config.eval.episodes:
        return {}
    waiting = deferred_interrupt(told=ranks.is_first, when="this episode")
    with waiting if ranks.size > 1 else nullcontext([]) as interrupts:
        return evaluate_modes(
            trainer.agent,
            trainer.meters.iteration,
            config,
            keep,
            console,
            remark=False,
            ranks=ranks,
            stopping=interrupts,
        )


def check_alike(trainer: Trainer) -> None:
    """Check that all ranks have resolved the same settings and loaded the same model.

    Raises:
        RankError: they have not; names what differs.
    """
    ranks, config = trainer.ranks, trainer.config
    own = trainer.agent.model.identity
    for rank, theirs in enumerate(ranks.exchange("model", own)):
        if other := [part for part in own if own[part] != theirs[part]]:
            raise RankError(
                f"Under the name {config.model.name!r}, rank {rank} has loaded another model than "
                f"rank {ranks.rank}: its {' and its '.join(other)} differ. Copy the same model to "
                "all machines."
            )
    mine = dump(config).splitlines()
    for rank, theirs in enumerate(ranks.exchange("settings", mine)):
        if other := [line.strip() for line in theirs if line not in mine]:
            raise RankError(
                f"Rank {rank} would train with {', '.join(other)}, rank {ranks.rank} would not. "
                "Set it instead of leaving it to poad, and start all ranks by the same command."
            )


@contextmanager
def deferred_interrupt(*, told: bool = True, when: str = "this iteration") -> Iterator[list[bool]]:
    """Turn the first Ctrl-C or SIGTERM into an entry in the list; a second one stops at once.

    Schedulers, containers and `timeout` send SIGTERM before they kill.

    Args:
        told: say that the training stops.
        when: after what it does.
    """
    requests: list[bool] = []
    signals = (signal.SIGINT, signal.SIGTERM)

    def request(*_: object) -> None:
        requests.append(True)
        for each in signals:
            signal.signal(each, signal.default_int_handler)
        if told:
            text = f"Stopping after {when}. Press Ctrl-C again to stop at once."
            sys.stderr.write(f"\n{text}\n")

    try:
        before = [signal.signal(each, request) for each in signals]
    except ValueError:  # outside the main thread the caller handles interrupts
        yield STOPPING.get(requests)
        return
    try:
        yield requests
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)
