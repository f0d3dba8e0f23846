"""Models that a study makes before its runs: once, by its own recipe, and never over another's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from poad.errors import ConfigError
from poad.study.models import make_models
from poad.study.spec import named_settings, read_study
from poad.workflows import TinyModel

RECIPE: dict[str, Any] = {"turns": 40, "steps": 2, "width": 8, "layers": 1, "vocabulary": 258}
MODEL = TinyModel("tiny_worlds:tiny/Chain-v0", **RECIPE)


def test_a_model_is_made_once_and_another_is_never_touched(tmp_path: Path) -> None:
    place = tmp_path / "models" / "chain"
    make_models({str(place): MODEL}, [str(place)], quiet=True)
    before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    make_models({str(place): MODEL}, [str(place)], quiet=True)
    other = replace(MODEL, steps=3)
    wanted = {str(tmp_path / "new"): MODEL, str(place): other}
    with pytest.raises(ConfigError, match="another model than the study asks for: steps is 2 inst"):
        make_models(wanted, wanted, quiet=True)
    assert not (tmp_path / "new").exists()  # nothing is made before all places are seen
    assert {path: path.stat().st_mtime_ns for path in place.iterdir()} == before
    make_models(wanted, [], quiet=True)  # nor what is not used
    (place / "making.json").unlink()
    with pytest.raises(ConfigError, match="`poad pretrain` did not make it"):
        make_models({str(place): MODEL}, [str(place)], quiet=True)


def test_a_study_file_has_the_options_of_pretrain(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"

    def study(**recipe: object) -> Path:
        told = {
            "name": "small",
            "worlds": {"chain": {"env": "tiny_worlds:tiny/Chain-v0", "steps": 16}},
            "models": {"there": recipe},
            "methods": {"poad": {}},
            "seeds": [0],
        }
        file.write_text(yaml.safe_dump(told))
        return file

    found = read_study(study(env=MODEL.env, env_args={"a": 1}, **RECIPE)).models["there"]
    assert found == TinyModel(MODEL.env, {"a": 1}, **RECIPE)
    # Its world is asked for like those of the runs.
    assert named_settings(study(env="mine:Own-v0"))[-1].env == "mine:Own-v0"
    for recipe, said in (
        ({"turns": 3}, "models.there needs env"),
        ({"env": "a", "minutes": 2.0}, "steps instead of minutes"),
        ({"env": "a", "turn": 3}, "Did you mean 'turns'"),
        ({"env": "a", "width": 9}, "models.there: --width 9: it must be a multiple of 8"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_study(study(**recipe))
