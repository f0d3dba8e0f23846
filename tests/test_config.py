"""A configuration survives its file unchanged, and a wrong one is rejected with its place."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import math
import types
import typing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from poad.cli.main import main
from poad.config import (
    Config,
    CreditConfig,
    CriticConfig,
    ModelConfig,
    PPOConfig,
    PromptConfig,
    dump,
    from_dict,
    has_frozen_float32,
    load,
    parse_value,
    to_dict,
)
from poad.config.ranges import Above, AtLeast, Between, out_of_range
from poad.errors import ConfigError
from poad.runs import plain

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values that every range check accepts, by annotation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([st.none() if a is type(None) else values(a) for a in arguments])
    if origin is tuple and arguments[-1] is not Ellipsis:
        return st.tuples(*map(values, arguments))
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(st.text(), PLAIN, max_size=3)
    if dataclasses.is_dataclass(hint):
        return configs(hint)
    kinds = {
        bool: st.booleans(),
        int: st.integers(1, 10**12),
        float: st.floats(1e-300, 1.0),
        str: st.text(min_size=1),
    }
    return kinds[hint]


def configs(kind: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    fields = {name: values(hint) for name, hint in hints.items()}
    if kind is Config:  # the third, `stream`, suits only one of the engines
        fields["randomness"] = st.sampled_from(("auto", "shared"))
        fields["workers"] = st.sampled_from(("serial", "threads:3", "processes:16", "ray:2"))
    if kind is CreditConfig:
        fields["group"] = st.integers(2, 10**12)
    built = st.builds(kind, **fields)
    return built.map(without_contradictions)


def without_contradictions(group: Any) -> Any:
    """The same settings, less what makes no sense together."""
    if isinstance(group, ModelConfig) and not has_frozen_float32(group):
        group = replace(group, precision="full")
    if isinstance(group, ModelConfig) and (
        group.tuning == "lora" or (group.shard == "mixed" and group.dtype != "float32")
    ):
        group = replace(group, shard="none")
    if isinstance(group, ModelConfig) and group.tuning == "full":
        dtype = "float32" if group.dtype == "float16" else group.dtype
        return replace(group, quantize="none", dtype=dtype, lora_dropout=0.0)
    if isinstance(group, PPOConfig) and not group.recompute_logprob:
        return replace(group, importance_cap=None)
    if isinstance(group, PromptConfig) and not group.thinking_close.strip():
        return replace(group, thinking_close="so:")
    return group


def groups() -> list[str]:
    return [f.name for f in dataclasses.fields(Config) if "Config" in str(f.type)]


def test_there_are_groups_to_test():
    assert {"model", "acting", "credit", "critic", "ppo", "eval"} <= set(groups())


@settings(deadline=None, max_examples=60)
@given(configs(Config))
@example(Config(env="\x85"))  # YAML takes these for line breaks
@example(Config(env_args={"\u2028": "a\u2029b"}))
def test_any_configuration_reads_back_as_it_was_written(config: Config):
    text = dump(config)
    for read in (yaml.safe_load, parse_value):  # other YAML readers see the same values
        assert from_dict(read(text)) == config
        assert dump(from_dict(read(text))) == text


def test_a_file_reads_back_too(tmp_path: Path):
    config = Config(env="a:b", env_args={"größe": [1, {"x": None}]}, seed=3)
    path = tmp_path / "config.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert load(path) == config
    assert load(str(path)) == config


@settings(deadline=None, max_examples=30)
@given(configs(Config), st.data())
def test_what_is_left_out_is_taken_from_the_base(base: Config, data: st.DataObject):
    whole = to_dict(base)
    dropped = data.draw(st.sets(st.sampled_from(sorted(whole))))
    part = {key: value for key, value in whole.items() if key not in dropped}
    assert from_dict(part, base) == base
    assert from_dict({}, base) == base


def test_a_part_of_a_group_changes_that_part_only():
    config = from_dict({"ppo": {"lr": 0.1}, "seed": 5})
    expected = dataclasses.replace(Config(), seed=5)
    assert config == dataclasses.replace(expected, ppo=dataclasses.replace(Config().ppo, lr=0.1))


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("written", ["1e-4", "1.0e-4", "0.0001", "'1e-4'"])
def test_every_way_to_write_a_small_number_is_understood(written: str, tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(f"ppo:\n  lr: {written}\n")
    assert load(path).ppo.lr == pytest.approx(1e-4)


def test_a_whole_number_will_do_for_a_real_one():
    config = from_dict({"credit": {"lam": 1, "gamma": 0}})
    assert isinstance(config.credit.lam, float)
    assert (config.credit.lam, config.credit.gamma) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("written", "steps"),
    [("1e4", 10_000), ("1.0e+4", 10_000), ("20_000", 20_000), ("'64'", 64), ("64.0", 64)],
)
def test_every_way_to_write_a_whole_number_is_understood(
    written: str, steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "config.yaml"
    path.write_text(f"steps: {written}\n")
    assert load(path).steps == steps
    assert main(["config", "--steps", written.strip("'"), "--critic.hidden", "1e2", "8"]) == 0
    shown = from_dict(parse_value(capsys.readouterr().out))
    assert (shown.steps, shown.critic.hidden) == (steps, (100, 8))
    assert type(shown.steps) is int


@pytest.mark.parametrize(
    ("written", "value"),
    [
        *(("1e-3", 1e-3), ("5E4", 5e4), ("-1e3", -1e3), ("1_000", 1000), (".5", 0.5), ("7", 7)),
        *(("true", True), ("null", None), ("~", None), ("[1, 2.5]", [1, 2.5]), ("a b", "a b")),
        # These look like numbers, and YAML 1.1 would make other numbers of them.
        *(("12:30", "12:30"), ("010", "010"), ("1e", "1e"), ("0x", "0x"), ("=", "=")),
    ],
)
def test_a_worlds_arguments_mean_the_same_in_a_file_and_as_a_flag(
    written: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "config.yaml"
    path.write_text(f"env_args: {{x: {written}}}\n")
    assert main(["config", "--env-args", f"x={written}"]) == 0
    for args in (load(path).env_args, from_dict(parse_value(capsys.readouterr().out)).env_args):
        assert args == {"x": value}
        assert type(args["x"]) is type(value)


@pytest.mark.parametrize(
    "args",
    [
        {"rewards": {1: 0.5, 2: 1.0}, "flags": {True: 1, None: 2, 1.5: 3}},
        {"penalty": math.inf, "start": datetime.date(2024, 1, 1), "rooms": {"a", "b"}},
        {"words": ["1e-3", "007", "no", "12:30", "1_000", "~", "", "=", "0o7", ".inf", "\ud800"]},
        {"nested": [1, [2.0, [True, None]], {}, []]},
    ],
)
def test_a_worlds_arguments_keep_their_types_in_a_file(args: dict[str, Any]):
    def typed(value: Any) -> Any:
        if isinstance(value, dict):
            return [(typed(key), typed(item)) for key, item in value.items()]
        return [typed(v) for v in value] if isinstance(value, list) else (type(value), value)

    back = from_dict(parse_value(dump(Config(env_args=args)))).env_args
    assert typed(back) == typed(args)


class Paint(enum.IntEnum):
    RED = 1


class Word(str):
    """A text of another type."""


KEYS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates()
SIMPLE = KEYS | st.binary() | st.datetimes(timezones=st.sampled_from([None, datetime.UTC]))
ODD = st.sampled_from([(), (1,), np.int64(3), np.float32(0.1), Path("x"), Paint.RED, Word("a"), 1j])
ARGS = st.recursive(
    SIMPLE | ODD,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.sets(KEYS, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=4,
)


def exactly(value: Any) -> Any:
    """A value that equals another only if both are of the same types throughout."""
    if isinstance(value, dict):
        return dict, [(exactly(key), exactly(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [exactly(item) for item in value]
    if isinstance(value, set):
        return set, sorted(map(repr, value))
    return type(value), repr(value)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.text(max_size=4), ARGS, max_size=2))
def test_a_worlds_arguments_come_back_exactly_or_are_refused(args: dict[str, Any]):
    try:
        text = dump(Config(env_args=args))
    except ConfigError as error:
        assert "env_args" in str(error)  # noqa: PT017
    else:
        back = from_dict(parse_value(text))
        assert exactly(back.env_args) == exactly(args)
        assert dump(back) == text
        json.dumps(plain(back.env_args), allow_nan=False)  # records can hold them


def loops() -> dict[str, Any]:
    """Values that contain themselves, at once or by a detour, in every kind of container."""
    in_list: list[Any] = [1, 2, [3]]
    in_list[2].append(in_list)
    in_dict: dict[str, Any] = {"a": {}}
    in_dict["a"]["b"] = in_dict
    in_both: list[Any] = [0]
    in_both.append({"a": [in_both]})
    in_tuple: tuple[list[Any]] = ([],)
    in_tuple[0].append(in_tuple)
    return {"list": in_list, "dict": in_dict, "both": in_both, "tuple": in_tuple}


@pytest.mark.parametrize("kind", loops())
def test_arguments_that_contain_themselves_are_refused_in_a_line(kind: str):
    with pytest.raises(ConfigError) as error:
        dump(Config(env_args={"x": {"y": [loops()[kind], loops()[kind]]}}))
    assert str(error.value) == "env_args refers to itself, which no file can hold."


def test_arguments_may_share_a_value():
    shared = [1]
    assert from_dict(parse_value(dump(Config(env_args={"a": shared, "b": [shared]})))).env_args == {
        "a": [1],
        "b": [[1]],
    }


def test_arguments_that_are_nested_too_deeply_are_refused_in_a_line():
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(ConfigError, match=r"^env_args is nested too deeply for a file\.$"):
        dump(Config(env_args={"x": deep}))


@pytest.mark.parametrize("args", [{"x": tuple(range(100_000))}, {"k" * 100_000: (1,)}])
def test_a_refusal_of_large_arguments_is_short(args: dict[str, Any]):
    with pytest.raises(ConfigError, match="would be read back") as error:
        dump(Config(env_args=args))
    assert len(str(error.value)) < 1_000


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({"size": (3, 4)}, r"env_args\.size = \(3, 4\) would be read back .* as \[3, 4\]"),
        ({"b": [1, [2, (3,)]]}, r"env_args\.b\[1\]\[1\] = \(3,\) would be read back"),
        ({"size": np.int64(3)}, r"env_args\.size = .*3.* cannot be written"),
        ({"a": {"p": np.float64(0.5)}}, r"env_args\.a\.p = .*0\.5.* cannot be written"),
        ({"file": Path("x.csv")}, r"env_args\.file = .*x\.csv.* cannot be written"),
        ({"by": {(1, 2): 3}}, r"env_args\.by = .* cannot be written"),
        ({"by": {np.int64(1): 3}}, r"env_args\.by = .* cannot be written"),
    ],
)
def test_what_a_file_would_change_is_refused_by_name(args: dict[str, Any], named: str):
    with pytest.raises(ConfigError, match=named):
        dump(Config(env_args=args))


@pytest.mark.parametrize(
    "config",
    [
        Config(seed=np.int64(3)),  # pyright: ignore[reportArgumentType]
        Config(seed=True),
        Config(ppo=PPOConfig(lr=np.float64(0.1))),
        Config(model=ModelConfig(name=Path("m"))),  # pyright: ignore[reportArgumentType]
    ],
)
def test_settings_of_the_wrong_type_are_refused_before_they_are_written(config: Config):
    with pytest.raises(ConfigError):
        dump(config)


def test_a_tilde_stands_for_the_home_directory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(Path("/home/me")))
    monkeypatch.setenv("USERPROFILE", str(Path("/home/me")))
    config = from_dict({"model": {"name": "~/models/small"}})
    assert Path(config.model.name) == Path("/home/me/models/small")
    assert from_dict(parse_value(dump(config))) == config
    assert ModelConfig(name="org/~model").name == "org/~model"


# What cannot be used.


@pytest.mark.parametrize("group", ["", *groups()])
def test_an_unknown_key_is_named_with_its_place_and_what_is_known_there(group: str):
    data = {group: {"xyzzy": 1}} if group else {"xyzzy": 1}
    known = getattr(Config(), group) if group else Config()
    with pytest.raises(ConfigError) as error:
        from_dict(data, where="my.yaml")
    message = str(error.value)
    assert message.startswith("my.yaml: unknown key")
    assert f"'{group}.xyzzy'" in message or not group
    for field in dataclasses.fields(known):
        assert field.name in message


@pytest.mark.parametrize(
    ("data", "meant"),
    [
        ({"sead": 1}, "Did you mean 'seed'"),
        ({"ppo": {"entropie": 1}}, "'ppo.entropie'. Did you mean 'entropy'"),
        ({"credit": {"gama": 1}}, "Did you mean 'gamma'"),
        ({"credit": {"discount": "durations"}}, "Did you mean 'duration'"),
        ({3: 4}, "unknown key '3'"),
        ({"count": 1}, "Known here: env,"),  # a method of text, but no setting
        ({"lr": 1}, "Did you mean critic.lr or ppo.lr?"),
        ({"credit.method": "poad"}, "Write it nested, as 'credit: {method: ...}'"),
        # The names of other libraries.
        ({"learning_rate": 1}, "Did you mean critic.lr or ppo.lr?"),
        ({"ppo": {"learning_rate": 1}}, "'ppo.learning_rate'. Did you mean 'lr'"),
        ({"ppo.learning_rate": 1}, "Did you mean critic.lr or ppo.lr?"),
        ({"gae_lambda": 1}, "Did you mean credit.lam?"),
        ({"n_envs": 4}, "Did you mean 'streams'?"),
        ({"seed.x": 1}, "unknown key 'seed.x'"),
    ],
)
def test_a_slip_is_met_with_the_nearest_names(data: Any, meant: str):
    with pytest.raises(ConfigError) as error:
        from_dict(data)
    assert meant in str(error.value)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"seed": "three"}, "seed = 'three' has the wrong type; expected int"),
        ({"seed": 1.5}, "seed = 1.5 has the wrong type"),
        ({"seed": True}, "seed = True has the wrong type"),
        ({"env": 3}, "env = 3 has the wrong type; expected str"),
        ({"env": None}, "env = None has the wrong type"),
        ({"env_args": [1]}, r"env_args = \[1\] has the wrong type"),
        ({"ppo": {"lr": "fast"}}, "ppo.lr = 'fast' has the wrong type; expected float"),
        ({"ppo": {"lr": True}}, "ppo.lr = True has the wrong type"),
        ({"ppo": {"lr": None}}, "ppo.lr = None has the wrong type"),
        ({"acting": {"score_end": 1}}, "acting.score_end = 1 has the wrong type; expected bool"),
        ({"acting": {"stop": "\n"}}, r"acting.stop = .* has the wrong type; expected a list"),
        ({"trackers": "wandb"}, r"trackers = 'wandb' has the wrong type; expected a list"),
        ({"model": {"name": 1.5}}, "model.name = 1.5 .* expected str. Put quotes around it"),
        ({"seed": "1e-1"}, "seed = '1e-1' has the wrong type; expected int"),
        ({"steps": math.inf}, "steps = inf has the wrong type; expected int"),
        ({"steps": "1e999999999"}, "steps = .* has the wrong type; expected int"),
        ({"ppo": {"lr": 10**400}}, "ppo.lr = .* has the wrong type; expected float"),
        ({"acting": {"stop": [1]}}, "acting.stop = 1 has the wrong type"),
        ({"critic": {"hidden": [64, "x"]}}, "critic.hidden = 'x' has the wrong type"),
        ({"credit": {"lam_token": "x"}}, "credit.lam_token = 'x' has the wrong type"),
        ({"trackers": ["tensorbord"]}, "trackers = 'tensorbord' is not one of"),
        ({"model": {"tuning": ["full"]}}, "model.tuning = .*is not one of: full, lora"),
        ({"ppo": 3}, "ppo is a group of settings, not 3"),
    ],
)
def test_a_value_of_another_kind_is_named(data: Any, named: str):
    with pytest.raises(ConfigError, match=named):
        from_dict(data)


def test_a_setting_that_was_renamed_says_so(tmp_path: Path):
    (tmp_path / "old.yaml").write_text("seed: 1\nmirrors: [wandb]\n")
    with pytest.raises(ConfigError, match=r"old\.yaml: mirrors was renamed to trackers\.$"):
        load(tmp_path / "old.yaml")


def numbers(kind: Any = Config, prefix: str = "") -> dict[str, Any]:
    """The annotations of all settings that are numbers, by dotted name."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            found |= numbers(hint, f"{prefix}{name}.")
        elif {int, float} & {hint, *typing.get_args(hint), *inner_arguments(hint)}:
            found[f"{prefix}{name}"] = hint
    return found


def inner_arguments(hint: Any) -> list[Any]:
    return [a for part in typing.get_args(hint) for a in typing.get_args(part)]


@pytest.mark.parametrize("name", numbers())
def test_every_number_has_a_range_that_rejects_nan_and_something_else(name: str):
    group, _, key = name.rpartition(".")
    base = getattr(Config(), group) if group else Config()
    for value in (math.nan, -1.0, math.inf, -math.inf):
        item = (value,) if isinstance(getattr(base, key), tuple) else value
        (complaint,) = out_of_range(item, numbers()[name], name)
        assert complaint.startswith(f"{name} = {value}: must ")


@pytest.mark.parametrize("written", [".inf", "inf", "-.inf", ".nan", "1e999"])
@pytest.mark.parametrize("name", ["ppo.lr", "critic.lr", "ppo.max_grad_norm", "ppo.kl_stop"])
def test_a_number_that_is_not_finite_is_refused_with_the_range(name: str, written: str):
    group, key = name.split(".")
    with pytest.raises(ConfigError, match=rf"{name} = [-a-z]+: must be above 0\."):
        from_dict(parse_value(f"{group}: {{{key}: {written}}}"))


def test_ranges_are_checked_wherever_they_stand():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        rate: Annotated[float | None, Between(0, 2)] = None
        sizes: tuple[Annotated[int, Above(2)], ...] = ()
        either: Annotated[int, AtLeast(3)] | None = None
        free: float = -1.0

    @dataclasses.dataclass(frozen=True)
    class Outer:
        inner: Inner

    globals().update(Inner=Inner, Outer=Outer)  # where annotations are looked up
    assert list(out_of_range(Outer(Inner()))) == []
    assert list(out_of_range(Outer(Inner(2.0, (3, 4), 3)))) == []
    assert list(out_of_range(Outer(Inner(2.5, (3, 2, 1), 2)))) == [
        "inner.rate = 2.5: must lie between 0 and 2.",
        "inner.sizes = 2: must be above 2.",
        "inner.sizes = 1: must be above 2.",
        "inner.either = 2: must be at least 3.",
    ]


def test_every_width_of_the_critic_is_above_0():
    with pytest.raises(ConfigError, match=r"critic\.hidden = -2: must be above 0"):
        Config(critic=CriticConfig(hidden=(64, -2)))


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
@pytest.mark.parametrize("name", ["gamma", "lam", "lam_token", "gamma_token"])
def test_rates_lie_between_0_and_1(name: str, value: float):
    with pytest.raises(ConfigError, match=rf"credit\.{name} = .*between 0 and 1"):
        from_dict({"credit": {name: value}})


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(
    "name",
    [
        "steps",
        "streams",
        "horizon",
        "keep_checkpoints",
        "ppo.epochs",
        "ppo.minibatches",
        "ppo.lr",
        "ppo.clip",
        "ppo.max_grad_norm",
        "ppo.std_floor",
        "ppo.micro_batch_tokens",
        "critic.lr",
        "eval.streams",
        "acting.temperature",
        "acting.max_action_tokens",
        "model.lora_rank",
    ],
)
def test_amounts_are_above_0(name: str, value: int):
    with pytest.raises(ConfigError, match=rf"{name} = {value}.*above 0"):
        from_dict(nested(name, value))


@pytest.mark.parametrize(
    "name", ["eval.episodes", "eval.every", "checkpoint_every", "threads", "ppo.entropy"]
)
def test_what_0_turns_off_may_not_be_negative(name: str):
    from_dict(nested(name, 0))
    with pytest.raises(ConfigError, match=rf"{name} = -1.*not be negative"):
        from_dict(nested(name, -1))


def nested(name: str, value: Any) -> dict[str, Any]:
    *group, key = name.split(".")
    return {group[0]: {key: value}} if group else {key: value}


def test_everything_that_is_wrong_is_told_at_once():
    with pytest.raises(ConfigError) as error:
        from_dict({"steps": 0, "ppo": {"clip": -1}, "credit": {"gamma": 2}})
    for name in ("steps", "ppo.clip", "credit.gamma"):
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"seed: [1", "not valid YAML"),
        (b"- seed", "expected 'key: value' lines, found list"),
        (b"seed", "found str"),
        (b"env: caf\xe9", "config.yaml"),
        (b"env: \x00", "not valid YAML"),
        (b"env: !!python/object/apply:os.getcwd []", "not valid YAML"),
        (b"seed: 1\nppo: {}\nseed: 2", "the key 'seed' appears twice(.|\n)*line 3"),
        (b"ppo: {lr: 1, lr: 2}", "the key 'lr' appears twice"),
        (b"env_args: {on: 2024-02-31}", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(content: bytes, named: str, tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=named):
        load(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"Cannot read the configuration .*none.yaml"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="Cannot read the configuration"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["", "# nothing here\n", "---\n"])
def test_an_empty_file_is_the_default(content: str, tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    assert load(path) == Config()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"model": {"quantize": "4bit"}}, r"model\.quantize = 4bit.*model\.tuning = lora"),
        ({"model": {"dtype": "float16"}}, r"model\.dtype = float16.*bfloat16"),
        ({"model": {"lora_dropout": 0.1}}, r"model\.lora_dropout.*no adapters"),
        ({"ppo": {"importance_cap": 2.0}}, r"ppo\.importance_cap.*recompute_logprob"),
        ({"prompt": {"thinking_close": " "}}, r"prompt\.thinking_close.*blank"),
        ({"prompt": {"examples": [["alone"]]}}, r"prompt\.examples = \['alone'\] needs 2 entries"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(data: dict[str, Any], named: str):
    with pytest.raises(ConfigError, match=named):
        from_dict(data)


# `poad config`.


def test_the_defaults_are_printed_in_full(capsys: pytest.CaptureFixture[str]):
    assert main(["config"]) == 0
    assert parse_value(capsys.readouterr().out) == to_dict(Config())


def test_flags_override_the_file_that_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "config.yaml"
    path.write_text("seed: 3\nppo: {lr: 1e-3}\n")
    for flags in ([str(path)], ["--config", str(path)]):
        assert main(["config", *flags, "--seed", "4"]) == 0
        expected = from_dict({"seed": 4, "ppo": {"lr": 1e-3}})
        assert from_dict(parse_value(capsys.readouterr().out)) == expected
    assert main(["config", str(path), "--config", str(path)]) == 2


def test_a_resolved_configuration_leaves_nothing_open_and_can_be_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["config", "--resolved", "--credit.method", "twosome"]) == 0
    shown = from_dict(parse_value(capsys.readouterr().out))
    assert (shown.acting.scheme, shown.acting.score) == ("score", "word")
    assert shown.model.name != "auto"
    assert shown.credit.lam_token is not None
    assert main(["config", "--resolved", "--credit.method", "poat"]) == 2
    assert "Did you mean 'poad'" in capsys.readouterr().err
