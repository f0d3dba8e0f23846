"""Names of models: the embedded ones, poad's own, and .gguf files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from poad.models.known import KNOWN

ASSETS = Path(__file__).parents[1] / "assets"
"""The directory of the embedded models."""


def embedded_models() -> list[str]:
    """List the names of the tiny models that come with the package."""
    return sorted(path.parent.name for path in ASSETS.glob("*/config.json"))


def model_card(name: str) -> dict[str, Any]:
    """Read how an embedded model was made, from its ``making.json``."""
    return json.loads((ASSETS / name / "making.json").read_text(encoding="utf-8"))


def own_names() -> list[str]:
    """List the names of models that are poad's own: embedded ones, and those it can fetch."""
    return [*embedded_models(), *KNOWN]


def is_gguf(name: str) -> bool:
    """Return True for the path of a .gguf file, whether it is there or not."""
    return name.lower().endswith(".gguf") and not os.path.isdir(name)
