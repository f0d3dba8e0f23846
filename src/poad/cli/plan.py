"""``poad plan``: predict the memory and time of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from poad.cli.arguments import Switch
from poad.cli.settings import EPILOG, Settings, check_settings, starting_point
from poad.cli.trust import trust
from poad.config import Config
from poad.errors import HardwareError

__all__ = ["EPILOG", "Options", "defaults", "run"]


@dataclass(frozen=True)
class Options:
    """Predict the memory and time of a training without loading any weights.

    Takes the settings of `poad train`. If the training does not fit, the command lists what to
    change, and its exit status is 1.
    """

    config: Path | None = None
    """A YAML file of settings; flags override it."""
    preset: str | None = None
    """The defaults to start from; see below. Default: those that suit the model."""
    memory: str | None = None
    """Memory of the machine, such as 24GB or 80GiB. Default: the memory of this one."""
    flops: float | None = None
    """Operations per second that the machine sustains in matrix products, such as 150e12. Default:
    measured on this one."""
    devices: int = 1
    """Devices of each machine, such as GPUs, each with a process of its own."""
    nodes: int = 1
    """Machines."""
    link: str | None = None
    """Bytes per second that each device of a machine exchanges with its neighbours. Default: 200GB
    for GPUs, and 400MB for processes that compute on the CPU."""
    network: str = "25GB"
    """Bytes per second between one machine and another."""
    trust_code: Switch = False
    """Do what the settings of a run ask for: import modules that are not poad's, or run programs
    without protection. You are asked once (docs/security.md)."""
    settings: Settings = field(default_factory=Config)


def defaults(arguments: Sequence[str]) -> Options:
    """The options before the flags are read: the settings come from --config."""
    chosen, settings = starting_point(arguments)
    return Options(preset=chosen, settings=settings)


def run(options: Options) -> int:
    """Print the prediction; the exit status is 1 if the training does not fit."""
    trust(options.settings)
    check_settings(options.settings)
    from poad.plan import LINK, Machines, device_kind, read_size, show

    for name in ("devices", "nodes"):
        if getattr(options, name) < 1:
            raise HardwareError(f"--{name} {getattr(options, name)}: must be 1 or more.")
    kind = device_kind(options.settings)
    if options.flops is not None and options.settings.model.device == "auto":
        kind = "cuda"  # a machine that is described has GPUs, even if this one has none
    link = LINK[kind] if options.link is None else read_size(options.link, "--link")
    network = read_size(options.network, "--network")
    machines = Machines(options.devices, options.nodes, link, network)
    return show(options.settings, options.memory, options.flops, machines)
