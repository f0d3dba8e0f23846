"""Inspecting plays the episodes of the evaluation again, and reads all that the agent computed."""

from __future__ import annotations

import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from changed_run import run_of
from synthetic_run import metrics
from tiny_worlds import settings

from poad.agent import load_agent
from poad.envs import make
from poad.errors import ConfigError
from poad.learn import WorldStream, lay_out, play
from poad.learn.evaluate import evaluate
from poad.pages import EpisodeView, judge
from poad.runs import Run, append_line
from poad.workflows.inspect import Selection, dials_of, inspect_file, inspect_runs, view_episodes
from poad.workflows.load import LoadedRun, Weights, load_weights

KITCHEN = "poad/TomatoSalad-v0"
SHORT = {"max_steps": 12}
SEEDS = range(40, 44)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    free = {"env_args": {"words": 3, "offered": False}}
    worlds: dict[str, Any] = {
        "poad": settings(KITCHEN, env_args=SHORT),
        "ntpo": settings(KITCHEN, env_args=SHORT, credit={"method": "ntpo"}),
        "twosome": settings(KITCHEN, env_args=SHORT, credit={"method": "twosome"}),
        "free": settings("poad/Length-v0", **free),
        "reinforce": settings(KITCHEN, env_args=SHORT, credit={"method": "reinforce"}),
    }
    return {name: run_of(folder / name, config) for name, config in worlds.items()}


def viewed(run: Run, greedy: bool = False, **options: Any) -> list[EpisodeView]:
    agent = load_weights(Weights(run.path)).agent
    before = load_weights(Weights(run.path, untrained=True)).agent
    return view_episodes(agent, before, SEEDS, greedy=greedy, **options)


@pytest.mark.parametrize("name", ["poad", "twosome", "free"])
@pytest.mark.parametrize("greedy", [False, True])
def test_the_episodes_are_those_that_an_evaluation_records(
    runs: dict[str, Run], name: str, greedy: bool
):
    agent = load_weights(Weights(runs[name].path)).agent
    records = list(evaluate(agent, episodes=len(SEEDS), seed=SEEDS.start, greedy=greedy))
    views = viewed(runs[name], greedy)
    assert [v.seed for v in views] == [r.seed for r in records]
    for view, record in zip(views, records, strict=True):
        assert (view.episode_return, view.success) == (record.episode_return, record.success)
        assert view.ending == record.ending
        for seen, recorded in zip(view.turns, record.turns, strict=True):
            assert (seen.prompt, seen.action) == (recorded.prompt, recorded.action)
            assert (seen.token_ids, seen.choice) == (recorded.token_ids, recorded.choice)
            np.testing.assert_allclose(seen.value, recorded.value, atol=1e-4)
            if recorded.offered is None:
                assert seen.offered is None
            else:
                assert dict(seen.offered or ()) == pytest.approx(dict(recorded.offered), abs=1e-4)


@pytest.mark.parametrize("name", ["poad", "ntpo", "twosome", "free"])
def test_the_credit_of_a_view_is_what_the_learner_gives_the_same_turns(
    runs: dict[str, Run], name: str
):
    """A view, flattened, is the same row as the learner lays out, with the same values."""
    loaded = load_weights(Weights(runs[name].path))
    agent, credit = loaded.agent, loaded.agent.settings.credit
    world = partial(make, agent.config.env, **agent.config.env_args)
    stream = WorldStream(world, agent.policy.dialogue(), SEEDS.start)
    turns = [step.turn() for step in play(agent.policy, [stream], lambda _: None)]
    rows = lay_out([turns], credit)
    judged = rows.credit(torch.tensor(agent.values(rows.positions)), credit)
    view = viewed(runs[name])[0]
    tokens = judge(view, credit.method, dials_of(loaded))
    assert [t.advantage is not None for t in tokens] == judged.mask[0].tolist()
    assert [t.target is not None for t in tokens] == judged.value_mask[0].tolist()
    np.testing.assert_allclose([t.advantage or 0.0 for t in tokens], judged.advantage[0], atol=1e-4)


@pytest.mark.parametrize("name", ["poad", "twosome", "free"])
def test_probabilities_of_alternatives_add_up_and_agree_with_what_was_sampled(
    runs: dict[str, Run], name: str
):
    for view in viewed(runs[name]):
        for turn in view.turns:
            for j, choice in enumerate(turn.choice):
                some = turn.alternatives[j]
                if not choice:
                    assert (some, turn.entropy[j], turn.before[j]) == ((), 0.0, 0.0)
                    continue
                chances = [a.probability for a in some]
                assert sum(chances) <= 1 + 1e-4
                if len(some) < 8:  # all of them
                    assert sum(chances) == pytest.approx(1, abs=1e-4)
                    entropy = -sum(p * math.log(p) for p in chances)
                    assert turn.entropy[j] == pytest.approx(entropy, abs=1e-3)
                taken = turn.action if name == "twosome" else turn.pieces[j]
                (here,) = [a for a in some if a.taken]
                assert here.text == taken
                assert here.probability == pytest.approx(math.exp(turn.logprob[j]), abs=1e-4)
                assert here.before == pytest.approx(math.exp(turn.before[j]), abs=1e-4)


def test_the_untrained_agent_has_the_probabilities_it_had(runs: dict[str, Run]):
    agent = load_weights(Weights(runs["poad"].path, untrained=True)).agent
    for view in view_episodes(agent, agent, SEEDS):
        for turn in view.turns:
            np.testing.assert_allclose(turn.before, turn.logprob, atol=1e-4)


def test_a_checkpoint_may_be_the_reference_instead(runs: dict[str, Run], tmp_path: Path):
    shutil.copytree(runs["poad"].path, tmp_path / "poad")
    with Run.open(tmp_path / "poad") as run:
        run.save_checkpoint(2, load_weights(Weights(run.path, untrained=True)).agent.tensors(), {})
    found = inspect_runs([Weights(run.path, 1)], Selection(2), reference=2)
    assert found.before == "checkpoint 2"
    (as_untrained,) = inspect_runs([Weights(run.path, 1)], Selection(2)).agents.values()
    (compared,) = found.agents.values()
    assert any(t.before != t.logprob for v in compared for t in v.turns)
    assert [t.before for v in compared for t in v.turns] == [
        pytest.approx(t.before, abs=1e-4) for v in as_untrained for t in v.turns
    ]


def test_a_truncated_episode_goes_on_in_the_value_behind_it(runs: dict[str, Run]):
    views = viewed(runs["poad"])
    assert {view.ending for view in views} >= {"truncated"}
    for view in views:
        assert math.isnan(view.bootstrap) == (view.ending == "terminated")


def test_two_runs_play_the_same_seeds_and_the_page_says_whose_critic_it_is(runs: dict[str, Run]):
    chosen = [Weights(runs["poad"].path), Weights(runs["reinforce"].path)]
    found = inspect_runs(chosen, Selection(3, seed=5))
    assert [[e.seed for e in each] for each in found.agents.values()] == [[5, 6, 7]] * 2
    assert any("trains no critic" in note for note in found.notes)
    assert any("poad trained at real choices" in note for note in found.notes)


def test_the_page_says_that_it_shows_what_a_regression_divided(tmp_path: Path):
    run = run_of(tmp_path / "run", settings(KITCHEN, env_args=SHORT, credit={"regress": 8}))
    notes = inspect_runs([Weights(run.path)], Selection(1), compare_before=False).notes
    assert any("the page shows what it divided" in note for note in notes)


def test_runs_in_different_worlds_are_not_compared(runs: dict[str, Run]):
    chosen = [Weights(runs["poad"].path), Weights(runs["free"].path)]
    with pytest.raises(ConfigError, match="act in different worlds"):
        inspect_runs(chosen, Selection(1))


def test_sliders_stand_where_the_run_trained(runs: dict[str, Run]):
    found = inspect_runs([Weights(runs["ntpo"].path)], Selection(1), compare_before=False)
    credit = runs["ntpo"].config.credit
    assert (found.dials.gamma, found.dials.lam) == (credit.gamma, credit.lam)
    assert found.dials.gamma_token is None, "ntpo's own is γ"
    assert (found.method, found.before) == ("ntpo", "")
    assert not any(turn.before for e in next(iter(found.agents.values())) for turn in e.turns)


@pytest.mark.parametrize(
    ("credit", "iteration", "beta", "lam_actor"),
    [
        ({"beta": 0.5, "lam_actor": "auto"}, 3, 0.5, 0.6),
        ({"beta": 0.5, "lam_actor": 0.3}, 3, 0.5, 0.3),
        ({"lam_actor": "auto"}, 2, 1.0, 0.3),
        ({"lam_actor": "auto"}, 1, 1.0, None),
        ({"lam_actor": "auto"}, None, 1.0, None),
    ],
)
def test_a_chosen_lambda_is_that_found_before_the_weights_and_fixed_ones_stay(
    tmp_path: Path,
    credit: dict[str, Any],
    iteration: int | None,
    beta: float,
    lam_actor: float | None,
):
    agent = load_agent(settings(KITCHEN, env_args=SHORT, credit=credit))
    with Run.create(tmp_path / "fitted", agent.config) as run:
        for i, found in enumerate((math.nan, 0.3, 0.6), 1):
            run.log(metrics(i) | {"lam_actor": found})
        dials = dials_of(LoadedRun(run, agent, iteration))
    assert dials.beta == pytest.approx(beta)
    assert dials.lam_actor == (None if lam_actor is None else pytest.approx(lam_actor))


def test_checkpoints_of_a_run_share_its_untrained_model_and_its_notes(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loaded: list[Weights] = []

    def counting(weights: Weights) -> LoadedRun:
        loaded.append(weights)
        return load_weights(weights)

    shutil.copytree(runs["poad"].path, tmp_path / "poad")
    with Run.open(tmp_path / "poad") as run:
        run.save_checkpoint(2, load_agent(run.config).tensors(), {})
    monkeypatch.setattr("poad.workflows.inspect.load_weights", counting)
    found = inspect_runs([Weights(run.path, 1), Weights(run.path, 2)], Selection(1))
    assert [*found.agents] == ["checkpoint 1", "checkpoint 2"]
    assert [weights.untrained for weights in loaded].count(True) == 1
    assert found.notes[0] == "Sampled episodes of poad."
    assert len(found.notes) == 2


def test_the_same_weights_are_refused_before_anything_is_played(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delattr("poad.workflows.inspect.view_episodes")
    chosen = [Weights(runs["poad"].path, 1)] * 2
    with pytest.raises(ConfigError, match=r"Both are checkpoint 1 of .*Name two that differ"):
        inspect_runs(chosen, Selection(1))


def test_recorded_episodes_are_shown_without_a_model(runs: dict[str, Run], tmp_path: Path):
    agent = load_weights(Weights(runs["poad"].path)).agent
    file = tmp_path / "episodes.jsonl"
    for record in evaluate(agent, episodes=3, seed=40, greedy=False, checkpoint=2):
        append_line(file, record)
    found = inspect_file(file, limit=2)
    ((who, episodes),) = found.agents.items()
    assert who == f"checkpoint 2 in {KITCHEN} max_steps=12, sampled"
    assert [e.seed for e in episodes] == [40, 41]
    assert any("was not recorded" in note for note in found.notes)
