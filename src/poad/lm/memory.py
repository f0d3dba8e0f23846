"""Passes that fit into memory: one that does not is divided, and so are all that follow."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch

from poad.errors import ModelError, WorldNote
from poad.ranks import ALONE, Ranks

T = TypeVar("T")

_FEWEST = 64
"""Passes of fewer tokens do not help: weights and moments fill the memory then."""


class PassLimit:
    """The most tokens of a forward pass that this machine has room for, as far as is known.

    It only falls: when a pass runs out of memory, to half of what was tried. Smaller passes give
    the same sums up to the rounding of floats.
    """

    def __init__(self) -> None:
        self.tokens = sys.maxsize
        """Columns of one pass, padding included."""

    def within(self, compute: Callable[[int], T], tokens: int, ranks: Ranks = ALONE) -> T:
        """Compute something in passes of so many tokens at most, fewer if memory runs out.

        Args:
            compute: takes the tokens of a pass. It is called again from the beginning, so it must
                not leave anything behind when it fails.
            tokens: as configured.
            ranks: each computes its share, in meetings or alone. If memory runs out on one of them,
                all of them begin again.

        Raises:
            ModelError: even small passes run out of memory; says what else to do.
            RankError: that happened on another rank.
        """
        first = tried = min(tokens, self.tokens)
        where = ""
        while True:
            found, failure = None, None
            try:
                found = compute(tried)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = error.with_traceback(None)  # whose frames hold tensors
            full = ranks.exchange("memory", failure is not None)
            if not any(full):
                break
            if tried // 2 < _FEWEST:
                if failure is None:
                    raise ranks.told_by(full.index(True))
                raise out_of_memory(f"even in passes of {tried} tokens") from failure
            self.tokens = tried = tried // 2
            where = f" on rank {full.index(True)}" if ranks.size > 1 else ""
            free_memory()
        if tried < first:
            warnings.warn(
                f"Out of memory in a pass of up to {first:,} tokens{where}. From now on passes "
                f"have at most {tried:,}, as with ppo.micro_batch_tokens = {tried}.",
                stacklevel=2,
            )
        return cast(T, found)


def free_memory() -> None:
    """Give back the memory of tensors that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that the memory of a GPU or of the machine is full.

    What a world raised is the world's own, and smaller passes do not help it.
    """
    if any(isinstance(note, WorldNote) for note in getattr(error, "__notes__", ())):
        return False
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in text or "out of memory" in text.lower()
    )


@contextmanager
def advice_on_memory() -> Iterator[None]:
    """Tell what to do when memory runs out where passes cannot be divided.

    Raises:
        ModelError: it did.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise out_of_memory("where smaller passes do not help") from error
        raise


def out_of_memory(where: str) -> ModelError:
    """Make the error for memory that smaller passes do not save."""
    return ModelError(
        f"Out of memory {where}. The last checkpoint is intact. Try "
        "model.gradient_checkpointing, model.tuning = lora, model.quantize = 4bit, fewer streams "
        "or shorter prompts; `poad plan` predicts what each needs."
    )
