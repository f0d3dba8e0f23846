"""The inspector in a terminal says the same as the page, and obeys nothing that it shows."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
from rich.console import Console
from synthetic_episodes import episode_view, turn_view
from synthetic_run import HOSTILE

from poad.display import Screen
from poad.pages import Dials, EpisodeView, Inspection, inspect_in_terminal, judge, kinds


def shown(episode: EpisodeView, width: int = 120, **options: object) -> str:
    console = Screen()
    console.__dict__.update(vars(Console(file=io.StringIO(), width=width, **options)))  # type: ignore[arg-type]
    inspect_in_terminal(console, Inspection("x", {"": [episode]}, notes=("A note.",)), episode)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_method_has_its_line_with_the_advantages_of_all_choices():
    episode = episode_view(3, [4])
    text = shown(episode)
    assert "A note." in text
    for names, method in kinds().items():
        for token in judge(episode, method, Dials()):
            if token.advantage is not None:
                assert f"{token.advantage:+.3f}" in text, names
        assert names.split(",")[0] in text


def test_advantages_are_coloured_by_their_sign():
    turn = turn_view(np.random.default_rng(0), 1, choice=(True,), value=(0.0,), reward=1.0)
    for reward, color in ((1.0, "47;109;179"), (-1.0, "168;90;20")):
        worth = EpisodeView(0, reward, True, "terminated", (replace(turn, reward=reward),))
        text = shown(worth, force_terminal=True, color_system="truecolor")
        assert f"48;2;{color}m" in text


def test_text_of_others_is_not_obeyed_and_long_actions_are_cut():
    size = 2_000
    turn = turn_view(
        np.random.default_rng(0),
        size,
        prompt=f"\x1b]0;title\x07{HOSTILE}",
        pieces=("\x1b[2J",) * size,
        choice=(True,) * size,
    )
    text = shown(EpisodeView(0, 0.0, None, "unfinished", (turn,)))
    assert "\x1b]" not in text
    assert "\x1b[2J" not in text
    assert "1,600 more tokens" in text
    assert "Outcome unknown" in text


def test_a_narrow_terminal_is_not_overrun():
    assert max(map(len, shown(episode_view(1), width=40).splitlines())) <= 40


def test_a_console_without_utf_8_gets_no_symbols_of_ours():
    plain = re.sub("[·–]", "", shown(episode_view(1)))
    assert plain.isascii() or "─" in plain
