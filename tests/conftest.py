"""Shared fixtures. One thread, and no model hub: everything a test needs, it builds."""

from __future__ import annotations

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub's client
# What poad remembers of the code that a user trusts
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="poad-tests-")

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import tolerance
import torch
from tiny_models import Zoo

torch.set_num_threads(1)
if not os.access(Path(__file__).parents[1], os.W_OK):  # the checkout belongs to another user
    hypothesis.settings.register_profile("read-only", database=None)
    hypothesis.settings.load_profile("read-only")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Tiny random models, built once each and loaded from their directories."""
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def float64() -> Iterator[None]:
    """The test computes in float64."""
    with tolerance.float64():
        yield
