"""Text of others made safe to show."""

from __future__ import annotations

import re

# Control characters of both sets except tab and line end, halves of characters, and what has no
# width: what turns the direction of writing, other line ends, soft hyphens, marks and tags.
# Joiners stay between characters beyond ASCII, as in Persian words and in emojis.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
    "|(?<![\x80-\u200b\u200e-\U0010ffff])[\u200c\u200d]|[\u200c\u200d](?![\x80-\U0010ffff])"
)


def printable(text: str) -> str:
    """Replace what is obeyed or hidden instead of shown, each by one visible character.

    Escape sequences of a world or a model could otherwise set the window's title, write to the
    clipboard or clear the screen, and two names could look alike. Tabs and line ends stay.
    """
    return _UNSAFE.sub(_visible, text)


def in_a_line(text: str) -> str:
    """Make a name printable that must not begin a line of its own."""
    return printable(text).replace("\n", "␊").replace("\t", "␉")


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    return "␡" if code == 0x7F else chr(0x2400 + code) if code < 0x20 else "�"
