"""What is drawn was offered, and each alternative is drawn as often as the others."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poad.envs import Form, Grammar, draw, size_of

TOOLS: Any = {
    "tools": [
        {"name": "wait"},
        {
            "name": "bring",
            "parameters": {
                "type": "object",
                "properties": {
                    "what": {"enum": ["tea", "milk"]},
                    "cups": {"type": "integer", "minimum": 1, "maximum": 3},
                    "hot": {"type": "boolean"},
                },
                "required": ["what", "cups"],
            },
        },
    ]
}


@given(st.integers())
def test_lists_and_forms_are_drawn_from(seed: int):
    rng = random.Random(seed)
    assert draw(("go", "stay"), rng) in ("go", "stay")
    form = Form(tuple((f" no {i}", f" yes {i}") for i in range(70)))
    assert draw(form, rng) in form
    assert size_of(form) == 2**70


def test_every_tool_and_every_value_has_the_same_chance():
    rng = random.Random(0)
    calls = [json.loads(draw(Grammar.of(TOOLS), rng)) for _ in range(6000)]
    named = Counter(call["name"] for call in calls)
    assert abs(named["wait"] - 3000) < 4 * (6000 * 0.25) ** 0.5
    given_ = [call["arguments"] for call in calls if call["name"] == "bring"]
    pairs = Counter((each["what"], each["cups"]) for each in given_)
    assert len(pairs) == 6
    assert all(abs(n - len(given_) / 6) < 4 * (len(given_) * 5 / 36) ** 0.5 for n in pairs.values())
    assert {tuple(each) for each in given_} == {("what", "cups"), ("what", "cups", "hot")}


def test_half_of_the_arguments_repeat_what_was_read_where_something_fits():
    rng, reading = random.Random(0), "Bring 2 cups of tea, or 20. Last: milky tea."
    written = [json.loads(draw(Grammar.of(TOOLS), rng, reading)) for _ in range(6000)]
    calls = [each["arguments"] for each in written if each["name"] == "bring"]
    expected = {("what", "tea"): 3 / 4, ("cups", 2): 2 / 3, ("hot", True): 1 / 2}
    for (name, value), chance in expected.items():
        found = [each[name] for each in calls if name in each]
        near = 4 * (len(found) * chance * (1 - chance)) ** 0.5
        assert abs(found.count(value) - chance * len(found)) < near
    assert {each["cups"] for each in calls} == {1, 2, 3}
    assert {each["what"] for each in calls} == {"tea", "milk"}  # which only part of a word holds


def test_open_texts_repeat_words_that_are_short_enough():
    schema = {"type": "object", "properties": {"to": {"type": "string", "maxLength": 4}}}
    tool = {"name": "send", "parameters": schema | {"required": ["to"]}}
    rng = random.Random(0)
    drawn = [draw(Grammar.of({"tools": [tool]}), rng, "To Ulm, please") for _ in range(2000)]
    sent = Counter(json.loads(text)["arguments"]["to"] for text in drawn)
    assert sent["please"] == 0
    assert abs(sent["Ulm"] + sent["To"] - 1000) < 4 * 500**0.5


@given(st.integers())
def test_several_calls_stand_on_lines_of_their_own(seed: int):
    lines = draw(Grammar.of(TOOLS | {"calls": 3}), random.Random(seed)).split("\n")
    assert 1 <= len(lines) <= 3
    assert {json.loads(line)["name"] for line in lines} <= {"wait", "bring"}


@pytest.mark.parametrize(
    ("source", "holds"),
    [
        ({"regex": "(a|b)+c{2,3}"}, lambda text: re.fullmatch("(a|b)+c{2,3}", text)),
        ({"lark": 'start: "go " ("north" | "south")'}, lambda text: text[3:] in ("north", "south")),
        (
            {"json_schema": {"type": "string", "pattern": "^[xy]{3}$"}},
            lambda text: re.fullmatch("[xy]{3}", json.loads(text)),
        ),
    ],
)
def test_texts_of_other_grammars_are_drawn_whole(source: Any, holds: Any):
    pytest.importorskip("llguidance", reason="grammars need poad[structured]")
    rng = random.Random(1)
    texts = {draw(Grammar.of(source), rng) for _ in range(30)}
    assert len(texts) > 1
    assert all(map(holds, texts))


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ("go .*", "is a dictionary with one of the keys json_schema, regex, lark, tools"),
        ({"regexp": "a"}, "no kind of grammar 'regexp'. Did you mean 'regex'"),
        ({"regex": "a", "lark": "b"}, "one of the keys"),
        ({"regex": ""}, "give a text"),
        ({"regex": "a", "calls": 2}, "only tools have it"),
        ({"tools": []}, "give a list of tools"),
        ({"tools": [{"description": "x"}]}, "Tool 1 is"),
        ({"tools": [{"name": "a"}, {"name": "a"}]}, "two tools of the name 'a'"),
        ({"tools": [{"name": "a", "parameters": 3}]}, "parameters of the tool 'a' are 3"),
        ({"tools": [{"name": "a"}], "calls": 0}, "calls = 0"),
        ({"json_schema": {"const": {1, 2}}}, "is no JSON"),
    ],
)
def test_what_is_no_grammar_is_told(given_: Any, says: str):
    with pytest.raises(ValueError, match=says):
        Grammar.of(given_)
