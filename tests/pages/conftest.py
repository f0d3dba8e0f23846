"""One browser for all tests of pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from chromium import chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, or the test is skipped."""
    with chromium() as started:
        yield started
