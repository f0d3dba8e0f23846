"""The trust region: an update never ends farther from the policy that sampled than it may."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny_worlds import settings
from tolerance import EXACT
from torch import Tensor

from poad.agent.build import load_agent
from poad.envs.registry import make
from poad.learn.ppo import PPO
from poad.learn.rollout import Collector
from poad.turns import Rollout

pytestmark = pytest.mark.usefixtures("float64")

FREE = {"kl_stop": None, "drift_stop": None, "max_grad_norm": 1e9, "epochs": 2}


class Run:
    """A learner and a rollout, the same for every limit."""

    def __init__(self, world: str, limit: float | None, **changes: Any) -> None:
        ppo = FREE | {"kl_limit": limit} | changes.pop("ppo", {})
        self.agent = load_agent(settings(world, ppo=ppo, **changes))
        config = self.agent.config
        self.learner = PPO(self.agent)
        self.worlds = Collector(
            lambda: make(config.env, **config.env_args), self.agent.policy, config.streams, 0
        )
        self.rollout = self.collect()

    def collect(self) -> Rollout:
        return self.worlds.collect(8, np.random.default_rng(2))

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten().clone() for p in self.agent.model.parameters()])

    @torch.no_grad()
    def kl(self) -> float:
        """Schulman's estimate for every choice of the rollout: the mean of ρ − 1 − log ρ."""
        batch, decision, option = self.agent.policy.decisions(self.rollout.turns)
        recorded = torch.tensor([v for t in self.rollout.turns for v in t.action.logprob])
        now = self.agent.policy.evaluate(batch).logprob[decision, option]
        ratio = (now - recorded)[decision >= 0]
        return float((ratio.exp() - 1 - ratio).mean())


@pytest.mark.parametrize(
    ("world", "method"), [("Novel", "poad"), ("Diary", "poad"), ("Novel", "twosome")]
)
def test_an_update_ends_inside_the_limit(
    world: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 0.02
    run = Run(world, limit, credit={"method": method}, ppo={"minibatches": 2})
    start, ways = run.weights(), []

    def step(*_: Any) -> None:
        """Go somewhere, far."""
        generator = torch.Generator().manual_seed(len(ways))
        ways.append(torch.randn(len(start), generator=generator) * 0.1)
        step_by(run, ways[-1])

    monkeypatch.setattr(run.learner.optimizer, "step", step)
    metrics = run.learner.update(run.rollout)
    assert 0 < run.kl() <= limit
    assert run.kl() == pytest.approx(metrics["kl_after"], rel=1e-6)
    # It is the way of all steps together, and as much of it as halving allows.
    share = metrics["kept"]
    assert 0 < share < 1
    assert math.log2(share).is_integer()
    way = share * torch.stack(ways).sum(0)
    torch.testing.assert_close(run.weights() - start, way, rtol=EXACT, atol=EXACT)
    step_by(run, way)
    assert run.kl() > limit


@torch.no_grad()
def step_by(run: Run, way: Tensor) -> None:
    parameters = run.agent.model.parameters()
    for weight, part in zip(parameters, way.split([p.numel() for p in parameters]), strict=True):
        weight.add_(part.reshape(weight.shape))


def test_a_limit_that_is_not_reached_changes_nothing() -> None:
    runs = [Run("Novel", limit, ppo={"lr": 1e-4}) for limit in (None, 1.0)]
    for _ in range(2):
        metrics = [run.learner.update(run.rollout) for run in runs]
        assert torch.equal(*(run.weights() for run in runs))
        assert metrics[1].pop("kept") == 1
        assert metrics[1].pop("lr_scale") == 1
        assert metrics[1].pop("kl_after") == pytest.approx(runs[1].kl(), rel=1e-6)
        assert metrics[0] == metrics[1]
        for run in runs:
            run.rollout = run.collect()


def test_steps_into_nowhere_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("Chain", 0.2, ppo={"epochs": 1, "minibatches": 1})
    before = run.weights()

    def step(*_: Any) -> None:
        for weight in run.agent.model.parameters():
            weight.data.fill_(math.nan)

    monkeypatch.setattr(run.learner.optimizer, "step", step)
    metrics = run.learner.update(run.rollout)
    assert metrics["kept"] == 0
    assert torch.equal(run.weights(), before)


def test_turns_of_older_policies_do_not_count() -> None:
    """They are away from the policy already, which no shortening can change."""
    run = Run("Chain", 0.2, credit={"method": "reinforce"}, ppo={"lr": 1e-6})
    for _ in range(3):
        metrics = run.learner.update(run.rollout)
        if metrics and metrics["passes"]:
            assert metrics["kept"] == 1
        with torch.no_grad():
            for weight in run.agent.model.parameters():
                weight.add_(0.05 * torch.randn(weight.shape))
        run.rollout = run.collect()


def test_an_update_that_was_shortened_lowers_the_rate_until_others_stay_near() -> None:
    """The rate falls by what was cut, and comes back where it is not too high any more."""
    run = Run("Novel", 0.01, ppo={"lr": 0.05, "epochs": 1, "minibatches": 1})
    scale, lowered = 1.0, 0
    for _ in range(8):
        metrics = run.learner.update(run.rollout)
        assert metrics["lr_scale"] == pytest.approx(scale)
        (group,) = run.learner.optimizer.param_groups
        assert group["lr"] == pytest.approx(0.05 * scale)
        if metrics["kept"] < 1:
            scale *= max(metrics["kept"], 1 / 8)
            lowered += 1
        elif metrics["kl_after"] < 0.01 / 4:
            scale = min(1.0, 1.2 * scale)
        run.rollout = run.collect()
    assert lowered
    run.learner._rates = [0.0]  # whatever it is multiplied by
    for _ in range(math.ceil(-math.log(scale, 1.2)) + 1):
        assert run.learner.lr_scale <= 1
        run.learner.update(run.rollout)
        run.rollout = run.collect()
    assert run.learner.lr_scale == 1
