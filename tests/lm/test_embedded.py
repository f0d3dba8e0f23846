"""The embedded models are small, reproducible and ignorant of the task."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from poad.agent.build import Agent, load_agent
from poad.agent.sampling import ActingCache
from poad.config import Config, ModelConfig
from poad.envs import Grammar, draw
from poad.envs.datasci.sandbox import Sandbox
from poad.envs.registry import make
from poad.envs.text_world import TextWorld
from poad.errors import SandboxError
from poad.learn.evaluate import evaluate
from poad.lm.loading import load_model
from poad.models.names import ASSETS, embedded_models, model_card
from poad.runs import summarize
from poad.turns import Observation

ROOT = Path(__file__).parents[2]
CODE, CALLS = "tiny-code", "poad/ToolDesk-v0"
WORDS_OF_WORLDS = [name for name in embedded_models() if name != CODE]
# Highest success rates allowed for the untrained agent; those of uniformly random actions are .442,
# .0102, .0150, .0030 and .114.
BOUNDS = {
    "poad/TomatoSalad-v0": 0.55,
    "poad/TomatoLettuceSalad-v0": 0.03,
    "poad/FoodPreparation-v0": 0.04,
    "poad/Entertainment-v0": 0.01,
    "poad/Length-v0": 0.16,
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    folder = ROOT / "scripts"
    sys.path.insert(0, str(folder))  # for its imports from the same folder
    try:
        spec = importlib.util.spec_from_file_location("build_models", folder / "build_models.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["build_models"] = module  # needed by its dataclass
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


# --- what is shipped --------------------------------------------------------------------------


@pytest.mark.parametrize("name", embedded_models())
def test_a_model_is_small_and_carries_no_code(name: str) -> None:
    files = [path for path in (ASSETS / name).rglob("*") if path.is_file()]
    megabytes, dtype = (8, torch.float16) if name == CODE else (2, torch.float32)
    assert sum(path.stat().st_size for path in files) <= megabytes * 10**6
    assert {path.suffix for path in files} == {".safetensors", ".json", ".md"}
    with safe_open(ASSETS / name / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(key).dtype for key in weights.keys()} == {dtype}  # noqa: SIM118
    model = load_model(ModelConfig(name=name))
    assert sum(p.numel() for p in model.parameters()) == model_card(name)["parameters"]


@pytest.mark.parametrize("name", WORDS_OF_WORLDS)
def test_its_card_says_how_it_was_made(name: str) -> None:
    card, making = (ASSETS / name / "README.md").read_text(encoding="utf-8"), model_card(name)
    recipe = making["recipe"]
    for figure in (recipe["episodes"], recipe["steps"], recipe["seed"], recipe["layers"]):
        assert str(figure) in card
    for figure in (making["turns"], making["parameters"]):
        assert f"{figure:,}" in card
    assert all(world in card for world in recipe["worlds"])
    assert all(
        f"`{name}={value}`" in card for a in recipe["arguments"] for name, value in a.items()
    )
    assert "uniformly" in card
    assert "make models" in card


# --- how it is made ---------------------------------------------------------------------------


def test_every_shipped_model_has_its_recipe(script: ModuleType) -> None:
    recipes = {recipe.name: json.loads(json.dumps(vars(recipe))) for recipe in script.RECIPES}
    assert recipes == {name: model_card(name)["recipe"] for name in embedded_models()}


def random_play(world: str, episodes: int, seed: int, **arguments: Any) -> list[tuple[str, str]]:
    """Play a uniformly random policy and return every turn, successful or not."""
    dice, env, turns = random.Random(seed), make(world, **arguments), []
    for episode_seed in range(seed, seed + episodes):
        prompt, info = env.reset(seed=episode_seed)
        ended = False
        while not ended:
            turns.append((prompt, drawn(info, dice)))
            prompt, _, terminated, truncated, info = env.step(turns[-1][1])
            ended = terminated or truncated
    return turns


def drawn(info: dict[str, Any], dice: random.Random) -> str:
    """A uniformly random action, offered or described by a grammar."""
    if "admissible_actions" in info:
        return dice.choice(info["admissible_actions"])
    return draw(Grammar.of(info["action_grammar"]), dice)


def test_the_text_is_every_turn_of_every_episode_in_order(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds = (*BOUNDS, CALLS)
    recipe = script.Recipe("x", worlds, episodes=3, seed=11, steps=1, batch=2)
    given: list[Any] = []
    train_model = script.train_model

    def spy(recipe: Any, codec: Any, turns: Any) -> Any:
        given.append(turns)
        return train_model(recipe, codec, turns)

    monkeypatch.setattr(script, "train_model", spy)
    script.build(recipe, tmp_path)
    expected = [random_play(world, 3, 11) for world in worlds]
    assert given == [expected]
    making = json.loads((tmp_path / "x" / "making.json").read_text())
    assert making["turns"] == sum(map(len, expected))


def test_longer_actions_join_the_training_one_by_one(script: ModuleType) -> None:
    torch.manual_seed(0)
    parts = [[([part], 0), ([part, part], 0)] for part in range(7)]
    batches = list(script.joining(parts, batch=4, steps=2_000))
    assert [len(batch) for batch in batches] == [4] * 2_000
    drawn = [{row[0] for row, _ in batch} for batch in batches]
    assert all(len(of) == 1 for of in drawn)  # a batch holds turns of about the same length
    first = [next(step for step, of in enumerate(drawn) if of == {part}) for part in range(7)]
    assert max(first[:3]) < 100 < min(first[3:])
    assert first[3:] == sorted(first[3:])
    assert first[6] < 1_100
    late = [sum(of == {part} for of in drawn[1_000:]) for part in range(7)]
    assert min(late) > 100


def test_rows_of_consecutive_turns_hold_every_turn_and_as_many_as_fit(script: ModuleType) -> None:
    codec = load_model(ModelConfig(name="tiny-order")).codec
    turns = [(f"Order {n}. " + "Write " * (n % 7), "small rye " * (n % 3 + 1)) for n in range(40)]
    texts = [codec.prompt(prompt) + codec.action(action) for prompt, action in turns]
    rows = script.stretches(codec, [*turns[:20], ("Write " * 90, "rye"), *turns[20:]], 60)
    assert {read for _, read in rows} == {0}
    long = next(i for i, (row, _) in enumerate(rows) if len(row) > 60)
    alone = rows.pop(long)
    assert len(alone[0]) > 90  # a turn that is longer has a row of its own
    assert list(chain(*(row for row, _ in rows))) == list(chain(*texts))
    assert max(len(row) for row, _ in rows) <= 60
    for (row, _), (after, _) in pairwise(rows[:long]):
        first = next(text for text in texts if tuple(after[: len(text)]) == text)
        assert len(row) + len(first) > 60


@pytest.mark.parametrize("name", WORDS_OF_WORLDS)
def test_the_shipped_words_come_from_that_text(script: ModuleType, name: str) -> None:
    making = model_card(name)
    recipe = making["recipe"]
    turns = [
        turn
        for world in recipe["worlds"]
        for arguments in recipe["arguments"]
        for turn in random_play(world, recipe["episodes"], recipe["seed"], **arguments)
    ]
    assert making["turns"] == len(turns)
    assert making["distinct_prompts"] == len({prompt for prompt, _ in turns})
    tokenizer = script.train_tokenizer(turns, recipe["vocabulary"])
    shipped = load_model(ModelConfig(name=name)).codec.tokenizer
    assert tokenizer.get_vocab() == shipped.get_vocab()


def test_building_again_gives_the_same_bytes(script: ModuleType, tmp_path: Path) -> None:
    recipe = script.Recipe(
        "x",
        ("poad/TomatoSalad-v0",),
        episodes=2,
        width=16,
        layers=1,
        heads=2,
        inner=16,
        steps=4,
        batch=4,
    )
    built = []
    for name in ("one", "two"):
        script.build(recipe, tmp_path / name)
        files = sorted((tmp_path / name / "x").iterdir())
        built.append({path.name: path.read_bytes() for path in files})
    assert built[0] == built[1]
    assert "model.safetensors" in built[0]
    assert load_model(ModelConfig(name=str(tmp_path / "one" / "x")))


# --- what it knows ----------------------------------------------------------------------------


def success_probability(agent: Agent, world: str) -> float:
    """Compute it exactly, by pushing the distribution over states through the primitive steps."""
    env, cache = make(world).unwrapped, ActingCache()
    assert isinstance(env, TextWorld)
    limit, view, act = env.max_steps, env._view, env._act
    states, number, chances, moves = [env.state], {env.state: 0}, [], []
    for state in states:  # which grows in this loop
        prompt, actions = view(state)
        chances.append(agent.policy.probabilities(Observation(prompt, actions), cache))
        moves.append([act(state, action) for action in actions])
        for move in moves[-1]:
            if not move.success and move.state not in number:
                number[move.state] = len(states)
                states.append(move.state)
    width = max(map(len, chances))
    chance, steps = np.zeros((len(states), width)), np.ones((len(states), width), dtype=int)
    following = np.full((len(states), width), -1)
    for i, row in enumerate(moves):
        chance[i, : len(row)] = chances[i]
        steps[i, : len(row)] = [len(move.rewards) for move in row]
        following[i, : len(row)] = [-1 if m.success else number[m.state] for m in row]
    mass, success = np.zeros((limit, len(states))), 0.0
    mass[0, 0] = 1.0
    for step in range(limit):
        flow, later = mass[step, :, None] * chance, step + steps
        success += float(flow[following < 0].sum())
        on = (following >= 0) & (later < limit)
        np.add.at(mass, (later[on], following[on]), flow[on])
    return success


@pytest.mark.parametrize("world", BOUNDS)
def test_untrained_it_succeeds_hardly_more_than_chance(world: str) -> None:
    assert 0.0 < success_probability(load_agent(Config(env=world)), world) <= BOUNDS[world]


def test_an_evaluation_agrees_with_the_exact_success_probability() -> None:
    world, episodes = "poad/TomatoSalad-v0", 1000
    agent = load_agent(Config(env=world))
    played = summarize(evaluate(agent, episodes=episodes, seed=0, greedy=False))
    exact = success_probability(agent, world)
    assert played.success_rate <= BOUNDS[world]
    assert abs(played.success_rate - exact) <= 4 * math.sqrt(exact * (1 - exact) / episodes)


def test_untrained_it_writes_calls_and_serves_requests_hardly_more_than_chance() -> None:
    """A random agent succeeds in .09 % of these episodes."""
    played = list(evaluate(load_agent(Config(env=CALLS)), episodes=120, seed=0, greedy=False))
    assert summarize(played).success_rate <= 0.02
    actions = [turn.action for record in played for turn in record.turns]
    formed = sum(
        re.fullmatch(r'\{"name": "\w+", "arguments": \{.+\}\}', a) is not None for a in actions
    )
    assert formed > 0.8 * len(actions)


# --- the code model, whose text comes from a grammar ------------------------------------------


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    pytest.importorskip("sklearn", reason="needs pip install 'poad[datasci]'")
    try:
        with Sandbox() as workers:
            yield workers
    except SandboxError as error:
        pytest.skip(str(error))


def test_the_card_of_the_code_model_says_how_it_was_made_and_what_it_does() -> None:
    card, making = (ASSETS / CODE / "README.md").read_text(encoding="utf-8"), model_card(CODE)
    recipe = making["recipe"]
    for figure in (making["turns"], making["repairs"], making["parameters"], recipe["programs"]):
        assert f"{figure:,}" in card
    for name, number in recipe["samples"]:
        found = making["measured"][name]
        assert found["programs"] == number
        assert f"| {name} | {number} | {found['executable']:.1%} |" in card
    assert recipe["worlds"] == ["poad/DataScience-v0"]
    assert "uniformly" in card
    assert "make models" in card


def test_about_half_of_its_programs_run_and_score_no_better_than_those_of_the_grammar() -> None:
    for found in model_card(CODE)["measured"].values():
        runs, error = found["executable"], 0.1 / math.sqrt(found["programs"] / 4)
        assert 0.35 <= runs <= 0.75
        assert found["score"] <= found["grammar_score"] + 3 * error
        assert found["reward"] == pytest.approx(runs * found["score"] - (1 - runs), abs=2e-3)
        rare = 3 * math.sqrt(0.03 * 0.97 / found["programs"])
        assert found["grammar_executable"] >= 0.97 - rare


@pytest.mark.slow
def test_the_code_model_does_what_its_card_says(script: ModuleType, sandbox: Sandbox) -> None:
    code, said, number = script.code_model, model_card(CODE)["measured"]["iris"], 60
    recipe = script.CodeRecipe("x", (), samples=(("iris", number),), seed=7)
    found = code.measure(ASSETS / CODE, recipe, sandbox)["iris"]
    spread = math.sqrt(said["executable"] * (1 - said["executable"]) / number)
    assert abs(found["executable"] - said["executable"]) <= 4 * spread
    assert abs(found["score"] - said["score"]) <= 0.1


def test_its_bodies_are_short_enough_and_end_where_it_stops_writing(script: ModuleType) -> None:
    turns = script.code_model.first_turns(
        script.CodeRecipe("x", (), programs=300), random.Random(3)
    )
    codec = load_model(ModelConfig(name=CODE)).codec
    lengths = []
    for prompt, body in turns:
        ids, read = script.code_model.row(codec, prompt, body)
        assert ids[:read] == codec.prompt(prompt)
        assert ids[-1] == codec.end_id
        assert codec.end_id not in ids[:-1]
        assert codec.tokenizer.decode(ids[read:-1]) == body
        lengths.append(len(ids) - read)
    assert max(lengths) <= 120
    assert 25 <= sorted(lengths)[150] <= 90


def test_a_repair_shows_what_was_broken_and_why(script: ModuleType, sandbox: Sandbox) -> None:
    recipe = script.CodeRecipe("x", (), repairs=25)
    turns = script.code_model.repair_turns(recipe, random.Random(4), sandbox)
    assert len(turns) >= 23
    for prompt, body in turns:
        shown = re.fullmatch(r"def build_model\(.*\n((?s:.*?))\n# (\w+): .*\n(?s:.*)", prompt)
        assert shown is not None
        assert shown[1] != body
        assert shown[2].endswith(("Error", "Exception"))
        assert "/" not in shown[2]


def test_building_the_code_model_again_gives_the_same_bytes(
    script: ModuleType, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.code_model, "Sandbox", lambda: nullcontext(sandbox))
    size = {"width": 16, "layers": 1, "heads": 2, "inner": 16, "vocabulary": 400}
    recipe = script.CodeRecipe(
        "x", ("w",), programs=30, repairs=6, steps=3, samples=(("iris", 3),), **size
    )
    built = []
    for name in ("one", "two"):
        script.code_model.build(recipe, tmp_path / name)
        built.append({path.name: path.read_bytes() for path in (tmp_path / name / "x").iterdir()})
    assert built[0] == built[1]
    assert {"model.safetensors", "making.json", "README.md"} <= set(built[0])


def repairs_of(name: str) -> list[tuple[str, str]]:
    """The repairs that a code model reads."""
    folders = (ROOT / "src", ROOT / "scripts")
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, folders))
    command = [sys.executable, str(Path(__file__).parent / "code_text.py"), name]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return [(prompt, body) for prompt, body in json.loads(done.stdout)]


@pytest.mark.slow
def test_the_words_of_the_code_model_come_from_its_text(
    script: ModuleType, sandbox: Sandbox
) -> None:
    making = model_card(CODE)
    recipe = script.CodeRecipe(**making["recipe"])
    rng = random.Random(recipe.seed)
    turns = script.code_model.first_turns(recipe, rng)
    repairs = repairs_of(CODE)
    some = replace(recipe, repairs=25)
    assert script.code_model.repair_turns(some, rng, sandbox) == repairs[:25], "as in a sandbox"
    turns += repairs
    assert making["turns"] == len(turns)
    assert making["distinct_prompts"] == len({prompt for prompt, _ in turns})
    tokenizer = script.code_model.train_tokenizer(turns, recipe.vocabulary)
    shipped = load_model(ModelConfig(name=CODE)).codec.tokenizer
    assert tokenizer.get_vocab() == shipped.get_vocab()
