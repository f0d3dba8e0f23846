"""Calls as text: the grammar says what there is, and whatever an agent writes can be read."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tooldesk_search import all_calls, box, drawn

from poad.envs.tooldesk.calls import Malformed, Toolbox
from poad.envs.tooldesk.desk import TOOLS, Call, run
from poad.envs.tooldesk.families import FAMILIES

TASK = drawn("complaint")
BOX = box(TASK)


def functions(toolbox: Toolbox) -> dict[str, Any]:
    return {each["function"]["name"]: each["function"] for each in toolbox.grammar["tools"]}


def allowed(schema: dict[str, Any]) -> list[Any]:
    """The values of a schema, as its words say."""
    if schema["type"] == "integer":
        return list(range(schema["minimum"], schema["maximum"] + 1))
    return [False, True] if schema["type"] == "boolean" else schema["enum"]


def a_call(toolbox: Toolbox, dice: random.Random) -> Call:
    shown = dice.choice(list(toolbox.shown.values()))
    return Call(shown.tool.name, tuple(dice.choice(choices) for choices in shown.choices))


# --- the grammar ---


@pytest.mark.parametrize("family", FAMILIES)
def test_the_grammar_has_the_shape_of_function_calling_and_all_values(family: str):
    toolbox = box(drawn(family))
    assert json.loads(json.dumps(toolbox.grammar)) == toolbox.grammar
    assert toolbox.grammar.keys() == {"tools"}
    for tool, shown in zip(toolbox.grammar["tools"], toolbox.shown.values(), strict=True):
        assert tool.keys() == {"type", "function"}
        assert tool["type"] == "function"
        function = tool["function"]
        assert function.keys() == {"name", "description", "parameters"}
        assert function["name"] == shown.name
        schema = function["parameters"]
        assert (schema["type"], schema["additionalProperties"]) == ("object", False)
        assert tuple(schema["properties"]) == tuple(schema["required"]) == shown.parameters
        for values, choices in zip(schema["properties"].values(), shown.choices, strict=True):
            assert list(map(repr, allowed(values))) == list(map(repr, choices))
            assert values["description"].endswith(".")


def test_tools_are_those_of_the_task_some_others_and_those_that_end():
    taken = {call.tool for call in TASK.plan} | {"answer", "decline"}
    assert BOX.shown.keys() == TOOLS.keys()
    few = [set(box(TASK, number).shown) for number in range(13)]
    assert few[0] == taken
    for number, (one, more) in enumerate(pairwise(few), 1):
        assert one <= more
        assert len(more) == min(len(TOOLS), len(taken) + number)


def test_open_arguments_are_strings_and_the_others_stay_as_they_are():
    opened, closed = functions(box(TASK, opened=True)), functions(BOX)
    given = opened["open_ticket"]["parameters"]["properties"]
    assert given["customer_id"] == {"type": "string", "description": "Customer."}
    finite = closed["open_ticket"]["parameters"]["properties"]
    assert given["topic"] == finite["topic"]
    assert given["callback"] == {"type": "boolean", "description": "Whether to call back."}
    assert opened["cancel_order"]["parameters"]["properties"]["price"]["maximum"] == 9
    toolbox = box(TASK, opened=True)
    text = '{"name": "get_order", "arguments": {"order_id": "O99"}}'
    assert toolbox.read(text) == Call("get_order", ("O99",))
    with pytest.raises(Malformed, match="order_id of get_order must be a string"):
        toolbox.read('{"name": "get_order", "arguments": {"order_id": 9}}')


def test_the_argument_of_an_answer_is_named_after_what_is_asked_for():
    for family, kind in (("status", "status"), ("cancel", "reference"), ("arrival", "day")):
        schema = functions(box(drawn(family)))["answer"]["parameters"]
        assert schema["required"] == [kind]


# --- writing and reading ---


@pytest.mark.parametrize("masked", [False, True])
def test_a_call_is_written_as_json_dumps_writes_it_and_read_back(masked: bool):
    toolbox = box(TASK, masked=masked)
    for seed in range(300):
        call = a_call(toolbox, random.Random(seed))
        text, shown = toolbox.write(call), toolbox.shown[call.tool]
        arguments = dict(zip(shown.parameters, call.arguments, strict=True))
        assert text == json.dumps({"name": shown.name, "arguments": arguments})
        assert toolbox.read(text) == call


def test_every_admissible_call_can_be_read_back():
    toolbox = box(drawn("status", customers=2))
    assert all(
        toolbox.read(toolbox.write(call)) == call for call in all_calls(toolbox, "open_ticket")
    )


def spelled(name: str, arguments: dict[str, Any]) -> list[str]:
    """The same call in the ways that models and interfaces write it."""
    plain = json.dumps({"name": name, "arguments": arguments})
    texts = {key: v if isinstance(v, str) else json.dumps(v) for key, v in arguments.items()}
    turned = dict(reversed(arguments.items()))
    return [
        plain,
        f"  {plain}\n",
        json.dumps({"arguments": turned, "name": name}, indent=2),
        json.dumps({"name": name, "arguments": arguments}, separators=(",", ":")),
        json.dumps({"name": name, "parameters": arguments}),
        json.dumps({"name": name, "arguments": json.dumps(arguments)}),
        json.dumps({"id": "call_1", "type": "function", "name": name, "arguments": texts}),
        json.dumps({"id": "1", "function": {"name": name, "arguments": json.dumps(arguments)}}),
        f"```json\n{plain}\n```",
        f"```\n{plain}```",
        f"<tool_call>\n{plain}\n</tool_call>",
        f"<tool_call>{plain}",
    ]


@pytest.mark.parametrize("seed", range(30))
def test_a_call_can_be_spelled_in_many_ways(seed: int):
    call = a_call(BOX, random.Random(seed))
    arguments = dict(zip(BOX.shown[call.tool].parameters, call.arguments, strict=True))
    for text in spelled(call.tool, arguments):
        assert BOX.read(text) == call, text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("get the order", "That is no JSON"),
        ("", "That is no JSON"),
        ('{"name": "get_order", "arguments": {"order_id": "O1"}} please', "That is no JSON"),
        ("[" * 100_000, "That is no JSON"),
        ("9" * 10_000, "That is no JSON"),
        ('["get_order"]', "A call must be an object with a name and arguments"),
        ("{}", "There is no tool None"),
        ('{"name": ["x"], "arguments": {}}', r"There is no tool \['x'\]"),
        ('{"name": "get_orders", "arguments": {}}', "There is no tool 'get_orders'"),
        ('{"name": "get_order"}', "The arguments of get_order must be an object"),
        ('{"name": "get_order", "arguments": "O1"}', "That is no JSON"),
        ('{"name": "get_order", "arguments": {}}', "get_order needs the argument 'order_id'"),
        (
            '{"name": "get_order", "arguments": {"order_id": "O1", "item": "lamp"}}',
            "get_order takes no argument 'item'",
        ),
        (
            '{"name": "get_order", "arguments": {"order_id": "O7"}}',
            "order_id of get_order must be one of: O1, O2, O3, O4, O5, O6",
        ),
        (
            '{"name": "cancel_order", "arguments": {"order_id": "O1", "price": 10}}',
            "price of cancel_order must be one of: 1, 2, 3, 4, 5, 6, 7, 8, 9",
        ),
        (
            '{"name": "cancel_order", "arguments": {"order_id": "O1", "price": true}}',
            "price of cancel_order must be one of",
        ),
        (
            '{"name": "cancel_order", "arguments": {"order_id": "O1", "price": NaN}}',
            "price of cancel_order must be one of",
        ),
        (
            '{"name": "cancel_order", "arguments": {"order_id": {"id": "O1"}, "price": 1}}',
            "order_id of cancel_order must be one of",
        ),
    ],
)
def test_what_is_no_call_is_explained(text: str, said: str):
    with pytest.raises(Malformed, match=said):
        BOX.read(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(
    st.text()
    | JSON.map(json.dumps)
    | st.fixed_dictionaries({"name": st.sampled_from(sorted(TOOLS)) | JSON, "arguments": JSON}).map(
        json.dumps
    )
    | st.sampled_from(sorted(TOOLS)).flatmap(
        lambda name: st.fixed_dictionaries(
            {
                "name": st.just(name),
                "arguments": st.fixed_dictionaries(
                    {
                        each.name: JSON | st.sampled_from(["O1", "C1"])
                        for each in TOOLS[name].parameters
                    }
                ),
            }
        ).map(json.dumps)
    ),
    st.booleans(),
)
def test_no_text_breaks_the_reader_or_the_desk(text: str, opened: bool):
    toolbox = box(TASK, opened=opened)
    try:
        call = toolbox.read(text)
    except Malformed:
        return
    run(TASK.desk, call)
    assert toolbox.read(toolbox.write(call)) == call


# --- masks ---


def test_masks_are_distinct_random_words_and_the_tools_are_shuffled():
    boxes = [box(TASK, masked=True, seed=seed) for seed in range(20)]
    for toolbox in boxes:
        names = [name for each in toolbox.shown.values() for name in (each.name, *each.parameters)]
        assert len(set(names)) == len(names) == 14 + 30
        assert all(len(name) == 4 and name.isalpha() for name in names)
        assert toolbox.shown.keys() == BOX.shown.keys()
    assert len({tuple(toolbox.shown) for toolbox in boxes}) == 20
    assert len({toolbox.shown["answer"].name for toolbox in boxes}) >= 19


@pytest.mark.parametrize("seed", range(5))
def test_a_masked_tool_takes_the_same_values_and_means_the_same(seed: int):
    masked = box(TASK, masked=True, seed=seed)
    plain, hidden = functions(BOX), functions(masked)
    assert not plain.keys() & hidden.keys()
    for name, shown in masked.shown.items():
        one, other = plain[name], hidden[shown.name]
        assert one["description"] == other["description"]
        known, renamed = one["parameters"]["properties"], other["parameters"]["properties"]
        assert list(known.values()) == list(renamed.values())
        assert not known.keys() & renamed.keys()
    for number in range(50):
        call = a_call(BOX, random.Random(number))
        assert masked.read(masked.write(call)) == BOX.read(BOX.write(call)) == call
    with pytest.raises(Malformed, match="There is no tool 'answer'"):
        masked.read(BOX.write(TASK.plan[-1]))
