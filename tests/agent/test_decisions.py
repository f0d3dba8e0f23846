"""Decisions are merged and laid out once: nothing is computed twice, nothing mixed up."""

from __future__ import annotations

import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tokens_seen
from torch import Tensor

from poad.agent.decisions import DecisionBatch, DecisionTable
from poad.lm.packing import Packed, pack
from poad.trie import ROOT, ActionTrie
from poad.turns import Action, Position, TokenIds

END, PAD = 9, 0
SHORT, LONG = (11, 12), (13, 14, 15, 16, 17)
TEXTS = ("open", "open red door", "look", "take it")
TRIE = ActionTrie.build([(1, END), (1, 2, 3, END), (4, END), (5, 6, END)], TEXTS)

prompts = st.sampled_from([SHORT, LONG, (18,)])
offers = st.lists(
    st.lists(st.integers(1, 3), min_size=1, max_size=4).map(lambda tokens: (*tokens, END)),
    min_size=2,
    max_size=6,
    unique=True,
)


def laid_out(batch: DecisionBatch) -> Packed:
    """The rows in which the readings lie."""
    return pack(batch.positions, batch.pad_id)


def described(batch: DecisionBatch, q: int) -> list[tuple[list[tuple[TokenIds, int]], float]]:
    """Describe one decision: for each option its (seen tokens, token) pairs and its divisor."""
    options = []
    for k in batch.option_mask[q].nonzero().squeeze(1).tolist():
        places = batch.token_mask[q, k].nonzero().squeeze(1).tolist()
        read, token = batch.read[q, k], batch.token[q, k]
        path = [(tokens_seen(laid_out(batch), int(read[a])), int(token[a])) for a in places]
        options.append((path, float(batch.divisor[q, k])))
    return options


@st.composite
def tables(draw: st.DrawFn) -> tuple[DecisionTable, list[Position]]:
    """Draw decisions of every kind over a few prompts, and further positions."""
    table = DecisionTable()
    score = draw(st.sampled_from(["word", "token", "sum"]))
    for _ in range(draw(st.integers(1, 4))):
        prompt, sequences = draw(prompts), draw(offers)
        trie = ActionTrie.build(sequences, [f"act {k}" for k in range(len(sequences))])
        kind = draw(st.sampled_from(["node", "actions", "vocabulary"]))
        if kind == "node":
            for node in range(ROOT, len(trie.tokens)):
                if len(trie.children[node + 1]) > 1:
                    table.at_node(prompt, trie, node)
        elif kind == "actions":
            table.between_actions(prompt, trie, score, draw(st.booleans()))
        if kind == "vocabulary" or not len(table):
            sequence = draw(st.sampled_from(sequences))
            for j, token in enumerate(sequence):
                table.of_vocabulary((prompt, sequence[:j]), token)
    return table, draw(st.lists(st.tuples(prompts, st.just((1, 2))), unique=True))


# --- one decision -----------------------------------------------------------------------------


def test_at_a_node_the_options_are_its_children():
    table = DecisionTable()
    root, inner = table.at_node(SHORT, TRIE, ROOT), table.at_node(SHORT, TRIE, 0)
    batch = table.batch(PAD)
    assert described(batch, root) == [([(SHORT, token)], 1.0) for token in (1, 4, 5)]
    assert described(batch, inner) == [([((*SHORT, 1), token)], 1.0) for token in (END, 2)]
    assert batch.renormalize.all()


@pytest.mark.parametrize(
    ("score", "score_end", "divisors"),
    [
        ("word", False, [1, 3, 1, 2]),
        ("word", True, [1, 3, 1, 2]),
        ("token", False, [1, 3, 1, 2]),
        ("token", True, [2, 4, 2, 3]),
        ("sum", False, [1, 1, 1, 1]),
        ("sum", True, [1, 1, 1, 1]),
    ],
)
def test_between_actions_the_options_are_whole_actions(score, score_end, divisors):
    table = DecisionTable()
    batch_of_one = table.between_actions(SHORT, TRIE, score, score_end)
    batch = table.batch(PAD)
    expected = []
    for leaf, divisor in zip(TRIE.leaves, divisors, strict=True):
        tokens = TRIE.token_path(leaf)
        counted = tokens if score_end else tokens[:-1]
        path = [((*SHORT, *tokens[:j]), token) for j, token in enumerate(counted)]
        expected.append((path, float(divisor)))
    assert described(batch, batch_of_one) == expected
    assert batch.renormalize.all()


def test_words_are_counted_in_the_text_not_in_tokens():
    trie = ActionTrie.build([(1, 2, 3, END), (4, END)], ["look", "a red door"])
    table = DecisionTable()
    table.between_actions(SHORT, trie, "word", False)
    assert table.batch(PAD).divisor.tolist() == [[1.0, 3.0]]


def test_of_the_vocabulary_the_options_are_the_tokens_that_were_taken():
    table = DecisionTable()
    position = (SHORT, (1,))
    taken = [table.of_vocabulary(position, token) for token in (7, 8, 7)]
    elsewhere = table.of_vocabulary((LONG, (1,)), 7)
    assert taken == [(0, 0), (0, 1), (0, 0)]
    assert elsewhere == (1, 0)
    batch = table.batch(PAD)
    assert described(batch, 0) == [([((*SHORT, 1), 7)], 1.0), ([((*SHORT, 1), 8)], 1.0)]
    assert not batch.renormalize.any()


# --- many decisions ---------------------------------------------------------------------------


def test_identical_decisions_are_merged():
    table = DecisionTable()
    for _ in range(2):
        assert table.at_node(SHORT, TRIE, ROOT) == 0
        assert table.at_node(LONG, TRIE, ROOT) == 1
        assert table.between_actions(SHORT, TRIE, "sum", False) == 2
        assert table.of_vocabulary((SHORT, ()), 4) == (3, 0)
    assert len(table) == 4


def test_every_position_is_read_once_however_many_decisions_need_it():
    table = DecisionTable()
    table.at_node(SHORT, TRIE, ROOT)
    table.between_actions(SHORT, TRIE, "sum", False)
    table.of_vocabulary((SHORT, (1,)), 2)
    batch = table.batch(PAD, extra_positions=[(SHORT, ()), (SHORT, (5,))])
    # The root, then behind 1, 1·2 and 5; the last tokens are predicted and never read.
    assert sorted(tokens_seen(laid_out(batch), r)[2:] for r in range(len(laid_out(batch).row))) == [
        *((), (1,), (1, 2), (5,))
    ]
    assert [tokens_seen(laid_out(batch), r) for r in batch.extra_readings.tolist()] == [
        SHORT,
        (*SHORT, 5),
    ]
    assert laid_out(batch).token_ids.shape == (1, len(SHORT) + 3)


@settings(deadline=None)
@given(tables())
def test_padding_is_masked_and_points_at_real_readings(made):
    table, extra = made
    batch = table.batch(PAD, extra)
    q, k, _ = batch.read.shape
    assert len(table) == q
    assert batch.option_mask.shape == batch.divisor.shape == (q, k)
    assert torch.equal(batch.option_mask, batch.token_mask.any(2))
    assert batch.option_mask[:, 0].all()
    assert int(batch.read.max()) < len(laid_out(batch).row)
    assert [tokens_seen(laid_out(batch), r) for r in batch.extra_readings.tolist()] == [
        (*p, *b) for p, b in extra
    ]


@settings(deadline=None)
@given(tables())
def test_a_decision_lies_in_one_bundle(made):
    batch = made[0].batch(PAD, made[1])
    bundles = batch.bundles.assignment[batch.read]
    assert torch.equal(bundles, bundles[:, :1, :1].expand_as(bundles))


def test_a_decision_between_many_long_actions_is_not_divided():
    sequences = [(k, *range(20), END) for k in range(20, 40)]
    trie = ActionTrie.build(sequences, [f"act {k}" for k in range(20)])
    table = DecisionTable()
    table.between_actions(SHORT, trie, "sum", False)
    batch = table.batch(PAD)
    assert batch.bundles.cost.tolist() == [len(SHORT) + 20 * 20]
    nodes = DecisionTable()
    for node in range(len(trie.tokens)):
        nodes.of_vocabulary((SHORT, trie.token_path(node)), END)
    assert len(nodes.batch(PAD).bundles.cost) > 1  # tokens are decisions of their own


@settings(deadline=None)
@given(tables(), st.data())
def test_selected_bundles_hold_the_same_decisions(made, data):
    table, extra = made
    batch = table.batch(PAD, extra)
    count = len(batch.bundles.cost)
    bundles = data.draw(st.permutations(range(count)))[: data.draw(st.integers(1, count))]
    part, kept, kept_extra = batch.select(torch.tensor(bundles))
    lies_in = batch.bundles.assignment[batch.read[:, 0, 0]].tolist()
    assert kept.tolist() == [q for q in range(len(table)) if lies_in[q] in bundles]
    assert part.bundles.cost.tolist() == batch.bundles.cost[bundles].tolist()
    for q, whole in enumerate(kept.tolist()):
        assert described(part, q) == described(batch, whole)
        assert part.renormalize[q] == batch.renormalize[whole]

    def places(of: DecisionBatch, which: Tensor) -> list[TokenIds]:
        return [tokens_seen(laid_out(of), reading) for reading in which.tolist()]

    assert places(part, part.extra_readings) == places(batch, batch.extra_readings[kept_extra])
    seen = {q for b in range(count) for q in batch.select(torch.tensor([b]))[1].tolist()}
    assert seen == set(range(len(table)))  # every decision lies in one of the bundles


def test_bundles_that_hold_only_further_positions_hold_no_decision():
    table = DecisionTable()
    table.at_node(SHORT, TRIE, ROOT)
    batch = table.batch(PAD, extra_positions=[(LONG, (1,))])
    part, kept, kept_extra = batch.select(batch.bundles.assignment[batch.extra_readings])
    assert (len(kept), kept_extra.tolist(), part.extra_readings.tolist()) == (0, [0], [0])
    assert part.read.shape[0] == 0


def test_nothing_to_decide_is_an_error():
    with pytest.raises(ValueError, match="held a choice"):
        DecisionTable().batch(PAD)


def test_a_long_action_costs_memory_in_proportion_to_its_length():
    def peak(length: int) -> int:
        tokens = tuple(range(1000, 1000 + length))
        tracemalloc.start()
        action = Action("", tokens, (True,) * length, (0.0,) * length)
        table = DecisionTable()
        for j, token in enumerate(tokens):
            table.of_vocabulary((LONG, action.beginnings[j]), token)
        table.batch(pad_id=0)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(64)  # what is loaded or cached at first
    assert peak(2048) < 3 * peak(1024)
