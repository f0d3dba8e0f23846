"""Several processes train as one would: same rollouts, same credit, same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks_at_work import examined, held, learn_all, learn_in_little_memory, on_ranks, same

from poad.ranks import Ranks

CASES: dict[str, dict[str, Any]] = {
    "poad": {"world": "Novel"},
    "shared body": {"world": "Chain", "critic": {"body": "shared"}},
    "adapters, reference, bits": {
        "world": "Prefixes",
        "model": {"name": "tiny-kitchen", "tuning": "lora"},
        "credit": {"beta": 0.5, "lam_actor": "auto", "trace": "bit"},
        "critic": {"replay": 2, "standardize": True, "root": True},
        "ppo": {"kl_reference": 0.1, "return_floor": 1.0, "recompute_logprob": True},
    },
    "critic with an adapter": {
        "world": "Prefixes",
        "model": {"name": "tiny-kitchen", "tuning": "lora"},
        "critic": {"body": "adapter", "root": True},
    },
    "adapters in the last block": {
        "world": "Chain",
        "model": {"name": "tiny-kitchen", "tuning": "lora", "lora_layers": 1},
    },
    "reinforce, forms": {"world": "Forms", "credit": {"method": "reinforce"}},
    "turn_ppo, one ratio a turn": {
        "world": "Prefixes",
        "credit": {"method": "turn_ppo"},
        "ppo": {"ratio": "turn", "micro_batch_tokens": 64},
    },
    "a regression": {"world": "Prefixes", "credit": {"regress": 24}},
    "twosome": {"world": "Corridor", "credit": {"method": "twosome"}},
    "free writing": {"world": "Mixed"},
    "fewer streams than ranks": {"world": "Workshop", "streams": 1},
    "sharded": {"world": "Novel", "model": {"shard": "full"}},
    "sharded, shared body, checkpointing": {
        "world": "Chain",
        "model": {"shard": "full", "gradient_checkpointing": True},
        "critic": {"body": "shared"},
    },
    "sharded, reference, an update that goes too far": {
        "world": "Prefixes",
        "model": {"shard": "full"},
        "ppo": {"kl_reference": 0.1, "lr": 0.01, "kl_stop": None, "kl_limit": 1e-8},
    },
    "sharded, passes of one row": {
        "world": "Prefixes",
        "model": {"shard": "full"},
        "credit": {"method": "turn_ppo"},
        "ppo": {"ratio": "turn", "micro_batch_tokens": 1},
    },
    "sharded, fewer streams and bundles than ranks": {
        "world": "Workshop",
        "model": {"shard": "full"},
        "streams": 1,
    },
}


Told = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What each rank tells of its trainings, by the number of ranks and the case."""
    folder = tmp_path_factory.mktemp("ranks")
    return {size: on_ranks(learn_all, size, folder / str(size), CASES, 2) for size in (1, 2, 3)}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_ranks_train_as_one_process_does(case: str, size: int, trained: Told) -> None:
    alone = trained[1][0][case]
    several = [each[case] for each in trained[size]]
    for each in several:
        same(each["rollouts"], alone["rollouts"], 1e-9)
        assert each["terms"] == alone["terms"]
        same(each["values"], alone["values"], 1e-9)
        for name, weight in alone["weights"].items():
            np.testing.assert_allclose(each["weights"][name], weight, rtol=0, atol=1e-6)
    # Among themselves, they agree to the last bit.
    for name, weight in several[0]["weights"].items():
        assert all(np.array_equal(each["weights"][name], weight) for each in several)
    assert several[0]["values"] == several[1]["values"]


def test_an_update_that_goes_too_far_is_shortened_on_sharded_weights(trained: Told) -> None:
    case = "sharded, reference, an update that goes too far"
    assert min(metrics["kept"] for metrics in trained[2][0][case]["metrics"]) < 1


def test_an_evaluation_in_training_is_divided(tmp_path: Path) -> None:
    """Also where a rank has no episode to play, and where some take several messages."""
    for episodes in (2, 9):
        first, *others = on_ranks(examined, 3, tmp_path / f"ranks{episodes}", episodes)
        same(first, examined(Ranks(), episodes), 1e-9)
        assert others == [[], []]


SMALL: dict[str, dict[str, Any]] = {
    "whole": {},
    "sharded": {"model": {"shard": "full"}},
    "sharded, checkpointing": {
        "model": {"shard": "full", "gradient_checkpointing": True},
        "critic": {"body": "shared"},
    },
}
NOWHERE: tuple[str, dict[int, int]] = ("nowhere", {})
PLACES = {
    "whole": [NOWHERE, ("backward", {1: 150})],
    "sharded": [NOWHERE, ("forward", {1: 150}), ("backward", {1: 150})],
    "sharded, checkpointing": [NOWHERE, ("backward", {0: 150, 1: 100}), ("forward", {1: 10})],
}


def test_all_ranks_repeat_a_step_in_which_memory_runs_out_on_one(tmp_path: Path) -> None:
    world = {"world": "Novel", "streams": 8, "horizon": 12, "ppo": {"epochs": 1}}
    cases = {name: world | changes for name, changes in SMALL.items()}
    told = on_ranks(learn_in_little_memory, 2, tmp_path / "ranks", cases, PLACES)
    hopeless = "sharded, checkpointing: forward {1: 10}"
    assert "even in passes of 64 tokens" in told[1].pop(hopeless)["error"]
    assert told[0].pop(hopeless)["error"] == "Rank 1 could not go on; it says why."
    for name in told[0]:
        expected = told[0][f"{name.split(':')[0]}: nowhere {{}}"]
        found = [each[name] for each in told]
        for each in found:
            assert each["rollouts"] == expected["rollouts"]
            for key, weight in expected["weights"].items():
                np.testing.assert_allclose(each["weights"][key], weight, rtol=0, atol=1e-6)
            assert each["said"] == found[0]["said"]
            if name.endswith("nowhere {}"):
                assert each["said"] == []
            else:
                assert "of up to 16,384 tokens on rank" in each["said"][0]


@pytest.mark.parametrize("kind", ["full", "mixed"])
def test_a_rank_holds_its_share_of_weights_gradients_and_moments(kind: str, tmp_path: Path) -> None:
    told = on_ranks(held, 2, tmp_path / "ranks", kind)
    for each in told:
        share = pytest.approx(each["all"] / 2, rel=0.02)
        assert each["weights"] == each["gradients"] == share
        assert each["moments"] == 2 * each["weights"]
        assert each["in a step"] == each["weights"]
        assert each["between steps"] == each["all"]
        assert each["untrained in a step"] < 0.6 * each["untrained between steps"]
        computed = "torch.bfloat16" if kind == "mixed" else "torch.float32"
        assert (each["kept in"], each["computed in"]) == ("torch.float32", computed)
    assert sum(each["weights"] for each in told) == told[0]["all"]
    assert told[0]["metrics"] == told[1]["metrics"]
