"""Growing rows: nothing is computed twice, and everything reads as if computed at once."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CONFIGURATIONS, Zoo, assert_same, counted, next_token_logits

from poad.lm.model import LanguageModel
from poad.turns import TokenIds

pytestmark = pytest.mark.usefixtures("float64")

LONG = tuple(5 + i % 50 for i in range(60))


def assert_reads(model: LanguageModel, hidden: torch.Tensor, rows: list[TokenIds]) -> None:
    with torch.no_grad():
        expected = torch.stack([next_token_logits(model, *row) for row in rows])
    assert_same(model.logits(hidden).log_softmax(-1), expected.log_softmax(-1))


lengths = st.lists(st.integers(0, 59), min_size=1, max_size=3)
behind = st.lists(st.lists(st.integers(5, 60), min_size=1, max_size=5).map(tuple), min_size=3)


@pytest.mark.parametrize("architecture", CONFIGURATIONS)
@pytest.mark.parametrize(("remember", "budget"), [(False, 10**6), (True, 10**6), (True, 40)])
def test_resumed_rows_read_as_if_computed_at_once(
    zoo: Zoo, architecture: str, remember: bool, budget: int
) -> None:
    """Each start may resume any prefixes of what was read before, in any order."""
    model = zoo.load(architecture)

    @settings(deadline=None, max_examples=12, derandomize=True)
    @given(st.lists(st.tuples(lengths, behind), min_size=1, max_size=4))
    def check(rounds: list[tuple[list[int], list[TokenIds]]]) -> None:
        decoder = model.decoder(remember, budget)
        for cuts, tails in rounds:
            rows = [(*LONG[:cut], *tail) for cut, tail in zip(cuts, tails, strict=False)]
            assert_reads(model, decoder.start(rows), rows)
            rows = [(*row, 7) for row in rows[::-1][:2]]
            assert_reads(model, decoder.read([(7,)] * len(rows), _last(len(cuts), 2)), rows)

    check()


def _last(count: int, wanted: int) -> list[int]:
    return list(range(count))[::-1][:wanted]


def test_an_episode_that_grows_is_computed_once(zoo: Zoo) -> None:
    model = zoo.load()
    sizes, decoder = counted(model), model.decoder(remember=True)
    for turn in accumulate([40, 9, 6, 5]):
        decoder.start([LONG[:turn]])
    assert sizes == [40, 9, 6, 5]


def test_without_memory_a_prompt_is_computed_again(zoo: Zoo) -> None:
    model = zoo.load()
    sizes, decoder = counted(model), model.decoder()
    for turn in (40, 49):
        decoder.start([LONG[:turn]])
    assert sizes == [40, 49]


def test_rows_that_ended_early_are_remembered_too(zoo: Zoo) -> None:
    """Free writing drops the row of a finished action; the next prompt still resumes it."""
    model = zoo.load()
    sizes, decoder = counted(model), model.decoder(remember=True)
    rows = [(3, *LONG[:40]), (4, *LONG[:40])]
    decoder.start(rows)
    decoder.read([(9,), (9,)], [0, 1])
    decoder.read([(8,)], [1])
    found = decoder.start(grown := [(*rows[0], 9, 11), (*rows[1], 9, 8, 12)])
    assert sizes == [82, 2, 1, 2]
    assert_reads(model, found, grown)


def test_a_prefix_of_all_prompts_is_computed_once(zoo: Zoo) -> None:
    model = zoo.load()
    sizes, decoder = counted(model), model.decoder()
    rows = [(*LONG[:50], 61 + i, 70) for i in range(8)]
    assert_reads(model, decoder.start(rows), rows)
    assert sizes == [50, 16, *[52] * 8]  # the last eight are those of the comparison


def test_a_short_common_prefix_is_not_computed_apart(zoo: Zoo) -> None:
    model = zoo.load()
    sizes, decoder = counted(model), model.decoder()
    decoder.start([(*LONG[:5], 61), (*LONG[:5], 62)])
    assert sizes == [12]


def test_a_row_that_pauses_for_a_turn_is_remembered(zoo: Zoo) -> None:
    """An action without a choice skips a call; the prompt after it still resumes the row."""
    model = zoo.load()
    sizes, decoder = counted(model), model.decoder(remember=True)
    one, other = (3, *LONG[:40]), (4, *LONG[:40])
    decoder.start([one, other])
    decoder.start([(*other, 9)])
    decoder.start([(*one, 9), (*other, 9, 9)])
    assert sizes == [82, 1, 2]
    decoder.start([(*other, 9, 9, 9)])
    decoder.start([(*other, 9, 9, 9, 9)])
    decoder.start([(*one, 9, 9)])  # skipped twice, the row is forgotten
    assert sizes[3:] == [1, 1, 43]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen_window"])
def test_no_pass_is_larger_than_its_budget(zoo: Zoo, architecture: str) -> None:
    """Rows of similar length are read together, and one that is too long in several passes."""
    model = zoo.load(architecture)
    decoder = model.decoder(pass_tokens=50)
    rows = [LONG[i : i + n] for i, n in enumerate([8, 9, 60, 7, 30, 1, 9])]
    expected = model.decoder().start(rows)
    sizes = counted(model)
    found = decoder.start(rows)
    decoder.read([LONG[:20], (7,)], [2, 4])
    assert max(sizes) <= 50
    assert sum(sizes) <= sum(map(len, rows)) + 2 * 20 + 30  # little of it is padding
    assert_same(found, expected)
