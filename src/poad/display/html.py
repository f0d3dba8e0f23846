"""HTML without templates: a plain string is text and is escaped; only ``Html`` is markup."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path

from poad.display.clean import printable


class Html(str):
    """Markup that is already safe."""


def tag(name: str, *children: str, cls: str = "", **attributes: str) -> Html:
    """Build an HTML element.

    Attributes, and children that are not :class:`Html`, are made printable and escaped.
    """
    attributes = {"class": cls, **attributes} if cls else attributes
    written = "".join(
        f' {key}="{html.escape(printable(value))}"' for key, value in attributes.items()
    )
    inner = "".join(
        c if isinstance(c, Html) else html.escape(printable(c), quote=False) for c in children
    )
    return Html(f"<{name}{written}>{inner}</{name}>")


def stylesheet() -> str:
    """Read the style sheet of all pages."""
    return Path(__file__).with_name("report.css").read_text(encoding="utf-8")


def page(title: str, body: Iterable[Html]) -> str:
    """Build a whole page that needs no network and contains no script."""
    css = stylesheet()
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    text = "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            tag("title", title),
            f"<style>\n{css}</style>\n</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        ]
    )
    return text.encode("utf-8", "xmlcharrefreplace").decode("utf-8")
