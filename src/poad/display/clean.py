"""Text of others made safe for a terminal."""

from __future__ import annotations

import re

# Control characters of both sets except tab and line end, what turns the direction of writing,
# other line ends, the byte order mark, and halves of characters.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Replace what a terminal would obey instead of showing it, each by one visible character.

    Escape sequences of a world or a model could otherwise set the window's title, write to the
    clipboard or clear the screen. Tabs and line ends stay.
    """
    return _UNSAFE.sub(_visible, text)


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    return "␡" if code == 0x7F else chr(0x2400 + code) if code < 0x20 else "�"
