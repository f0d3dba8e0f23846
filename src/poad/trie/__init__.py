"""Offered actions: as a world gives them, and as a token tree."""

from poad.trie.offers import MAX_LISTED, CallForm, Form, Grammar, Offer, arguments_of
from poad.trie.trees import ROOT, ActionTrie, FormTree, TokenTree

__all__ = [
    "MAX_LISTED",
    "ROOT",
    "ActionTrie",
    "CallForm",
    "Form",
    "FormTree",
    "Grammar",
    "Offer",
    "TokenTree",
    "arguments_of",
]
