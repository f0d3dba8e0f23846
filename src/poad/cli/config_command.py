"""``poad config``: print a configuration in full."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from poad.cli.arguments import Switch
from poad.cli.settings import EPILOG, Settings, check_settings, starting_point
from poad.cli.trust import FLAG, trust
from poad.config import Config, dump
from poad.display import printable
from poad.errors import ConfigError

__all__ = ["EPILOG", "Options", "defaults", "run"]


@dataclass(frozen=True)
class Options:
    """Print all settings of a training as YAML that --config accepts.

    Without a file, these are the defaults. Flags override the file, as in `poad train`.
    """

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """A YAML file of settings. It stands before the flags."""
    config: Path | None = None
    """The same file as a flag."""
    preset: str | None = None
    """The defaults to start from; see below. Default: those that suit the model."""
    resolved: Switch = False
    """Replace `auto` and null by what they mean for the world and the method."""
    trust_code: Switch = False
    """Do what the settings of a run ask for: import modules that are not poad's."""
    settings: Settings = field(default_factory=Config)


def defaults(arguments: Sequence[str]) -> Options:
    """The options before the flags are read: the settings come from the file."""
    if arguments and not arguments[0].startswith("-"):
        path = Path(arguments[0]).expanduser()
        # Printing what a file says imports nothing; resolving it does.
        trusted = [] if "--resolved" in arguments else [FLAG]
        chosen, settings = starting_point([*arguments, *trusted], path)
    else:
        chosen, settings = starting_point(arguments)
    return Options(preset=chosen, settings=settings)


def run(options: Options) -> int:
    """Print the settings; the exit status."""
    if options.file is not None and options.config is not None:
        raise ConfigError("Give the file once: as an argument or with --config.")
    settings = options.settings
    if options.resolved:
        trust(settings)
        check_settings(settings)
        from poad.agent import resolve

        settings = resolve(settings).config
    text = dump(settings)
    print(printable(text) if sys.stdout.isatty() else text, end="")
    return 0
