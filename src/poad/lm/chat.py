"""Chat templates: conversations as text, where an answer stands in them, and how calls are written.

Tools go to the template as its ``tools``, in whatever way it tells the model of them. What a tool
returned comes back in the role "tool", if the template knows it.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from poad.config import PromptConfig
from poad.errors import PromptError
from poad.trie import CallForm, Grammar

_CLOCK = re.compile(
    r"""strftime_now\s*\(\s*(?:format\s*=\s*)?(["'])(?P<format>(?:(?!\1)[^\\])*)\1\s*\)"""
)
"""A template's call of the one clock it has, with a literal format."""
_PLACEHOLDER, _SYSTEM = "open", "hush"
"""Words that no template changes."""
_CALL_ID = "call00001"
"""The identity of every call. A template that writes it takes nine letters and digits."""


def written_chat(
    tokenizer: Any,
    config: PromptConfig,
    turns: Sequence[tuple[str, str]],
    examples: int,
    observation: str,
    tools: Grammar | None,
    form: CallForm | None,
) -> str:
    """Write examples, earlier turns and the observation as a conversation that asks for an answer.

    Args:
        tokenizer: its chat template writes.
        config: the system message and the date.
        turns: pairs of an observation and an answer, the examples first.
        examples: how many of them are examples.
        observation: the newest one.
        tools: the tools that the agent may call, if it calls tools.
        form: how the template writes calls, if it does.
    """
    messages = _messages(config.system, turns, observation)
    if tools is None:
        return _chat(tokenizer, messages, config.date)
    for message in messages:
        if form is not None and message["role"] == "assistant":
            message |= _as_calls(message["content"], form)
    if re.search("""["']tool["']""", str(tokenizer.chat_template)):
        # The first observation is a request. Those that follow it are what calls returned.
        said = [message for message in messages if message["role"] == "user"]
        for message in said[examples + 1 :]:
            message |= {"role": "tool", "tool_call_id": _CALL_ID}
    known = [{"type": "function", "function": tool} for tool in tools.tools]
    return _chat(tokenizer, messages, config.date, known)


def _as_calls(answer: str, form: CallForm) -> dict[str, Any]:
    """Return what makes a message of an answer that consists of calls; nothing of another one."""
    calls = form._replace(opening=form.opening.lstrip(), closing=form.closing.rstrip()).read(answer)
    return _called([json.loads(call) for call in calls]) if calls else {}


def _called(calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what makes a message of calls, each with a name and arguments."""
    listed = [{"type": "function", "id": _CALL_ID, "function": call} for call in calls]
    return {"content": "", "tool_calls": listed}


def _messages(
    system: str | None, turns: Sequence[tuple[str, str]], observation: str | None
) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": system}] if system else []
    for seen, answer in turns:
        messages.append({"role": "user", "content": seen})
        messages.append({"role": "assistant", "content": answer})
    if observation is not None:
        messages.append({"role": "user", "content": observation})
    return messages


def _chat(
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    date: str,
    tools: list[dict[str, Any]] | None = None,
) -> str:
    """Render messages by the chat template; begin an answer unless there is one at the end."""
    from jinja2 import TemplateError

    asks = messages[-1]["role"] != "assistant"
    try:
        template: dict[str, str] = {}
        if "strftime_now" in str(tokenizer.chat_template):
            template["chat_template"] = _without_clock(tokenizer.get_chat_template(), date)
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=asks, tools=tools, **template
        )
    except PromptError:
        raise
    except (TemplateError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        system = any(message["role"] == "system" for message in messages)
        hint = " Perhaps it takes no system message: leave prompt.system out." if system else ""
        raise PromptError(
            f"The model's chat template rejects these messages: {error}{hint} "
            "prompt.format = plain needs no template."
        ) from error


def describe_own_system(tokenizer: Any, config: PromptConfig) -> tuple[str, ...]:
    """Say that a chat template adds a system message of its own, if prompts have it."""
    if config.format != "chat" or config.system is not None:
        return ()
    message, _ = _own_system(tokenizer, config.date)
    if not message:
        return ()
    return (
        f"The model's chat template puts a system message of its own first: {message!r}. Another "
        "text in prompt.system replaces it, and an empty one leaves it out.",
    )


def _own_system(tokenizer: Any, date: str) -> tuple[str, str]:
    """Find the system message that a chat template adds where none is given.

    Returns:
        The message, empty if there is none; and what a chat begins with because of it, empty if
        that is not known.
    """
    seen, system = _PLACEHOLDER, _SYSTEM

    def chat(*arguments: Any) -> str:
        return _chat(tokenizer, _messages(*arguments), date)

    try:
        alone, told = chat(None, (), seen), chat(system, (), seen)
        answered, again = (chat(system, [(seen, seen)], more) for more in (None, seen))
    except PromptError:  # the template takes no system message
        return "", ""
    before, found, behind = told.partition(system)
    length = len(alone) - len(before) - len(behind)
    if not found or length <= 0 or not (alone.startswith(before) and alone.endswith(behind)):
        return "", ""
    message = alone[len(before) :][:length]
    turn = again.removeprefix(answered)  # of the user, and what asks for an answer
    known = turn != again and behind.endswith(turn)
    return message, alone.removesuffix(turn) if known else ""


def opening_to_cut(tokenizer: Any, date: str) -> tuple[str, str]:
    """Return what a chat begins with because of its own system message, and what of it stays.

    Raises:
        PromptError: it is not known where the system message ends.
    """
    message, opening = _own_system(tokenizer, date)
    if message and not opening:
        raise PromptError(
            f"The chat template's own system message, {message!r}, cannot be left out. Write "
            "another into prompt.system."
        )
    # A text begins with this token, unless every turn does.
    begin = tokenizer.bos_token or ""
    turn = _chat(tokenizer, _messages(None, (), _PLACEHOLDER), date)[len(opening) :]
    stays = bool(begin) and opening.startswith(begin) and not turn.startswith(begin)
    return opening, begin if stays else ""


def _without_clock(template: str, date: str) -> str:
    """Write a date into a chat template, wherever it asks for today's.

    Raises:
        PromptError: it asks in a way that we do not understand, or the date is none.
    """
    try:
        day = datetime.strptime(date, "%Y-%m-%d")
    except ValueError as error:
        raise PromptError(f"prompt.date = {date}: it must be a date such as 2024-07-26.") from error

    def written(call: re.Match[str]) -> str:
        return repr(day.strftime(call["format"]))

    fixed = _CLOCK.sub(written, template)
    # A template may ask whether there is a clock, but must not read it by another name.
    if "strftime_now" in re.sub(r"strftime_now\s+is\s+(not\s+)?defined", "", fixed):
        raise PromptError(
            "The model's chat template shows today's date, in a way in which prompt.date cannot "
            "replace it, so a run would differ from day to day. Replace strftime_now in the "
            "template, or use prompt.format = plain."
        )
    return fixed


def _note_own_code(tokenizer: Any) -> None:
    """Warn of a tokenizer that makes chats by code of its own, whose clock nobody can set."""
    from transformers import PreTrainedTokenizerBase

    kind = type(tokenizer)
    usual = PreTrainedTokenizerBase.apply_chat_template
    if getattr(kind, "apply_chat_template", usual) is not usual:
        warnings.warn(
            f"The tokenizer {kind.__name__} makes chat prompts by code of its own. If that code "
            "shows today's date, prompt.date cannot replace it, and a run differs from day to day.",
            stacklevel=2,
        )


def answer_border(tokenizer: Any, config: PromptConfig) -> tuple[str, str]:
    """Return the texts that the chat template puts before and behind an answer."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise PromptError(
            "prompt.format = chat: this model's tokenizer has no chat template. Use an instruct "
            "model, or prompt.format = plain."
        )
    _note_own_code(tokenizer)
    turns = [*config.examples, (_PLACEHOLDER, _PLACEHOLDER)]
    asked = _chat(tokenizer, _messages(config.system, turns[:-1], _PLACEHOLDER), config.date)
    answered = _chat(tokenizer, _messages(config.system, turns, None), config.date)
    if answered.startswith(asked):
        before, _, behind = answered[len(asked) :].partition(_PLACEHOLDER)
        return before, behind
    # The generation prompt has words that the template leaves out once there is an answer.
    return "", answered.rpartition(_PLACEHOLDER)[2]


def call_form(tokenizer: Any, config: PromptConfig) -> CallForm | None:
    """Find how the chat template writes calls of tools.

    Returns:
        None if it has no place for calls, or does not write their arguments as JSON behind their
        names. Calls are then written as JSON.
    """
    if "tool_calls" not in str(tokenizer.chat_template):
        return None
    arguments = {_SYSTEM: _PLACEHOLDER}
    call = {"name": _PLACEHOLDER, "arguments": arguments}
    ask = _messages(config.system, (), _PLACEHOLDER)

    def calling(count: int) -> str:
        answer = {"role": "assistant", **_called([call] * count)}
        return _chat(tokenizer, [*ask, answer], config.date)

    try:
        asked = _chat(tokenizer, ask, config.date)
        turn = (_PLACEHOLDER, _PLACEHOLDER)
        plain = _chat(tokenizer, _messages(config.system, [turn], None), config.date)
        one = calling(1)
    except PromptError:
        return None
    _, _, after = plain.removeprefix(asked).partition(_PLACEHOLDER)
    before, found, closing = one.removeprefix(asked).partition(json.dumps(arguments))
    opening, named, middle = before.rpartition(_PLACEHOLDER)
    if not (found and named and opening and one.startswith(asked) and closing.endswith(after)):
        return None
    closing = closing.removesuffix(after)
    between = f"{closing}\n{opening}"
    written = named + middle + found
    first, second = asked + opening + written, written + closing + after
    try:
        two = calling(2)
        if two.startswith(first) and two.endswith(second):
            between = two[len(first) : -len(second)]
    except PromptError:  # it writes a single call. Further ones stand on lines of their own.
        pass
    prefix = answer_border(tokenizer, config)[0]
    joined = opening.startswith(prefix)
    return CallForm(opening.removeprefix(prefix), middle, between, closing, joined)
