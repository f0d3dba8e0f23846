"""The command line starts from the preset that suits the model, unless it is told which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import Zoo
from tiny_worlds import name

from poad.cli.main import main
from poad.config import PRESETS, Config, from_dict, preset
from poad.models import kinds
from poad.runs.run import Run

HUB = "HuggingFaceTB/SmolLM2-135M"


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return " ".join(capsys.readouterr().err.split())


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Config:
    assert main(["config", *arguments]) == 0
    return from_dict(yaml.safe_load(capsys.readouterr().out))


def of(kind: str, **changes: Any) -> Config:
    return from_dict(changes, preset(kind))


@pytest.mark.parametrize(
    ("arguments", "kind", "changes"),
    [
        ((), "plain", {}),
        (("--model.name", "tiny-kitchen"), "plain", {"model": {"name": "tiny-kitchen"}}),
        (("--model.name", HUB), "small", {"model": {"name": HUB}}),
        ((f"--model.name={HUB}",), "small", {"model": {"name": HUB}}),
        (
            ("--model.name", HUB, "--model.tuning", "full"),
            "small-full",
            {"model": {"name": HUB, "tuning": "full"}},
        ),
        (("--model.name", "Qwen/Qwen3-8B"), "large", {"model": {"name": "Qwen/Qwen3-8B"}}),
        (("--model.name", HUB, "--preset", "plain"), "plain", {"model": {"name": HUB}}),
        (("--preset", "large"), "large", {}),
        (("--preset=small", "--ppo.lr", "0.5"), "small", {"ppo": {"lr": 0.5}}),
        (
            ("--model.name", HUB, "--acting.temperature", "2", "--streams", "3"),
            "small",
            {"model": {"name": HUB}, "acting": {"temperature": 2.0}, "streams": 3},
        ),
    ],
)
def test_settings_start_from_the_preset_and_flags_change_them(
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    kind: str,
    changes: dict[str, Any],
) -> None:
    assert printed(capsys, *arguments) == of(kind, **changes)


def test_a_flag_counts_more_than_a_file_and_a_file_more_than_a_preset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    given = {"ppo": {"lr": 0.01}, "model": {"name": HUB}}
    file.write_text(yaml.safe_dump(given))
    for where in ([str(file)], ["--config", str(file)]):
        assert printed(capsys, *where) == of("small", **given)
        assert printed(capsys, *where, "--ppo.lr", "0.5").ppo.lr == 0.5
        assert printed(capsys, *where, "--preset", "plain") == of("plain", **given)
        # The model that a flag names is the one that the preset has to suit.
        found = printed(capsys, *where, "--model.name", "tiny-kitchen")
        assert found == of("plain", **given | {"model": {"name": "tiny-kitchen"}})
    file.write_text(yaml.safe_dump(given | {"preset": "large"}))
    assert printed(capsys, str(file)) == of("large", **given)
    assert printed(capsys, str(file), "--preset", "small") == of("small", **given)
    file.write_text(yaml.safe_dump({"model": {"name": HUB, "tuning": "full"}}))
    assert printed(capsys, str(file)) == of("small-full", model={"name": HUB, "tuning": "full"})


def test_what_is_printed_is_a_file_that_means_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "--model.name", HUB, "--seed", "3"]) == 0
    file = tmp_path / "c.yaml"
    file.write_text(capsys.readouterr().out)
    assert printed(capsys, str(file)) == of("small", model={"name": HUB}, seed=3)


@pytest.mark.parametrize("command", ["config", "train", "plan"])
def test_an_unknown_preset_is_told_with_the_nearest(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = error_of(capsys, command, "--preset", "smal")
    assert "there is no preset 'smal'. Did you mean 'small'" in said
    assert "The presets are plain, small, small-full, large." in said
    file = tmp_path / "c.yaml"
    file.write_text("preset: larg\n")
    assert "no preset 'larg'. Did you mean 'large'" in error_of(
        capsys, command, "--config", str(file)
    )
    assert "--preset needs a value" in error_of(capsys, command, "--preset")


def test_a_run_that_goes_on_keeps_its_settings(
    zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--env", name("Chain"), "--steps", "8", "--streams", "2", "--horizon", "2")
    run = tmp_path / "run"
    rest = ("--eval.episodes", "0", "--quiet", "--critic.hidden", "8")
    model = ("--model.name", str(zoo.path()), "--preset", "small")
    assert main(["train", "--run", str(run), *model, *small, *rest]) == 0
    made = Run.open(run).config
    assert made.acting.temperature == preset("small").acting.temperature
    assert (made.model.lora_layers, made.model.tuning) == (10, "lora")
    assert made.model.precision in ("full", "mixed")
    said = error_of(capsys, "train", "--resume", str(run), "--preset", "plain")
    assert "Leave out --run, --config, --preset" in said
    assert main(["train", "--resume", str(run), "--steps", "12", "--quiet"]) == 0
    again = Run.open(run).config
    assert again.acting == made.acting
    assert again.model == made.model


def test_what_a_training_starts_from_is_shown_and_kept(
    zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside how the untrained agent does, and a uniform one."""
    monkeypatch.setattr(kinds, "_TINY", 0)
    run = tmp_path / "run"
    small = ("--env", name("Chain"), "--steps", "8", "--streams", "2", "--horizon", "2")
    given = ("--model.name", str(zoo.path()), "--critic.hidden", "8", "--eval.episodes", "0")
    given = (*given, "--credit.lam-actor", "0.5")
    assert main(["train", "--run", str(run), *small, *given]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Looking at the untrained agent" in shown
    assert "a uniformly random agent in" in shown
    notes: Any = Run.open(run).versions()["notes"]
    assert notes[-1].startswith("Untrained, it succeeds in")
    told = notes[-2]
    assert told in shown
    assert told.startswith("The preset `small` sets ")
    precision = Run.open(run).config.model.precision
    for setting in ("acting.temperature = 5.0", f"model.precision = {precision}"):
        assert setting in told
    for replaced in ("horizon", "steps", "critic.hidden", "credit.lam_actor"):
        assert replaced not in told, "a flag says otherwise"


def test_the_help_explains_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "config"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        for kind, each in PRESETS.items():
            assert f"{kind} {each.about}" in shown
