"""Ranks divide work completely, and one process alone meets nobody."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poad.errors import RankError
from poad.ranks import ALONE, Ranks, launched

SIZES = st.integers(1, 9)


@given(count=st.integers(0, 40), size=SIZES)
def test_every_stream_is_played_by_one_rank_and_none_has_two_more_than_another(
    count: int, size: int
) -> None:
    parts = [Ranks(rank, size).own(count) for rank in range(size)]
    assert [*chain.from_iterable(parts)] == [*range(count)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(cost=st.lists(st.integers(0, 1000), max_size=40), size=SIZES)
def test_every_piece_of_work_is_one_ranks_and_the_loads_are_even(
    cost: list[int], size: int
) -> None:
    pieces = torch.tensor(cost, dtype=torch.int64)
    parts = [Ranks(rank, size).share(pieces).tolist() for rank in range(size)]
    assert sorted(chain.from_iterable(parts)) == [*range(len(cost))]
    assert all(part == sorted(part) for part in parts)
    # Graham's bound of giving each piece to whoever has least: no load exceeds the mean by more
    # than the costliest piece.
    loads = [sum(cost[i] for i in part) for part in parts]
    assert max(loads) <= sum(cost) / size + max(cost, default=0)


def test_one_process_is_told_what_it_says() -> None:
    tensors = [torch.ones(3), torch.zeros(2, 2)]
    parameter = torch.nn.Parameter(torch.ones(2))
    ALONE.add_up(tensors)
    ALONE.add_up_gradients([parameter])
    assert ALONE.exchange("it", {"a": (1, 2)}) == [{"a": (1, 2)}]
    assert ALONE.first_does("it", lambda: 5) == 5
    assert ALONE.share(torch.tensor([5, 1, 9])).tolist() == [0, 1, 2]
    assert parameter.grad is None
    assert torch.equal(tensors[0], torch.ones(3))
    with pytest.raises(ZeroDivisionError):
        ALONE.first_does("it", lambda: 1 / 0)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "3"}, (2, 3)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
        ({"RANK": "two", "WORLD_SIZE": "3"}, (0, 1)),
    ],
)
def test_a_launcher_says_which_rank_this_is(
    environment: dict[str, str], found: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ranks = launched()
    assert (ranks.rank, ranks.size) == found


def test_ranks_that_are_at_different_places_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(0, 2)
    monkeypatch.setattr(ranks, "_gather", lambda message: [message, b'["rollout", 1]'])
    with pytest.raises(RankError, match=r"Rank 1 is at 'rollout' and rank 0 at 'save'"):
        ranks.exchange("save", True)
