"""A grammar is for the policy what the list of its actions is, and it may describe any number."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import PROMPTS, Zoo, assert_same, byte_level
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from poad.agent.policy import Policy
from poad.agent.sampling import ActingCache
from poad.agent.settings import Acting
from poad.config import PromptConfig
from poad.errors import ConfigError
from poad.lm.cursor import FEW, Cursor, GrammarReader, allowed_tokens
from poad.lm.grammar import GrammarTree
from poad.lm.prompts import codec_for
from poad.lm.tokenizer import MAX_NODES, TextCodec
from poad.trie import Grammar
from poad.turns import Action, Observation, Turn

pytest.importorskip("llguidance", reason="grammars need poad[structured]")
pytestmark = pytest.mark.usefixtures("float64")

DOORS = Grammar.of({"regex": "(open|look at) the (red|reddish|blue) (door|tomato)?"})
LISTED = tuple(
    f"{verb} the {colour} {thing}"
    for verb in ("open", "look at")
    for colour in ("red", "reddish", "blue")
    for thing in ("door", "tomato", "")
)
IDS = {"enum": [f"C{number}" for number in range(10)]}
HUGE = Grammar.of(
    {
        "tools": [
            {"name": "move", "parameters": {"properties": {f"a{i}": IDS for i in range(9)},
             "required": [f"a{i}" for i in range(9)]}},
            {"type": "function", "function": {"name": "wait"}},
        ]
    }
)  # fmt: skip
OPEN = Grammar.of(
    {
        "json_schema": {
            "type": "object",
            "properties": {"say": {"type": "string"}, "to": {"enum": ["cook", "cat"]}},
            "required": ["say", "to"],
            "additionalProperties": False,
        }
    }
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def relearned(policy: Policy, turns: list[Turn]) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of every token as the learner sees it, and as it was recorded."""
    batch, decision, option = policy.decisions(turns)
    again = policy.evaluate(batch).logprob[decision, option].where(decision >= 0, torch.tensor(0.0))
    return again, torch.tensor([value for turn in turns for value in turn.action.logprob])


def turns_of(policy: Policy, observations: list[Observation], actions: list[Action]) -> list[Turn]:
    pairs = zip(observations, actions, strict=True)
    return [Turn(policy.prompt_ids(o), action, 0.0) for o, action in pairs]


@pytest.mark.parametrize("scheme", ["trie", "score"])
@pytest.mark.parametrize("tokenizer", ["bytes", "pieces_first"])
def test_a_small_grammar_is_acted_as_the_list_of_its_texts(zoo: Zoo, tokenizer: str, scheme: Any):
    policy = Policy(zoo.load(tokenizer=tokenizer), Acting(scheme=scheme))
    tree = policy.codec.trie(DOORS)
    texts = [tree.text(leaf) for leaf in tree.all_leaves()]
    assert sorted(texts) == sorted(LISTED)
    chances = policy.probabilities(Observation(PROMPTS[0], DOORS))
    listed = policy.probabilities(Observation(PROMPTS[0], LISTED))
    assert_same(sum(chances), 1.0)
    if tokenizer == "bytes":  # it spells a text in one way wherever it stands
        spelled = [tree.token_path(leaf) for leaf in tree.all_leaves()]
        assert spelled == [policy.codec.action(text) for text in texts]
        by_text = dict(zip(LISTED, listed, strict=True))
        assert_same(torch.tensor(chances), torch.tensor([by_text[text] for text in texts]))


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("grammar", [DOORS, HUGE, OPEN], ids=["doors", "huge", "open"])
def test_what_is_acted_parses_and_is_recorded_exactly(zoo: Zoo, grammar: Grammar, seed: int):
    policy = Policy(zoo.load(), Acting(max_action_tokens=24, temperature=2.0))
    seen = [Observation(prompt, grammar) for prompt in (PROMPTS[1], PROMPTS[1], PROMPTS[2])]
    actions = policy.act(seen, rng(seed), cache=ActingCache())
    for action in actions:
        if grammar is DOORS:
            assert action.text in LISTED
            continue
        said = json.loads(action.text)
        assert action.text == json.dumps(said, ensure_ascii=False) or grammar is OPEN
        if grammar is HUGE:
            assert said["name"] in ("move", "wait")
            assert {*said["arguments"].values()} <= {*IDS["enum"]}
            assert len(said["arguments"]) == (9 if said["name"] == "move" else 0)
        else:
            assert list(said) == ["say", "to"]
            assert said["to"] in ("cook", "cat")
    assert_same(*relearned(policy, turns_of(policy, seen, actions)))


def test_forced_text_is_no_choice_and_one_completion_costs_no_pass(zoo: Zoo):
    policy = Policy(zoo.load())
    only = Grammar.of({"tools": [{"name": "wait"}]})
    (action,) = policy.act([Observation(PROMPTS[0], only)], rng())
    assert action.text == '{"name": "wait", "arguments": {}}'
    assert not any(action.choice)
    (action,) = policy.act([Observation(PROMPTS[0], HUGE)], rng(3))
    fields = json.loads(action.text)["arguments"]
    # The tool, and each of nine arguments; a digit behind its C is one choice.
    assert sum(action.choice) == 1 + len(fields)


def test_the_entropy_of_an_open_text_is_over_what_is_admissible(zoo: Zoo):
    policy = Policy(zoo.load(), Acting(max_action_tokens=12))
    seen = [Observation(PROMPTS[0], OPEN)] * 4
    turns = turns_of(policy, seen, policy.act(seen, rng(1)))
    batch, _, _ = policy.decisions(turns)
    assert batch.allowed is not None
    assert batch.mask is not None
    wide = batch.mask >= 0
    assert wide.any()
    assert not batch.renormalize[wide].any()
    evaluated = policy.evaluate(batch)
    counts = torch.tensor(
        [sum(map(int.bit_count, batch.allowed[row].tolist())) for row in batch.mask[wide]]
    )
    assert (counts > FEW).all()
    entropy = evaluated.entropy[wide]
    assert (entropy <= counts.log() + 1e-9).all()
    # A part of the batch has the same numbers.
    part, kept, _ = batch.select(torch.tensor([0]))
    assert_same(policy.evaluate(part).entropy, evaluated.entropy[kept])


def test_an_endless_grammar_comes_to_its_end_within_the_budget(zoo: Zoo):
    for grammar in (
        OPEN,
        Grammar.of({"lark": 'start: sum\nsum: NUM | "(" sum "+" sum ")"\nNUM: /[1-9][0-9]*/'}),
        Grammar.of({"json_schema": {"type": "array", "items": {"enum": ["a", "b"]}}}),
        Grammar.of({"regex": "(go (north|south) )*stop"}),
    ):
        for budget in (1, 8, 40):
            policy = Policy(zoo.load(), Acting(max_action_tokens=budget, temperature=5.0))
            # Trees are built for a budget, so this needs a codec that has none yet.
            policy.codec._trees.clear()
            tree = policy.codec.trie(grammar)
            for seed in range(10):
                (action,) = policy.act([Observation(PROMPTS[0], grammar)], rng(seed))
                assert len(action.token_ids) <= tree.longest
                if grammar.kind == "regex":
                    assert re.fullmatch(grammar.source, action.text)
                elif grammar.kind == "lark":
                    assert eval(action.text) >= 0
                else:
                    json.loads(action.text)


@pytest.mark.parametrize("scheme", ["score", "published"])
def test_whole_actions_of_a_huge_grammar_are_refused_and_the_way_out_is_named(zoo: Zoo, scheme):
    policy = Policy(zoo.load(), Acting(scheme=scheme))
    for grammar in (HUGE, OPEN):
        with pytest.raises(ConfigError, match=r"more than 4,096. Use a method .* such as poad"):
            policy.act([Observation(PROMPTS[0], grammar)], rng())


@pytest.mark.parametrize("prompt", [{"history": "episode"}, {"thinking": 4}])
def test_grammars_go_with_history_and_thoughts(zoo: Zoo, prompt: dict[str, Any]):
    policy = Policy(zoo.load(), Acting(max_action_tokens=12), prompt=PromptConfig(**prompt))
    for grammar in (HUGE, OPEN):
        dialogue = policy.dialogue()
        ids = dialogue.first_prompt(PROMPTS[0], grammar)
        turns = []
        for _ in range(2):
            (action,) = policy.act([Observation(PROMPTS[0], grammar, ids)], rng())
            turns.append(Turn(ids, action, 0.0))
            json.loads(action.text)
            ids = dialogue.next_prompt(action, PROMPTS[0], grammar)
        assert_same(*relearned(policy, turns))


def test_equal_grammars_share_a_tree_until_it_has_grown_too_large(zoo: Zoo):
    codec = zoo.load().codec
    tree = codec.trie(Grammar(HUGE.kind, HUGE.source))
    assert codec.trie(HUGE) is tree
    choose = rng()
    while tree.grown <= MAX_NODES:
        assert codec.trie(HUGE) is tree
        node = -1
        while options := tree.options(node):
            node = options[choose.integers(len(options))]
    assert codec.trie(HUGE) is not tree


def test_a_tree_is_the_same_however_it_was_walked(zoo: Zoo):
    policy = Policy(zoo.load())
    actions = policy.act([Observation(PROMPTS[0], HUGE)] * 8, rng())
    codec = policy.codec
    reader = GrammarReader(codec.tokenizer, codec.end_id)
    fresh = GrammarTree(HUGE, reader, codec.action_prefix, codec.spare_tokens)
    for action in reversed(actions):
        nodes = fresh.walk(action.token_ids)
        assert fresh.text(nodes[-1]) == action.text
        assert tuple(map(fresh.is_choice, nodes)) == action.choice
    with pytest.raises(ValueError, match="No offered action begins"):
        fresh.walk(policy.codec.action("sing"))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"regex": "("}, "regex parse error"),
        ({"regex": "a*"}, "it admits an empty action"),
        ({"regex": "[^\\s\\S]x"}, "describes no text that begins with"),
        ({"lark": "start: nope"}, 'unknown name: "nope"'),
        ({"json_schema": {"type": "strng"}}, "Invalid type: strng"),
        ({"json_schema": {"not": {"type": "null"}}}, "Unimplemented keys"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}}, "Unsatisfiable"),
        ({"lark": "start: " + '"a" ' * 3000}, "no action of up to 1,024 tokens"),
    ],
)
def test_a_grammar_that_cannot_be_used_is_told_in_a_sentence(zoo: Zoo, source: Any, says: str):
    policy = Policy(zoo.load())
    with pytest.raises(ValueError, match=says) as caught:
        policy.act([Observation(PROMPTS[0], Grammar.of(source))], rng())
    assert "\n" not in str(caught.value)


words = st.lists(st.sampled_from("abcdt "), min_size=1, max_size=4).map("".join)
alternatives = st.lists(words, min_size=1, max_size=4, unique=True)


@settings(deadline=None, max_examples=60)
@given(st.lists(alternatives, min_size=1, max_size=3))
def test_each_text_of_a_finite_grammar_has_the_spelling_of_the_tokenizer(zoo: Zoo, parts):
    """The nodes of the tree lead to all texts, to each once, and spell it as a list would."""
    codec = zoo.load(tokenizer="bytes").codec
    texts = {""}
    for part in parts:
        texts = {before + text for before in texts for text in part}
    rule = "".join(f"({'|'.join(part)})" for part in parts)
    tree = codec.trie(Grammar.of({"regex": rule}))
    spelled = {tree.text(leaf): tree.token_path(leaf) for leaf in tree.all_leaves()}
    assert len(tree.all_leaves()) == len(texts) == len(spelled)
    reader = GrammarReader(codec.tokenizer, codec.end_id).tokenizer
    for text in texts:
        assert spelled[text] == (*reader.tokenize_str(codec.action_prefix + text), codec.end_id)


def real_spelling() -> TextCodec:
    """A tokenizer whose tokens join quotes, brackets and parts of words, as real ones have."""
    texts = ["lamp ladder chair la lam cheese check", '"]))} "}} ...\']))', "wait awaiting"]
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    arguments: Any = {
        "vocab_size": 400,
        "special_tokens": ["<|end|>"],
        "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(),
        "show_progress": False,
    }
    tokenizer.train_from_iterator(texts * 5, trainers.BpeTrainer(**arguments))
    return TextCodec(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>"))


def test_every_value_can_be_written_where_words_share_their_beginnings():
    codec = real_spelling()
    values = ["lamp", "ladder", "la", "chair", "check", "cheese"]
    tree = codec.trie(Grammar.of({"json_schema": {"enum": values}}))
    texts = {tree.text(leaf): tree.token_path(leaf) for leaf in tree.all_leaves()}
    assert sorted(texts) == sorted(map(json.dumps, values))
    assert all(codec.action(text) == tokens for text, tokens in texts.items())


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": "string", "minLength": 5},
        {"type": "string", "pattern": "^[xy]+z$"},
        {"type": "string", "format": "date"},
        {"type": "string", "format": "email"},
        {"type": "integer"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
    ],
    ids=str,
)
def test_open_texts_come_to_an_end_whatever_tokens_there_are(zoo: Zoo, schema: Any):
    for codec in (real_spelling(), zoo.load(tokenizer="bytes").codec):
        tree = codec.trie(Grammar.of({"json_schema": schema}))
        choose = rng(1)
        for _ in range(3):
            node, made = -1, 0
            while (mask := tree.allowed(node)) is not None or tree.options(node):
                if mask is not None:
                    inside = allowed_tokens(mask, 400).nonzero()[0]
                    node, made = tree.child(node, int(choose.choice(inside))), made + 1
                else:
                    options = tree.options(node)
                    node, made = int(choose.choice(options)), made + (len(options) > 1)
            json.loads(tree.text(node))
            assert made <= codec.spare_tokens
            assert len(tree.path(node)) <= tree.longest


def test_a_long_call_is_as_free_as_a_short_one(zoo: Zoo):
    many = {f"field{i}": {"enum": ["one", "two", "three"]} for i in range(12)}
    tools = [
        {"name": "a"},
        {"name": "zlong", "parameters": {"properties": many, "required": [*many]}},
    ]
    policy = Policy(zoo.load(), Acting(max_action_tokens=32, temperature=9.0))
    actions = policy.act([Observation(PROMPTS[0], Grammar.of({"tools": tools}))] * 12, rng())
    long = [action for action in actions if "zlong" in action.text]
    assert len({action.text for action in long}) == len(long) > 2
    assert all(sum(action.choice) >= 13 for action in long)
    assert len({json.loads(action.text)["arguments"]["field11"] for action in long}) > 1


def test_another_budget_takes_another_tree(zoo: Zoo):
    model = zoo.load()
    Policy(model, Acting(max_action_tokens=16))
    short = model.codec.trie(OPEN)
    Policy(model, Acting(max_action_tokens=64))
    assert model.codec.longest(OPEN) > short.longest


def test_a_way_that_was_left_admits_nothing_elsewhere():
    """Tools whose calls are alike up to a place where one ends and the other goes on."""
    whole = {"type": "integer"}
    tools = [
        {"name": "find", "parameters": {"properties": {"a": whole}, "required": ["a"]}},
        {
            "name": "send",
            "parameters": {"properties": {"a": whole, "b": whole}, "required": ["a", "b"]},
        },
    ]
    grammar, codec = Grammar.of({"tools": tools}), codec_for(byte_level(), PromptConfig())
    reader = GrammarReader(codec.tokenizer, codec.end_id)

    def place(tool: str) -> list[int]:
        start = f'{codec.action_prefix}{{"name": "{tool}", "arguments": {{"a": 6'
        return reader.tokenizer.tokenize_bytes(start.encode())

    def new() -> Cursor:
        return Cursor(grammar, reader, codec.action_prefix, None)

    walked = new()
    for tool in ("find", "send", "find", "send"):
        fresh = new()
        for each in (walked, fresh):
            each.go_to(place(tool))
        assert walked.admissible() == fresh.admissible()
        assert walked.ending() == fresh.ending()
    spelled = {reader.tokenizer.decode_str([token]) for token in walked.admissible()[0]}
    assert "," in spelled
    assert "}" not in spelled
