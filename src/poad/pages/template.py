"""The one template of all pages: each needs no network and no other file."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from poad.display import printable

FOLDER = Path(__file__).parent
LARGEST = 5_000_000
"""Bytes that a page should not exceed."""
DIGITS = 6
"""Significant digits of numbers in a page."""


def render(
    template: str,
    title: str,
    data: str,
    *,
    css: str,
    scripts: Sequence[str],
    body: str = "",
    live: bool = False,
) -> str:
    """Build a page.

    Its content security policy allows the page's own script, by its hash, and nothing else.

    Args:
        template: the file of the template, which extends base.html.j2.
        title: any text.
        data: what `embed` wrote.
        css: the style sheet.
        scripts: the files of the script, one after another.
        body: markup that the template puts where it wants it.
        live: whether the script may ask the server of the page for new data.
    """
    script = "\n".join(_read(name) for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _environment().get_template(template)
    written = page.render(
        title=printable(title),
        digest=digest,
        connect="; connect-src 'self'" if live else "",
        css=css,
        script=script,
        data=data,
        body=body,
    )
    return written.encode("utf-8", "xmlcharrefreplace").decode("utf-8")


def style(*names: str) -> str:
    """Read style sheets, one after another."""
    return "\n".join(map(_read, names))


def embed(value: object) -> str:
    """Write JSON that can stand inside a script element: nothing in it ends the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def rounded(value: float) -> float | None:
    """Round to significant digits; None where there is no finite number."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


@cache
def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
