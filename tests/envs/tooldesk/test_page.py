"""The page about the desk shows what the world does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tooldesk_search import box, desk, drawn, fewest_calls, random_success

from poad.envs.tooldesk.families import FAMILIES, UNSEEN

PAGE = (Path(__file__).parents[3] / "docs" / "tool-desk.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)`( \(unseen\))? \| (.+) \| (\d) \| (\S+) \|$", PAGE, re.M)


def test_the_example_is_what_happens():
    env = desk(families="cancel", reward="steps")
    prompt, _ = env.reset(seed=7)
    lines = []
    for action in env.solution():
        lines += [f"{prompt} {action}"]
        prompt, reward, *_, info = env.step(action)
        paid = {name: f"{name} {info['measures'][name]:.0f}" for name in info["measures"]}
        told = f"{paid['succeeded']}, {paid['contributed']}, sources {list(info['sources'])}"
        lines += [f"  -> {reward:.2f}: {told}", ""]
    shown = re.findall(r"^```\n(.*?)^```", PAGE, re.M | re.S)[0]
    assert shown == "\n".join(lines)


def test_the_table_lists_every_family_with_a_request_and_its_calls():
    assert [row[0] for row in ROWS] == list(FAMILIES)
    for family, unseen, goal, calls, _ in ROWS:
        assert bool(unseen) == (family in UNSEEN)
        task = drawn(family)
        assert goal == task.goal
        assert int(calls) == len(task.plan)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_table_tells_exact_lengths_and_chances(row: tuple[str, ...]):
    task = drawn(row[0])
    assert fewest_calls(task, box(task)) == int(row[3])
    chance = random_success(task, box(task), 10)
    assert f"{chance:.2g}" == row[4]
    asks = task.kind != "reference"  # the bounds of the manual
    assert (0.0005 < chance < 0.004) if asks else chance < 0.001
