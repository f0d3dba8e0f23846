from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poad.credit.methods import token_credit
from poad.credit.slots import following, last_of_turn, pick, turn_sum

flag_rows = st.integers(0, 9).flatmap(
    lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=3)
)


@settings(deadline=None)
@given(flag_rows)
def test_following_finds_the_next_true_or_the_length(rows: list[list[bool]]):
    length = len(rows[0])
    expected = [[next((j for j in range(i + 1, length) if r[j]), length) for i in range(length)]
                for r in rows]  # fmt: skip
    found = following(torch.tensor(rows, dtype=torch.bool).reshape(len(rows), length))
    assert found.tolist() == expected


def test_pick_fills_where_nothing_follows():
    flags = torch.tensor([[False, True, False, True]])
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert pick(values, following(flags), fill=-1).tolist() == [[2, 4, 4, -1]]


def test_last_of_turn_and_turn_sum_pass_over_what_lies_between():
    turn = torch.tensor([[0, 0, 1, 1, 1, 2]])
    flags = torch.tensor([[True, True, False, True, False, False]])
    assert last_of_turn(flags, turn).tolist() == [[False, True, False, True, False, False]]
    assert turn_sum(turn + 1, turn).tolist() == [[2, 2, 6, 6, 6, 3]]


def rows_of_two_turns() -> dict[str, Any]:
    return {
        "reward": torch.zeros(2, 4),
        "value": torch.zeros(2, 4),
        "mask": torch.ones(2, 4, dtype=torch.bool),
        "turn_ids": torch.tensor([[0, 0, 1, 1]] * 2),
    }


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("reward", torch.zeros(4), r"reward has shape \(4,\); give \[B, L\]"),
        ("value", torch.zeros(2, 5), r"value has shape \(2, 5\); expected \(2, 4\)"),
        ("choice", torch.ones(2, 1).bool(), r"choice has shape \(2, 1\)"),
        ("bootstrap", torch.zeros(3), r"bootstrap has shape \(3,\); expected \(2,\)"),
        ("ended", torch.zeros(2, 3).bool(), r"ended has shape \(2, 3\); expected \(2, 4\)"),
        ("turn_ids", torch.tensor([[0, 1, 1, 0]] * 2), r"turn_ids decrease .* \(0, 2\)"),
        ("episode_ids", torch.tensor([[5, 5, 4, 4]] * 2), r"episode_ids decrease .* \(0, 1\)"),
    ],
)
def test_rows_that_cannot_be_are_refused(name: str, bad: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        token_credit(**{**rows_of_two_turns(), name: bad}, gamma=0.9, lam=0.9)


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("mask", torch.ones(2, 4), "mask has dtype torch.float32; expected bool"),
        ("mask", torch.ones(2, 4).long(), "mask has dtype torch.int64; expected bool"),
        ("reward", torch.ones(2, 4).long(), "reward has dtype torch.int64; expected float"),
        ("turn_ids", torch.zeros(2, 4), "turn_ids has dtype torch.float32; expected int"),
        ("turn_ids", torch.zeros(2, 4).bool(), "turn_ids has dtype torch.bool"),
    ],
)
def test_the_wrong_kind_of_tensor_is_refused(name: str, bad: torch.Tensor, message: str):
    with pytest.raises(TypeError, match=message):
        token_credit(**{**rows_of_two_turns(), name: bad}, gamma=0.9, lam=0.9)


def test_a_choice_outside_the_mask_is_refused():
    rows = rows_of_two_turns()
    rows["mask"][1, 3] = False
    rows["choice"] = torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"choice is True at \(1, 3\), where mask is False"):
        token_credit(**rows, gamma=0.9, lam=0.9)


def test_ids_at_positions_that_are_no_action_tokens_do_not_matter():
    rows = rows_of_two_turns()
    rows["mask"][:, 1] = False
    before = token_credit(**rows, gamma=0.9, lam=0.9)
    rows["turn_ids"] = rows["turn_ids"].clone()
    rows["turn_ids"][:, 1] = 99
    after = token_credit(**rows, gamma=0.9, lam=0.9)
    assert torch.equal(after.advantage, before.advantage)
    assert torch.equal(after.target, before.target)
