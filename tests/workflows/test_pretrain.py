"""A tiny model from nothing knows a world's words, not its task, and is the same to the byte."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import byte_level
from tiny_worlds import BOXES, TWO, name
from tiny_worlds import settings as small

from poad.agent.build import load_agent
from poad.cli.main import main
from poad.config import ModelConfig, PromptConfig
from poad.envs.contract import CheckedWorld
from poad.envs.registry import make
from poad.errors import ConfigError, ModelError
from poad.lm.loading import load_model
from poad.lm.prompts import codec_for
from poad.trie import Grammar
from poad.turns import Observation
from poad.workflows import pretrain as story
from poad.workflows.pretrain import TinyModel, play_randomly, pretrain_model, rows_of

Row = tuple[int, ...]


def tiny(world: str, **changes: Any) -> TinyModel:
    """Something that is made in a second."""
    sizes: dict[str, Any] = {"turns": 40, "steps": 3, "vocabulary": 300, "width": 16, "layers": 1}
    return TinyModel(name(world), **(sizes | changes))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- random play ------------------------------------------------------------------------------


@pytest.mark.parametrize("world", ["poad/TomatoSalad-v0", name("Chain"), name("Novel")])
def test_every_turn_of_every_random_episode_is_used(world: str) -> None:
    """In the order of the seeds, whatever it earned."""
    dice, env = random.Random(5), make(world)
    expected = []
    for seed in (5, 6, 7):
        prompt, info = env.reset(seed=seed)
        ended = False
        while not ended:
            expected.append((prompt, dice.choice(info["admissible_actions"])))
            prompt, _, terminated, truncated, info = env.step(expected[-1][1])
            ended = terminated or truncated
    turns = [*islice(play_randomly(CheckedWorld(make(world)), 5), len(expected))]
    assert [turn[:2] for turn in turns] == expected
    assert sum(turn.begins for turn in turns) == 3
    assert [turn.success is not None for turn in turns] == [
        turn.begins for turn in [*turns[1:], turns[0]]
    ]


def test_an_episode_that_does_not_end_is_abandoned() -> None:
    turns = [*islice(play_randomly(CheckedWorld(make(name("Alike"))), 0, longest=4), 12)]
    assert [turn.begins for turn in turns] == [True, False, False, False] * 3
    assert {turn.success for turn in turns} == {None}


def test_more_actions_than_one_can_list_are_drawn_from() -> None:
    turns = [*islice(play_randomly(CheckedWorld(make(name("Forms"))), 0), 30)]
    assert len({turn.action for turn in turns}) == 30
    assert all(turn.action.count("red") + turn.action.count("blue") == 20 for turn in turns)


def test_actions_of_a_grammar_are_drawn_from() -> None:
    pytest.importorskip("llguidance", reason="grammars need llguidance")
    grammar = Grammar.of({"regex": "(open|shut) the (red|blue) door"})
    found = {story.random_action(grammar, random.Random(seed), "a world", "") for seed in range(50)}
    assert found == {
        f"{verb} the {door} door" for verb in ("open", "shut") for door in ("red", "blue")
    }


@pytest.mark.parametrize("world", ["Diary", "Mixed"])
def test_random_play_is_not_defined_where_the_agent_writes_freely(
    world: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"writes? freely, so there is no uniformly random play"):
        pretrain_model(tiny(world), tmp_path / "model")
    assert [*tmp_path.iterdir()] == []


# --- rows -------------------------------------------------------------------------------------


def test_a_row_is_a_prompt_its_action_and_the_end() -> None:
    codec = codec_for(byte_level(), PromptConfig())
    turns = [*islice(play_randomly(CheckedWorld(make(name("Chain"))), 0), 20)]
    rows, remark = rows_of(turns, codec, PromptConfig(), 512)
    assert rows == [((*codec.prompt(t.prompt), *codec.action(t.action)), 0) for t in turns]
    assert remark is None


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(["last", "episode"]), st.integers(40, 300), st.integers(0, 99))
def test_rows_with_earlier_turns_fit_and_end_alike(history: Any, context: int, seed: int) -> None:
    config = PromptConfig(history=history, last=2)
    codec = codec_for(byte_level(), config)
    turns = [*islice(play_randomly(CheckedWorld(make(name("Alike"))), seed, longest=5), 25)]
    rows, _ = rows_of(turns, codec, config, context)
    for (ids, read), turn in zip(rows, turns, strict=True):
        assert len(ids) <= context
        assert read == 0
        written = codec.action(turn.action)
        assert ids[-len(written) :] == written
        assert codec.tokenizer.decode(ids[: -len(written)]).endswith(turn.prompt)
    for (before, _), (after, _), turn in zip(rows, rows[1:], turns[1:], strict=False):
        if history == "episode" and context > 250 and not turn.begins:
            assert after[: len(before) - 1] == before[:-1]  # sampled tokens stay


def test_the_context_leaves_room_for_longer_prompts_than_random_play_has_seen() -> None:
    for longest, context in ((5, 512), (256, 512), (257, 1024), (900, 2048), (4000, 4096)):
        assert story.context_for([((1,) * 3, 0), ((1,) * longest, 0)], 4096) == context


def test_an_action_without_room_for_a_prompt_has_no_row() -> None:
    codec = codec_for(byte_level(), PromptConfig())
    turns = [
        story.RandomTurn("Well?", "ab" * size, None, begins=True, success=False)
        for size in (2, 90, 3)
    ]
    rows, _ = rows_of(turns, codec, PromptConfig(), 60)
    assert [row for row, _ in rows] == [
        (*codec.prompt("Well?"), *codec.action("ab" * size)) for size in (2, 3)
    ]
    with pytest.raises(ModelError, match=r"more than half of what the model reads \(16\): raise"):
        rows_of(turns[1:2], codec, PromptConfig(), 16)


def test_a_prompt_that_is_too_long_is_shortened_as_in_training(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Kept: the goal and both ends of the observation"):
        pretrain_model(tiny("Quest", context=90), tmp_path / "model")
    assert load_model(ModelConfig(name=str(tmp_path / "model"))).context_length == 90


# --- the model --------------------------------------------------------------------------------


def test_the_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        pretrain_model(tiny("Chain"), tmp_path / folder, quiet=True)
    one = content(tmp_path / "one")
    assert one == content(tmp_path / "two")
    assert one.keys() <= story._FILES
    assert {Path(file).suffix for file in one} == {".json", ".md", ".safetensors"}
    pretrain_model(tiny("Chain", seed=1), tmp_path / "three", quiet=True)
    assert content(tmp_path / "three")["model.safetensors"] != one["model.safetensors"]


def test_a_model_of_some_minutes_is_that_of_as_many_steps(tmp_path: Path) -> None:
    model = tiny("Chain", minutes=0.001)
    pretrain_model(model, tmp_path / "minutes", quiet=True)
    making = json.loads((tmp_path / "minutes" / "making.json").read_text())
    assert making["steps"] == making["pretrained"]["steps"] >= 1
    pretrain_model(
        replace(model, minutes=None, steps=making["steps"]), tmp_path / "steps", quiet=True
    )
    assert content(tmp_path / "steps") == content(tmp_path / "minutes")


def test_its_card_and_its_record_say_how_it_was_made(tmp_path: Path) -> None:
    model = TinyModel(
        "poad/TomatoSalad-v0", {"max_steps": 7}, 60, 3, None, 300, 16, 1, "last", 2, 256, 9
    )
    pretrain_model(model, tmp_path, quiet=True)
    making = json.loads((tmp_path / "making.json").read_text())
    again = TinyModel(**making["pretrained"])
    assert again == model
    loaded = load_model(ModelConfig(name=str(tmp_path)))
    assert making["parameters"] == sum(p.numel() for p in loaded.parameters())
    assert making["tokens"] == len(loaded.codec.tokenizer)
    card = (tmp_path / "README.md").read_text()
    for fact in ("TomatoSalad-v0 max_steps=7`", "60 turns", "last 2 turns", "| seed | 9 |"):
        assert fact in card
    assert making["versions"].keys() == {"poad", "python", "torch", "transformers", "tokenizers"}


def test_it_imitates_random_play_and_knows_nothing_of_the_task(tmp_path: Path) -> None:
    """All actions are about as likely, the right one as well as the others."""
    shapes = {"turns": 400, "steps": 150, "width": 32}
    for world, actions in (("Chain", TWO), ("Lottery", BOXES)):
        folder = tmp_path / world
        pretrain_model(tiny(world, **shapes), folder, quiet=True)
        agent = load_agent(small(world, model={"name": str(folder), "device": "cpu"}))
        turns = [*islice(play_randomly(CheckedWorld(make(name(world))), 0), 100)]
        for prompt in {turn.prompt for turn in turns}:
            chances = agent.policy.probabilities(Observation(prompt, actions))
            assert chances == pytest.approx([0.5, 0.5], abs=0.2)
        losses = json.loads((folder / "making.json").read_text())["final_loss"]
        assert losses < 0.5  # nats per token: it does know the words


@pytest.mark.parametrize("recalls", [True, False])
def test_it_tells_prompts_apart_where_random_actions_do_not_depend_on_them(
    recalls: bool, tmp_path: Path
) -> None:
    """A model that only continues random play forgets the prompt before it acts."""
    model = tiny("Chain", turns=400, steps=150, width=32, recalls=recalls)
    pretrain_model(model, tmp_path, quiet=True)
    loaded = load_model(ModelConfig(name=str(tmp_path), device="cpu"))
    causal: Any = loaded.causal_lm
    states = []
    for place in (0, 1):
        ids = loaded.codec.prompt(f"You stand at place {place}. What now?")
        with torch.no_grad():
            out = causal(torch.tensor([ids]), output_hidden_states=True)
        states.append(out.hidden_states[-1][0, -1])
    difference = float((states[0] - states[1]).norm() / states[0].norm())
    assert difference > 0.3 if recalls else difference < 0.05


# --- the directory ----------------------------------------------------------------------------


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()  # empty ones are fine
    pretrain_model(tiny("Chain"), folder, quiet=True)
    before = content(folder)
    with pytest.raises(ModelError, match=r"in the way.*Add --overwrite to replace the model there"):
        pretrain_model(tiny("Chain", seed=1), folder)
    assert content(folder) == before
    pretrain_model(tiny("Chain", seed=1), folder, overwrite=True, quiet=True)
    assert content(folder) != before
    (folder / "letter.txt").write_text("Dear Ada")
    for other in (folder, tmp_path):
        with pytest.raises(ModelError, match="holds files of others, so name another directory"):
            pretrain_model(tiny("Chain"), other, overwrite=True)
    assert (folder / "letter.txt").read_text() == "Dear Ada"
    with pytest.raises(ModelError, match=r"Cannot write .*model/letter\.txt/in: Not a directory\."):
        pretrain_model(tiny("Chain"), folder / "letter.txt" / "in")


@pytest.mark.parametrize("when", ["fit", "save", "describe"])
def test_an_interruption_leaves_nothing_or_what_was_there(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    pretrain_model(tiny("Chain"), folder, quiet=True)
    before = content(folder)

    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(story, when, interrupt)
    for to in (folder, tmp_path / "other"):
        with pytest.raises(KeyboardInterrupt):
            pretrain_model(tiny("Chain", seed=1), to, overwrite=True, quiet=True)
    assert content(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"turns": 0}, "--turns 0: it must be at least 1"),
        ({"steps": -1}, "--steps -1: it must be at least 1"),
        ({"vocabulary": 200}, "--vocabulary 200: it must be at least 258"),
        ({"width": 20}, "--width 20: it must be a multiple of 8"),
        ({"minutes": 0.0}, "--minutes 0: it must be above 0"),
        ({"minutes": float("nan")}, "--minutes nan: it must be above 0"),
        ({"context": 3}, "--context 3: it must be at least 16"),
        ({"seed": -1}, "--seed -1: it must be at least 0"),
    ],
)
def test_sizes_have_bounds(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        tiny("Chain", **changes)


# --- the command ------------------------------------------------------------------------------

SMALL = ["--turns", "200", "--steps", "30", "--vocabulary", "300", "--width", "16", "--layers", "1"]


def test_any_world_is_trained_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a model, training names the command; the command names the next one."""
    monkeypatch.chdir(tmp_path)
    world = name("Chain")
    assert main(["train", "--env", world]) == 2
    assert (
        f"`poad pretrain --env {world} --to my-model` makes a tiny one" in capsys.readouterr().err
    )
    assert main(["pretrain", "--env", world, "--to", "my-model", *SMALL]) == 0
    said = capsys.readouterr().out
    assert "Played 200 turns at random: 3 prompts" in said
    following = f"poad train --env {world} --model.name my-model"
    assert f"\n  {following}   train it\n" in said
    few = ["--run=run", "--steps=4096", "--streams=4", "--eval.episodes=50", "--quiet"]
    assert main([*following.split()[1:], *few]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["success_rate"] > 0.9


def test_the_command_tells_what_it_does_and_nothing_if_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["pretrain", "--env", "poad/TomatoSalad-v0", "--env-args", "max_steps=9", *SMALL]
    assert main([*command, "--to", "a model", "--history", "last", "--last", "3"]) == 0
    assert (
        "poad train --env poad/TomatoSalad-v0 --env-args max_steps=9 --model.name 'a model' "
        "--prompt.history last --prompt.last 3 " in capsys.readouterr().out
    )
    assert main([*command, "--to", "other", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--to", "model"], "--env is missing"),
        (["--env", name("Chain")], "--to is missing"),
        (["--env", name("Chain"), "--to", "m", "--steps", "1", "--minutes", "1"], "Leave out one"),
        (["--env", "poad/TomatoSalat-v0", "--to", "m"], "Did you mean 'poad/TomatoSalad-v0'"),
        (["--env", name("Chain"), "--to", "m", "--turns", "many"], "not a whole number"),
        (["--env", name("Chain"), "--to", "m", "--size", "3"], "There is no option --size"),
        (["--env", name("Diary"), "--to", "m"], "train a model that knows the language"),
    ],
)
def test_mistakes_are_explained_in_a_sentence(
    options: list[str],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", *options]) == 2
    assert why in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []
