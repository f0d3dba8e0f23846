"""`poad plan` divides the work of one process among many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from poad.agent import resolve
from poad.cli.main import main
from poad.config import Config, CriticConfig, ModelConfig, PPOConfig
from poad.plan.predict import Plan, largest_share, predict, step_seconds
from poad.plan.scale import Machines, Step, ladder, pays_up_to, step_of

SHAPE: dict[str, Any] = {"hidden_size": 1024, "num_hidden_layers": 8, "intermediate_size": 2816}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run whose model is a directory that holds nothing but sizes."""
    folder = tmp_path_factory.mktemp("shape")
    LlamaConfig(**SHAPE, num_attention_heads=8).save_pretrained(folder)
    model = ModelConfig(name=str(folder), device="cpu")
    return resolve(replace(Config(), model=model, streams=8, horizon=8)).config


def planned(config: Config, ranks: int = 1, **model: Any) -> tuple[Config, Plan]:
    config = replace(config, model=replace(config.model, **model))
    return config, predict(config, flops=1e11, ranks=ranks)


def size(plan: Plan, name: str) -> int:
    return sum(part.size for part in plan.parts if part.name == name)


@given(st.integers(1, 40), st.integers(1, 40))
def test_no_process_has_less_than_an_even_share_and_none_more_than_a_piece_beyond(
    pieces: int, ranks: int
) -> None:
    share = largest_share(pieces, ranks)
    assert 1 / ranks <= share <= 1 / ranks + 1 / pieces
    assert share * pieces == pytest.approx(round(share * pieces))


def test_one_process_of_a_ladder_takes_what_a_process_alone_takes(large: Config) -> None:
    config, plan = planned(large)
    assert step_of(config, plan, Machines()).seconds == pytest.approx(plan.seconds)
    assert step_of(config, plan, Machines()).messages == 0


def test_sharded_weights_gradients_and_moments_are_divided(large: Config) -> None:
    frozen = replace(large, critic=CriticConfig(body="frozen"))
    whole, parts = planned(frozen, 8)[1], planned(frozen, 8, shard="full")[1]
    for name in ("base weights", "gradients", "Adam moments"):
        assert size(parts, name) == pytest.approx(size(whole, name) / 8, rel=1e-6), name
    assert size(parts, "whole weights") == size(whole, "base weights")
    half = planned(frozen, 8, shard="mixed")[1]
    assert size(half, "whole weights") == size(parts, "whole weights") / 2
    assert half.memory < parts.memory < whole.memory
    assert planned(frozen, 1, shard="full")[1].memory == planned(frozen)[1].memory


def test_shards_take_more_messages_and_slow_links_more_seconds(large: Config) -> None:
    config, plan = planned(large)
    sharded, same = planned(large, shard="full")
    there = Machines(devices=8)
    few, many = (step_of(c, p, there).messages for c, p in ((config, plan), (sharded, same)))
    assert 0 < few < many
    slow = step_of(config, plan, replace(there, link=1e9))
    assert slow.messages == pytest.approx(few * there.link / 1e9)
    assert slow.limit == "messages"
    apart = step_of(config, plan, replace(there, devices=4, nodes=2))
    assert apart.messages == pytest.approx(few * there.link / there.network)


def test_whole_processes_repeat_what_the_optimizer_does_and_shards_divide_it(large: Config) -> None:
    config, plan = planned(large)
    whole, parts = (
        step_of(c, plan, Machines(8)) for c in (config, planned(large, shard="full")[0])
    )
    seconds = step_seconds(config, plan.kind, plan.speed, plan.shape, plan.sample)
    assert seconds > 0
    assert whole.repeated - parts.repeated == pytest.approx(seconds)
    assert parts.computing - whole.computing == pytest.approx(seconds / 8)


def test_more_processes_than_prompts_or_streams_do_not_pay(large: Config) -> None:
    config, plan = planned(replace(large, ppo=PPOConfig(minibatches=1)))
    steps = ladder(config, plan, Machines(devices=8, nodes=24))
    assert [step.ranks for step in steps] == [1, 2, 4, 8, 16, 32, 64, 128, 192]
    assert pays_up_to(steps) < plan.sample.prompts
    assert steps[-1].computing < steps[0].computing / 8
    assert steps[-1].uneven > 0
    computing = [step.computing + step.uneven for step in steps]
    assert computing == sorted(computing, reverse=True)


def step(ranks: int, seconds: float) -> Step:
    return Step(ranks, seconds, 0, 0, 0, 0, tokens=10, memory=1)


def test_processes_pay_as_long_as_each_doubling_saves_a_fifth() -> None:
    assert pays_up_to([step(1, 8), step(2, 4), step(4, 2)]) == 4
    assert pays_up_to([step(1, 8), step(2, 4), step(4, 3.5), step(8, 1)]) == 2
    assert pays_up_to([step(1, 8)]) == 1


def test_the_command_tells_when_devices_stop_paying(
    large: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["plan", "--model.name", large.model.name, "--model.device", "cpu", "--flops", "1e11"]
    given += ["--preset", "plain", "--devices", "4", "--nodes", "2", "--model.shard", "full"]
    given += ["--network", "100MB"]
    assert main([*given, "--memory", "64GB"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        *("twice as many save less", "400 MB/s between devices", "100 MB/s between machines"),
        *("whole weights", "Where ppo.kl_stop leaves some out"),
    ):
        assert words in shown
    assert main(["plan", "--devices", "0"]) == 2
    assert "--devices 0" in capsys.readouterr().err
    assert main(["plan", "--link", "fast"]) == 2
    assert "--link fast" in capsys.readouterr().err
