"""Prompts that are too long keep the system message, the goal and their end, and say what is lost.

Whatever fits is left alone, to the token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from chats import chatting
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_models import TOKENIZERS, Zoo, byte_level
from tiny_worlds import settings as small

from poad.agent.build import load_agent
from poad.config import PromptConfig
from poad.envs.registry import make
from poad.errors import PromptError
from poad.learn.stream import WorldStream
from poad.lm.prompts import Dialogue, codec_for
from poad.lm.shortening import GAP, shorten
from poad.lm.tokenizer import TextCodec
from poad.turns import Action, TokenIds

GOAL = "Carry the blue tomato to the attic."
SYSTEM = "You are at home. Be brief."
EXAMPLES = (("You see a hat.", "take hat"), ("You see a cat.", "leave cat"))
WORDS = ("tomato", "a", "the door", "is\n", "knife.", "42", "–", "on", "x" * 70, "你好")

texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=60).map(" ".join)
forms = st.sampled_from(["plain", "marked", "trimmed", "helpful"])
histories = st.sampled_from(["none", "last", "episode"])


def codec_and_config(form: str, **rest: Any) -> tuple[TextCodec, PromptConfig]:
    config = PromptConfig(format="plain" if form == "plain" else "chat", **rest)
    tokenizer = byte_level() if form == "plain" else chatting(form)
    return codec_for(tokenizer, config), config


def take(codec: TextCodec, text: str) -> Action:
    ids = codec.action(text)
    return Action(text, ids, (True,) * len(ids), (0.0,) * len(ids))


def prompts(
    codec: TextCodec,
    config: PromptConfig,
    shown: Sequence[str],
    most: int | None = None,
    goal: str | None = None,
) -> list[tuple[TokenIds, str | None]]:
    """The prompts of an episode, each with the note behind it."""
    talk = Dialogue(codec, config, most)
    found = []
    for turn, text in enumerate(shown):
        ids = talk.next_prompt(take(codec, "look"), text) if turn else None
        found.append((talk.first_prompt(text, None, goal) if ids is None else ids, talk.note))
        talk.note = None
    return found


def pinned(codec: TextCodec, config: PromptConfig, goal: str) -> int:
    """The tokens of what must stay."""
    bare = PromptConfig(format=config.format, system=config.system)
    ((ids, _),) = prompts(codec, bare, [f"{goal}\n\n "])
    return len(ids)


@settings(deadline=None, max_examples=150)
@given(
    forms,
    histories,
    st.lists(texts, min_size=1, max_size=5),
    st.integers(25, 250),
    st.booleans(),
    st.sampled_from(["", "before", "behind"]),
    st.sampled_from([(), EXAMPLES]),
)
def test_prompts_keep_their_head_and_their_end(
    form: str,
    history: Any,
    shown: list[str],
    room: int,
    told: bool,
    stated: str,
    examples: Any,
) -> None:
    if stated:  # the world shows the goal itself, once
        shown = [f"{GOAL}\n{shown[0]}" if stated == "before" else f"{shown[0]}\n{GOAL}", *shown[1:]]
    system = SYSTEM if told else None
    codec, config = codec_and_config(form, history=history, system=system, examples=examples)
    most = pinned(codec, config, GOAL) + room
    whole = prompts(codec, config, shown)
    lost = False
    for turn, (ids, note) in enumerate(prompts(codec, config, shown, most, GOAL)):
        assert len(ids) <= most
        fits = len(whole[turn][0]) <= most
        lost = (lost and history == "episode") or not fits
        if not lost:
            assert ids == whole[turn][0]
            assert note is None
            continue
        text, all_of_it = (codec.tokenizer.decode(list(each)) for each in (ids, whole[turn][0]))
        assert SYSTEM in text or not told
        assert GOAL in text
        ending = all_of_it[all_of_it.rindex(shown[turn].strip()[-1]) :]
        assert text.endswith(ending)
        if not fits and history != "episode":
            assert note is not None
            assert note.startswith(f"A prompt of {len(whole[turn][0]):,} tokens is too long")


@settings(deadline=None, max_examples=80)
@given(
    histories,
    st.lists(texts, min_size=1, max_size=6),
    st.integers(25, 250),
    st.sampled_from([(), EXAMPLES]),
)
def test_what_a_prompt_lost_adds_up(
    history: Any, shown: list[str], most: int, examples: Any
) -> None:
    """Also where an episode goes on behind turns that are gone for good."""
    codec, config = codec_and_config("plain", history=history, examples=examples)
    talk, free = Dialogue(codec, config, most), Dialogue(codec, config)
    for turn, text in enumerate(shown):
        ids, whole = (
            each.next_prompt(take(codec, "look"), text) if turn else each.first_prompt(text)
            for each in (talk, free)
        )
        assert free.cut is None
        if talk.cut is None:
            assert ids == whole
            continue
        lost = vars(talk.cut)
        assert sum(lost.values()) == len(whole) - len(ids)
        assert lost["turns"] == 0 or (turn > 0 and history != "none")
        assert lost["examples"] == 0 or examples
        assert f"{sum(lost.values()):,} tokens" in str(talk.cut)


@settings(deadline=None, max_examples=60)
@given(st.lists(texts, min_size=3, max_size=7), st.integers(20, 200), st.integers(1, 3))
def test_a_window_of_turns_depends_on_nothing_before_it(
    shown: list[str], room: int, last: int
) -> None:
    codec, config = codec_and_config("plain", history="last", last=last)
    most = pinned(codec, config, GOAL) + room
    ids = prompts(codec, config, shown, most, GOAL)[-1]
    assert ids == prompts(codec, config, shown[-last - 1 :], most, GOAL)[-1]


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from(["plain", "marked"]),
    st.lists(st.sampled_from(["A door.", "Rain.", "A hat, a cat."]), min_size=4, max_size=20),
    st.integers(20, 120),
    st.booleans(),
    st.booleans(),
)
def test_a_growing_episode_is_one_that_is_written_from_scratch(
    form: str, shown: list[str], room: int, told: bool, stated: bool
) -> None:
    """After turns were left out, a prompt is the goal, the newest turns and the observation."""
    if stated:
        shown = [f"{GOAL} {shown[0]}", *shown[1:]]
    codec, config = codec_and_config(form, history="episode", system=SYSTEM if told else None)
    most = pinned(codec, config, GOAL) + room
    assume(all(len(codec.prompt(text)) < room for text in shown))
    free = PromptConfig(format=config.format, history="episode", system=config.system)
    first = 0  # the oldest turn that is left
    for turn, (ids, _) in enumerate(prompts(codec, config, shown, most, GOAL)):
        text = codec.tokenizer.decode(list(ids))
        fresh = []
        for start in range(first, turn + 1):
            head, *rest = shown[start : turn + 1]
            front = f"{GOAL}\n\n" if start and not any(GOAL in t for t in (head, *rest)) else ""
            written = prompts(codec, free, [front + head, *rest])[-1][0]
            fresh.append(codec.tokenizer.decode(list(written)))
        assert text in fresh
        first += fresh.index(text)


def test_the_goal_stays_behind_an_observation_that_was_cut() -> None:
    """A later prompt shows the cut observation as an earlier turn, and may fit."""
    codec, config = codec_and_config("marked", history="episode")
    shown = ["x" * 70 + " tomato –", "tomato"]
    most = pinned(codec, config, GOAL) + 25
    for ids, _ in prompts(codec, config, shown, most, GOAL):
        assert GOAL in codec.tokenizer.decode(list(ids))


def test_the_goal_may_change_during_an_episode() -> None:
    """Where something was left out, the goal of now is shown, in a prompt that fits as well."""
    codec, config = codec_and_config("plain", history="episode")
    talk = Dialogue(codec, config, 90)

    def text(ids: TokenIds) -> str:
        return codec.tokenizer.decode(list(ids))

    ids = talk.first_prompt("Start.", None, GOAL)
    assert GOAL not in text(ids)  # nothing is added to what fits
    for number in range(12):
        ids = talk.next_prompt(take(codec, "look"), f"Room {number} is empty, as it was.")
    assert text(ids).startswith(f"{GOAL}\n\nRoom")
    before = text(ids).count("Room")
    ids = talk.next_prompt(take(codec, "look"), "A bell.", None, "Open the door.")
    assert text(ids).startswith("Open the door.\n\nRoom")
    assert GOAL not in text(ids)
    assert text(ids).count("Room") <= before
    ids = talk.next_prompt(take(codec, "look"), "Well?")
    assert text(ids).startswith("Open the door.\n\nRoom")
    assert text(ids).endswith("A bell. look\n\nWell?")
    # Another episode has another goal, or none.
    assert text(talk.first_prompt("The day begins.")) == "The day begins."


def test_what_is_left_out_is_said_with_numbers() -> None:
    codec, config = codec_and_config(
        "marked", history="last", last=4, system=SYSTEM, examples=EXAMPLES
    )
    shown = ["A door. " * 10, "A hat. " * 10, "Rain and snow, rain and snow. " * 40]
    *_, (ids, note) = prompts(codec, config, shown, 200, GOAL)
    (whole, _) = prompts(codec, config, shown)[-1]
    assert note == (
        f"A prompt of {len(whole):,} tokens is too long: the model reads at most 200 before an "
        f"action. {len(whole) - len(ids):,} tokens are left out: the 2 oldest turns, 2 examples "
        "and the middle of the observation. Kept: the system message, the goal and both ends of "
        "the observation."
    )
    (_, note) = prompts(codec, config, shown[:2], 200, GOAL)[-1]
    assert note is not None
    assert "left out: the oldest turn. Kept: the system message, the goal and the obs" in note
    plain, config = codec_and_config("plain")
    ((_, note),) = prompts(plain, config, ["A hat. " * 90], 60)
    assert note is not None
    assert note.endswith("What a world names in info['goal'] would stay, too.")


def test_the_middle_of_an_observation_is_left_out_at_the_borders_of_words() -> None:
    codec, config = codec_and_config("plain")
    text = " ".join(f"word{number}" for number in range(300))
    ((ids, _),) = prompts(codec, config, [text], 150)
    head, tail = codec.tokenizer.decode(list(ids)).split(GAP)
    for kept in (head, tail):
        assert re.fullmatch(r"word\d+( word\d+)*", kept)
    assert text.startswith(f"{head} ")
    assert text.endswith(f" {tail}")
    assert 130 <= len(ids) <= 150  # no more is left out than has to be
    assert 2 < len(tail) / len(head) < 6


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("most", [6, 9, 30, 200])
def test_any_tokenizer_and_any_text_can_be_cut(tokenizer: str, most: int) -> None:
    codec = codec_for(TOKENIZERS[tokenizer](), PromptConfig())
    for text in ("tomato " * 300, "x" * 900, "door\n" * 400, "A knife." + " " * 500 + "look"):
        ((ids, note),) = prompts(codec, PromptConfig(), [text], most)
        assert 0 < len(ids) <= most
        assert note is not None
        first = codec.prompt(text)[:1]  # what opens every text, where the tokenizer has such
        assert ids[:1] == first or first[0] not in codec.tokenizer.all_special_ids


@pytest.mark.parametrize("form", ["plain", "marked"])
def test_the_names_of_control_tokens_are_never_cut_apart(form: str) -> None:
    codec, config = codec_and_config(form)
    name = codec.tokenizer.decode([codec.end_id])
    words = f"a {name}b{name} "
    special = {*codec.tokenizer.all_special_ids, *codec.tokenizer.added_tokens_decoder}
    ((none, _),) = prompts(codec, config, ["nothing"], 300, "x")
    for most in range(60, 100, 3):
        ((ids, _),) = prompts(codec, config, [words * 90], most, f"Say {name}.")
        text = codec.tokenizer.decode(list(ids))
        assert f"Say {name}." in text
        assert [i for i in ids if i in special] == [i for i in none if i in special]
        assert not re.search("[\ufdd0\ufdd1]", text)


def test_what_must_stay_and_does_not_fit_is_an_error() -> None:
    for form in ("plain", "marked"):
        codec, config = codec_and_config(form, system=SYSTEM)
        with pytest.raises(
            PromptError,
            match=r"reads at most 20 tokens before an action, which leaves no room for an "
            r"observation, since the system message has \d+ and the goal has \d+: shorten them, or "
            r"use a model that reads more\.",
        ):
            prompts(codec, config, ["A hat. " * 20], 20, GOAL)
    codec, config = codec_and_config("marked")
    with pytest.raises(PromptError, match=r"room for an observation: use a model that reads more"):
        prompts(codec, config, ["A hat. " * 20], 8)


@given(st.text(max_size=300), st.integers(0, 120), st.floats(0, 1))
def test_shortening_keeps_both_ends(text: str, most: int, share: float) -> None:
    text = text.replace("\ufdd0", "").replace("\ufdd1", "")
    assume(len(text) > most)
    kept = shorten(text, lambda each: len(each) <= most, share)
    if kept is None:
        assert most == 0
        return
    assert 0 < len(kept) <= most
    head, gap, tail = kept.partition(GAP)
    if gap and text.startswith(head) and text.endswith(tail):
        return
    assert text.endswith(kept)


# --- worlds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("history", ["none", "episode"])
def test_a_world_names_its_goal(zoo: Zoo, history: Any) -> None:
    """At reset, and perhaps again later."""
    config = small("Quest", prompt={"history": history}, model={"name": str(zoo.path())})
    agent = load_agent(config)
    talk = Dialogue(agent.model.codec, config.prompt, 60)
    stream = WorldStream(lambda: make(config.env), talk, 0)
    try:
        for goal in ("Find the hat.", "Find the hat.", "Find the cat."):
            text = agent.model.codec.tokenizer.decode(list(stream.observation.prompt_ids))
            assert text.startswith(f"{goal}\n\n")
            assert text.endswith("What now?")
            stream.step(0, take(agent.model.codec, "walk on"))
    finally:
        stream.close()
