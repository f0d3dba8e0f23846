"""``poad verify``: check the theory on problems with exact answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from poad.cli.arguments import Switch


@dataclass(frozen=True)
class Options:
    """Check the theory and the credit estimators on random problems with exact answers.

    Prints each law with the largest deviation found. The exit status is 1 if a law fails.
    """

    states: int = 32
    """States of each problem."""
    actions: int = 6
    """Largest number of actions in a state."""
    depth: int = 6
    """Largest number of tokens in an action."""
    problems: int = 20
    """Number of problems with rewards of both signs. As many are drawn with only positive rewards
    and with only negative ones."""
    seed: int = 0
    """Random seed."""
    out: Path = Path("runs/verify")
    """Directory for verify.json and the figures."""
    quiet: Switch = False
    """Print only the laws that fail."""


def run(options: Options) -> int:
    """Check the laws; the exit status is 1 if one fails."""
    from poad.theory import verify_command

    return verify_command(**asdict(options))
