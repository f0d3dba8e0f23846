"""The command line."""

from poad.cli.main import main

__all__ = [
    "main",
]
