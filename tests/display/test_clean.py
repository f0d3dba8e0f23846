"""What a reader cannot see is made visible, and what is written stays as it is."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from poad.display.clean import printable

IGNORABLE = [
    *(0xAD, 0x34F, 0x61C, 0x3164, 0xFEFF, 0xFFA0),
    *range(0x115F, 0x1161),
    *range(0x17B4, 0x17B6),
    *range(0x180B, 0x1810),
    *range(0x200B, 0x2010),
    *range(0x202A, 0x202F),
    *range(0x2060, 0x2070),
    *range(0xFE00, 0xFE10),
    *range(0xFFF0, 0xFFF9),
    *range(0x1BCA0, 0x1BCA4),
    *range(0x1D173, 0x1D17B),
    *range(0xE0000, 0xE1000),
]
"""Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt)."""


@pytest.mark.parametrize("before", ["", "go", "é", "→️", "葛\U000e0100"])
def test_nothing_that_has_no_width_is_hidden_behind_a_text(before: str) -> None:
    for code in IGNORABLE:
        if chr(code) in "\u200c\u200d" and before[-1:] > "\x7f":
            continue  # joiners stay between characters beyond ASCII
        assert printable(before + chr(code) + "x") == before + "�x", hex(code)


@pytest.mark.parametrize(
    "text",
    [
        "ℹ️ ☀️ ☀︎ ❤️ 1️⃣ #️⃣ ©️ ▶️ 🏳️ ↔️",
        "👩‍❤️‍👨 👩🏽‍🚀 🏳️‍🌈",
        "葛\U000e0100飾 神\ufe00 逢\ufe01",
        "≨\ufe00 ∩\ufe00",
        "ᠠ\u180b ᠨ\u180d",
        "می‌خواهم क्‍ष",
        "naïve café, 開門, åbn døren",
    ],
)
def test_writing_that_needs_selectors_and_joiners_stays(text: str) -> None:
    assert printable(text) == text


def test_a_digit_with_a_selector_is_a_keycap_or_hides_something() -> None:
    assert printable("1\ufe0f2") == "1�2"
    assert printable("☀\ufe0f\ufe0f") == "☀\ufe0f�"


def test_every_letter_digit_and_sign_stays() -> None:
    fillers = {0x115F, 0x1160, 0x3164, 0xFFA0}  # Unicode calls them letters, but they are blank
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code))[0] in "LNPS" and code not in fillers:
            assert printable(chr(code)) == chr(code) or 0xFFF9 <= code <= 0xFFFB, hex(code)
