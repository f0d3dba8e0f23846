"""The theory in numbers: small random problems, exact solutions, and the laws that are checked."""

from poad.theory.order import OrderOracle, exact_values, perfect_values, sampled_values
from poad.theory.verify import verify_command

__all__ = [
    "OrderOracle",
    "exact_values",
    "perfect_values",
    "sampled_values",
    "verify_command",
]
