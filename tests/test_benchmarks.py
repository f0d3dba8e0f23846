"""The benchmarks run, and the rival they time computes what we compute."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoTokenizer

from poad.envs.check import check_env
from poad.envs.registry import make
from poad.lm.tokenizer import TextCodec

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SALAD = BENCHMARKS.parent / "configs" / "tomato_salad.yaml"


@pytest.fixture
def iteration(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("iteration")


@pytest.mark.parametrize("world", [0, 1, 2])
def test_the_rival_gives_our_losses_and_gradients_whatever_it_saves(iteration, world: int):
    codec = TextCodec(AutoTokenizer.from_pretrained(iteration.TOKENIZER))
    config = replace(iteration.settings(iteration.WORLDS[world], micro_batch=300), horizon=8)
    found = dict(iteration.prove(iteration.million(width=32), codec, config))
    assert found.pop("share of clipped ratios") > 0  # away from where every ratio is 1
    assert len(found) == len(iteration.NAMES) + 2
    assert max(found.values()) < 1e-4, found


def test_no_savings_is_every_row_and_all_savings_are_ours(iteration):
    """Counted in tokens through the model, which is what the savings are about."""
    codec = TextCodec(AutoTokenizer.from_pretrained(iteration.TOKENIZER))
    config = iteration.settings(
        iteration.WORLDS[0], micro_batch=10**6, epochs=1, minibatches=1, kl_limit=None
    )
    ours = iteration.build(iteration.million(width=32), codec, config, None)
    rollout = iteration.collect(ours, config, seed=0)

    def tokens(savings) -> list[int]:
        side = iteration.build(iteration.million(width=32), codec, config, savings)
        counted: list[int] = []
        side.model._body.register_forward_pre_hook(
            lambda _, __, given: counted.append(given["input_ids"].numel()), with_kwargs=True
        )
        side.update(rollout)
        return counted

    every = tokens(iteration.Savings())
    turns = rollout.turns
    longest = max(
        len(t.prompt_ids) + len(t.action.trie.token_path(k)) - 1
        for t in turns
        for k in t.action.trie.leaves
    )
    candidates = sum(len(t.action.trie.leaves) for t in turns)
    assert every == [candidates * longest]
    assert tokens(iteration.ALL) == tokens(None)


def test_the_order_desk_is_a_text_world_and_never_repeats(iteration):
    check_env(iteration.order_desk.WORLD)
    desk = make(iteration.order_desk.WORLD)
    prompts = [desk.reset(seed=0)[0]]
    for turn in range(12):
        prompt, _, over, _, _ = desk.step(iteration.order_desk.ACTIONS[0])
        prompts.append(prompt)
        assert over == (turn == 11)
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("iteration --worlds poad/TomatoSalad-v0 --times 1 --steps 2 --width 32", "| rival |"),
        ("offered_actions --times 1 --batch 2 --width 32 --sentences 1", "| 50 |"),
        ("startup --times 1", "| poad --help |"),
        ("update_rate --model tiny-kitchen --times 1", "median ratio"),
        ("action_length --lengths 16 32 --turns 1", "exponent: "),
        ("frozen_lake --seeds 0 --steps 1 --limits 0.2", "/1 "),
        ("pretrained --worlds doors --seeds 0 --steps 1 --turns 9 --fits 2", "tiny-household"),
        ("large_models --small --tasks kitchen --steps 1", "| small | kitchen | ours |"),
        ("large_models --small --tasks programs --steps 1 --action-tokens 3", "| ours |"),
        pytest.param(
            f"determinism --steps 512 --configs {SALAD}",
            "identical: yes",
            marks=pytest.mark.slow,  # two processes that load torch and train
        ),
    ],
)
def test_scripts_run(
    script: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    name, *arguments = script.split()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    importlib.import_module(name).main()
    assert says in capsys.readouterr().out
