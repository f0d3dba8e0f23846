"""Packing saves work and changes nothing: every position reads as it does alone."""

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
from poad.lm.packing import Bundles, Packed, common_prefix_length, pack, pack_in_passes, renumber
from poad.turns import Beginning, Position, TokenIds

PAD = 1
LONG, SHORT = (11, 12, 13, 14, 15, 16, 17), (21, 22)

# From few tokens, so that sequences often share a prefix and then differ.
prompts = st.lists(st.integers(5, 7), min_size=1, max_size=8).map(tuple)
beginnings = st.lists(st.integers(6, 8), max_size=4).map(tuple)


@st.composite
def crowds(draw: st.DrawFn) -> list[Position]:
    """Draw positions in any order, some repeated, several behind each prompt."""
    some = draw(st.lists(prompts, min_size=1, max_size=3))
    crowd: st.SearchStrategy[list[Position]] = st.lists(
        st.tuples(st.sampled_from(some), beginnings), min_size=1, max_size=12
    )
    return draw(crowd)


def read(model: LanguageModel, packed: Packed) -> Tensor:
    with torch.no_grad():
        return model.logits(model.read(packed)).log_softmax(-1)


def read_alone(model: LanguageModel, crowd: list[Position]) -> Tensor:
    with torch.no_grad():
        rows = [next_token_logits(model, *prompt, *rest) for prompt, rest in crowd]
    return torch.stack(rows).log_softmax(-1)


def prefixes(sequences: list[TokenIds]) -> int:
    """Count distinct prefixes: the tokens to compute if nothing is computed twice."""
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
def test_the_content_of_padding_does_not_matter(zoo: Zoo, crowd):
    model = zoo.load()
    packed = pack([*crowd, (SHORT, ())], PAD)
    assert not packed.mask.all()
    noise = torch.randint_like(packed.token_ids, 5, 60)
    noisy = replace(packed, token_ids=packed.token_ids.where(packed.mask, noise))
    assert_same(read(model, noisy), read(model, packed))


@pytest.mark.usefixtures("float64")
def test_other_positions_in_the_batch_do_not_matter(zoo: Zoo):
    model = zoo.load()
    mine: Position = (SHORT, (70, 71))
    alone = read(model, pack([mine], PAD))
    for crowd in ([(LONG, (71,) * 9)], [(SHORT, (70, 70)), (SHORT, (71, 70))]):
        assert_same(read(model, pack([*crowd, mine], PAD))[-1:], alone)


# --- no more work than needed -----------------------------------------------------------------


@settings(deadline=None)
@given(
    prompts.map(lambda prompt: (*prompt, 3, 3, 3)), st.lists(beginnings, min_size=1, max_size=12)
)
def test_a_prompt_and_every_shared_beginning_are_computed_once(prompt, some):
    packed = pack([(prompt, rest) for rest in some], PAD)
    assert packed.token_ids.shape == (1, prefixes([(*prompt, *rest) for rest in some]))
    assert packed.mask.all()


def test_prompts_that_begin_alike_share_their_prefix():
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
def test_an_attention_mask_is_made_only_if_a_row_branches(crowd, row_tokens):
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
        [
            position
            for position, bundle in zip(crowd, bundles.assignment, strict=True)
            if bundle == s
        ]
        for s in range(len(bundles.cost))
    ]


@settings(deadline=None)
@given(crowds(), st.sampled_from([1, 2, 3, 5, None]))
def test_the_positions_of_a_bundle_begin_with_one_prompt_and_cost_what_it_says(crowd, largest):
    bundles = Bundles.divide(crowd, largest)
    assert len(bundles.assignment) == len(crowd)
    for cost, inside in zip(bundles.cost.tolist(), members(bundles, crowd), strict=True):
        sequences = [(*prompt, *beginning) for prompt, beginning in inside]
        prompts = {prompt for prompt, _ in crowd}
        roots = [min((p for p in prompts if s[: len(p)] == p), key=len) for s, _ in inside]
        assert len(set(roots)) == 1
        if largest is None:
            assert len({prompt for prompt, _ in inside}) == 1
        # The prompt is computed whole, even if the bundle reads only its beginning.
        root = inside[0][0] if largest is None else roots[0]
        assert cost == prefixes([root, *sequences])


@settings(deadline=None)
@given(crowds(), st.sampled_from([1, 2, 3, 5]))
def test_a_bundle_is_split_only_where_enough_of_it_is_not_shared(crowd, largest):
    bundles = Bundles.divide(crowd, largest)
    alone = Bundles.divide(crowd, 10**6)
    for inside in members(alone, crowd):
        parts: dict[int, list[TokenIds]] = {}
        for sequence, q in sorted(((*p, *b), crowd.index((p, b))) for p, b in inside):
            parts.setdefault(int(bundles.assignment[q]), []).append(sequence)
        ordered = list(parts.values())
        for one, other in pairwise(ordered):
            shared = common_prefix_length(one[-1], other[0])
            assert prefixes([*one, other[0]]) > shared + largest


@pytest.mark.parametrize("step", [40, 200])
def test_an_episode_that_grows_is_one_bundle_and_computed_once(step: int):
    """Each of ten prompts continues the last prompt and action: no token is computed twice."""
    whole = tuple(range(10 * step))
    turns: list[Position] = [
        (whole[: step * t + 30], whole[step * t + 30 :][:5]) for t in range(10)
    ]
    bundles = Bundles.divide(turns)
    assert bundles.cost.tolist() == [9 * step + 35]
    packed = pack(turns, PAD)
    assert packed.token_ids.shape == (1, 9 * step + 35)
    assert packed.attention is None


def test_episodes_that_branch_off_are_bundles_of_their_own():
    """Three episodes share a prefix, which is computed three times and no more."""
    turns: list[Position] = [
        ((*range(50), *([70 + e] * 200 * (t > 0)), *range(80, 80 + 200 * (t > 1))), (t,))
        for e in range(3)
        for t in range(3)
    ]
    bundles = Bundles.divide(turns)
    assert len(bundles.cost) == 3
    assert int(bundles.cost.sum()) <= 3 * 453


def test_without_branches_the_cost_counts_every_branch_whole():
    """Costs bound the tokens of a forward pass even if trees are laid out as rows."""
    branches: list[Position] = [(tuple(range(500)), (500 + i,)) for i in range(40)]
    bundles = Bundles.divide(branches, branching=False)
    assert int(bundles.cost.sum()) == 500 + 1 + 39 * 501
    for part in bundles.micro_batches(2000):
        kept = bundles.select(part)[1].tolist()
        packed = pack([branches[q] for q in kept], PAD).without_branches(PAD)
        assert packed.tokens <= 2000 + 129 * 501
        assert packed.attention is None


@settings(deadline=None)
@given(crowds())
def test_without_a_limit_there_is_one_bundle_for_each_prompt_in_their_order(crowd):
    bundles = Bundles.divide(crowd, max_unshared_tokens=None)
    found = [inside[0][0] for inside in members(bundles, crowd)]
    assert found == list(dict.fromkeys(prompt for prompt, _ in crowd))


@settings(deadline=None)
@given(crowds(), st.data())
def test_selected_bundles_keep_their_positions(crowd, data):
    bundles = Bundles.divide(crowd, max_unshared_tokens=2)
    count = len(bundles.cost)
    chosen = data.draw(st.permutations(range(count)))[: data.draw(st.integers(1, count))]
    part, kept = bundles.select(torch.tensor(chosen))
    assert kept.tolist() == [q for q in range(len(crowd)) if bundles.assignment[q] in chosen]
    assert part.cost.tolist() == bundles.cost[chosen].tolist()
    inside = members(bundles, crowd)
    assert members(part, [crowd[q] for q in kept]) == [inside[s] for s in chosen]


@settings(deadline=None)
@given(crowds(), st.integers(1, 60) | st.just(10**6), st.booleans())
def test_micro_batches_keep_within_the_budget_and_leave_nothing_out(crowd, tokens, branching):
    """What is laid out counts, padding included; only a bundle on its own may take more."""
    bundles = Bundles.divide(crowd, max_unshared_tokens=2, branching=branching)
    order = torch.arange(len(bundles.cost)).flip(0)
    parts = bundles.micro_batches(tokens, order)
    assert sorted(torch.cat(parts).tolist()) == sorted(order.tolist())
    for part in parts:
        columns = pack(bundles.select(part)[0].positions, PAD, branching=branching).tokens
        assert columns <= tokens or len(part) == 1
    if pack(crowd, PAD, branching=branching).tokens <= tokens:
        assert [part.tolist() for part in parts] == [order.tolist()]


@settings(deadline=None)
@given(crowds(), st.integers(1, 60) | st.just(10**6), st.booleans())
def test_passes_keep_within_the_budget_and_read_everything_once(crowd, tokens, branching):
    """Even those of one bundle; only a row on its own may take more."""
    passes = pack_in_passes(crowd, PAD, tokens, branching)
    assert sorted(torch.cat([here for _, here in passes]).tolist()) == list(range(len(crowd)))
    for packed, here in passes:
        assert packed.tokens <= tokens or len(packed.token_ids) == 1
        for reading, q in enumerate(here.tolist()):
            prompt, beginning = crowd[q]
            assert tokens_seen(packed, reading) == (*prompt, *beginning)
    if pack(crowd, PAD, branching=branching).tokens <= tokens:
        assert len(passes) == 1


def test_a_long_prompt_is_not_padded_for_beside_short_ones():
    crowd: list[Position] = [((i, *range(100)), (b,)) for i in range(200, 280) for b in (1, 2)]
    crowd.insert(7, ((9, *range(8000)), ()))
    bundles = Bundles.divide(crowd)
    parts = bundles.micro_batches(16_384)
    laid_out = [pack(bundles.select(part)[0].positions, PAD).tokens for part in parts]
    assert max(laid_out) <= 16_384
    assert sum(laid_out) <= 1.1 * int(bundles.cost.sum())


# --- long actions -----------------------------------------------------------------------------


@settings(deadline=None)
@given(crowds(), st.data())
def test_beginnings_are_laid_out_as_tuples_are(crowd, data):
    """A beginning is a view of its action, and in everything else the tuple of its tokens."""
    longer = [(p, (*b, *data.draw(beginnings))) for p, b in crowd]
    views: list[Position] = [
        (p, Beginning(whole, len(b))) for (p, b), (_, whole) in zip(crowd, longer, strict=True)
    ]
    assert views == crowd
    assert list(map(hash, views)) == list(map(hash, crowd))
    one, other = pack(views, PAD), pack(crowd, PAD)
    assert torch.equal(one.token_ids, other.token_ids)
    assert torch.equal(one.row, other.row)
    assert torch.equal(one.column, other.column)
    one, other = (Bundles.divide(some, max_unshared_tokens=2) for some in (views, crowd))
    assert torch.equal(one.assignment, other.assignment)
    assert torch.equal(one.cost, other.cost)


@settings(deadline=None)
@given(st.data())
def test_renumbering_inverts_a_selection(data):
    size = data.draw(st.integers(1, 9))
    kept = data.draw(st.permutations(range(size)))[: data.draw(st.integers(0, size))]
    new = renumber(torch.tensor(kept, dtype=torch.int64), size)
    assert new.tolist() == [kept.index(i) if i in kept else -1 for i in range(size)]


@pytest.mark.parametrize(
    ("a", "b", "count"),
    [((), (1,), 0), ((1, 2), (1, 2), 2), ((1, 2), (1, 2, 3), 2), ((1,), (2,), 0)],
)
def test_the_common_prefix_ends_where_two_sequences_differ(a, b, count):
    assert common_prefix_length(a, b) == common_prefix_length(b, a) == count


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("branch", [(71,), ()])
def test_gradients_are_those_of_each_row_alone(zoo: Zoo, architecture, branch):
    model = zoo.load(architecture)
    crowd = [(LONG, (70, 70)), (SHORT, (70,)), (SHORT, branch)]

    def gradients(logits: Tensor) -> list[Tensor]:
        score = logits.log_softmax(-1)[:, 30:33].sum()
        return list(torch.autograd.grad(score, model.parameters()))

    found = gradients(model.logits(model.read(pack(crowd, PAD))))
    expected = gradients(torch.stack([next_token_logits(model, *p, *rest) for p, rest in crowd]))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=EXACT, atol=EXACT)
