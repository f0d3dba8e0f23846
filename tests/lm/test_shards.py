"""Weights that are divided among processes; what several of them do is in tests/learn."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from torch import nn

from poad.errors import ModelError
from poad.lm.shards import Shards
from poad.ranks import ALONE


def test_a_torch_that_is_too_old_to_shard_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(dist, "all_gather_single")
    with pytest.raises(ModelError, match=r"needs torch 2\.13 or newer, and this is torch \d"):
        Shards(nn.Linear(2, 2), [], [], ALONE)
