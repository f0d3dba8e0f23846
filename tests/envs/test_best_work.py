"""The best thing that agents make is kept, whichever world it was made in."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_worlds import name

from poad.envs import BestWork, Work, make


def test_the_best_work_is_kept_with_its_turn() -> None:
    works, world = BestWork(), make(name("Workshop"))
    words = ["a", "four", "three", "go", "longest", "longest", "x", "yes"]
    for turn, word in enumerate(words):
        world.reset(seed=turn)
        works.consider(world.step(word)[-1].get("work"))
    assert works.best is not None
    assert (works.best.text, works.best.turn) == ("longest", 5)  # the first of equal ones
    assert works.turns == len(words)


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
