"""Packing shares work and changes nothing: every position reads as if it stood alone."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CONFIGURATIONS, Zoo, next_token_logits
from torch import Tensor

from poad.batch import Packed, Position, pack
from poad.models import LanguageModel

PAD = 1
LONG, SHORT = (11, 12, 13, 14, 15, 16, 17), (21, 22)

prompts = st.lists(st.integers(5, 60), min_size=1, max_size=8).map(tuple)
# Of two tokens only, so that beginnings meet and part again.
beginnings = st.lists(st.integers(70, 71), max_size=4).map(tuple)


@st.composite
def crowds(draw: st.DrawFn) -> list[Position]:
    """Positions in any order, some repeated, several behind each prompt."""
    some = draw(st.lists(prompts, min_size=1, max_size=3))
    crowd = st.lists(st.tuples(st.sampled_from(some), beginnings), min_size=1, max_size=12)
    return draw(crowd)


def read(model: LanguageModel, packed: Packed) -> Tensor:
    with torch.no_grad():
        return model.logits(model.read(packed))


def read_alone(model: LanguageModel, crowd: list[Position]) -> Tensor:
    with torch.no_grad():
        return torch.stack([next_token_logits(model, *prompt, *rest) for prompt, rest in crowd])


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def nodes(crowd: list[Position]) -> int:
    """Distinct tokens behind prompts: one for each beginning of a beginning."""
    return len({(p, rest[:j]) for p, rest in crowd for j in range(1, len(rest) + 1)})


# --- the law ----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", CONFIGURATIONS)
def test_packed_positions_read_as_they_do_alone(zoo: Zoo, architecture):
    model = zoo.load(architecture)

    @settings(deadline=None, max_examples=30)
    @given(crowds(), st.integers(1, 20))
    def check(crowd, max_nodes):
        same(read(model, pack(crowd, PAD, max_nodes)), read_alone(model, crowd))

    check()


def test_any_rows_in_any_order_read_the_same(zoo: Zoo):
    model = zoo.load()

    @settings(deadline=None, max_examples=25)
    @given(crowds(), st.integers(1, 6), st.data())
    def check(crowd, max_nodes, data):
        packed = pack(crowd, PAD, max_nodes)
        everything = read(model, packed)
        rows = data.draw(st.permutations(range(len(packed.token_ids))))
        rows = torch.tensor(rows[: data.draw(st.integers(1, len(rows)))])
        part, kept = packed.select(rows)
        assert kept.tolist() == [q for q, row in enumerate(packed.row) if row in rows]
        same(read(model, part), everything[kept])

    check()


@settings(deadline=None, max_examples=30)
@given(crowds(), st.integers(1, 6), st.data())
def test_selected_rows_are_as_narrow_as_if_packed_alone(crowd, max_nodes, data):
    packed = pack(crowd, PAD, max_nodes)
    row = data.draw(st.integers(0, len(packed.token_ids) - 1))
    part, _ = packed.select(torch.tensor([row]))
    assert part.tokens == int(packed.mask[row].sum())
    assert part.mask.all()


@pytest.mark.parametrize("crowd", [[(LONG, (70,)), (SHORT, (71,))], [(LONG, (70,)), (LONG, (71,))]])
def test_what_stands_in_the_padding_does_not_matter(zoo: Zoo, crowd):
    model = zoo.load()
    packed = pack([*crowd, (SHORT, ())], PAD)
    assert not packed.mask.all()
    noise = torch.randint_like(packed.token_ids, 5, 60)
    noisy = replace(packed, token_ids=packed.token_ids.where(packed.mask, noise))
    same(read(model, noisy), read(model, packed))


def test_neighbours_do_not_matter(zoo: Zoo):
    model = zoo.load()
    mine: Position = (SHORT, (70, 71))
    alone = read(model, pack([mine], PAD))
    for crowd in ([(LONG, (71,) * 9)], [(SHORT, (70, 70)), (SHORT, (71, 70))]):
        same(read(model, pack([*crowd, mine], PAD))[-1:], alone)


# --- as little as possible --------------------------------------------------------------------


@settings(deadline=None)
@given(prompts, st.lists(beginnings, min_size=1, max_size=12))
def test_a_prompt_and_every_shared_beginning_are_computed_once(prompt, some):
    crowd = [(prompt, rest) for rest in some]
    packed = pack(crowd, PAD)
    assert packed.token_ids.shape == (1, len(prompt) + nodes(crowd))
    assert packed.mask.all()


@settings(deadline=None)
@given(crowds(), st.integers(1, 6))
def test_trees_beyond_the_limit_are_split_between_beginnings(crowd, max_nodes):
    packed = pack(crowd, PAD, max_nodes)
    width = max(len(prompt) for prompt, _ in crowd)
    longest = max(len(rest) for _, rest in crowd)
    planted = packed.mask[:, width:].sum(1)
    assert planted.max() <= max(max_nodes, longest)
    if planted.sum() == nodes(crowd):  # nothing had to be computed twice
        return
    assert len(packed.token_ids) > len({prompt for prompt, _ in crowd})


@settings(deadline=None)
@given(crowds())
def test_the_smallest_limit_gives_rows_that_do_not_branch(crowd):
    assert pack(crowd, PAD, max_nodes=1).attention is None
    branches = {(p, rest[:j]) for p, rest in crowd for j in range(len(rest) + 1)}
    forks = sum(
        (p, (*rest, 70)) in branches and (p, (*rest, 71)) in branches for p, rest in branches
    )
    assert (pack(crowd, PAD).attention is None) == (forks == 0)


def test_prompts_end_in_one_column_and_positions_count_real_tokens():
    packed = pack([(LONG, (70,)), (SHORT, (70, 70)), (SHORT, (71,))], PAD)
    assert packed.token_ids.tolist() == [
        [*LONG, 70, PAD, PAD],
        [*[PAD] * 5, *SHORT, 71, 70, 70],
    ]
    assert packed.mask.tolist() == [[True] * 8 + [False] * 2, [False] * 5 + [True] * 5]
    assert packed.position_ids[0, :8].tolist() == list(range(8))
    assert packed.position_ids[1, 5:].tolist() == [0, 1, 2, 2, 3]
    assert packed.row.tolist() == [0, 1, 1]
    assert packed.column.tolist() == [7, 9, 7]
    assert packed.attention is not None
    sees = packed.attention[1, 0]
    assert sees[9].nonzero().squeeze(1).tolist() == [5, 6, 8, 9]  # its branch, not its neighbour's
    assert sees[7].nonzero().squeeze(1).tolist() == [5, 6, 7]


def test_moving_to_a_device_keeps_everything():
    for crowd in ([(LONG, (70,)), (LONG, (71,))], [(LONG, (70,))]):
        packed = pack(crowd, PAD)
        moved = packed.to(torch.device("cpu"))
        for field in fields(Packed):
            one, other = getattr(packed, field.name), getattr(moved, field.name)
            assert other is None if one is None else torch.equal(one, other)


# --- learning through it ----------------------------------------------------------------------


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
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
