"""Tiny models that the runs of a study begin with, made before the runs."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import asdict
from pathlib import Path

from poad.errors import ConfigError
from poad.workflows import TinyModel, pretrain_model


def make_models(models: Mapping[str, TinyModel], used: Container[str], *, quiet: bool) -> None:
    """Make the models that are not there, as `poad pretrain` does.

    Args:
        models: what each model is made of, by its directory.
        used: the directories that are needed now.
        quiet: print nothing.

    Raises:
        ConfigError: a directory holds another model.
        ModelError: a directory cannot be written.
    """
    missing: list[str] = []
    for place, model in models.items():
        if place not in used:
            continue
        if not Path(place).exists():
            missing.append(place)
        elif other := differences(model, Path(place)):
            raise ConfigError(
                f"{place} holds another model than the study asks for: {other}. Move it away, and "
                "the study makes its own."
            )
    for place in missing:
        pretrain_model(models[place], Path(place), quiet=quiet)


def differences(model: TinyModel, folder: Path) -> str:
    """Say in which options a model that was made differs from one that is wanted; "" in none."""
    try:
        making = json.loads((folder / "making.json").read_text(encoding="utf-8"))
        made = dict(making["pretrained"])
    except (OSError, ValueError, KeyError, TypeError):
        return "`poad pretrain` did not make it"
    asked = json.loads(json.dumps(asdict(model)))
    others = [key for key, value in asked.items() if made.get(key, value) != value]
    return ", ".join(f"{key} is {made[key]!r} instead of {asked[key]!r}" for key in others)
