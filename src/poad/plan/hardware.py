"""The machine of a run: its memory, its speed, and the memory that a process has used."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from pathlib import Path
from typing import Literal

import torch

from poad.agent import torch_threads
from poad.config import Config
from poad.errors import HardwareError

Kind = Literal["cpu", "cuda"]


def matrix_speed(config: Config, seconds: float = 1.0) -> float:
    """Measure a large matrix product on the run's device, in floating-point operations per second.

    Raises:
        HardwareError: the device is not in this machine.
    """
    device = torch.device(_device(config))
    size = 768 if device.type == "cpu" else 8192
    dtype = getattr(torch, config.model.dtype)
    if "mixed" in (config.model.precision, config.model.shard):
        dtype = torch.bfloat16
    a = torch.zeros(size, size, dtype=dtype, device=device)

    def multiply() -> None:
        torch.mm(a, a)
        if device.type == "cuda":  # kernels run asynchronously
            torch.cuda.synchronize(device)

    # The fastest product counts: what else the machine does slows most of them down.
    with torch_threads(config.threads):
        start, fastest = time.perf_counter(), math.inf
        while time.perf_counter() - start < seconds or fastest == math.inf:
            begin = time.perf_counter()
            multiply()
            fastest = min(fastest, time.perf_counter() - begin)
    return 2 * size**3 / fastest  # a multiplication and an addition each


def device_kind(config: Config) -> Kind:
    """Return the kind of device that a run would use."""
    name = config.model.device
    here = torch.cuda.is_available()
    return "cuda" if name.startswith("cuda") or (name == "auto" and here) else "cpu"


def _device(config: Config) -> str:
    name = config.model.device
    if device_kind(config) == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise HardwareError(
            f"model.device = {name}: this machine has no such GPU to measure. Describe it instead: "
            "--memory 24GB --flops 150e12 (half to two thirds of the advertised FLOP/s)."
        )
    return "cuda" if name == "auto" else name


def device_memory(config: Config) -> int:
    """Return the bytes of memory of the device that a run would use.

    Raises:
        HardwareError: the device is not in this machine.
    """
    device = _device(config)
    if device != "cpu":
        return int(torch.cuda.get_device_properties(device).total_memory)
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # a container may have less than the machine
    given = limit.read_text().strip() if limit.exists() else ""
    return min(size, int(given)) if given.isdigit() else size


def read_size(text: str, flag: str = "--memory") -> int:
    """Read a number of bytes such as ``24GB``, ``80GiB``, ``512MB`` or ``1000``.

    Args:
        text: the size.
        flag: where it was written.

    Raises:
        HardwareError: the text is no such size.
    """
    found = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
    if not found or number <= 0:
        raise HardwareError(f"{flag} {text}: expected a size such as 24GB, 80GiB or 512MB.")
    return int(number * (1024 if found[3] else 1000) ** " kmgt".index(found[2] or " "))


def peak_memory(kind: Kind) -> int | None:
    """Return the bytes this process has used at its peak, or None where that is unknown.

    On a GPU these are the bytes that torch allocated, on a CPU the resident set.
    """
    if kind == "cuda":
        return max(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
