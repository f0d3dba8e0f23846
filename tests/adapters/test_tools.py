"""Classes whose methods are tools, and the schemas of these methods."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poad.adapters.schemas import tool_schema, wrong_with
from poad.envs import CheckedWorld, Grammar, check_env, docstring_of, free_text_of, make
from poad.errors import ConfigError


class Till:
    """A till that adds up."""

    def __init__(self, price: float = 1.5) -> None:
        self.price = price

    def reset(self, seed: int) -> str:
        self.paid, self.done = 0.0, False
        self.due = self.price * (seed % 2 + 1)
        return f"Take {self.due} euros."

    def take(self, halves: Literal[1, 2], times: int = 1) -> str:
        """Take coins.

        Args:
            halves: what a coin is worth
            times: how many of them
        """
        self.paid += halves * times / 2
        return f"{self.paid} euros"

    def look(self) -> dict[str, float]:
        """Look into the till."""
        return {"paid": self.paid, "due": self.due}

    def close(self) -> str:
        if self.paid > self.due:
            raise ValueError("too much money")
        self.done = True
        return ""

    async def wait(self, seconds: float) -> None:
        """Wait."""

    def get_reward(self) -> float:
        return min(self.paid / self.due, 1.0)

    def _count(self) -> None:
        raise AssertionError("no tool")


class Bare:
    """Tools without reset, text or success."""

    success = True

    def knock(self) -> None:
        pass

    def get_reward(self) -> int:
        return -1


class Echo(Bare):
    def say(self, word: str) -> str:
        return word


class Unpaid:
    def knock(self) -> None:
        pass


class NoTools:
    def reset(self) -> None: ...
    def get_reward(self) -> float:
        return 0.0


class Spread:
    def knock(self, *doors: str) -> None: ...


class Strange:
    def knock(self, door: set[str]) -> None: ...


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ModuleType("users_tools")
    vars(found).update({k: v for k, v in globals().items() if isinstance(v, type)})
    monkeypatch.setitem(sys.modules, "users_tools", found)


def call(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


def test_an_episode_of_calls() -> None:
    world = make("tools:users_tools:Till")
    text, info = world.reset(seed=0)
    assert text.startswith("Take 1.5 euros.\n\nYou have these tools:\n- close(): no description\n")
    assert (
        "\n- take(halves: 1 | 2, times: integer = 1): Take coins."
        "\n  halves: what a coin is worth\n  times: how many of them\n- wait("
    ) in text
    assert info["goal"] == "Take 1.5 euros."
    before = info["action_grammar"]
    assert list(before.tools) == [
        tool_schema(getattr(Till, name))["function"] for name in ("close", "look", "take", "wait")
    ]
    text, reward, *_, info = world.step(call("take", halves=2))
    assert (text, reward) == ("1.0 euros", 0.0)
    assert info["action_grammar"] == before
    assert info["measures"] == {"failed_calls": 0.0}
    assert world.step(call("look"))[0] == '{"paid": 1.0, "due": 1.5}'
    assert world.step(call("wait", seconds=0))[0] == "null"
    assert world.step(call("take", halves=1, times=1))[0] == "1.5 euros"
    text, reward, terminated, truncated, info = world.step(call("close"))
    assert (text, reward, terminated, truncated) == ("(no text)", 1.0, True, False)
    assert info["episode"] == {"r": 1.0, "l": 5, "success": True}


def test_rewards_are_read_once_or_after_each_step() -> None:
    paid = []
    for reward in ("end", "step"):
        world = make("tools:users_tools:Till", reward=reward, max_steps=3, price=2)
        world.reset(seed=0)
        steps = [world.step(call("take", halves=1)) for _ in range(3)]
        assert [step[3] for step in steps] == [False, False, True]
        assert steps[-1][-1]["episode"]["r"] == 0.75
        paid.append([step[1] for step in steps])
    assert paid == [[0, 0, 0.75], [0.25, 0.25, 0.25]]


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ("look into the till", "it is no JSON"),
        ("[1]", 'it must be an object with "name" and "arguments"'),
        ('{"arguments": {}}', 'it must be an object with "name" and "arguments"'),
        ('{"name": "look", "arguments": {}, "id": 3}', "alone, without 'id'"),
        (call("tkae", halves=2), "there is no tool 'tkae'. Did you mean 'take'? There are close"),
        (call("reset", seed=3), "there is no tool 'reset'"),
        (call("_count"), "there is no tool '_count'"),
        ('{"name": "look", "arguments": [1]}', '"arguments" must be an object'),
        (call("take"), "'halves' is missing; take takes halves, times"),
        (call("take", halves=2, tmies=2), "there is no 'tmies'; take takes halves, times"),
        (call("take", halves=3), "'halves' is 3; it must be one of 1, 2"),
        (call("take", halves=2, times="two"), "'times' is \"two\"; it must be of the type integer"),
        (call("take", halves=2, times=True), "'times' is true; it must be of the type integer"),
    ],
)
def test_what_is_no_call_changes_nothing_and_is_told(action: str, told: str) -> None:
    world = make("tools:users_tools:Till")
    world.reset(seed=0)
    text, reward, *flags, info = world.step(action)
    assert text.startswith("That is no call of a tool: ")
    assert told in text
    assert info["invalid_action"] == action
    assert info["measures"] == {"failed_calls": 1.0}
    assert (reward, flags) == (0.0, [False, False])
    assert world.step(call("look"))[0] == '{"paid": 0.0, "due": 1.5}'


def test_what_a_tool_raises_is_read_by_the_agent() -> None:
    world = make("tools:users_tools:Till")
    world.reset(seed=0)
    world.step(call("take", halves=2, times=5))
    text, *_, info = world.step(call("close"))
    assert text == "close failed: ValueError: too much money"
    assert info["measures"] == {"failed_calls": 1.0}
    assert "invalid_action" not in info


def test_no_text_of_an_agent_stops_the_world() -> None:
    world = CheckedWorld(make("tools:users_tools:Echo", max_steps=99))
    world.reset(0)
    assert world.step(call("say", word="a\ud800b")).prompt == "a?b"
    assert "there is no tool" in world.step(call("\ud800")).prompt
    assert "it is no JSON" in world.step("[" * 100_000).prompt
    assert "(10,000 characters)" in world.step(call("say", word="a" * 10_000)).prompt
    assert world.step(call("say", word=" ")).prompt == "(no text)"


def test_a_class_may_do_without_most_of_it() -> None:
    world = make("tools:users_tools:Bare", list_tools=False, max_steps=1)
    assert world.reset(seed=0)[0] == "Go."
    *_, info = world.step(call("knock"))
    assert info["episode"] == {"r": -1.0, "l": 1, "success": True}
    assert docstring_of(world) == Bare.__doc__
    world = make("tools:users_tools:Bare", prompt="Knock at the door.")
    text, info = world.reset(seed=0)
    assert text.startswith("Knock at the door.\n\nYou have these tools:\n- knock()")
    assert info["goal"] == "Knock at the door."


def test_calls_are_offered_by_a_grammar_or_written_freely() -> None:
    offered = CheckedWorld(make("tools:users_tools:Till")).reset(0).actions
    assert isinstance(offered, Grammar)
    assert [tool["name"] for tool in offered.tools] == ["close", "look", "take", "wait"]
    assert CheckedWorld(make("tools:users_tools:Till", grammar=False)).reset(0).actions is None


def test_tools_keep_the_contract() -> None:
    check_env(lambda: make("tools:users_tools:Till", grammar=False))
    check_env(lambda: make("tools:users_tools:Till"))
    check_env(lambda: make("tools:users_tools:Bare", reward="step"))
    assert free_text_of("tools:users_tools:Till").stop == ("\n",)


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("NoTools", {}, "has no tools"),
        ("Spread", {}, r"the parameter \*doors"),
        ("Strange", {}, "type set.* JSON cannot say"),
        ("Till", {"reward": "often"}, "reward must be end or step, not 'often'"),
        ("Till", {"prize": 2}, "unexpected keyword argument 'prize'"),
        ("Tlil", {}, "'Tlil' does not exist in the module 'users_tools'. Did you mean 'Till'"),
    ],
)
def test_a_class_that_is_no_toolbox_is_told(name: str, arguments: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make(f"tools:users_tools:{name}", **arguments)


def test_a_missing_reward_is_told() -> None:
    world = CheckedWorld(make("tools:users_tools:Unpaid", max_steps=1))
    world.reset(0)
    with pytest.raises(ConfigError, match="Unpaid has no method get_reward"):
        world.step(call("knock"))


class Shapes:
    def plain(self, a: str, b: int = 3, c: float | None = None, d: bool = False) -> str:
        """Do something
        with it.

        Args:
            a: the first,
                which is long
            b: the second
            c: the third
            d: the last

        Returns:
            nothing: of use
        """
        return ""

    def typed(self, a: int, b: str = "") -> None:
        """Type.

        Args:
            a (int): the first: a number
            b (str, optional): the second
        """

    def nested(self, rows: list[list[int]], names: dict[str, str]) -> None:
        """Nest.

        Args:
            rows: numbers
            names: words
        """

    def sphinx(self, a: Literal["x", "y"], b: Annotated[int, "unit"], c, d: list) -> None:
        """Index.

        :param a: the letter
        :param int b: the number
        :returns: nothing
        """


def test_schemas_are_those_of_transformers() -> None:
    """Its own function needs a docstring for each argument, and lists no defaults."""
    from transformers.utils.chat_template_utils import get_json_schema

    for method in (Shapes.plain, Shapes.nested, Till.look):
        ours, theirs = tool_schema(method), get_json_schema(method)
        parameters = ours["function"]["parameters"]
        assert parameters.pop("additionalProperties") is False
        required = parameters.pop("required")
        assert required == theirs["function"]["parameters"].pop("required", [])
        for name, each in parameters["properties"].items():
            each.pop("default", None)
            if "anyOf" in each:  # transformers writes None as "nullable"
                kinds = [kind for kind in each.pop("anyOf") if kind["type"] != "null"]
                each.update(*kinds, nullable=True)
            their = theirs["function"]["parameters"]["properties"][name]
            their["description"] = " ".join(their["description"].split())
        theirs["function"]["description"] = " ".join(theirs["function"]["description"].split())
        theirs["function"].pop("return", None)
        assert ours == theirs


def test_sphinxs_docstrings_and_unnamed_types_are_read_too() -> None:
    typed = tool_schema(Shapes.typed)["function"]["parameters"]["properties"]
    assert [each["description"] for each in typed.values()] == ["the first: a number", "the second"]
    schema = tool_schema(Shapes.sphinx)["function"]
    assert schema["description"] == "Index."
    assert schema["parameters"]["properties"] == {
        "a": {"type": "string", "enum": ["x", "y"], "description": "the letter"},
        "b": {"type": "integer", "description": "the number"},
        "c": {},
        "d": {"type": "array"},
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=6,
)
ROWS = st.lists(st.lists(st.integers(-5, 5), max_size=2), max_size=2)


@given(ROWS | JSON, st.dictionaries(st.text(max_size=2), st.text(max_size=2)) | JSON)
def test_only_arguments_of_the_right_types_pass(rows: Any, names: Any) -> None:
    def is_int(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    good = (
        isinstance(rows, list)
        and all(isinstance(row, list) and all(map(is_int, row)) for row in rows)
        and isinstance(names, dict)
        and all(isinstance(name, str) for name in names.values())
    )
    schema = tool_schema(Shapes.nested)["function"]["parameters"]
    told = wrong_with({"rows": rows, "names": names}, schema, "nested")
    assert (told is None) == good
