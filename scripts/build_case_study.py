"""Write the case study of docs/inspect.md: its data, docs/microwave.json, and its figure.

It trains on FoodPreparation for some seconds, inspects a checkpoint in the middle, and writes the
data, the page docs/microwave.html and the figure docs/microwave.png. With --page it only makes the
page of the data that is there. The page is not under version control. The figure needs a Chromium
and Playwright (`make browser`).
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from poad.cli import main
from poad.pages import data_of, page_of_data
from poad.workflows import Selection, Weights, inspect_runs

DOCS = Path(__file__).parent.parent / "docs"
DATA, PAGE, FIGURE = (DOCS / f"microwave.{ending}" for ending in ("json", "html", "png"))
TITLE = "Open, put, close: shutting the pancake into the microwave"
TRAINING = (
    *("--env", "poad/FoodPreparation-v0", "--steps", "12288", "--checkpoint-every", "4"),
    *("--keep-checkpoints", "10", "--eval.episodes", "0", "--quiet"),
    # The critic learns at every token, and knows which tokens are written, so that its values may
    # be read everywhere, whatever the method.
    *("--credit.slots", "tokens", "--critic.codes", "64", "--critic.root"),
)
CHECKPOINT, EPISODES, SHOWN = 20, 6, 1_000_004
ACTIONS = ("open the microwave", "put the pancake into the microwave", "close the microwave")


def page() -> str:
    """Build the page of the data that is there."""
    return page_of_data(TITLE, DATA.read_text(encoding="utf-8").strip())


def train() -> str:
    """Train, inspect, and return the data of the page."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "pancake"
        assert main(["train", "--run", str(run), *TRAINING]) == 0
        found = inspect_runs([Weights(run, CHECKPOINT)], Selection(EPISODES))
    return data_of(replace(found, title=TITLE))


def draw() -> None:
    """Take the picture of the three actions, in the page."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        tab.goto(PAGE.as_uri())
        tab.locator(f"[data-seed='{SHOWN}']").click()
        turns = [tab.locator("article", has=_chosen(tab, action)).last for action in ACTIONS]
        turns[0].locator(".cell:not(.forced)").first.hover()
        boxes: list[Any] = [turn.bounding_box() for turn in turns]
        down = tab.evaluate("scrollY")
        top, end = boxes[0]["y"] + down, boxes[-1]["y"] + boxes[-1]["height"] + down
        tab.set_viewport_size({"width": 1280, "height": int(end - top) + 24})
        tab.evaluate(f"scrollTo(0, {top - 12})")
        turns[0].locator(".cell:not(.forced)").first.hover()
        tab.screenshot(path=FIGURE)
        browser.close()


def _chosen(tab: Any, action: str) -> Any:
    return tab.locator(".offer .chosen", has_text=re.compile(re.escape(action)))


if __name__ == "__main__":
    anew = "--page" not in sys.argv
    if anew:
        DATA.write_text(train() + "\n", encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
    if anew:
        draw()
    for path in (DATA, PAGE, FIGURE) if anew else (PAGE,):
        print(f"wrote {path}, {path.stat().st_size:,} bytes")
