"""How turns are laid out in time, where the critic reads, and what credit they get, by loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_credit import ALL_METHODS, naive_credit
from trajectories import Trajectory

from poad.agent import CreditSettings
from poad.credit import METHODS
from poad.learn.rows import PLACES, TokenRows, lay_out
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
methods = st.sampled_from(sorted(ALL_METHODS))
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


def credit_settings(method: str, slots: str, by_duration: bool = True) -> CreditSettings:
    row = METHODS[method]
    return CreditSettings(row, row.rates(GAMMA, 0.9, slots=slots), by_duration)  # pyright: ignore[reportArgumentType]


def tokens_of(streams: Streams) -> list[list[tuple[Turn, int, int]]]:
    """Each stream as (turn, its place in the stream, token)."""
    return [
        [(turn, t, j) for t, turn in enumerate(stream) for j in range(len(turn.action.token_ids))]
        for stream in streams
    ]


@given(ragged, methods, slot_rules)
@settings(deadline=None)
def test_the_critic_reads_before_slots_at_roots_and_after_open_endings(
    streams: Streams, method: str, slots: str
) -> None:
    rows = lay_out(streams, credit_settings(method, slots))
    expected: set[Position] = set()
    for n, stream in enumerate(tokens_of(streams)):
        for column, (turn, t, j) in enumerate(stream):
            read, read_next = int(rows.read[n, column]), int(rows.read_next[n, column])
            if should_read(turn, j, method, slots):
                assert rows.positions[read] == (turn.prompt_ids, turn.action.token_ids[:j])
                expected.add(rows.positions[read])
            else:
                assert read == -1
            if goes_on_beyond(streams[n], t):
                assert rows.positions[read_next] == (turn.next_prompt_ids, ())
                expected.add(rows.positions[read_next])
            else:
                assert read_next == -1
        assert (rows.read[n, len(stream) :] == -1).all()
        assert (rows.read_next[n, len(stream) :] == -1).all()
    # Each position once, and none without a use.
    assert len(rows.positions) == len(set(rows.positions))
    assert set(rows.positions) == expected


@given(ragged, methods, slot_rules, st.booleans())
@settings(deadline=None)
def test_turns_are_laid_out_as_they_happened(
    streams: Streams, method: str, slots: str, by_duration: bool
) -> None:
    rows = lay_out(streams, credit_settings(method, slots, by_duration))
    value = torch.arange(1.0, len(rows.positions) + 1)  # another one for each position
    index = {position: float(v) for position, v in zip(rows.positions, value, strict=True)}
    laid, after = rows.values(value, rows.read), rows.values(value, rows.read_next)
    flat = tokens_of(streams)
    assert rows.mask.shape == (len(streams), max(map(len, flat)))
    first_of_stream = 0
    for n, (turns_here, stream) in enumerate(zip(streams, flat, strict=True)):
        assert rows.mask[n].tolist() == [k < len(stream) for k in range(rows.mask.shape[1])]
        assert not rows.choice[n, len(stream) :].any()
        assert not rows.reward[n, len(stream) :].any()
        for column, (turn, t, j) in enumerate(stream):
            tokens, ended = turn.action.token_ids, turn.terminated or turn.truncated
            assert rows.turn_ids[n, column] == first_of_stream + t
            before = turns_here[:t]
            episodes = sum(one.terminated or one.truncated for one in before)
            assert rows.episode_ids[n, column] == episodes
            assert rows.choice[n, column] == turn.action.choice[j]
            assert rows.reward[n, column] == (turn.reward if j + 1 == len(tokens) else 0.0)
            read = should_read(turn, j, method, slots)
            assert laid[n, column] == (index[turn.prompt_ids, tokens[:j]] if read else 0.0)
            power = turn.duration if by_duration else 1
            assert float(rows.discount[n, column]) == pytest.approx(GAMMA**power)
            assert rows.ended[n, column] == ended
            open_end = goes_on_beyond(turns_here, t)
            assert after[n, column] == (index[turn.next_prompt_ids, ()] if open_end else 0.0)
        first_of_stream += len(turns_here)


def test_a_truncation_never_reads_the_next_episodes_first_observation() -> None:
    action = Action("", (5,), (True,), (0.0,))
    last = Turn((1,), action, 0.0, truncated=True, next_prompt_ids=(2,))
    following = Turn((3,), action, 0.0, next_prompt_ids=(4,))
    for truncated in (True, False):
        stream = [replace(last, truncated=truncated, terminated=not truncated), following]
        rows = lay_out([stream], credit_settings("poad", "choices"))
        value = torch.tensor([float(prompt[0]) for prompt, _ in rows.positions])
        assert rows.values(value, rows.read_next).tolist() == [[2.0 if truncated else 0.0, 4.0]]
        assert rows.ended.tolist() == [[True, False]]
        assert rows.episode_ids.tolist() == [[0, 1]]
        # δ = r + γ·v′ − v with the critic's readings above
        credit = rows.credit(value, credit_settings("poad", "choices"))
        assert credit.target.tolist() == [
            pytest.approx([GAMMA * 2.0 if truncated else 0.0, GAMMA * 4.0])
        ]


@given(ragged, methods, slot_rules)
@settings(deadline=None)
def test_the_trainers_credit_is_the_slow_double_sum(
    streams: Streams, method: str, slots: str
) -> None:
    """Turns go through the same door as other trainers' tensors, and come out as in the laws."""
    settings_ = credit_settings(method, slots)
    rows = lay_out(streams, settings_)
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(len(rows.positions), generator=generator, dtype=torch.float64)
    found = rows.credit(value, settings_)
    trajectory = trajectory_of(streams, rows, value)
    if method in ("twosome", "glam", "turn_ppo"):
        slots = "turn"
    expected = naive_credit(trajectory, method, GAMMA, 0.9, slots=slots)
    mask = trajectory.mask
    for name in ("mask", "value_mask"):
        assert torch.equal(getattr(found, name)[rows.mask], getattr(expected, name)[mask])
    for name in ("advantage", "target"):
        # rewards and discounts are laid out in float32
        torch.testing.assert_close(
            getattr(found, name)[rows.mask], getattr(expected, name)[mask], rtol=1e-4, atol=1e-4
        )


def trajectory_of(streams: Streams, rows: TokenRows, value: torch.Tensor) -> Trajectory:
    """The same turns as [N, T, D], with the critic's readings of the rows."""
    shape = (
        len(streams),
        max(map(len, streams)),
        max(len(turn.action.token_ids) for stream in streams for turn in stream),
    )
    three = {name: torch.zeros(shape, dtype=torch.float64) for name in ("reward", "value")}
    flags = {name: torch.zeros(shape, dtype=torch.bool) for name in ("mask", "choice")}
    turnwise = {
        name: torch.zeros(shape[:2], dtype=torch.float64) for name in ("discount", "bootstrap")
    }
    ends = {name: torch.zeros(shape[:2], dtype=torch.bool) for name in ("cut", "ended")}
    laid, after = rows.values(value, rows.read), rows.values(value, rows.read_next)
    for n, stream in enumerate(streams):
        column = 0
        for t, turn in enumerate(stream):
            length = len(turn.action.token_ids)
            place = slice(column, column + length)
            flags["mask"][n, t, :length] = True
            flags["choice"][n, t, :length] = torch.tensor(turn.action.choice)
            three["reward"][n, t, length - 1] = turn.reward
            three["value"][n, t, :length] = laid[n, place]
            turnwise["discount"][n, t] = GAMMA**turn.duration
            turnwise["bootstrap"][n, t] = after[n, column]
            ends["ended"][n, t] = turn.terminated or turn.truncated
            ends["cut"][n, t] = ends["ended"][n, t] or t + 1 == len(stream)
            column += length
    return Trajectory(**three, **flags, **turnwise, **ends)


# --- the critic, by place in the action ---


@given(ragged, slot_rules)
@settings(deadline=None)
def test_the_place_of_a_reading_follows_from_the_choices_before_it(
    streams: Streams, slots: str
) -> None:
    rows = lay_out(streams, credit_settings("poad", slots))
    for n, tokens in enumerate(tokens_of(streams)):
        for column, (turn, _, j) in enumerate(tokens):
            made, choices = sum(turn.action.choice[:j]), sum(turn.action.choice)
            expected = (
                "root"
                if made == 0
                else "second"
                if made == 1
                else "last"
                if made == choices - 1
                else "later"
            )
            assert PLACES[rows.place[n, column]] == expected
