"""Episodes from files: three forms, and errors that name the line."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_run import episode, turn

from poad.credit import token_credit
from poad.errors import RunError
from poad.pages import Dials, judge, kinds, read_episodes
from poad.runs import append_line, encode

TRACE: dict[str, Any] = {
    "token_ids": [7, 8, 9, 7, 5, 6],
    "texts": ["You see", " chop", " it", "You hold", " wait", "."],
    "turn_ids": [0, 0, 0, 1, 1, 1],
    "mask": [False, True, True, False, True, True],
    "rewards": [0, 0, 0.5, 0, 0, 1],
    "logprobs": [0, -0.1, -0.2, 0, -0.3, -0.4],
    "values": [0, 0.1, 0.2, 0, 0.3, 0.4],
}


def lines(folder: Path, *values: object) -> Path:
    path = folder / "some.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def read_one(folder: Path, value: object, **options: Any) -> Any:
    ((view,),) = read_episodes(lines(folder, value), limit=5, **options).values()
    return view


def test_a_trace_becomes_turns_with_observations_and_actions(tmp_path: Path):
    view = read_one(tmp_path, TRACE)
    assert [(t.prompt, t.action, t.reward) for t in view.turns] == [
        ("You see", " chop it", 0.5),
        ("You hold", " wait.", 1),
    ]
    assert view.turns[0].value == (0.1, 0.2)
    assert (view.episode_return, view.ending, view.success) == (1.5, "terminated", None)


@pytest.mark.parametrize("names", kinds())
def test_a_trace_gets_the_credit_that_token_credit_gives_its_own_columns(
    tmp_path: Path, names: str
):
    """The columns of a trace are the arguments of `token_credit`."""
    judged = judge(read_one(tmp_path, TRACE), kinds()[names], Dials(0.9, 0.8))
    mask = torch.tensor([TRACE["mask"]])
    credit = token_credit(
        torch.tensor([TRACE["rewards"]], dtype=torch.float64),
        torch.tensor([TRACE["values"]], dtype=torch.float64),
        mask,
        torch.tensor([TRACE["turn_ids"]]),
        gamma=0.9,
        lam=0.8,
        method=kinds()[names],
    )
    np.testing.assert_allclose(
        [t.advantage or 0.0 for t in judged], credit.advantage[mask], atol=1e-12
    )


def test_a_trace_needs_only_tokens_turns_and_rewards(tmp_path: Path):
    least = {key: TRACE[key] for key in ("token_ids", "turn_ids", "rewards")}
    view = read_one(tmp_path, least)
    assert view.turns[0].pieces == ("#7", "#8", "#9")
    assert all(math.isnan(v) for v in view.turns[0].value)
    assert not view.knows_values

    def decoded(ids: Sequence[int]) -> list[str]:
        return [f"<{token}>" for token in ids]

    assert read_one(tmp_path, least, pieces=decoded).turns[0].action == "<7><8><9>"


def test_our_own_episodes_are_those_of_the_newest_checkpoint_by_mode(tmp_path: Path):
    path = tmp_path / "episodes.jsonl"
    for checkpoint in (3, 9):
        for mode in ("sampled", "greedy"):
            for seed in (1, 2, 3):
                append_line(path, episode(seed, checkpoint=checkpoint, mode=mode))
    found = read_episodes(path, limit=2)
    assert [*found] == [
        "checkpoint 9 in poad/TomatoSalad-v0, sampled",
        "checkpoint 9 in poad/TomatoSalad-v0, greedy",
    ]
    assert [[view.seed for view in views] for views in found.values()] == [[1, 2], [1, 2]]
    assert next(iter(read_episodes(path, limit=2, checkpoint=3))).startswith("checkpoint 3 ")
    with pytest.raises(RunError, match=r"no episodes of checkpoint 4; there are those of 3, 9"):
        read_episodes(path, limit=2, checkpoint=4)


def test_the_same_seed_in_a_world_with_other_arguments_is_another_episode(tmp_path: Path):
    path = tmp_path / "episodes.jsonl"
    for steps, success in ((8, True), (12, False)):
        append_line(path, episode(1, checkpoint=9, success=success, env_args={"max_steps": steps}))
    found = read_episodes(path, limit=5)
    assert {who: [view.success for view in views] for who, views in found.items()} == {
        "checkpoint 9 in poad/TomatoSalad-v0 max_steps=8, sampled": [True],
        "checkpoint 9 in poad/TomatoSalad-v0 max_steps=12, sampled": [False],
    }


def test_rewards_at_the_tokens_of_an_observation_do_not_count(tmp_path: Path):
    view = read_one(tmp_path, TRACE | {"rewards": [5, 0, 0.5, 5, 0, 1]})
    assert [turn.reward for turn in view.turns] == [0.5, 1]


def test_a_file_may_mix_the_forms(tmp_path: Path):
    file = lines(tmp_path, TRACE, ROLLOUT, TRACE, encode(episode(5)))
    for limit, sizes in ((5, [3, 1]), (2, [2, 1])):
        assert [len(views) for views in read_episodes(file, limit=limit).values()] == sizes


def test_an_episode_of_ours_keeps_all_that_was_recorded(tmp_path: Path):
    view = read_one(tmp_path, encode(episode(5, success=False, turns=[turn(invalid=True)])))
    assert (view.seed, view.success, view.ending) == (5, False, "truncated")
    assert view.turns[0].offered == turn().offered
    assert view.turns[0].invalid
    assert view.turns[0].duration == 3


ROLLOUT: dict[str, Any] = {
    "prompt": [{"role": "user", "content": "Guess."}],
    "reward": 0.75,
    "is_truncated": True,
    "example_id": 3,
    "metrics": {"right": 1.0},
    "trajectory": [
        {
            "prompt": [{"role": "user", "content": "Guess."}],
            "completion": [{"role": "assistant", "content": "crane"}],
            "reward": None,
            "tokens": {
                "prompt_ids": [1, 2],
                "prompt_mask": [0, 0],
                "completion_ids": [3, 4, 5],
                "completion_mask": [1, 1, 0],
                "completion_logprobs": [-0.1, -0.2, 0.0],
            },
        },
        {
            "prompt": "Guess. crane Wrong.",
            "completion": "slate",
            "reward": None,
            "tokens": {
                "prompt_ids": [1],
                "prompt_mask": [0],
                "completion_ids": [6],
                "completion_mask": [1],
                "completion_logprobs": [-0.5],
            },
        },
    ],
}


def test_a_rollout_of_verifiers_becomes_an_episode(tmp_path: Path):
    view = read_one(tmp_path, ROLLOUT)
    assert [t.prompt for t in view.turns] == ["user: Guess.", "Guess. crane Wrong."]
    assert [t.action for t in view.turns] == ["assistant: crane", "slate"]
    assert [t.reward for t in view.turns] == [0.0, 0.75], "without rewards of steps, all at the end"
    assert view.turns[0].choice == (True, True, False)
    assert (view.episode_return, view.ending) == (0.75, "truncated")
    steps = [
        step | {"reward": r} for step, r in zip(ROLLOUT["trajectory"], (0.25, 0.5), strict=True)
    ]
    view = read_one(tmp_path, ROLLOUT | {"trajectory": steps})
    assert [t.reward for t in view.turns] == [0.25, 0.5]


def node(role: str, content: Any, parent: int | None = None, **more: Any) -> dict[str, Any]:
    """A message as verifiers 0.4 saves it, which leaves out what is None."""
    tokens = more.pop("token_ids", [7, 8])
    known = {"sampled": False, "mask": [False] * len(tokens), "logprobs": [], "is_content": []}
    known |= {"message": {"role": role, "content": content}, "token_ids": tokens}
    return known | ({} if parent is None else {"parent": parent}) | more


def reply(content: str | None, parent: int, **more: Any) -> dict[str, Any]:
    """A message that the model wrote: two tokens of the template, and three of its own."""
    own = {"mask": [False, False, True, True, True], "logprobs": [-0.5, -0.25, 0.0]}
    return node("assistant", content, parent, token_ids=[1, 2, 3, 4, 5], sampled=True) | own | more


NODES = [
    node("system", "You open doors."),
    node("user", [{"type": "text", "text": "A red door."}, {"type": "image_url"}], 0),
    reply("I give up.", 1),  # a path that was left
    reply("open the red door", 1, entropies=[0.9, 0.8, 0.1], reference_logprobs=[-1.0, -0.5, -0.1]),
    node("user", "It is locked.", 3),
    reply(None, 4),
]
NODES[5]["message"]["tool_calls"] = [{"id": "a", "name": "unlock", "arguments": '{"door": "red"}'}]
SAVED = {
    "id": "e",
    "ok": True,
    "traces": [
        {
            "version": 1,
            "nodes": NODES,
            "calls": [{"node": 3, "finish_reason": "stop"}, {"node": 5, "finish_reason": "stop"}],
            "rewards": {"opened": {"score": 1.0, "weight": 0.5}, "polite": {"score": 0.5}},
            "ok": True,
            "stop_condition": "agent_completed",
        }
    ],
}


def saved(**more: Any) -> dict[str, Any]:
    return SAVED | {"traces": [SAVED["traces"][0] | more]}


def test_a_trace_of_verifiers_becomes_an_episode(tmp_path: Path):
    view = read_one(tmp_path, SAVED)
    assert [t.prompt for t in view.turns] == [
        "system: You open doors.\nuser: A red door. [image_url]",
        "user: It is locked.",
    ]
    assert [t.action for t in view.turns] == [
        "assistant: open the red door",
        'assistant: unlock({"door": "red"})',
    ]
    assert all(t.token_ids == (3, 4, 5) and all(t.choice) for t in view.turns)
    assert [t.logprob for t in view.turns] == [(-0.5, -0.25, 0.0)] * 2
    assert [t.entropy for t in view.turns] == [(0.9, 0.8, 0.1), ()]
    assert view.turns[0].before == (-1.0, -0.5, -0.1)
    assert [t.reward for t in view.turns] == [0.0, 1.0], "rewards belong to the whole trace"
    assert (view.episode_return, view.ending) == (1.0, "terminated")


def test_earlier_versions_save_calls_as_text(tmp_path: Path):
    message = {"role": "assistant", "content": "", "tool_calls": ['{"name": "unlock"}']}
    step = ROLLOUT["trajectory"][0] | {"completion": [message]}
    view = read_one(tmp_path, ROLLOUT | {"trajectory": [step]})
    assert view.turns[0].action == 'assistant: {"name": "unlock"}'


def test_each_agent_of_verifiers_has_an_episode(tmp_path: Path):
    both = SAVED | {"traces": SAVED["traces"] * 2}
    assert len(read_episodes(lines(tmp_path, both, both), limit=3)[""]) == 3


@pytest.mark.parametrize(
    ("more", "ending"),
    [
        ({"ok": False}, "unfinished"),
        ({"stop_condition": "max_turns"}, "truncated"),
        ({"calls": [{"finish_reason": "length"}]}, "truncated"),
        ({"calls": [{"finish_reason": "stop"}, {"error": {"type": "x"}}]}, "terminated"),
    ],
)
def test_how_a_trace_of_verifiers_ended(tmp_path: Path, more: dict[str, Any], ending: str):
    assert read_one(tmp_path, saved(**more)).ending == ending


WITHOUT_TOKENS = ROLLOUT | {"trajectory": [ROLLOUT["trajectory"][0] | {"tokens": None}]}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"reward": 1}, r"line 2: this is no episode\. Its keys are reward"),
        ([1], "line 2: an episode is a JSON object"),
        (TRACE | {"values": [1]}, "line 2: values has 1 entries, and token_ids has 6"),
        (TRACE | {"rewards": []}, "line 2: rewards has 0 entries"),
        (TRACE | {"turn_ids": [0, 0, 1, 0, 0, 0]}, "line 2: turn_ids decrease"),
        (TRACE | {"vaules": []}, "line 2: the key 'vaules' is unknown"),
        (TRACE | {"logprobs": ["x"] * 6}, "line 2: logprobs: 0: expected a number"),
        (ROLLOUT | {"trajectory": [{"tokens": {"ids": []}}]}, "line 2: this is not an episode as"),
        (WITHOUT_TOKENS, "line 2: no turn has tokens"),
        (saved(nodes=NODES[:2]), "line 2: no turn has tokens"),
        (saved(nodes=[]), "line 2: no turn has tokens"),
        (saved(nodes=[reply("round", 0)]), "line 2: .*node 0 has no proper parent"),
        (saved(nodes=[*NODES[:2], reply("short", 1, logprobs=[0.0])]), "line 2: .*differs"),
        (saved(rewards={"opened": {"weight": 1}}), "line 2: .*KeyError: 'score'"),
        (SAVED | {"traces": 3}, "line 2: this is not an episode as verifiers saves it"),
    ],
)
def test_an_error_names_the_line_and_what_is_wrong(tmp_path: Path, value: object, says: str):
    with pytest.raises(RunError, match=says):
        read_episodes(lines(tmp_path, TRACE, value), limit=5)


def test_a_file_that_is_no_json_or_empty_is_told(tmp_path: Path):
    path = tmp_path / "some.jsonl"
    path.write_bytes(b"\xff\xfe not JSON\n")
    with pytest.raises(RunError, match="line 1: this is not JSON"):
        read_episodes(path, limit=1)
    path.write_text("\n")
    with pytest.raises(RunError, match="holds no episode"):
        read_episodes(path, limit=1)
    with pytest.raises(RunError, match="Cannot read"):
        read_episodes(tmp_path / "none.jsonl", limit=1)
