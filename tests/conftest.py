"""Shared fixtures. One thread, and no model hub: everything a test needs, it builds."""

from __future__ import annotations

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub's client
# What poad remembers of the code that a user trusts
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="poad-tests-")

import multiprocessing
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import hypothesis
import pytest
from forked import PRELOADED

if TYPE_CHECKING:
    from tiny_models import Zoo

# Worlds, studies, ranks and commands are forked from one server. What it loads is decided by who
# comes first, so after a world's process every run of a study would load torch for itself.
multiprocessing.set_forkserver_preload(PRELOADED)
patch.object(BaseContext, "set_forkserver_preload").start()

if not os.access(Path(__file__).parents[1], os.W_OK):  # the checkout belongs to another user
    hypothesis.settings.register_profile("read-only", database=None)
    hypothesis.settings.load_profile("read-only")


# Fixtures import what loads torch, since pytest-xdist reads this file in a process without tests.


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Torch computes on one thread."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Tiny random models, built once each and loaded from their directories."""
    from tiny_models import Zoo

    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def float64() -> Iterator[None]:
    """The test computes in float64."""
    import tolerance

    with tolerance.float64():
        yield
