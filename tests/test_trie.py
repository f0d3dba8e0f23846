"""The tree of offered actions holds all of them, and none of them is ambiguous."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poad.trie import ROOT, ActionTrie

END = 9
NAMES = ("open", "open door", "look", "take tomato")
TOKENS = ((1, END), (1, 2, END), (3, END), (4, 5, END))

# Few tokens, so that beginnings are often shared; the end token rules prefixes out.
offers = st.lists(
    st.lists(st.integers(0, 2), max_size=5).map(lambda tokens: (*tokens, END)),
    min_size=1,
    max_size=12,
    unique=True,
)


def names(count: int) -> list[str]:
    return [f"action {k}" for k in range(count)]


@settings(deadline=None)
@given(offers)
def test_every_action_can_be_read_back_from_its_leaf(sequences):
    trie = ActionTrie.build(sequences, names(len(sequences)))
    assert [trie.token_path(leaf) for leaf in trie.leaves] == sequences
    assert list(trie.texts) == names(len(sequences))


@settings(deadline=None)
@given(offers)
def test_there_is_one_node_for_each_distinct_beginning(sequences):
    trie = ActionTrie.build(sequences, names(len(sequences)))
    beginnings = {s[:j] for s in sequences for j in range(1, len(s) + 1)}
    nodes = range(len(trie.tokens))
    assert sorted(trie.token_path(node) for node in nodes) == sorted(beginnings)


@settings(deadline=None)
@given(offers)
def test_parents_children_paths_and_choices_agree(sequences):
    trie = ActionTrie.build(sequences, names(len(sequences)))
    assert trie.path(ROOT) == ()
    assert trie.token_path(ROOT) == ()
    for node, parent in enumerate(trie.parents):
        assert ROOT <= parent < node
        assert trie.path(node) == (*trie.path(parent), node)
        assert node in trie.children[parent + 1]
        beginning = trie.token_path(node)
        rivals = {
            s[len(beginning) - 1] for s in sequences if s[: len(beginning) - 1] == beginning[:-1]
        }
        assert trie.is_choice(node) == (len(rivals) > 1)
    listed = [child for children in trie.children for child in children]
    assert sorted(listed) == list(range(len(trie.tokens)))
    assert sorted(trie.leaves) == [n for n in range(len(trie.tokens)) if not trie.children[n + 1]]


@settings(deadline=None)
@given(offers)
def test_children_come_in_the_order_in_which_the_actions_were_offered(sequences):
    trie = ActionTrie.build(sequences, names(len(sequences)))
    for node in range(ROOT, len(trie.tokens)):
        beginning = trie.token_path(node)
        there = len(beginning)
        followers = [s[there] for s in sequences if s[:there] == beginning and len(s) > there]
        children = [trie.tokens[child] for child in trie.children[node + 1]]
        assert children == list(dict.fromkeys(followers))


def test_a_small_tree_has_the_nodes_of_its_drawing():
    trie = ActionTrie.build(TOKENS, NAMES)
    #   root ─ 1 ┬ END          open
    #        │   └ 2 ─ END      open door
    #        ├ 3 ─ END          look
    #        └ 4 ─ 5 ─ END      take tomato
    assert trie.tokens == (1, END, 2, END, 3, END, 4, 5, END)
    assert trie.parents == (ROOT, 0, 0, 2, ROOT, 4, ROOT, 6, 7)
    assert trie.leaves == (1, 3, 5, 8)
    assert trie.children[ROOT + 1] == (0, 4, 6)
    assert [trie.is_choice(node) for node in range(9)] == [
        *(True, True, True, False),  # 1 has rivals 3 and 4; after it END and 2 are rivals
        *(True, False),
        *(True, False, False),
    ]


def test_tries_are_compared_by_identity():
    one, other = (ActionTrie.build(TOKENS, NAMES) for _ in range(2))
    assert one != other
    assert len({one, other, one}) == 2


def test_repeated_actions_are_rejected_by_name():
    with pytest.raises(ValueError, match="'look' and 'gaze' have the same tokens"):
        ActionTrie.build([(3, END), (1, END), (3, END)], ["look", "open", "gaze"])


def test_an_action_without_tokens_is_rejected_by_name():
    with pytest.raises(ValueError, match="'wait' has no tokens"):
        ActionTrie.build([(3, END), ()], ["look", "wait"])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_action_that_is_a_prefix_of_another_is_rejected_by_name(order):
    sequences, texts = [(1,), (1, 2)], ["open", "open door"]
    with pytest.raises(ValueError, match=r"'open' is a prefix of another.*end-of-action"):
        ActionTrie.build([sequences[i] for i in order], [texts[i] for i in order])


def test_an_empty_offer_is_rejected():
    with pytest.raises(ValueError, match="at least one action"):
        ActionTrie.build([], [])


def test_every_action_needs_its_text():
    with pytest.raises(ValueError):
        ActionTrie.build(TOKENS, NAMES[:-1])
