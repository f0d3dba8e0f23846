"""The tree of offered actions holds all of them, and none of them is ambiguous."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poad.trie import MAX_LISTED, ROOT, ActionTrie, Form, FormTree

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


# --- forms ------------------------------------------------------------------------------------

# Few letters, and empty alternatives, so that many forms can write a text in two ways.
alternatives = st.lists(st.text("ab ", max_size=3), min_size=1, max_size=3).map(tuple)
raw_forms = st.lists(alternatives, min_size=1, max_size=4).map(tuple)
token_parts = st.lists(
    st.lists(st.lists(st.integers(0, 1), max_size=3).map(tuple), min_size=1, max_size=3),
    min_size=1,
    max_size=4,
)


def written(parts) -> list[str]:
    """All actions, by brute force."""
    return ["".join(way) for way in product(*parts)]


@settings(deadline=None)
@given(raw_forms, st.text("ab ", max_size=8))
def test_a_form_is_the_list_of_its_actions_or_is_refused(parts, text):
    actions = written(parts)
    if len(set(actions)) < len(actions) or not all(action.strip() for action in actions):
        with pytest.raises(ValueError, match=r"in two ways|whose alternatives all hold words"):
            Form(parts)
        return
    form = Form(parts)
    assert list(form) == actions
    assert (len(form), form.size, bool(form)) == (len(actions), len(actions), True)
    assert [form[i] for i in range(len(actions))] == actions
    assert [form[i - len(actions)] for i in range(len(actions))] == actions
    assert all(action in form for action in actions)
    assert (text in form) == (text in actions)
    assert form == Form(parts)
    assert hash(form) == hash(Form(parts))
    for index in (len(actions), -len(actions) - 1):
        with pytest.raises(IndexError):
            form[index]


@pytest.mark.parametrize("part", ["abc", (), ["a"], ("a", 1)])
def test_a_part_that_is_no_tuple_of_texts_is_named(part):
    with pytest.raises(ValueError, match=r"Part 2 of a form is .*; it must be a tuple"):
        Form((("a",), part))


def numbered(parts) -> Form:
    """A form whose actions say which alternatives they took."""
    return Form(tuple(tuple(f" {i}.{k}" for k in range(len(part))) for i, part in enumerate(parts)))


@settings(deadline=None)
@given(token_parts)
def test_the_tree_of_a_form_is_the_trie_of_its_actions_wherever_it_is_walked(parts):
    form = numbered(parts)
    sequences = [(*sum(way, ()), END) for way in product(*parts)]
    if len(set(sequences)) < len(sequences):
        with pytest.raises(ValueError, match="have the same tokens"):
            FormTree(form, parts, END)
        return
    tree, trie = FormTree(form, parts, END), ActionTrie.build(sequences, list(form))
    for sequence, text in zip(reversed(sequences), reversed(trie.texts), strict=True):
        mine, listed = tree.walk(sequence), trie.walk(sequence)
        assert tree.token_path(mine[-1]) == sequence
        assert tree.text(mine[-1]) == trie.text(listed[-1]) == text
        for one, other in zip((ROOT, *mine), (ROOT, *listed), strict=True):
            options = [tree.token(n) for n in tree.options(one)]
            assert options == [trie.token(n) for n in trie.options(other)]
        assert [tree.is_choice(n) for n in mine] == [trie.is_choice(n) for n in listed]
    assert tree.grown == len(trie.tokens)
    assert [tree.token_path(leaf) for leaf in tree.all_leaves()] == sequences
    assert [tree.text(leaf) for leaf in tree.all_leaves()] == list(trie.texts)


@pytest.mark.parametrize("fields", [13, 30, 200])
def test_of_a_form_too_large_to_list_only_what_is_walked_exists(fields: int):
    form = Form(tuple((f" no{i}", f" yes{i}") for i in range(fields)))
    assert form.size == 2**fields > MAX_LISTED
    assert form[2**fields - 1] in form
    assert form[1] == "".join(f" no{i}" for i in range(fields - 1)) + f" yes{fields - 1}"
    assert form[0][:-1] not in form
    assert str(form).startswith("( no0| yes0)( no1| yes1)")
    with pytest.raises(ValueError, match="is not listed; the limit is 4,096"):
        list(form)
    tree = FormTree(form, [[(2 * i,), (2 * i + 1,)] for i in range(fields)], 2 * fields)
    leaf = tree.walk([*(2 * i + i % 2 for i in range(fields)), 2 * fields])[-1]
    assert tree.text(leaf) == "".join((f" no{i}", f" yes{i}")[i % 2] for i in range(fields))
    assert tree.grown == 2 * fields + 1
    with pytest.raises(ValueError, match="is not listed"):
        tree.all_leaves()
    with pytest.raises(ValueError, match="No offered action begins"):
        tree.walk([1, 1])


def test_a_form_with_many_alternatives_is_shown_in_short():
    form = Form((tuple(f"w{i}" for i in range(100)), (" x",)))
    assert str(form) == "(w0|w1|w2|w3|w4|w5|w6|w7|...) x"
    assert repr(form) == f"<Form of 100 actions: {form}>"
