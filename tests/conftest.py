"""Shared fixtures. One thread, and no model hub: everything a test needs, it builds."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub's client

from collections.abc import Iterator

import pytest
import tolerance
import torch
from tiny_models import Zoo

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Tiny random models, built once each and loaded from their directories."""
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def float64() -> Iterator[None]:
    """The test computes in float64."""
    with tolerance.float64():
        yield
