"""Records read back as they were written, and a file that does not fit is named with its key."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_run import episode, evaluation, summary, turn

from poad.config import Config
from poad.errors import ConfigError, RunError
from poad.runs import EpisodeRecord, Run, RunSummary, decode, encode, stored


@dataclass(frozen=True)
class Inner:
    """Two fields of every simple kind."""

    name: str
    pair: tuple[int, float]


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Every kind of field that a record may have."""

    kind: Literal["a", "b"]
    value: float
    soon: float = field(metadata=stored(null=math.inf))
    renamed: int = field(metadata=stored("return"))
    many: tuple[Inner, ...]
    by_name: dict[str, Inner]
    maybe: Inner | None
    flat: Inner | None = field(default=None, metadata=stored(flat=True))
    left_out: int = 0


INNER = Inner("x", (1, 0.5))
OUTER = Outer(
    kind="a", value=1.5, soon=2.0, renamed=3, many=(INNER,), by_name={"k": INNER}, maybe=None
)


def through_json(record: Any) -> Any:
    line = json.dumps(encode(record), allow_nan=False)
    return decode(type(record), json.loads(line), "a line")


@pytest.mark.parametrize(
    "record",
    [
        OUTER,
        Outer(kind="b", value=1, soon=0, renamed=0, many=(), by_name={}, maybe=INNER, flat=INNER),
        turn(offered=None),
        episode(turns=[]),
        episode(checkpoint=None),
        summary(),
        summary(evaluation={"greedy": evaluation()}, sampled=evaluation(), plan={"a": [1, None]}),
    ],
)
def test_a_record_reads_back_as_it_was_written(record: Any):
    assert through_json(record) == record


KEYS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
ARGS = st.recursive(
    KEYS | st.dates() | st.binary() | st.just({"yaml": "1"}),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.sets(KEYS, max_size=3)
    ),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.text(max_size=4), ARGS, max_size=2))
def test_the_arguments_of_a_world_read_back_as_they_were(args: dict[str, Any]):
    back = through_json(episode(env_args=args, turns=[])).env_args
    assert repr_of(back) == repr_of(args)


def repr_of(value: Any) -> str:
    """A text that tells values apart by their types, and does not depend on the order of sets."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {repr_of(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(repr_of, value)) + "]"
    return repr(sorted(map(repr, value))) if isinstance(value, set) else repr(value)


def test_arguments_that_json_would_merge_stay_apart():
    args = {"rewards": {1: 2, "1": 3}, "penalty": math.inf, "size": 3}
    stored = encode(episode(env_args=args, turns=[]))["env_args"]
    assert stored == {
        "rewards": {"yaml": "{1: 2, '1': 3}"},
        "penalty": {"yaml": ".inf"},
        "size": 3,
    }


def test_arguments_that_no_file_holds_are_refused():
    with pytest.raises(ConfigError, match="would be read back"):
        encode(episode(env_args={"size": (3, 4)}, turns=[]))


def test_keys_stand_in_the_order_of_the_fields_and_defaults_are_left_out():
    assert list(encode(OUTER)) == ["kind", "value", "soon", "return", "many", "by_name", "maybe"]
    flat = Outer(**{**OUTER.__dict__, "flat": INNER, "left_out": 7})
    assert list(encode(flat))[-3:] == ["name", "pair", "left_out"]


def test_null_is_nan_unless_the_field_says_otherwise():
    lost = Outer(**{**OUTER.__dict__, "value": math.nan, "soon": math.inf})
    assert (encode(lost)["value"], encode(lost)["soon"]) == (None, None)
    back = through_json(lost)
    assert math.isnan(back.value)
    assert back.soon == math.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "c"}, "kind: expected one of 'a', 'b', found 'c'"),
        ({"value": "1"}, "value: expected a number, found '1'"),
        ({"return": 1.5}, "return: expected int, found 1.5"),
        ({"return": True}, "return: expected int, found True"),
        ({"many": [{"name": "x", "pair": [1]}]}, "many: 0: pair: expected a list of 2"),
        ({"many": {}}, "many: expected a list"),
        ({"by_name": {"k": {"name": "x"}}}, "by_name: k: the key 'pair' is missing"),
        ({"maybe": 3}, "maybe: expected an object, found 3"),
        ({"new": 1}, "the key 'new' is unknown"),
        ({"name": "x"}, "the key 'pair' is missing"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_file_and_key(
    change: dict[str, Any], message: str
):
    with pytest.raises(RunError) as caught:
        decode(Outer, encode(OUTER) | change, "here.json, line 3")
    assert str(caught.value).startswith(f"here.json, line 3: {message}")


def test_a_missing_key_is_named():
    values = encode(OUTER)
    del values["return"]
    with pytest.raises(RunError, match=r"here: the key 'return' is missing\. Was it edited"):
        decode(Outer, values, "here")
    with pytest.raises(RunError, match=r"here: expected an object, found \[\]"):
        decode(Outer, [], "here")


def test_the_files_of_a_run_name_themselves(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    run.add_episodes([episode(1)])
    with (run.path / "episodes.jsonl").open("a") as file:
        file.write('{"seed": 2}\n')
    with pytest.raises(RunError, match=r"episodes.jsonl, line 2: the key 'env' is missing"):
        list(run.episodes())
    (run.path / "summary.json").write_text('{"env": 3}')
    with pytest.raises(RunError, match=r"summary.json: env: expected str, found 3"):
        run.summary()


def test_the_files_have_the_keys_that_the_documentation_lists():
    """In docs/runs.md, in this order."""
    text = (Path(__file__).parents[2] / "docs" / "runs.md").read_text(encoding="utf-8")
    for record in (encode(episode()), encode(turn()), encode(summary(evaluation={}))):
        assert [key for key in record if f"`{key}`" not in text] == []


def test_the_files_of_earlier_versions_are_read():
    line = {
        "env": "poad/TomatoSalad-v0",
        "env_args": {},
        "mode": "greedy",
        "checkpoint": None,
        "versions": {"python": "3.11", "poad": None},
        "seed": 1000000,
        "return": 0.5,
        "length": 7,
        "success": True,
        "ending": "truncated",
        "turns": [],
    }
    assert encode(decode(EpisodeRecord, line, "a line")) == line
    outcome = {
        "env": "poad/TomatoSalad-v0",
        "method": "poad",
        "seed": 0,
        "status": "finished",
        "iteration": 2,
        "env_steps": 128,
        "cpu_seconds": 1.5,
        "wall_seconds": None,
        "training_episodes": 9,
        "episodes": 1,
        "success_rate": 1.0,
        "success_interval": [0.2, 1.0],
        "mean_return": 1.1,
        "mean_length": 8.0,
        "evaluation": {},
        "logprob_drift": {"largest": 1e-7, "mean": 1e-8},
        "plan": {"predicted_memory": 1},
    }
    assert list(encode(decode(RunSummary, outcome, "a file")).items()) == list(outcome.items())
