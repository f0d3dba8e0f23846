"""Texts that are too long for a model: which part of them stays, and what is said of the rest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from poad.lm.tokenizer import ESCAPED
from poad.turns import Cut

GAP = "\n[...]\n"
"""Stands where the middle of a text was left out."""
_LONGEST_WORD = 24
"""A word with more characters may be cut apart."""
_FEW = 16
"""So few words and spaces are too few to be divided between the two ends."""


def shorten(text: str, fits: Callable[[str], bool], share: float) -> str | None:
    """Leave out as little as possible, about, of the middle of a text, so that it fits.

    Words stay whole, unless there is no room for a single one.

    Args:
        text: a text that does not fit, perhaps with control tokens marked by `TextCodec.escape`.
        fits: tells whether a text fits.
        share: a guess at the share of the text that fits.

    Returns:
        The beginning of the text, a mark, and its end. The end is three times as long as the
        beginning, and where little fits, there is only the end. None if nothing fits.
    """
    for longest in (_LONGEST_WORD, 1):
        pieces = _pieces(text, longest)
        # The first number of pieces fits, the second does not.
        low, high, count = 0, len(pieces), int(share * len(pieces))
        while high - low > 1 + low // 64:
            count = min(max(count, low + 1), high - 1)
            step = 1 + count // 4
            if fits(_ends(pieces, count)):
                low, count = count, count + step
            else:
                high, count = count, count - step
            if not low < count < high:
                count = (low + high) // 2
        if low:
            return _ends(pieces, low)
    return None


def _pieces(text: str, longest: int) -> list[str]:
    """Split a text into words, spaces and marked control tokens."""
    words = rf"{ESCAPED}|\s{{1,{longest}}}|(?:(?!{ESCAPED})\S){{1,{longest}}}"
    return re.findall(words, text)


def _ends(pieces: Sequence[str], count: int) -> str:
    """Join so many pieces from both ends."""
    first = count // 4 if count >= _FEW else 0
    head = "".join(pieces[:first]).rstrip()
    tail = "".join(pieces[len(pieces) - count + first :])
    tail = tail.lstrip() or tail
    return f"{head}{GAP}{tail}" if head else tail


class Losses:
    """Counts the tokens that a prompt loses, by what they were.

    Args:
        whole: the tokens that it has at first.
        turns: the tokens of earlier turns that are gone for good.
    """

    def __init__(self, whole: int, turns: int) -> None:
        self._size, self._lost = whole, Counter(turns=turns)

    def count(self, what: str, size: int) -> None:
        """Note that the prompt has become this short, by the loss of a field of `Cut`."""
        self._lost[what] += self._size - size
        self._size = size

    def cut(self) -> Cut | None:
        """Return what was lost; None if nothing was."""
        # The words of a goal may take more room than what made way for them.
        lost = {what: count for what, count in self._lost.items() if count > 0}
        return Cut(**lost) if lost else None


def a_turn_later(cut: Cut | None, *, lost: bool) -> Cut | None:
    """Return what is missing a turn later, where the observation has become an earlier turn.

    Args:
        cut: what was missing.
        lost: whether it is gone for good.
    """
    gone = cut.turns + cut.observation if cut is not None and lost else 0
    return cut and replace(cut, turns=gone, observation=0)


def describe_cut(
    whole: int,
    now: int,
    most: int,
    *,
    turns: int,
    examples: int,
    middle: bool,
    kept: Sequence[str],
) -> str:
    """Say what was left out of a prompt, and what stayed.

    Args:
        whole: the tokens that the prompt had.
        now: the tokens that it has.
        most: the tokens that it may have.
        turns: how many earlier turns were left out.
        examples: how many examples were left out.
        middle: whether the middle of the observation was.
        kept: what always stays.
    """
    oldest = {0: "", 1: "the oldest turn"}.get(turns, f"the {turns} oldest turns")
    shown = {0: "", 1: "an example"}.get(examples, f"{examples} examples")
    lost = _in_words(oldest, shown, "the middle of the observation" if middle else "")
    rest = _in_words(*kept, "both ends of the observation" if middle else "the observation")
    hint = "" if "the goal" in kept else " What a world names in info['goal'] would stay, too."
    return (
        f"A prompt of {whole:,} tokens is too long: the model reads at most {most:,} before an "
        f"action. {whole - now:,} tokens are left out: {lost}. Kept: {rest}.{hint}"
    )


def describe_lack_of_room(most: int, sizes: Mapping[str, int]) -> str:
    """Say that what must stay in a prompt is too long by itself.

    Args:
        most: the tokens that the prompt may have.
        sizes: the tokens of what must stay, by name.
    """
    told = _in_words(*(f"{name} has {size:,}" for name, size in sizes.items()))
    return (
        f"The model reads at most {most:,} tokens before an action, which leaves no room for an "
        f"observation{told and f', since {told}'}: {'shorten them, or ' if told else ''}use a "
        "model that reads more."
    )


def _in_words(*parts: str) -> str:
    """Join the parts that are not empty: "one, two and three"."""
    *most, last = [part for part in parts if part] or [""]
    return f"{', '.join(most)} and {last}" if most else last
