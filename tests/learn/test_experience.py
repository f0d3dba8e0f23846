"""How turns are laid out in time, where the critic reads, and what credit they get, by loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_credit import naive_credit
from trajectories import Trajectory

from poad.agent import CreditSettings
from poad.credit import METHODS, token_credit
from poad.learn import experience
from poad.learn.experience import PLACES, TokenRows, ValueTerms, accuracy, lay_out, rely
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


def test_accuracy_is_measured_place_by_place() -> None:
    place = torch.tensor([0, 0, 1, 1, 3])
    value = torch.tensor([1.0, 2.0, 0.5, 0.5, 4.0])
    target = torch.tensor([1.0, 2.0, 0.0, 2.0, 3.0])
    root = torch.tensor([0, 1, 0, 1, 1])
    found = accuracy(ValueTerms(torch.arange(5), target, value, place, root, torch.zeros(5).long()))
    assert found == pytest.approx(
        {
            "explained_variance_root": 1.0,
            "value_bias_root": 0.0,
            "explained_variance_second": 0.0,  # a constant explains nothing
            "value_bias_second": -0.5,
            "explained_variance_last": 0.0,  # of one reading there is nothing to explain
            "value_bias_last": 1.0,
        }
    )


# --- credit relies on the critic as far as it has earned ---

DECISIONS = 4


def orders(streams: int, turns: int = 8, seed: int = 0) -> Streams:
    """Episodes of one turn, whose action is a few coin flips; each that lands on 2 pays 1."""
    flips = torch.randint(
        1, 3, (streams, turns, DECISIONS), generator=torch.Generator().manual_seed(seed)
    )
    return [
        [
            Turn(
                prompt_ids=(t + 1,),
                action=Action("", tuple(w), (True,) * DECISIONS, (-0.69,) * DECISIONS),
                reward=float(w.count(2)),
                terminated=True,
                next_prompt_ids=(9,),
            )
            for t, w in enumerate(stream)
        ]
        for stream in flips.tolist()
    ]


def exact_values(rows: TokenRows) -> torch.Tensor:
    """[U] what the flips so far have paid, and half of those that are left."""
    return torch.tensor(
        [list(w).count(2) + (DECISIONS - len(w)) / 2 for _, w in rows.positions],
        dtype=torch.float64,
    )


def inner_noise(rows: TokenRows, std: float) -> torch.Tensor:
    """[U] noise at every reading inside an action, and none at roots."""
    noise = torch.randn(len(rows.positions), generator=torch.Generator().manual_seed(3)).double()
    inside = torch.tensor([len(w) > 0 for _, w in rows.positions])
    return std * noise * inside


def fitted(
    streams: Streams,
    monkeypatch: pytest.MonkeyPatch,
    *,
    exact: bool = True,
    noise: float = 0.0,
    names: tuple[str, ...] = ("beta", "lam_actor"),
    method: str = "poad",
) -> tuple[dict[str, Any], dict[str, float]]:
    """The rates that credit was computed with in the end, and the metrics."""
    settings_ = replace(credit_settings(method, "choices"), fitted=names)
    rows = lay_out(streams, settings_)
    value = inner_noise(rows, noise)
    value += exact_values(rows) if exact else DECISIONS / 2
    used: list[dict[str, Any]] = []

    def spy(*given: Any, **rates: Any) -> Any:
        used.append(rates)
        return token_credit(*given, **rates)

    monkeypatch.setattr(experience, "token_credit", spy)
    _, metrics = rely(rows, value, settings_)
    monkeypatch.undo()
    return used[-1], metrics


def test_beta_is_1_for_exact_values_0_for_noise_and_their_share_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = orders(streams=60)
    _, exact = fitted(streams, monkeypatch)
    _, noise = fitted(streams, monkeypatch, exact=False, noise=1.0)
    # Deviations of exact values from the root's have a variance of j/4 before token j: 1/2 in the
    # mean over j = 1, 2, 3. So noise of that variance makes β a half.
    _, mixed = fitted(streams, monkeypatch, noise=0.5**0.5)
    assert exact["beta"] == pytest.approx(1, abs=0.06)
    assert noise["beta"] == pytest.approx(0, abs=0.06)
    assert mixed["beta"] == pytest.approx(0.5, abs=0.12)


def test_the_actors_lambda_falls_as_beta_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    rates, metrics = fitted(orders(streams=60), monkeypatch, noise=0.7)
    torch.testing.assert_close(rates["lam_actor"], 1 - rates["beta"])
    assert metrics["beta"] == pytest.approx(float(rates["beta"].mean()))
    alone, _ = fitted(orders(streams=60), monkeypatch, noise=0.7, names=("lam_actor",))
    assert alone["beta"] == 1
    torch.testing.assert_close(alone["lam_actor"], rates["lam_actor"])


def test_no_advantage_depends_on_its_own_outcome_through_beta(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Streams alternate between the halves, and what one half earns moves only the other's β."""
    streams = orders(streams=10)
    before = fitted(streams, monkeypatch, noise=0.5)[0]["beta"]
    for half in (0, 1):
        other = [
            [replace(turn, reward=-turn.reward) for turn in stream] if n % 2 == half else stream
            for n, stream in enumerate(streams)
        ]
        after = fitted(other, monkeypatch, noise=0.5)[0]["beta"]
        assert torch.equal(after[half::2], before[half::2])
        assert (after[1 - half :: 2] == 0).all()  # what the critic said was wrong
        assert (before > 0).all()


def test_of_a_single_stream_nothing_is_known_about_the_other_half(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates, metrics = fitted(orders(streams=1), monkeypatch)
    assert metrics == {"beta": 0.0}
    assert rates["beta"].tolist() == [0.0]
    assert rates["lam_actor"].tolist() == [1.0]


def test_nothing_is_fitted_unless_it_is_asked_for_or_matters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates, metrics = fitted(orders(streams=4), monkeypatch, names=())
    assert metrics == {}
    assert rates["beta"] == 1
    rates, metrics = fitted(orders(streams=4), monkeypatch, method="turn_ppo")
    assert metrics == {}
    assert rates["beta"] == 1


def test_a_fitted_beta_of_0_is_turn_level_ppo(monkeypatch: pytest.MonkeyPatch) -> None:
    settings_ = replace(credit_settings("poad", "choices"), fitted=("beta", "lam_actor"))
    rows = lay_out(orders(streams=1), settings_)
    value = inner_noise(rows, 2.0) + exact_values(rows)
    judged, _ = rely(rows, value, settings_)
    turn = rows.credit(value, credit_settings("turn_ppo", "choices"))
    torch.testing.assert_close(judged.advantage, turn.advantage)
