"""Turns of unfinished episodes wait under methods that learn from whole episodes."""

from __future__ import annotations

from dataclasses import replace

from poad.learn.waiting import Waiting, split_finished
from poad.turns import Action, Turn

GOES_ON = Turn((1,), Action("x", (1,), (True,), (0.0,)), 0.0)
ENDS, STOPS = replace(GOES_ON, terminated=True), replace(GOES_ON, truncated=True)


def test_streams_are_split_after_their_last_ended_episode() -> None:
    streams = [[GOES_ON, ENDS, GOES_ON, GOES_ON], [GOES_ON], [], [STOPS, ENDS]]
    finished, waiting = split_finished(streams)
    assert finished == [(GOES_ON, ENDS), (), (), (STOPS, ENDS)]
    assert waiting == [(GOES_ON, GOES_ON), (GOES_ON,), (), ()]


def test_a_turn_is_handed_out_once_and_those_that_waited_count_as_stale() -> None:
    waiting = Waiting(2, whole=True)
    assert waiting.join([[GOES_ON, GOES_ON], [ENDS, GOES_ON]]) == ([(), (ENDS,)], [0, 0])
    assert waiting.turns == [(GOES_ON, GOES_ON), (GOES_ON,)]
    assert waiting.join([[STOPS], [GOES_ON]]) == ([(GOES_ON, GOES_ON, STOPS), ()], [2, 1])
    assert waiting.turns == [(), (GOES_ON, GOES_ON)]


def test_nothing_waits_under_methods_with_a_critic() -> None:
    waiting, streams = Waiting(2, whole=False), [[GOES_ON], [GOES_ON, GOES_ON]]
    assert waiting.join(streams) == (streams, [0, 0])
    assert waiting.turns == [(), ()]
