"""The theory in numbers: small random problems, exact solutions, and the laws that are checked."""

from poad.theory.verify import verify_command

__all__ = [
    "verify_command",
]
