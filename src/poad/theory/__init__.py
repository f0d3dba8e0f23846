"""The theory in numbers: small problems, exact values, and laws that are checked."""

from poad.theory.verify import verify_command

__all__ = [
    "verify_command",
]
