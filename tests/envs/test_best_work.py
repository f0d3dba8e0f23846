"""The best thing that agents make is kept, whichever world it was made in."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_worlds import WorkshopWorld, name

from poad.envs import BestWork, Work, make


def test_the_best_work_of_all_watched_worlds_is_kept_with_its_turn() -> None:
    works = BestWork()
    worlds = [works.watch(make(name("Workshop"))) for _ in range(2)]
    words = ["a", "four", "three", "go", "longest", "longest", "x", "yes"]
    for turn, word in enumerate(words):
        world = worlds[turn % 2]
        world.reset(seed=turn)
        world.step(word)
    assert works.best is not None
    assert (works.best.text, works.best.turn) == ("longest", 5)  # the first of equal ones
    assert works.turns == len(words)


def test_a_watched_world_is_the_world() -> None:
    plain, watched = make(name("Workshop")), BestWork().watch(make(name("Workshop")))
    assert isinstance(watched.unwrapped, WorkshopWorld)
    assert watched.spec is not None
    assert plain.spec is not None
    assert watched.spec.id == plain.spec.id
    assert plain.reset(seed=3) == watched.reset(seed=3)
    assert plain.step("word") == watched.step("word")
    assert not hasattr(watched.unwrapped, "_works")


def test_what_was_kept_survives_as_json() -> None:
    works, other = BestWork(), BestWork()
    other.load_state(json.loads(json.dumps(works.state())))
    assert other.best is None
    works.consider(None)
    works.consider({"file": "poem.txt", "text": "Roses\n\n", "score": 2.5, "deviation": 0.0})
    other.load_state(json.loads(json.dumps(works.state())))
    assert other.best == works.best == Work("poem.txt", "Roses\n\n", 2.5, 0.0, 2)
    assert other.state() == works.state()


def test_a_page_begins_with_the_score() -> None:
    work = Work("poem.txt", "Roses\n\n", 2.5, 0.25, 7)
    assert work.page() == "# score 2.5000, standard deviation 0.2500, turn 7\nRoses\n"


@pytest.mark.parametrize("worse", [2.5, 1.0, -np.inf])
def test_only_a_better_score_replaces_the_best(worse: float) -> None:
    works = BestWork()
    for score in (2.5, worse):
        works.consider({"file": "f", "text": str(score), "score": score, "deviation": 0.0})
    assert works.best is not None
    assert works.best.text == "2.5"
