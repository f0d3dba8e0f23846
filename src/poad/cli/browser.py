"""Open pages in the user's browser."""

from __future__ import annotations

import webbrowser


def open_in_browser(url: str) -> None:
    """Open a page, or tell where it is if there is no browser."""
    if not webbrowser.open(url):
        print(f"No browser could be opened. Open {url} yourself.")
