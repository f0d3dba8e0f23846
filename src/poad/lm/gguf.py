"""Models in one .gguf file, as llama.cpp, Ollama and LM Studio keep them.

Transformers reads such a file with the package gguf (the extra ``poad[gguf]``) and makes ordinary
weights of it. Here a file is looked through first, to say what is wrong with it and what it holds.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import importlib.util
import math
import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poad.errors import ModelError

SUFFIX = ".gguf"
_FIXED = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"}
_FIXED |= {10: "<Q", 11: "<q", 12: "<d"}
"""Types of metadata with a fixed size, by their number, as :mod:`struct` writes them."""
_STRING, _ARRAY = 8, 9
_PLAIN = ("F32", "F16", "BF16", "F64")
"""Types of tensors that are stored as they are."""
_DIGITS_APART = {"starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"}
"""Pre-tokenizers that cut a number into its digits before anything else (``llama-vocab.cpp``)."""


@dataclass(frozen=True)
class Contents:
    """What a .gguf file says of itself."""

    metadata: dict[str, Any]
    """Its settings, without the long ones, such as the vocabulary."""
    types: Counter[str]
    """How many tensors there are of each type of storage."""

    def describe(self, name: str, dtype: str) -> str:
        """Say what loading a file makes of its tensors.

        Args:
            name: of the file.
            dtype: of the loaded weights.
        """
        packed = {k: n for k, n in self.types.most_common() if k not in _PLAIN}
        kept = {k: n for k, n in self.types.most_common() if k in _PLAIN}
        told = [f"{_counted(packed)} were dequantized to {dtype}"] if packed else []
        told += [f"{_counted(kept)} were not quantized"] if kept else []
        return f"{name} has {self.types.total()} tensors: {', and '.join(told)}."


def _counted(types: dict[str, int]) -> str:
    *most, last = [f"{count} in {name}" for name, count in types.items()]
    return f"{', '.join(most)} and {last}" if most else last


def what_is_missing() -> str:
    """Say which package .gguf files need here; empty if nothing is missing."""
    if importlib.util.find_spec("gguf") is not None:
        return ""
    return f"{SUFFIX} files need the package gguf (the extra poad[gguf]): pip install gguf."


def read_contents(path: str) -> Contents:
    """Look through a .gguf file without reading its weights.

    The reader of the package gguf makes an object of every token, which takes seconds.

    Raises:
        ModelError: the package gguf is missing; or the file is absent, damaged, cut off, or one of
            several parts.
    """
    if lacking := what_is_missing():
        raise ModelError(f"Cannot load the model {path!r}: {lacking}")
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            contents, end = _parse(data)
            missing = end - len(data)
    except OSError as error:
        reason = error.strerror or error
        raise ModelError(f"Cannot load the model {path!r}: {reason}.") from error
    except (ValueError, KeyError, struct.error) as error:
        raise ModelError(
            f"Cannot load the model {path!r}: it is damaged, or no {SUFFIX} file of version 2 or 3 "
            f"({error}). Fetch it again."
        ) from error
    if missing > 0:
        raise ModelError(
            f"Cannot load the model {path!r}: the file ends {missing:,} bytes too early. Fetch it "
            "again."
        )
    if contents.metadata.get("split.count", 0) > 1:
        raise ModelError(
            f"Cannot load the model {path!r}: it is one of {contents.metadata['split.count']} "
            "parts. Merge them first, with `llama-gguf-split --merge`."
        )
    return contents


def _parse(data: mmap.mmap) -> tuple[Contents, int]:
    """Read the head of a file, and how long the file has to be."""
    import gguf

    if data[:4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version, tensors, settings = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        raise ValueError(f"its version is {version}")
    place, metadata = 24, {}
    for _ in range(settings):
        key, place = _string(data, place)
        (kind,) = struct.unpack_from("<I", data, place)
        value, place = _value(data, place + 4, kind)
        if value is not None:
            metadata[key] = value
    types: Counter[str] = Counter()
    length = 0
    for _ in range(tensors):
        _, place = _string(data, place)
        (dimensions,) = struct.unpack_from("<I", data, place)
        shape = struct.unpack_from(f"<{dimensions}Q", data, place + 4)
        kind, offset = struct.unpack_from("<IQ", data, place + 4 + 8 * dimensions)
        place += 16 + 8 * dimensions
        stored = gguf.GGMLQuantizationType(kind)
        types[stored.name] += 1
        block, size = gguf.GGML_QUANT_SIZES[stored]
        length = max(length, offset + math.prod(shape) // block * size)
    alignment = metadata.get("general.alignment", 32)
    begin = -(-place // alignment) * alignment  # of the tensors
    return Contents(metadata, types), begin + length if length else place


def _value(data: mmap.mmap, place: int, kind: int) -> tuple[Any, int]:
    """Read a setting, None for an array, and the place behind it."""
    if kind == _STRING:
        return _string(data, place)
    if kind != _ARRAY:
        form = _FIXED[kind]
        return struct.unpack_from(form, data, place)[0], place + struct.calcsize(form)
    kind, count = struct.unpack_from("<IQ", data, place)
    place += 12
    if kind in _FIXED:
        return None, place + count * struct.calcsize(_FIXED[kind])
    for _ in range(count):
        _, place = _value(data, place, kind)
    return None, place


def _string(data: mmap.mmap, place: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, place)
    if place + 8 + length > len(data):
        raise ValueError("a text goes beyond its end")
    return data[place + 8 : place + 8 + length].decode(errors="replace"), place + 8 + length


# --- what transformers makes of it ------------------------------------------------------------


def loading_options() -> dict[str, Any]:
    """Keyword arguments of ``from_pretrained`` that make ordinary weights of a file's tensors."""
    try:  # newer transformers could leave those of some architectures as they are
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def as_ordinary(causal: Any) -> Any:
    """Take the marks of a quantized model from one whose weights are dequantized.

    With them it could neither be trained nor saved.
    """
    for owner in (causal, causal.config, causal.base_model):
        for mark in ("hf_quantizer", "quantization_config", "quantization_method"):
            if mark in vars(owner):
                delattr(owner, mark)
        if "is_quantized" in vars(owner):
            owner.is_quantized = False
    return causal


def with_own_splits(tokenizer: Any, contents: Contents) -> Any:
    """Let a tokenizer cut numbers into digits where its model did.

    Transformers knows this of some pre-tokenizers that a file can name. Of others it drops it, and
    spaces before a number would become other tokens.
    """
    from tokenizers import pre_tokenizers

    cut: Any = pre_tokenizers
    backend = tokenizer.backend_tokenizer
    plain = isinstance(backend.pre_tokenizer, cut.ByteLevel)
    if plain and contents.metadata.get("tokenizer.ggml.pre") in _DIGITS_APART:
        digits = cut.Digits(individual_digits=True)
        backend.pre_tokenizer = cut.Sequence([digits, cut.ByteLevel(add_prefix_space=False)])
    return tokenizer


def source_options(path: str) -> dict[str, Any]:
    """Keyword arguments of ``from_pretrained`` that name a file in its directory."""
    return {"gguf_file": Path(path).name}
