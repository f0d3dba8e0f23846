"""Whoever waits for a world is told that it does not answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from poad.envs.watch import Watch


@pytest.fixture
def impatient() -> Iterator[Watch]:
    found = Watch(patience=0.01)
    yield found
    found.patience = 1e6  # its thread sleeps from now on


def test_a_call_that_takes_long_is_told_while_it_is_waited_for(
    impatient: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    heard = threading.Event()

    def warn(message: str, **_: Any) -> None:
        told.append(message)
        heard.set()

    monkeypatch.setattr("poad.envs.watch.warnings.warn", warn)
    with impatient.over(lambda: "This was the world 'Slow-v0'."):
        heard.wait()
    assert "has not answered" in told[0]
    assert told[0].endswith("This was the world 'Slow-v0'.")
    assert impatient.patience > 0.02  # the next note takes twice as long


def test_what_has_answered_is_watched_no_more(impatient: Watch) -> None:
    with suppress(KeyError), impatient.over(str):
        raise KeyError
    assert not impatient._calls
