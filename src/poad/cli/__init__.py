"""The command line: a file per command, with the command's options and its action.

A new command is a module with a dataclass `Options` and a function `run(options) -> int` that
returns the exit status, and a line in the table of `poad.cli.main`. The module is imported only
when its command is called. It imports torch only inside functions, so that its help and its errors
come at once.
"""

from poad.cli.main import main

__all__ = [
    "main",
]
