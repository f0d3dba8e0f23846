"""What the terminal shows, on a terminal, in a pipe, and when asked to be quiet."""

from __future__ import annotations

import io
import math
import re
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text
from synthetic_run import episode, metrics, turn

from poad.display.clean import in_a_line, printable
from poad.display.tables import Table
from poad.display.terminal import (
    Progress,
    Screen,
    show_ending,
    show_evaluation,
    show_turn,
    show_work,
    sparkline,
    watch,
)
from poad.display.turns import OFFERS_SHOWN, TOKENS_SHOWN
from poad.runs import EpisodeRecord, Evaluation
from poad.stats import wilson_interval
from poad.turns import Cut

TOTAL = 20 * 512


@pytest.fixture(autouse=True)
def _the_same_terminal_everywhere(monkeypatch: pytest.MonkeyPatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def piped(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=False)


def terminal(width: int = 80, no_color: bool | None = True) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, no_color=no_color)


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(function: object, *arguments: object, width: int = 80) -> str:
    console = piped(width)
    assert callable(function)
    function(console, *arguments)
    text = output(console)
    assert all(len(line) <= width for line in text.splitlines())
    return text


def test_in_a_pipe_there_is_one_heading_and_a_plain_line_per_iteration():
    console = piped()
    with Progress(TOTAL, console=console, pause=0) as progress:
        for i in range(1, 4):
            progress.update(metrics(i))
    lines = output(console).splitlines()
    assert len(lines) == 4
    headings = "iter steps reward return success entropy KL expl.var steps/s ETA"
    assert " ".join(lines[0].split()) == headings
    # The made-up pace is 512 steps in .35 s, so 19, 18 and 17 iterations remain: 6.65 s, …
    assert " ".join(lines[1].split()) == "1 512 0.0021 – – 1.036 0.0384 0.05 1,463 0:07"
    assert lines[3].split()[:2] == ["3", "1,536"]
    assert lines[3].split()[3:5] == ["0.333", "39.3%"]
    assert "\x1b" not in output(console)
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines[0]) <= 80


def test_lines_keep_their_distance_but_the_last_iteration_is_always_told():
    console = piped()
    with Progress(TOTAL, console=console, pause=3600) as progress:
        for i in range(1, 8):
            progress.update(metrics(i))
    told = [line.split()[0] for line in output(console).splitlines()]
    assert told == ["iter", "1", "7"]


def test_an_interruption_still_tells_the_last_iteration():
    console = piped()

    def train() -> None:
        with Progress(TOTAL, console=console, pause=3600) as progress:
            progress.update(metrics(1))
            progress.update(metrics(2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert output(console).splitlines()[-1].split()[0] == "2"


@pytest.mark.parametrize("make", [piped, terminal])
def test_quiet_is_quiet(make: type[Console]):
    console = make()
    console.quiet = True
    with Progress(TOTAL, console=console, pause=0) as progress:
        progress.update(metrics(1))
    assert list(watch([episode()], 1, "sampled", console)) == [episode()]
    assert output(console) == ""


def plain(text: str) -> str:
    """What is left on the screen once colours and cursor movements are done."""
    return Text.from_ansi(text).plain


def test_on_a_terminal_the_table_is_live_and_tells_the_whole_run():
    console = terminal()
    with Progress(TOTAL, console=console, pause=0) as progress:
        for i in range(1, 21):
            progress.update(metrics(i))
    assert output(console).count("\x1b[2K") >= 19  # it was redrawn in place
    picture = output(console).rsplit("ETA", 1)[1]
    assert "10,240 / 10,240 steps, ETA 0:00" in output(console)
    iterations = [line.split()[0] for line in plain(picture).splitlines()[2:-1]]
    assert iterations == ["2", "5", "7", "10", "12", "15", "17", "20"]
    assert "success ▃▄" in plain(picture)
    assert "96.4%" in plain(picture).splitlines()[-1]


def test_before_the_first_episode_ends_the_live_table_shows_dashes():
    console = terminal()
    with Progress(TOTAL, console=console, pause=0) as progress:
        progress.update(metrics(1))
    assert "–" in output(console)
    assert "nan" not in output(console)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_nothing_is_wider_than_the_terminal(width: int):
    console = terminal(width)
    with Progress(10**9, console=console, pause=0) as progress:
        progress.update({**metrics(5), "iteration": 99_999, "env_steps": 999_999_999})
    assert all(len(line.rstrip()) <= width for line in plain(output(console)).splitlines())
    assert "99999" in output(console)
    assert "999,999,999" in output(console)


def test_a_resumed_run_counts_what_was_done_and_long_times_have_hours():
    console = piped()
    with Progress(512 * 100_000, console=console, pause=0) as progress:
        progress.update(metrics(50_000))
    assert output(console).splitlines()[1].split()[-1] == "4:51:40"  # 50,000 iterations of .35 s


def test_a_broken_pace_makes_no_false_promise():
    console = piped()
    with Progress(TOTAL, console=console, pause=0) as progress:
        progress.update({"iteration": 1, "env_steps": 512, "steps_per_second": math.nan})
    assert output(console).splitlines()[1].split()[-1] == "–"


def test_watching_an_evaluation_changes_nothing_but_the_screen():
    records = [episode(i) for i in range(3)]
    console = terminal()
    assert list(watch(records, 3, "sampled", console=console)) == records
    assert "3/3" in output(console)
    console = piped()
    assert list(watch(iter(records), 3, "sampled", console=console)) == records
    assert output(console) == ""  # it took no time


def test_a_long_evaluation_is_counted_where_there_is_no_terminal_also_while_none_ends():
    records, console = [episode(i) for i in range(3)], piped()

    def slow() -> Iterator[EpisodeRecord]:
        for i, record in enumerate(records):
            while f"{i} of 3" not in output(console):  # another thread writes it after a while
                time.sleep(0.01)
            yield record

    assert list(watch(slow(), 3, "sampled", console, pause=0.01)) == records
    lines = [line.strip() for line in output(console).splitlines()]
    found = [re.fullmatch(r"sampled: (\d) of 3 episodes, \d+ s", line) for line in lines]
    counts = [int(each[1]) for each in found if each]
    assert len(counts) == len(lines)
    assert counts == sorted(counts)


HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\x9b6n\x1bP\x7f\u202ecod\u2066\r\u200b\u2060\xad\U000e0041"
    "ad\u200dmin[bold]plain[/]"
)
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b-\u200f\u2060\xad\U000e0041]"
)


# Signs of category Cf that can be seen.
SHOWN = {
    chr(i) for i in (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD)
} | {chr(i) for i in range(0x13430, 0x13460)}


def test_no_control_character_reaches_a_terminal():
    """Escapes of seven and of eight bits, what turns the direction of writing, other line ends."""
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    for character in map(chr, range(0x110000)):
        commands = (
            unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs")
            or unicodedata.bidirectional(character) in turning
        )
        hides = unicodedata.category(character) == "Cf" and character not in SHOWN
        if (commands or hides) and character not in "\t\n":
            assert character not in printable(f"a{character}b")


def test_joiners_stay_where_they_join():
    for text in ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f469\u200d\U0001f52c"):
        assert printable(text) == text
    assert printable("ad\u200dmin") == printable("ad\u200cmin") == "ad\ufffdmin"


def test_a_name_stays_in_its_line():
    assert in_a_line("a\nb\tc\x1b") == "a␊b␉c␛"
    console = piped()
    with Progress(64, console) as progress:
        progress.update(metrics(1) | {"world/x\nTrained for 9 steps": 1.0})
    console.print(Table(["a\nb"], [["c\nd"]]).to_terminal())
    assert len(output(console).splitlines()) == 4


@given(st.text())
def test_printable_text_shows_everything_and_commands_nothing(text: str):
    clean = printable(text)
    assert not OBEYED.search(re.sub(r"[\u200c\u200d]", "", clean))
    assert len(clean) == len(text)
    assert printable(clean) == clean
    for before, after in zip(text, clean, strict=True):
        assert before == after or not before.isprintable()


def test_a_screen_obeys_nothing_that_it_shows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NO_COLOR", "1")
    hostile = turn(prompt=HOSTILE, action=HOSTILE, pieces=(HOSTILE, "a", "b"))
    screen = Screen()
    screen.print(HOSTILE, soft_wrap=True)
    screen.out(HOSTILE)
    screen.rule(HOSTILE)
    show_turn(screen, hostile, 1)
    show_turn(screen, replace(hostile, offered=((HOSTILE, 0.5), ("b", 0.5))), 1)
    show_work(screen, {"file": HOSTILE, "score": 1.0, "deviation": 0.0, "turn": 3, "text": HOSTILE})
    screen.print(Table(["a", HOSTILE], [[HOSTILE, "b"]], title=HOSTILE).to_terminal())
    with Progress(64, screen) as progress:
        progress.update(metrics(1) | {f"world/{HOSTILE}": 1.0})
    list(watch([1], 1, HOSTILE, screen))
    told = capsys.readouterr().out
    assert not OBEYED.search(told.replace("\n", ""))
    assert told.count("[bold]plain[/]") >= 2  # and it takes no orders in the language of rich


def test_an_evaluation_is_told_by_mode_with_its_interval():
    found = Evaluation(1000, 0.957, (0.942, 0.968), 1.1, 6.44)
    nothing = Evaluation(0, math.nan, None, math.nan, math.nan)
    text = shown(show_evaluation, {"sampled": found, "greedy": nothing})
    assert "sampled 95.7% 94.2% – 96.8% 1.100 6.4 1,000" in " ".join(text.split())
    assert "greedy – – – – 0" in " ".join(text.split())


@pytest.mark.parametrize(("wins", "explained"), [(0, True), (8, True), (14, False), (20, False)])
def test_a_greedy_agent_that_does_worse_is_explained(wins: int, explained: bool):
    sampled, greedy = (Evaluation(20, n / 20, wilson_interval(n, 20), 0.5, 6.0) for n in (19, wins))
    text = shown(show_evaluation, {"sampled": sampled, "greedy": greedy})
    assert ("can go in circles" in " ".join(text.split())) is explained


def test_a_turn_shows_prompt_offers_tokens_and_reward():
    text = shown(show_turn, turn("You see a [bold]tomato[/bold]."), 3)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0].startswith("Turn 3 value 0.41")
    assert lines[1] == "You see a [bold]tomato[/bold]."  # a prompt is text, not markup
    assert lines[2].startswith("▸ chop the tomato ██")
    assert lines[2].endswith(" 70.0%")
    assert lines[3].startswith("get the tomato ██")
    assert lines[-3:] == [
        "tokens chop 80% ·the ·tomato 88%",
        "values 0.41 (0.52) 0.53",
        "reward +0.2, 3 primitive steps",
    ]
    bars = [line.count("█") for line in lines[2:5]]
    assert bars == [round(24 * p) for p in (0.7, 0.25, 0.05)]


@pytest.mark.parametrize("width", [40, 80])
def test_many_long_offers_fit_and_the_written_one_is_among_them(width: int):
    long = "walk to the cutting board in the far corner of the other kitchen, number "
    offered = (*((f"{long}{i}", 0.03) for i in range(30)), ("chop the tomato", 0.1 / 30))
    text = shown(show_turn, turn(offered=offered), 1, width=width)
    assert "▸  chop the" in text
    assert f"and {31 - OFFERS_SHOWN - 1} more" in text
    assert "66.0%" in text  # what the others have together


def test_a_freely_written_action_and_a_strange_one_are_told():
    text = shown(show_turn, turn(offered=None, action="def f():\n    pass", invalid=True), 1)
    assert "    def f():\n        pass\n" in text
    assert "did not offer" in text
    assert "█" not in text


def test_what_the_model_did_not_read_is_told():
    assert "did not read" not in shown(show_turn, turn(), 1)
    text = shown(show_turn, turn(cut=Cut(turns=1200, observation=34)), 1)
    told = "did not read 1,234 tokens: 1,200 of earlier turns and 34 of the middle of the obs"
    assert told in " ".join(text.split())


def test_many_tokens_that_were_written_freely_are_summed_up():
    def written(count: int, offered: object = None) -> str:
        many = turn(
            offered=offered,
            pieces=("word",) * count,
            choice=(True,) * count,
            logprob=(math.log(0.6), *(math.log(0.004),) * (count - 1)),
            value=(0.25, *(0.5,) * (count - 1)),
        )
        return shown(show_turn, many, 1)

    line = (
        "64 tokens, 1 of them with 50 % or more; values from 0.25 at the first to 0.50 at the last"
    )
    text = " ".join(written(64).split())
    assert line in text
    assert "0%" not in text
    assert " 0%" in written(TOKENS_SHOWN)
    assert "tokens, " not in written(64, (("chop", 1.0),))


def test_missing_values_are_dashes():
    text = shown(show_turn, turn(root_value=math.nan, value=(math.nan, math.nan, 0.5)), 1)
    assert "value –" in text
    assert "values – (–) 0.50" in text


def test_how_an_episode_ended():
    assert "Success: terminated after 2 turns, return 1.1" in shown(show_ending, episode())
    long = replace(episode(), length=28)
    assert "after 2 turns (28 primitive steps), return" in shown(show_ending, long)
    text = shown(show_ending, episode(success=False))
    assert "No success: truncated after 2 turns, return -0.3" in text


def test_a_terminal_without_block_letters_gets_plain_ones():
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=80)
    show_turn(console, turn(), 1)
    show_ending(console, episode())
    console.file.flush()
    assert b"> chop the tomato" in b" ".join(raw.getvalue().split())
    assert b"####" in raw.getvalue()


def test_no_color_means_no_color(monkeypatch: pytest.MonkeyPatch):
    colourful = terminal(no_color=None)
    show_turn(colourful, turn(), 1)
    assert "\x1b[1;32m" in output(colourful)
    monkeypatch.setenv("NO_COLOR", "1")
    console = terminal(no_color=None)
    show_turn(console, turn(), 1)
    assert "32m" not in output(console)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1) | st.just(math.nan)), st.integers(1, 60))
def test_a_sparkline_has_a_block_for_a_number_and_fits(values: list[float], width: int):
    numbers = [value for value in values if not math.isnan(value)]
    line = sparkline(values, width)
    assert len(line) == min(len(numbers), width)
    if numbers:
        assert (line[-1] == "█") == (numbers[-1] >= 7 / 8)
        assert (line[-1] == "▁") == (numbers[-1] < 1 / 8)
