"""Packing shares work and changes nothing: every position reads as if it stood alone."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import (
    CONFIGURATIONS,
    Zoo,
    assert_same,
    columns_seen,
    next_token_logits,
    tokens_seen,
)
from tolerance import EXACT
from torch import Tensor

from poad.lm.model import LanguageModel
from poad.lm.packing import Bundles, Packed, common, pack
from poad.turns import Position, TokenIds

PAD = 1
LONG, SHORT = (11, 12, 13, 14, 15, 16, 17), (21, 22)

# Of few tokens, so that prompts and beginnings meet and part again.
prompts = st.lists(st.integers(5, 7), min_size=1, max_size=8).map(tuple)
beginnings = st.lists(st.integers(6, 8), max_size=4).map(tuple)


@st.composite
def crowds(draw: st.DrawFn) -> list[Position]:
    """Positions in any order, some repeated, several behind each prompt."""
    some = draw(st.lists(prompts, min_size=1, max_size=3))
    crowd = st.lists(st.tuples(st.sampled_from(some), beginnings), min_size=1, max_size=12)
    return draw(crowd)


def read(model: LanguageModel, packed: Packed) -> Tensor:
    with torch.no_grad():
        return model.logits(model.read(packed)).log_softmax(-1)


def read_alone(model: LanguageModel, crowd: list[Position]) -> Tensor:
    with torch.no_grad():
        rows = [next_token_logits(model, *prompt, *rest) for prompt, rest in crowd]
    return torch.stack(rows).log_softmax(-1)


def prefixes(sequences: list[TokenIds]) -> int:
    """Distinct tokens in context: what must be computed if nothing is computed twice."""
    return len({sequence[:j] for sequence in sequences for j in range(1, len(sequence) + 1)})


# --- the law ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("architecture", CONFIGURATIONS)
def test_packed_positions_read_as_they_do_alone(zoo: Zoo, architecture):
    model = zoo.load(architecture)

    @settings(deadline=None, max_examples=30, derandomize=True)
    @given(crowds(), st.integers(1, 40))
    def check(crowd, row_tokens):
        assert_same(read(model, pack(crowd, PAD, row_tokens)), read_alone(model, crowd))

    check()


@settings(deadline=None, max_examples=300)
@given(crowds(), st.integers(1, 40))
def test_every_position_sees_its_own_tokens_in_their_order(crowd, row_tokens):
    packed = pack(crowd, PAD, row_tokens)
    for q, (prompt, beginning) in enumerate(crowd):
        assert tokens_seen(packed, q) == (*prompt, *beginning)
        places = packed.position_ids[packed.row[q], columns_seen(packed, q)]
        assert places.tolist() == list(range(len(places)))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("crowd", [[(LONG, (70,)), (SHORT, (71,))], [(LONG, (70,)), (LONG, (71,))]])
def test_what_stands_in_the_padding_does_not_matter(zoo: Zoo, crowd):
    model = zoo.load()
    packed = pack([*crowd, (SHORT, ())], PAD)
    assert not packed.mask.all()
    noise = torch.randint_like(packed.token_ids, 5, 60)
    noisy = replace(packed, token_ids=packed.token_ids.where(packed.mask, noise))
    assert_same(read(model, noisy), read(model, packed))


@pytest.mark.usefixtures("float64")
def test_neighbours_do_not_matter(zoo: Zoo):
    model = zoo.load()
    mine: Position = (SHORT, (70, 71))
    alone = read(model, pack([mine], PAD))
    for crowd in ([(LONG, (71,) * 9)], [(SHORT, (70, 70)), (SHORT, (71, 70))]):
        assert_same(read(model, pack([*crowd, mine], PAD))[-1:], alone)


# --- as little as possible --------------------------------------------------------------------


@settings(deadline=None)
@given(
    prompts.map(lambda prompt: (*prompt, 3, 3, 3)), st.lists(beginnings, min_size=1, max_size=12)
)
def test_a_prompt_and_every_shared_beginning_are_computed_once(prompt, some):
    packed = pack([(prompt, rest) for rest in some], PAD)
    assert packed.token_ids.shape == (1, prefixes([(*prompt, *rest) for rest in some]))
    assert packed.mask.all()


def test_prompts_that_begin_alike_share_their_beginning():
    packed = pack([(LONG, ()), ((*LONG[:5], 3), ()), (SHORT, ())], PAD)
    assert packed.mask.sum(1).tolist() == [len(LONG) + 1, len(SHORT)]


@settings(deadline=None)
@given(crowds(), st.integers(1, 40))
def test_rows_grow_no_longer_than_allowed(crowd, row_tokens):
    packed = pack(crowd, PAD, row_tokens)
    longest = max(len(prompt) + len(rest) for prompt, rest in crowd)
    assert packed.token_ids.shape[1] <= max(row_tokens, 2 * longest)
    assert packed.tokens == packed.token_ids.numel()
    assert packed.mask.any(1).all()  # no row for nothing
    assert packed.mask.any(0).all()  # no column either


@settings(deadline=None)
@given(crowds(), st.integers(1, 40))
def test_a_mask_of_its_own_is_made_only_where_a_row_branches(crowd, row_tokens):
    packed = pack(crowd, PAD, row_tokens)
    straight = all(
        packed.token_ids[row, : column + 1].tolist() == [*prompt, *rest]
        for row, column, (prompt, rest) in zip(packed.row, packed.column, crowd, strict=True)
    )
    assert (packed.attention is None) == straight


def test_a_small_batch_looks_as_drawn():
    packed = pack([(LONG[:3], (70,)), (SHORT, (70, 70)), (SHORT, (71,)), (SHORT, ())], PAD)
    assert packed.token_ids.tolist() == [[*LONG[:3], 70, PAD], [*SHORT, 70, 70, 71]]
    assert packed.mask.tolist() == [[True] * 4 + [False], [True] * 5]
    assert packed.position_ids[1].tolist() == [0, 1, 2, 3, 2]
    assert packed.row.tolist() == [0, 1, 1, 1]
    assert packed.column.tolist() == [3, 3, 4, 1]
    assert packed.attention is not None
    assert packed.attention.shape == (2, 1, 5, 5)
    assert packed.attention[1, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],  # its own branch, not its neighbour's
    ]


def test_moving_to_a_device_keeps_everything():
    for crowd in ([(LONG, (70,)), (LONG, (71,))], [(LONG, (70,))]):
        packed = pack(crowd, PAD)
        moved = packed.to(torch.device("cpu"))
        for field in fields(Packed):
            one, other = getattr(packed, field.name), getattr(moved, field.name)
            assert other is None if one is None else torch.equal(one, other)


# --- bundles ----------------------------------------------------------------------------------


def members(bundles: Bundles, crowd: list[Position]) -> list[list[Position]]:
    return [
        [position for position, bundle in zip(crowd, bundles.of, strict=True) if bundle == s]
        for s in range(len(bundles.cost))
    ]


@settings(deadline=None)
@given(crowds(), st.sampled_from([1, 2, 3, 5, None]))
def test_a_bundle_is_of_what_begins_with_one_prompt_and_costs_what_it_says(crowd, largest):
    bundles = Bundles.divide(crowd, largest)
    assert len(bundles.of) == len(crowd)
    for cost, inside in zip(bundles.cost.tolist(), members(bundles, crowd), strict=True):
        sequences = [(*prompt, *beginning) for prompt, beginning in inside]
        prompts = {prompt for prompt, _ in crowd}
        homes = [min((p for p in prompts if s[: len(p)] == p), key=len) for s, _ in inside]
        assert len(set(homes)) == 1
        if largest is None:
            assert len({prompt for prompt, _ in inside}) == 1
        # The prompt is computed whole, however little of it its bundle reads.
        root = inside[0][0] if largest is None else homes[0]
        assert cost == prefixes([root, *sequences])


@settings(deadline=None)
@given(crowds(), st.sampled_from([1, 2, 3, 5]))
def test_where_a_bundle_ends_it_has_enough_that_the_next_does_not_share(crowd, largest):
    bundles = Bundles.divide(crowd, largest)
    alone = Bundles.divide(crowd, 10**6)
    for inside in members(alone, crowd):
        parts: dict[int, list[TokenIds]] = {}
        for sequence, q in sorted(((*p, *b), crowd.index((p, b))) for p, b in inside):
            parts.setdefault(int(bundles.of[q]), []).append(sequence)
        ordered = list(parts.values())
        for one, other in pairwise(ordered):
            shared = common(one[-1], other[0])
            assert prefixes([*one, other[0]]) > shared + largest


@pytest.mark.parametrize("step", [40, 200])
def test_an_episode_that_grows_is_one_bundle_and_computed_once(step: int):
    """Ten turns, each prompt the last one with its action and a new text: no token twice."""
    whole = tuple(range(10 * step))
    turns: list[Position] = [
        (whole[: step * t + 30], whole[step * t + 30 :][:5]) for t in range(10)
    ]
    bundles = Bundles.divide(turns)
    assert bundles.cost.tolist() == [9 * step + 35]
    packed = pack(turns, PAD)
    assert packed.token_ids.shape == (1, 9 * step + 35)
    assert packed.attention is None


def test_episodes_that_part_are_bundles_of_their_own():
    """Three of them from one beginning: what they share is computed three times, not more."""
    turns: list[Position] = [
        ((*range(50), *([70 + e] * 200 * (t > 0)), *range(80, 80 + 200 * (t > 1))), (t,))
        for e in range(3)
        for t in range(3)
    ]
    bundles = Bundles.divide(turns)
    assert len(bundles.cost) == 3
    assert int(bundles.cost.sum()) <= 3 * 453


def test_without_branches_each_branch_is_paid_for():
    """Costs bound what one forward pass computes, also where trees become rows."""
    branches: list[Position] = [(tuple(range(500)), (500 + i,)) for i in range(40)]
    bundles = Bundles.divide(branches, branching=False)
    assert int(bundles.cost.sum()) == 500 + 1 + 39 * 501
    for run in bundles.runs(2000):
        kept = bundles.select(run)[1].tolist()
        packed = pack([branches[q] for q in kept], PAD).linear(PAD)
        assert packed.tokens <= 2000 + 129 * 501
        assert packed.attention is None


@settings(deadline=None)
@given(crowds())
def test_undivided_there_is_one_bundle_for_each_prompt_in_their_order(crowd):
    bundles = Bundles.divide(crowd, largest=None)
    found = [inside[0][0] for inside in members(bundles, crowd)]
    assert found == list(dict.fromkeys(prompt for prompt, _ in crowd))


@settings(deadline=None)
@given(crowds(), st.data())
def test_selected_bundles_keep_their_positions(crowd, data):
    bundles = Bundles.divide(crowd, largest=2)
    count = len(bundles.cost)
    chosen = data.draw(st.permutations(range(count)))[: data.draw(st.integers(1, count))]
    part, kept = bundles.select(torch.tensor(chosen))
    assert kept.tolist() == [q for q in range(len(crowd)) if bundles.of[q] in chosen]
    assert part.cost.tolist() == bundles.cost[chosen].tolist()
    inside = members(bundles, crowd)
    assert members(part, [crowd[q] for q in kept]) == [inside[s] for s in chosen]


@settings(deadline=None)
@given(crowds(), st.integers(1, 60))
def test_runs_are_of_about_equal_cost_and_leave_nothing_out(crowd, tokens):
    bundles = Bundles.divide(crowd, largest=2)
    order = torch.arange(len(bundles.cost)).flip(0)
    runs = bundles.runs(tokens, order)
    assert torch.cat(runs).tolist() == order.tolist()
    for run in runs:
        assert int(bundles.cost[run[1:]].sum()) < tokens  # the first may lie across the border
    assert torch.cat(bundles.runs(tokens)).tolist() == list(range(len(bundles.cost)))


@pytest.mark.parametrize(
    ("a", "b", "count"),
    [((), (1,), 0), ((1, 2), (1, 2), 2), ((1, 2), (1, 2, 3), 2), ((1,), (2,), 0)],
)
def test_common_counts_the_tokens_until_two_sequences_part(a, b, count):
    assert common(a, b) == common(b, a) == count


# --- learning through it ----------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("branch", [(71,), ()])
def test_gradients_are_those_of_rows_alone_whatever_the_padding(zoo: Zoo, architecture, branch):
    model = zoo.load(architecture)
    crowd = [(LONG, (70, 70)), (SHORT, (70,)), (SHORT, branch)]

    def gradients(logits: Tensor) -> list[Tensor]:
        score = logits.log_softmax(-1)[:, 30:33].sum()
        return list(torch.autograd.grad(score, model.parameters()))

    found = gradients(model.logits(model.read(pack(crowd, PAD))))
    expected = gradients(torch.stack([next_token_logits(model, *p, *rest) for p, rest in crowd]))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=EXACT, atol=EXACT)
