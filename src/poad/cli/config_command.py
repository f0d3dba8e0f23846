"""`poad config`: print a configuration in full."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from poad.config import Config, dump
from poad.errors import ConfigError


@dataclass(frozen=True)
class ConfigOptions:
    """Print a configuration in full, as YAML that --config accepts.

    Without a file, this prints the defaults. Flags override the file, as in `poad train`.
    """

    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    file: Annotated[Path | None, tyro.conf.Positional] = None
    """A YAML file of settings. It must come before any flag."""
    config: Path | None = None
    """The same, as a flag."""
    resolved: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace `auto` and null by what they mean for the world and the method."""


def show_config(options: ConfigOptions) -> int:
    """Print the configuration; return the exit status."""
    if options.file is not None and options.config is not None:
        raise ConfigError("Give the file once: as an argument or with --config.")
    settings = options.settings
    if options.resolved:
        from poad.agent import resolve

        settings = resolve(settings).config
    print(dump(settings), end="")
    return 0
