"""Text of others made safe to show."""

from __future__ import annotations

import re

# Control characters of both sets except tab and line end, other line ends, halves of characters,
# what turns the direction of writing, and what Unicode calls default ignorable: it has no width.
_UNSAFE = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufe03-\ufe0d\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
)
# Joiners stay between characters beyond ASCII, as in Persian words and in emojis.
_JOINERS = "(?<![\x80-\u200b\u200e-\U0010ffff])[\u200c\u200d]|[\u200c\u200d](?![\x80-\U0010ffff])"
# A variation selector stays behind what has variants: symbols as text or emoji, digits that become
# keycaps, signs of mathematics, ideographs and Mongolian letters. Two in a row hide something.
_SYMBOL = (
    "\xa9\xae\u203c\u2049\u2122\u2139\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
)
_KEY = "0-9#*"
_IDEOGRAPH = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SELECTORS = (
    f"(?<![{_SYMBOL}{_KEY}])[\ufe0e\ufe0f]|(?<=[{_KEY}])[\ufe0e\ufe0f](?!\u20e3)"
    f"|(?<![{_IDEOGRAPH}\u2190-\u2bff])\ufe00"
    f"|(?<![{_IDEOGRAPH}])[\ufe01\ufe02\U000e0100-\U000e01ef]"
    "|(?<![\u1807\u1820-\u18aa])[\u180b-\u180d\u180f]"
)
_HIDDEN = re.compile(f"[{_UNSAFE}]|{_JOINERS}|{_SELECTORS}")


def printable(text: str) -> str:
    """Replace what is obeyed or hidden instead of shown, each by one visible character.

    Escape sequences of a world or a model could otherwise set the window's title, write to the
    clipboard or clear the screen, and two names could look alike. Tabs and line ends stay.
    """
    return _HIDDEN.sub(_visible, text)


def in_a_line(text: str) -> str:
    """Make a name printable that must not begin a line of its own."""
    return printable(text).replace("\n", "␊").replace("\t", "␉")


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    return "␡" if code == 0x7F else chr(0x2400 + code) if code < 0x20 else "�"
