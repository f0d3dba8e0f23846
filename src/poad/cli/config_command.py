"""``poad config``: print a configuration in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from poad.cli.arguments import Positional
from poad.cli.settings import EPILOG, check_settings
from poad.config import Config, dump, load

__all__ = ["EPILOG", "Options", "defaults", "run"]


@dataclass(frozen=True)
class Options:
    """Print all settings of a training as YAML that --config accepts.

    Without a file, these are the defaults. Flags override the file, as in `poad train`.
    """

    file: Positional[Path | None] = None
    """A YAML file of settings. It stands before the flags."""
    resolved: bool = False
    """Replace `auto` and null by what they mean for the world and the method."""
    settings: Config = field(default_factory=Config)


def defaults(arguments: Sequence[str]) -> Options:
    """The options before the flags are read: the settings come from the file."""
    if arguments and not arguments[0].startswith("-"):
        return Options(settings=load(Path(arguments[0]).expanduser()))
    return Options()


def run(options: Options) -> int:
    """Print the settings; the exit status."""
    settings = options.settings
    if options.resolved:
        check_settings(settings)
        from poad.agent import resolve

        settings = resolve(settings).config
    print(dump(settings), end="")
    return 0
