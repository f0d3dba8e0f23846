"""Credit for every decision: one recursion, and a row per method. Needs torch and nothing else."""

from poad.credit.groups import group_credit
from poad.credit.method import Method
from poad.credit.methods import METHODS, find_method, token_credit
from poad.credit.rates import Rates, Trace
from poad.credit.recursion import Credit, recursion
from poad.credit.slots import Slots

__all__ = [
    "METHODS",
    "Credit",
    "Method",
    "Rates",
    "Slots",
    "Trace",
    "find_method",
    "group_credit",
    "recursion",
    "token_credit",
]
