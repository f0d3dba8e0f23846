"""What tells a model from another one of the same shapes: its weights and its words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Identity = dict[str, str]
"""The hash of each part of a model, by the part's name in plain words."""


def identify(causal: nn.Module, tokenizer: Any) -> Identity:
    """Hash what a model computes with, as it was loaded.

    The hash is the same on every device and for any number of files. A checksum stands for each
    tensor, since it is read at the speed of memory: 135 million weights take a twentieth of a
    second.

    Args:
        causal: a causal language model of transformers, with or without adapters of PEFT.
        tokenizer: its tokenizer.
    """
    words = [sorted(tokenizer.get_vocab().items()), tokenizer.chat_template]
    return {
        "weights": _hash(_summaries(causal)),
        "vocabulary or chat template": _hash([json.dumps(words)]),
    }


def _summaries(causal: nn.Module) -> Iterator[str]:
    """Describe each weight in a line, in an order that depends on neither names nor files.

    Another version of transformers may name them otherwise. Weights that were quantized on the way
    in are left out, since another machine may round them otherwise.
    """
    weights = (each.detach() for each in causal.parameters() if each.is_floating_point())
    yield from sorted(f"{tuple(w.shape)} {w.dtype} {_checksum(w)}" for w in weights)


@torch.no_grad()
def _checksum(tensor: Tensor) -> str:
    """Sum a tensor's bytes as 64-bit integers, modulo 2^64; the last bytes stand beside the sum."""
    if tensor.storage_offset() * tensor.element_size() % 8:
        tensor = tensor.clone()
    content = tensor.contiguous().reshape(-1).view(torch.uint8)
    whole = len(content) // 8 * 8
    total = int(content[:whole].view(torch.int64).sum()) if whole else 0
    return f"{total} {content[whole:].tolist()} {content[: whole : whole // 64 + 1].tolist()}"


def _hash(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode(errors="backslashreplace"))
    return digest.hexdigest()[:32]
