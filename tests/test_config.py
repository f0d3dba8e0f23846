"""A configuration survives its file unchanged, and a wrong one is told where and why."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from poad.config import Config, ModelConfig, PPOConfig, PromptConfig, dump, from_dict, load, to_dict
from poad.errors import ConfigError

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
    if origin is types.UnionType:
        return st.none() | values(next(a for a in arguments if a is not type(None)))
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
    built = st.builds(kind, **{name: values(hint) for name, hint in hints.items()})
    return built.map(without_contradictions)


def without_contradictions(group: Any) -> Any:
    """The same settings, less what makes no sense together."""
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
    assert from_dict(yaml.safe_load(text)) == config
    assert dump(from_dict(yaml.safe_load(text))) == text


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
        ({"acting": {"stop": "\n"}}, "acting.stop = .* has the wrong type"),
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
