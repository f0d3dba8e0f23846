"""Kinds of models, by their size, found without loading any weights."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from poad.errors import ModelError
from poad.models.known import KNOWN
from poad.models.names import embedded_models, is_gguf

_TINY, _SMALL = 20_000_000, 2_000_000_000
"""Models with fewer weights are tiny, or small."""
_SIZE_IN_NAME = re.compile(r"(?<![\w.])(?:(\d+)x)?(\d+(?:\.\d+)?)\s?([mb])(?![a-z])", re.IGNORECASE)


def suitable_preset(model: str, tuning: str | None = None) -> str:
    """Name the preset that suits a model, a key of `poad.config.PRESETS`.

    Args:
        model: the name of a model, as in `ModelConfig.name`. If nothing tells its size, it counts
            as small.
        tuning: how it is tuned, if that is set.
    """
    size = model_size(model)
    kind = "small" if size is None or size < _SMALL else "large"
    if model == "auto" or (size is not None and size < _TINY):
        return "plain"
    return "small-full" if tuning == "full" and kind == "small" else kind


def model_size(model: str) -> int | None:
    """Estimate the number of weights of a model; None if nothing tells it.

    Files tell it exactly, except for a .gguf file, whose size stands for it. The name of a model on
    the hub often tells it: ``Qwen/Qwen2.5-0.5B-Instruct`` has 0.5 billion. What comes later in a
    name may be something else, such as a length: ``Qwen/Qwen2.5-7B-Instruct-1M`` has 7 billion.
    """
    if model in embedded_models():
        return 0
    if model in KNOWN:
        return KNOWN[model].parameters
    path = os.path.expanduser(model)
    if os.path.isfile(path) and is_gguf(path):
        return os.path.getsize(path)  # at about one byte per weight
    if os.path.isdir(path):
        files = [*Path(path).glob("*.safetensors")]
        weights = sum(count_weights(file) for file in files if not file.stem.startswith("adapter"))
        return weights or None
    last = model.rpartition("/")[2].replace("-", " ").replace("_", " ")
    found = _SIZE_IN_NAME.search(last)
    if found is None:
        return None
    experts, number, unit = found.groups("1")
    return int(int(experts) * float(number) * {"m": 1e6, "b": 1e9}[unit.lower()])


def count_weights(file: Path) -> int:
    """Count the weights in a safetensors file, without reading them.

    Raises:
        ModelError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as weights:
            shapes = [weights.get_slice(name).get_shape() for name in weights.offset_keys()]
    except (OSError, SafetensorError) as error:
        raise ModelError(f"Cannot read the weights in {file}: {error}.") from error
    return sum(map(math.prod, shapes))
