"""Credit for every decision: one recursion, and a row per method."""

from poad.credit.methods import METHODS, Method, find_method, token_credit
from poad.credit.recursion import Credit, Slots, Trajectory, recursion

__all__ = [
    "METHODS",
    "Credit",
    "Method",
    "Slots",
    "Trajectory",
    "find_method",
    "recursion",
    "token_credit",
]
