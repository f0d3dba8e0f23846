"""Turns of unfinished episodes wait under methods that learn from whole episodes."""

from __future__ import annotations

from dataclasses import replace

from poad.agent import CreditSettings
from poad.agent.settings import resolve
from poad.config import Config, CreditConfig
from poad.learn.waiting import Waiting, split_finished
from poad.turns import Action, Turn

GOES_ON = Turn((1,), Action("x", (1,), (True,), (0.0,)), 0.0)
ENDS, STOPS = replace(GOES_ON, terminated=True), replace(GOES_ON, truncated=True)


def credit_by(method: str, group: int = 2) -> CreditSettings:
    return resolve(Config(credit=CreditConfig(method=method, group=group))).credit


def test_streams_are_split_after_their_last_ended_episode() -> None:
    streams = [[GOES_ON, ENDS, GOES_ON, GOES_ON], [GOES_ON], [], [STOPS, ENDS]]
    finished, waiting = split_finished(streams)
    assert finished == [(GOES_ON, ENDS), (), (), (STOPS, ENDS)]
    assert waiting == [(GOES_ON, GOES_ON), (GOES_ON,), (), ()]


def test_a_turn_is_handed_out_once_and_those_that_waited_count_as_stale() -> None:
    waiting = Waiting(2, credit_by("reinforce"))
    assert waiting.join([[GOES_ON, GOES_ON], [ENDS, GOES_ON]]) == ([(), (ENDS,)], [0, 0])
    assert waiting.turns == [(GOES_ON, GOES_ON), (GOES_ON,)]
    assert waiting.join([[STOPS], [GOES_ON]]) == ([(GOES_ON, GOES_ON, STOPS), ()], [2, 1])
    assert waiting.turns == [(), (GOES_ON, GOES_ON)]


def test_nothing_waits_under_methods_with_a_critic() -> None:
    waiting, streams = Waiting(2, credit_by("poad")), [[GOES_ON], [GOES_ON, GOES_ON]]
    assert waiting.join(streams) == (streams, [0, 0])
    assert waiting.turns == [(), ()]


def test_streams_of_a_group_hand_out_equally_many_episodes() -> None:
    waiting = Waiting(4, credit_by("grpo"))
    first = [[ENDS, GOES_ON, ENDS], [GOES_ON], [STOPS, ENDS], [ENDS]]
    assert waiting.join(first) == ([(), (), (STOPS,), (ENDS,)], [0, 0, 0, 0])
    assert waiting.turns == [(ENDS, GOES_ON, ENDS), (GOES_ON,), (ENDS,), ()]
    second = [[GOES_ON], [STOPS, ENDS, GOES_ON], [ENDS], [ENDS]]
    finished, stale = waiting.join(second)
    assert finished == [(ENDS, GOES_ON, ENDS), (GOES_ON, STOPS, ENDS), (ENDS,), (ENDS,)]
    assert stale == [3, 1, 1, 0]
    assert waiting.turns == [(GOES_ON,), (GOES_ON,), (ENDS,), ()]


def test_alone_a_stream_waits_for_nobody() -> None:
    streams = [[GOES_ON, ENDS, GOES_ON], [STOPS]]
    assert split_finished(streams, 1) == split_finished(streams)
    assert split_finished(streams, 2)[0] == [(GOES_ON, ENDS), (STOPS,)]
