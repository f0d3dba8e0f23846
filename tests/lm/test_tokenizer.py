"""The border between prompt and action, over tokenizers with different habits."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tiny_models import ACTIONS, PROMPTS, TOKENIZERS, byte_level, sentencepiece_like
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from poad.errors import ModelError
from poad.lm.tokenizer import TextCodec
from poad.trie import ROOT, Form, FormTree, Grammar

STRANGE = ("open the wormhole", "drop 3 eggs!", "say 'naïve'", 'print("a")')
"""Actions the tokenizers were not trained on."""
OFFERS = [*ACTIONS, *STRANGE]


@pytest.fixture(params=TOKENIZERS)
def codec(request: pytest.FixtureRequest) -> TextCodec:
    return TextCodec(TOKENIZERS[request.param]())


@pytest.fixture
def bytes_codec() -> TextCodec:
    return TextCodec(byte_level())


# --- the border -------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompt_and_action_decode_to_themselves_with_a_space_between(codec: TextCodec, prompt):
    for action in OFFERS:
        ids = [*codec.prompt(prompt), *codec.action(action)]
        assert codec.tokenizer.decode(ids, skip_special_tokens=True) == f"{prompt} {action}"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_an_actions_tokens_are_those_that_follow_the_prompt(codec: TextCodec, prompt):
    for action in OFFERS:
        # No tokenizer here merges across the border, so tokenizing both at once must agree.
        jointly = codec.prompt(f"{prompt} {action}")
        assert (*codec.prompt(prompt), *codec.action(action)[:-1]) == jointly


def test_one_end_token_closes_every_action_and_no_prompt(codec: TextCodec):
    for action in OFFERS:
        ids = codec.action(action)
        assert ids[-1] == codec.end_id
        assert ids.count(codec.end_id) == 1
    for prompt in PROMPTS:
        assert codec.end_id not in codec.prompt(prompt)


def test_a_prompt_begins_as_the_model_expects(codec: TextCodec):
    begin = codec.tokenizer.bos_token_id
    for text in PROMPTS:
        ids = codec.prompt(text)
        assert ids.count(begin) == (begin is not None)
        assert begin in (None, ids[0])
    for action in OFFERS:
        assert begin not in codec.action(action)


def test_a_tokenizer_that_merges_across_the_border_cannot_move_it():
    trainer: Any = trainers.BpeTrainer
    splitter: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["go: open"] * 9,
        trainer(
            vocab_size=300, initial_alphabet=alphabet, special_tokens=["<e>"], show_progress=False
        ),
    )
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<e>")
    assert len(whole("go: open")["input_ids"]) == 1  # one token for both
    codec = TextCodec(whole)
    for prompt in ("go:", "stay"):
        tokens = (*codec.prompt(prompt), *codec.action("open")[:-1])
        assert "".join(codec.pieces(tokens)).replace("Ġ", " ") == f"{prompt} open"


# --- text and pieces --------------------------------------------------------------------------


def test_an_action_survives_the_round_trip(codec: TextCodec):
    for action in OFFERS:
        assert codec.text(codec.action(action)) == action
        assert codec.text(codec.action(action)[:-1]) == action  # cut off by the token budget


def test_pieces_are_the_tokens_as_text(bytes_codec: TextCodec):
    ids = bytes_codec.action("open red door")
    pieces = bytes_codec.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == " open red door<|end|>"


def test_there_is_one_readable_piece_for_each_token(codec: TextCodec):
    ids = codec.action("open red door")
    pieces = codec.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces[:-1]).replace(" ", "") == "openreddoor"


# --- tries and caching ------------------------------------------------------------------------


def test_a_trie_holds_the_actions_in_the_order_offered(codec: TextCodec):
    trie = codec.trie(ACTIONS)
    assert trie.texts == ACTIONS
    assert [trie.token_path(leaf) for leaf in trie.leaves] == [codec.action(a) for a in ACTIONS]


def test_the_end_token_lets_one_action_begin_another(codec: TextCodec):
    trie = codec.trie(["open", "open door"])
    for leaf, text in zip(trie.leaves, trie.texts, strict=True):
        last, *_ = reversed(trie.path(leaf))
        assert trie.tokens[last] == codec.end_id
        assert trie.is_choice(last) == (text == "open")  # only there does something go on


def test_encoding_again_returns_the_same_object(codec: TextCodec):
    assert codec.prompt(PROMPTS[0]) is codec.prompt(PROMPTS[0])
    assert codec.action("open door") is codec.action("open door")
    assert codec.trie(list(ACTIONS)) is codec.trie(ACTIONS)
    assert codec.trie(ACTIONS[::-1]) is not codec.trie(ACTIONS)


def test_a_full_cache_is_cleared_and_answers_the_same():
    codec, roomy = TextCodec(byte_level(), cache_bytes=2000), TextCodec(byte_level())
    for _ in range(2):
        for text in (*PROMPTS, *ACTIONS):
            assert codec.prompt(text) == roomy.prompt(text)
            assert codec.action(text) == roomy.action(text)
            for store in (codec._prompts, codec._actions):
                held = sum(len(text) + 36 * len(ids) for text, ids in store.items())
                assert 0 < held <= 2000
    assert codec.trie(ACTIONS[:3]).tokens == roomy.trie(ACTIONS[:3]).tokens


def test_what_the_trees_of_forms_have_grown_counts_in_the_cache():
    codec = TextCodec(byte_level(), cache_bytes=500_000)
    choose = random.Random(0)
    forms = [Form(tuple((f" no {n}{i}", f" yes {i}") for i in range(30))) for n in range(7)]
    told: dict[Form | Grammar, tuple[FormTree, int]] = {}
    forgotten = 0
    for form in forms * 40:
        tree = codec.trie(form)
        forgotten += form in told and told[form][0] is not tree
        told[form] = tree, tree.grown
        held = sum(told[each][1] for each in codec._trees)
        assert held <= 500_000 / 240 or len(codec._trees) == 1
        node = ROOT
        while options := tree.options(node):
            node = choose.choice(options)
    assert 0 < forgotten < 280


# --- errors -----------------------------------------------------------------------------------


def test_an_observation_without_tokens_is_rejected(bytes_codec: TextCodec):
    with pytest.raises(ValueError, match=r"''.*must show some text"):
        bytes_codec.prompt("")


def test_an_empty_observation_is_the_begin_token_if_there_is_one():
    codec = TextCodec(sentencepiece_like(closes=True))
    assert codec.prompt("") == (codec.tokenizer.bos_token_id,)


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_blank_actions_are_rejected(codec: TextCodec, blank):
    with pytest.raises(ValueError, match="has no tokens; a world must offer"):
        codec.trie(["look", blank])


def test_an_action_of_unknown_characters_only_is_rejected():
    trainer: Any = trainers.BpeTrainer
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator([": look"], trainer(special_tokens=["<e>"], show_progress=False))
    codec = TextCodec(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<e>"))
    assert len(codec.action("look")) > 1
    with pytest.raises(ValueError, match="'日本' has no tokens"):
        codec.action("日本")
    with pytest.raises(ValueError, match=r"An action of the form .*日本.* has no tokens"):
        codec.trie(Form((("look", "日本"), ("", "look"))))
    tree = codec.trie(Form((("look", "日本"), ("look",))))
    assert tree.token_path(tree.all_leaves()[1]) == codec.action("look")


def test_a_form_with_a_token_that_the_model_lacks_is_rejected(codec: TextCodec):
    form = Form((("go",), (" tomato", " wait")))
    codec.vocabulary = max(token for action in form for token in codec.action(action))
    with pytest.raises(ModelError, match="Use the model's own tokenizer"):
        codec.trie(form)
    codec.vocabulary += 1
    assert len(codec.trie(form).all_leaves()) == 2


def test_actions_that_mean_the_same_tokens_are_rejected_by_name(codec: TextCodec):
    with pytest.raises(ValueError, match="'look' and 'look' have the same tokens"):
        codec.trie(["look", "wait", "look"])


def test_an_empty_offer_is_rejected(codec: TextCodec):
    with pytest.raises(ValueError, match="at least one action"):
        codec.trie([])


def test_a_tokenizer_without_an_end_of_text_is_rejected():
    tokenizer = byte_level()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"no end-of-text token.*tokenizer\.eos_token"):
        TextCodec(tokenizer)


def test_padding_is_the_tokenizers_own_or_the_end_token():
    with_pad, without = TextCodec(byte_level()), TextCodec(byte_level(pad=False))
    assert with_pad.pad_id == with_pad.tokenizer.pad_token_id != with_pad.end_id
    assert without.tokenizer.pad_token_id is None
    assert without.pad_id == without.end_id
