"""A critic that has learned from a recorded run knows what its episodes came to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_worlds import settings

from poad.config import Config, EvalConfig
from poad.errors import ConfigError, RunError
from poad.learn.pretraining import recorded
from poad.learn.train import Trainer, train
from poad.runs import Run

CRITIC: dict[str, Any] = {"standardize": True, "root": True, "epochs": 120, "lr": 1e-2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "run"
    config = config_of()
    config = replace(config, eval=EvalConfig(every=1, episodes=6), steps=2 * 16)
    with Run.create(path, config) as written:
        list(train(config, written))
    return path


def config_of(world: str = "Chain", **changes: Any) -> Config:
    return settings(world, **({"critic": CRITIC} | changes))


def pretrained(run: Path, **changes: Any) -> Trainer:
    return Trainer(config_of(critic=CRITIC | {"pretrain": str(run)} | changes))


def test_its_values_are_the_mean_returns_of_what_was_recorded(run: Path) -> None:
    trainer = pretrained(run)
    agent, gamma = trainer.agent, trainer.config.credit.gamma
    with Run.open(run) as opened:
        episodes = [episode for episode in opened.episodes() if episode.turns]
    found: dict[Any, list[float]] = {}
    for episode, turns in zip(episodes, recorded(episodes, agent), strict=True):
        total = 0.0
        for record, turn in zip(reversed(episode.turns), reversed(turns), strict=True):
            total = record.reward + gamma**record.duration * total
            for j, choice in enumerate(turn.action.choice):
                if choice or j == 0:
                    found.setdefault((turn.prompt_ids, turn.action.token_ids[:j]), []).append(total)
    assert len(found) > 2
    means = [sum(each) / len(each) for each in found.values()]
    assert max(means) - min(means) > 0.1
    assert agent.values(list(found)) == pytest.approx(means, abs=0.05)


def test_nothing_else_changes_and_nothing_is_remembered(run: Path) -> None:
    trainer, fresh = pretrained(run), Trainer(config_of())
    for name, weight in fresh.agent.model.state().items():
        assert torch.equal(trainer.agent.model.state()[name], weight)
    assert trainer.learner.values is not None
    assert trainer.learner.values.memory == []
    assert not trainer.learner.optimizer.state_dict()["state"]


def test_a_resumed_run_does_not_learn_it_again(run: Path, tmp_path: Path) -> None:
    config = pretrained(run, epochs=2).config
    config = replace(config, ppo=replace(config.ppo, anneal=False))
    once = config.streams * config.horizon
    whole = list(train(replace(config, steps=4 * once)))
    with Run.create(tmp_path / "run", replace(config, steps=2 * once)) as written:
        list(train(replace(config, steps=2 * once), written))
    with Run.open(tmp_path / "run") as opened:
        rest = list(train(replace(config, steps=4 * once), opened, resume=True))
    assert len(rest) == 2
    clocks = ("seconds", "per_second")
    for mine, expected in zip(rest, whole[2:], strict=True):
        for name in (name for name in expected if not name.endswith(clocks)):
            assert mine[name] == pytest.approx(expected[name], nan_ok=True, rel=0, abs=0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"critic": {"body": "shared"}}, r"critic\.pretrain = .*critic\.body = shared"),
        ({"credit": {"method": "reinforce"}}, "reinforce has no critic"),
        ({"prompt": {"history": "last"}}, r"prompt\.history = none"),
        ({"world": "Novel"}, r"critic\.pretrain = .*no turns in .*Novel"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    changes: dict[str, Any], told: str, run: Path
) -> None:
    changes = {"critic": {}} | changes
    changes["critic"] |= {"pretrain": str(run)}
    with pytest.raises(ConfigError, match=told):
        Trainer(settings(**({"world": "Chain"} | changes)))


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere"):
        pretrained(tmp_path / "nowhere")
