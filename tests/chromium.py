"""Pages in a real browser: Chromium without a window, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

MISSING = "There is no Chromium to drive. `make browser` installs one."
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium() -> Iterator[Any]:
    """Start a browser; skip the test where there is none."""
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip(MISSING)
    api = pytest.importorskip("playwright.sync_api", reason=MISSING)
    with api.sync_playwright() as driver:
        # Without a user namespace, as in containers, Chromium's own sandbox cannot start.
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, page: str, folder: Path, **context: Any) -> Iterator[Any]:
    """Open a page from a file; anything that its console complains about fails the test.

    Args:
        browser: from `chromium`.
        page: the text of the page.
        folder: where the file goes.
        context: options of Playwright's browser context, such as the size of the window.
    """
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    complaints: list[str] = []
    asked: list[str] = []
    window = browser.new_context(**context)
    try:
        tab = window.new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(file.as_uri())
        yield tab
    finally:
        window.close()
    assert not complaints, complaints
    assert asked == [file.as_uri()], f"the page asked for {asked}"
