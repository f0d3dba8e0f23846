"""Where the critic reads and how turns are laid out in time, against plain loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poad.credit.methods import METHODS
from poad.learn.experience import lay_out, read_where
from poad.turns import Action, Position, Turn

Streams = list[list[Turn]]

FEW = st.integers(1, 3)  # few distinct tokens, so that positions repeat
PROMPTS = st.lists(FEW, min_size=1, max_size=2).map(tuple)
GAMMA = 0.9


@st.composite
def turns(draw: st.DrawFn) -> Turn:
    tokens = draw(st.lists(FEW, min_size=1, max_size=4).map(tuple))
    choice = tuple(draw(st.booleans()) for _ in tokens)
    ending = draw(st.sampled_from(["goes on", "goes on", "terminated", "truncated"]))
    return Turn(
        prompt_ids=draw(PROMPTS),
        action=Action("", tokens, choice, (0.0,) * len(tokens)),
        reward=draw(st.floats(-2, 2, width=32)),
        duration=draw(st.integers(1, 5)),
        terminated=ending == "terminated",
        truncated=ending == "truncated",
        # Never the next turn's prompt: whoever reads that instead is caught.
        next_prompt_ids=(9, *draw(PROMPTS)),
    )


ragged = st.lists(st.lists(turns(), max_size=4), min_size=1, max_size=3).filter(any)
methods = st.sampled_from(sorted(METHODS))
slot_rules = st.sampled_from(["choices", "tokens"])


def should_read(turn: Turn, j: int, method: str, slots: str) -> bool:
    if j == 0:
        return True
    if METHODS[method].decision == "turn":
        return False
    return slots == "tokens" or turn.action.choice[j]


def goes_on_beyond(stream: list[Turn], t: int) -> bool:
    turn = stream[t]
    return not turn.terminated and (turn.truncated or t == len(stream) - 1)


@given(ragged, methods, slot_rules)
@settings(deadline=None)
def test_the_critic_reads_before_slots_at_roots_and_beyond_cuts(
    streams: Streams, method: str, slots: str
) -> None:
    readings = read_where(streams, METHODS[method], slots)
    expected: set[Position] = set()
    i = 0
    for stream in streams:
        for t, turn in enumerate(stream):
            tokens = turn.action.token_ids
            for j in range(readings.at.shape[1]):
                place = int(readings.at[i, j])
                if j < len(tokens) and should_read(turn, j, method, slots):
                    assert readings.positions[place] == (turn.prompt_ids, tokens[:j])
                    expected.add(readings.positions[place])
                else:
                    assert place == -1
            beyond = int(readings.beyond[i])
            if goes_on_beyond(stream, t):
                assert readings.positions[beyond] == (turn.next_prompt_ids, ())
                expected.add(readings.positions[beyond])
            else:
                assert beyond == -1
            i += 1
    assert len(readings.at) == len(readings.beyond) == i
    assert readings.at.shape[1] == max(len(t.action.token_ids) for s in streams for t in s)
    # Each position once, and none for nothing.
    assert len(readings.positions) == len(set(readings.positions))
    assert set(readings.positions) == expected


@given(ragged, methods, slot_rules, st.booleans())
@settings(deadline=None)
def test_turns_are_laid_out_as_they_happened(
    streams: Streams, method: str, slots: str, by_duration: bool
) -> None:
    readings = read_where(streams, METHODS[method], slots)
    says = torch.arange(1.0, len(readings.positions) + 1)  # a value for each position
    index = {position: float(v) for position, v in zip(readings.positions, says, strict=True)}
    time, place = lay_out(streams, readings, says, GAMMA, by_duration)

    n, t, d = len(streams), max(map(len, streams)), readings.at.shape[1]
    assert time.mask.shape == (n, t, d)
    order = [s * t + i for s, stream in enumerate(streams) for i in range(len(stream))]
    assert place.tolist() == order
    for s, stream in enumerate(streams):
        for i in range(t):
            if i >= len(stream):
                assert not time.mask[s, i].any()
                continue
            turn = stream[i]
            tokens = turn.action.token_ids
            pad = [False] * (d - len(tokens))
            assert time.mask[s, i].tolist() == [True] * len(tokens) + pad
            assert time.choice[s, i].tolist() == list(turn.action.choice) + pad
            reward = [0.0] * d
            reward[len(tokens) - 1] = turn.reward
            assert time.reward[s, i].tolist() == reward
            for j in range(len(tokens)):
                read = should_read(turn, j, method, slots)
                value = index[turn.prompt_ids, tokens[:j]] if read else 0.0
                assert time.value[s, i, j] == value
            power = turn.duration if by_duration else 1
            assert float(time.discount[s, i]) == pytest.approx(GAMMA**power)
            assert time.ended[s, i] == (turn.terminated or turn.truncated)
            assert time.cut[s, i] == (turn.terminated or goes_on_beyond(stream, i))
            beyond = index[turn.next_prompt_ids, ()] if goes_on_beyond(stream, i) else 0.0
            assert time.bootstrap[s, i] == beyond


def test_a_truncation_never_reads_the_next_episodes_first_observation() -> None:
    action = Action("", (5,), (True,), (0.0,))
    last = Turn((1,), action, 0.0, truncated=True, next_prompt_ids=(2,))
    streams = [[last, Turn((3,), action, 0.0, next_prompt_ids=(4,))]]
    for truncated in (True, False):
        streams[0][0] = replace(last, truncated=truncated, terminated=not truncated)
        readings = read_where(streams, METHODS["poad"], "choices")
        says = torch.tensor([float(prompt[0]) for prompt, _ in readings.positions])
        time, _ = lay_out(streams, readings, says, GAMMA, True)
        assert time.bootstrap.tolist() == [[2.0 if truncated else 0.0, 4.0]]
        assert time.cut.all()
        assert time.ended.tolist() == [[True, False]]
