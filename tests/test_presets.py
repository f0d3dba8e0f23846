"""A preset is where settings start: what it says is valid, and a file or a flag counts more."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tiny_worlds import name, settings

from poad.agent import resolve
from poad.config import PRESETS, Config, dump, from_dict, load, preset, to_dict
from poad.credit import METHODS
from poad.errors import ConfigError
from poad.learn.train import Trainer


def changed(config: Config) -> set[str]:
    """The dotted names of what differs from the defaults."""
    plain = to_dict(Config())
    return {
        f"{group}.{key}" if isinstance(value, dict) else group
        for group, value in to_dict(config).items()
        for key in (value if isinstance(value, dict) else [group])
        if (value[key] != plain[group][key] if isinstance(value, dict) else value != plain[group])
    }


@pytest.mark.parametrize("kind", PRESETS)
def test_a_preset_changes_what_it_names_and_nothing_else(kind: str) -> None:
    found = preset(kind)
    named = PRESETS[kind].settings
    assert changed(found) <= named.keys()
    for dotted, value in named.items():
        group, _, key = dotted.rpartition(".")
        held = to_dict(found)[group][key] if group else to_dict(found)[key]
        assert held == value, dotted
    assert PRESETS[kind].about.endswith(".")
    assert from_dict(to_dict(found)) == found
    assert (kind == "plain") == (found == Config())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", PRESETS)
def test_every_preset_can_be_used_with_every_method(kind: str, method: str) -> None:
    config = preset(kind)
    config = replace(config, credit=replace(config.credit, method=method))
    decided = resolve(config).config
    assert decided.model.precision in ("full", "mixed")
    assert "auto" not in (decided.model.name, decided.acting.scheme)
    assert resolve(decided).config == decided


@pytest.mark.parametrize("method", METHODS)
def test_a_pretrained_models_settings_train_with_every_method(method: str) -> None:
    small = to_dict(preset("small"))
    credit: dict[str, Any] = {**small["credit"], "method": method, "group": 2}
    model = {**small["model"], "name": "tiny-kitchen", "device": "cpu"}
    config = settings("Prefixes", **{**small, "credit": credit, "model": model})
    config = replace(config, env=name("Prefixes"), streams=4, horizon=5, steps=40)
    rows = list(islice(Trainer(config).train(), 2))
    assert rows[-1]["env_steps"] == 40
    assert rows[-1]["passes"] >= 1


def test_a_file_starts_from_the_preset_that_it_names(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("preset: small\nseed: 5\nppo:\n  lr: 0.01\n")
    expected = preset("small")
    assert load(file) == replace(expected, seed=5, ppo=replace(expected.ppo, lr=0.01))
    # A base that is given counts more than the name.
    base = Config(streams=7)
    assert load(file, base) == replace(base, seed=5, ppo=replace(base.ppo, lr=0.01))
    file.write_text(dump(expected))
    assert load(file) == expected
    file.write_text("preset: plain\n")
    assert load(file) == Config()
    file.write_text("preset:\n")
    assert load(file) == Config()


def test_an_unknown_preset_is_met_with_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("preset: smal\n")
    with pytest.raises(ConfigError) as told:
        load(file)
    assert str(told.value).startswith(f"{file}: there is no preset 'smal'. Did you mean 'small'")
    assert "The presets are plain, small, small-full, large." in str(told.value)
    with pytest.raises(ConfigError, match="there is no preset '7'"):
        preset("7")
