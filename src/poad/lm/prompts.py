"""Prompts: the observations and actions of an episode as token ids, one prompt after another.

A world shows text, and a model expects it in a form: plain or through its chat template, with
earlier turns before it or without. A :class:`Dialogue` makes the prompt of each turn. With
``history = episode`` the prompt grows by token ids: sampled tokens stay as they were sampled, and
only new text is encoded. Some templates rewrite earlier turns, for instance by cutting thoughts.
The dialogue notices this, reports it in its ``note``, and begins a new segment with the prompt that
the template makes now.

A prompt that is too long for the model loses its middle: the oldest turns, the examples, and at
last the middle of the observation. The system message and the episode's goal stay, and so does the
end. Whatever fits is never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from poad.config import PromptConfig
from poad.errors import PromptError
from poad.lm.chat import answer_border, call_form, opening_to_cut, written_chat
from poad.lm.packing import common_prefix_length
from poad.lm.shortening import (
    Losses,
    a_turn_later,
    describe_cut,
    describe_lack_of_room,
    shorten,
)
from poad.lm.tokenizer import TextCodec
from poad.trie import Grammar, Offer
from poad.turns import Action, Cut, TokenIds


def codec_for(tokenizer: Any, config: PromptConfig) -> TextCodec:
    """Make the codec whose border between prompt and action suits a form of prompts.

    Behind the prompt of a chat template, an action begins as the template begins an answer and ends
    with the token by which the template ends it.

    Raises:
        PromptError: the model has no chat template, or its template takes no system message.
        ValueError: the tokenizer has no end-of-text token.
    """
    end_id, action_prefix, answer_prefix = None, " ", " "
    if config.format == "chat":
        answer_prefix, closing = answer_border(tokenizer, config)
        action_prefix = answer_prefix
        # An answer ends with the template's closing token if that is a special one. Otherwise it
        # ends with the tokenizer's end of text, like a plain one.
        ids = tokenizer(closing.lstrip(), add_special_tokens=False)["input_ids"]
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        end_id = next((i for i in ids[:1] if i in special), None)
    if config.thinking:
        action_prefix = "" if config.thinking_close[-1].isspace() else " "
    return TextCodec(
        tokenizer,
        action_prefix=action_prefix,
        answer_prefix=answer_prefix,
        end_id=end_id,
        control_tokens=config.control_tokens,
        calls=call_form(tokenizer, config) if config.format == "chat" else None,
    )


class Dialogue:
    """The prompts of one stream of episodes.

    Args:
        codec: made by :func:`codec_for` with the same configuration.
        config: the form of the prompts.
        max_tokens: the length of the longest prompt that leaves room for an action; None for no
            limit.
        action_tokens: the length of the longest action that it leaves room for. Where longer ones
            are offered, prompts are shorter.

    Raises:
        PromptError: there is no room for a prompt at all, or the chat template's own system message
            cannot be left out.
    """

    def __init__(
        self,
        codec: TextCodec,
        config: PromptConfig,
        max_tokens: int | None = None,
        action_tokens: int = 0,
    ) -> None:
        self._codec, self._config = codec, config
        self._most, self._action_tokens = max_tokens, action_tokens
        self._max_tokens = self._room(None)
        self._opening = self._kept = ""
        if config.format == "chat" and config.system == "":
            self._opening, self._kept = opening_to_cut(codec.tokenizer, config.date)
        self._turns: list[tuple[str, str]] = []
        self._tools: Grammar | None = None
        self._goal, self._lost = "", False  # whether a part of the episode is gone for good
        # Of a segment: its examples, what stands before its first turn, and if it was shortened.
        self._examples, self._front, self._cut = config.examples, "", False
        self._observation = self._text = ""
        self._ids: TokenIds = ()
        self.note: str | None = None
        """What the user should know of these prompts, in a sentence; None if all is well."""
        self.cut: Cut | None = None
        """What the last prompt lost because it was too long; None if it lost nothing."""

    def first_prompt(
        self,
        observation: str,
        offered: Offer | None = None,
        goal: str | None = None,
    ) -> TokenIds:
        """Begin an episode and return its first prompt.

        Args:
            observation: the text that the world shows.
            offered: the actions it offers, None to write freely.
            goal: a text that stays where a prompt of the episode is too long. It is put in front
                of what remains, unless that shows it already.

        Raises:
            PromptError: offered actions, or the system message and the goal, leave no room.
            ValueError: a text has no tokens, or two offered actions have the same.
        """
        self._tools = None
        self._max_tokens = self._room(offered)
        self._turns, self._lost, self.cut = [], False, None
        self._goal = self._codec.escape((goal or "").strip())
        observation = self._codec.escape(observation)
        return self._begin_segment(observation)

    def next_prompt(
        self,
        action: Action,
        observation: str,
        offered: Offer | None = None,
        goal: str | None = None,
    ) -> TokenIds:
        """Return the prompt after an action; errors are those of `first_prompt`.

        Args:
            action: the action that was written behind the last prompt.
            observation: the text that the world shows now.
            offered: the actions it offers, None to write freely.
            goal: the goal from now on; None if it is the same as before.
        """
        self._max_tokens = self._room(offered)
        if goal is not None:
            self._goal = self._codec.escape(goal.strip())
        observation = self._codec.escape(observation)
        self.cut = a_turn_later(self.cut, lost=self._lost)
        if self._config.history == "none":
            return self._begin_segment(observation)
        self._turns.append((self._observation, self._answer(action)))
        if self._config.history == "last":
            del self._turns[: -self._config.last]
            return self._begin_segment(observation)
        if self._cut and not self._shows_goal(self._turns, observation):
            return self._begin_segment(observation)
        text = self._render(self._turns, observation)
        suffix = self._new_text(text, action)
        if suffix is None:
            written = (*self._ids, *action.token_ids)
            self.note = _describe_rewriting(self._codec, written, self._encode(text))
            return self._begin_segment(observation)
        # The new prompt is: old prompt + sampled tokens + encoded suffix. The sampled end token
        # stays where the template writes it, too.
        kept = action.token_ids
        if kept and kept[-1] == self._codec.end_id:
            end = self._codec.tokenizer.decode([self._codec.end_id])
            if suffix.startswith(end):
                suffix = suffix.removeprefix(end)
            else:  # a plain text goes on where a chat would close the turn
                kept = kept[:-1]
        self._observation, self._text = observation, text
        self._ids = (*self._ids, *kept, *self._codec.continuation(suffix))
        if self._is_too_long(self._ids):
            return self._begin_segment(observation)
        return self._ids

    def _room(self, offered: Offer | None) -> int | None:
        """Return the length of the longest prompt that leaves room for any offered action.

        Raises:
            ValueError: offered actions that have no tokens, or the same.
        """
        if offered is not None:
            self._codec.trie(offered)
            self._tools = offered if isinstance(offered, Grammar) and offered.tools else None
        if self._most is None:
            return None
        longest = 0 if offered is None else self._codec.longest(offered)
        room = self._most - max(0, longest - self._action_tokens)
        if room < 1:
            action = max(longest, self._action_tokens)
            raise PromptError(
                f"The model reads no more tokens than an action (here up to {action} tokens) and "
                "its thoughts may have, so there is no room for a prompt: lower prompt.thinking or "
                "acting.max_action_tokens, or let the world offer shorter actions."
            )
        return room

    def _begin_segment(self, observation: str) -> TokenIds:
        """Encode a whole prompt. If it is too long, leave out turns, examples, or more."""
        turns, self._examples, self._cut = [*self._turns], self._config.examples, self._lost
        fits, whole, before = self._lay_out(turns, observation), len(self._ids), len(turns)
        losses = Losses(whole, self.cut.turns if self.cut and self._lost else 0)
        while not fits and (turns or self._examples):
            self._cut, what = True, "turns" if turns else "examples"
            if not turns:
                self._examples = self._examples[1:]
            elif self._config.history == "episode":
                # Half of them, so that the prompt can grow again for several turns.
                del turns[: (len(turns) + 1) // 2]
                self._turns, self._lost = turns, True
            else:
                del turns[0]
            fits = self._lay_out(turns, observation)
            losses.count(what, len(self._ids))
        if not fits:
            self._cut, self._lost = True, self._config.history == "episode"
            self._leave_out_middle(observation)
            losses.count("observation", len(self._ids))
        self.cut = losses.cut()
        if self._config.history == "last":
            self._observation = observation  # later prompts begin with the whole of it
        if whole > len(self._ids):
            sizes = whole, len(self._ids), self._max_tokens or 0
            self.note = describe_cut(
                *sizes,
                turns=before - len(turns),
                examples=len(self._config.examples) - len(self._examples),
                middle=not fits,
                kept=[*_pinned(self._config, self._goal)],
            )
        return self._ids

    def _leave_out_middle(self, observation: str) -> None:
        """Shorten an observation that is too long by itself.

        Raises:
            PromptError: there is no room for any of it.
        """
        most = self._max_tokens or 0
        kept = shorten(observation, lambda text: self._lay_out((), text), most / len(self._ids))
        if kept is None:
            pinned = _pinned(self._config, self._goal)
            sizes = {name: len(self._codec.continuation(text)) for name, text in pinned.items()}
            raise PromptError(describe_lack_of_room(most, sizes))
        self._lay_out((), kept)

    def _lay_out(self, turns: Sequence[tuple[str, str]], observation: str) -> bool:
        """Write and encode a prompt, with the goal if nothing else shows it; True if it fits."""
        self._front = ""
        if self._cut and not self._shows_goal(turns, observation):
            self._front = f"{self._goal}\n\n"
        self._observation, self._text = observation, self._render(turns, observation)
        self._ids = self._encode(self._text)
        return not self._is_too_long(self._ids)

    def _shows_goal(self, turns: Sequence[tuple[str, str]], observation: str) -> bool:
        """Return whether a prompt has the words of the goal."""
        texts = [self._config.system or "", self._front, *(seen for seen, _ in turns), observation]
        return any(self._goal in text for text in texts)

    def _is_too_long(self, ids: TokenIds) -> bool:
        return self._max_tokens is not None and len(ids) > self._max_tokens

    def _encode(self, text: str) -> TokenIds:
        is_chat = self._config.format == "chat"
        return self._codec.rendered(text) if is_chat else self._codec.prompt(text)

    def _answer(self, action: Action) -> str:
        """Return an action as later prompts show it, thoughts included."""
        tokens = action.token_ids
        if tokens and tokens[-1] == self._codec.end_id:
            tokens = tokens[:-1]
        answer = self._codec.tokenizer.decode(list(tokens)).strip()
        return self._config.thinking_open + answer if self._config.thinking else answer

    def _render(self, turns: Sequence[tuple[str, str]], observation: str) -> str:
        """Write examples, earlier turns and the observation as the text of one prompt."""
        if turns:
            turns = [(self._front + turns[0][0], turns[0][1]), *turns[1:]]
        else:
            observation = self._front + observation
        turns = [*self._examples, *turns]
        if self._config.format == "chat":
            shown = turns, len(self._examples), observation, self._tools, self._codec.calls
            text = written_chat(self._codec.tokenizer, self._config, *shown)
            text = self._kept + text.removeprefix(self._opening)
        else:
            system = [self._config.system] if self._config.system else []
            history = [f"{seen}{_gap(seen, answer)}{answer}" for seen, answer in turns]
            text = "\n\n".join([*system, *history, observation])
        if not self._config.thinking:
            return text
        opening = self._config.thinking_open
        is_chat = self._config.format == "chat"
        return text + (self._codec.answer_prefix if is_chat else _gap(text, opening)) + opening

    def _new_text(self, text: str, action: Action) -> str | None:
        """Return the new part of a prompt's text, or None if the old one and the action changed."""
        if not text.startswith(self._text):
            return None
        answer = self._answer(action).removeprefix(self._config.thinking_open).strip()
        rest = text[len(self._text) :]
        before, found, after = rest.partition(answer) if answer else ("", True, rest)
        if before.strip() or not found:
            return None
        # The action may end in whitespace, such as a stop text, that the answer does not show.
        tokens = [t for t in action.token_ids if t != self._codec.end_id]
        written = self._codec.tokenizer.decode(tokens)
        return after.removeprefix(written[len(written.rstrip()) :])


def _pinned(config: PromptConfig, goal: str) -> dict[str, str]:
    """Return the texts that stay in every prompt, by what they are called."""
    texts = {"the system message": config.system, "the goal": goal}
    return {name: text for name, text in texts.items() if text}


def _describe_rewriting(codec: TextCodec, before: TokenIds, after: TokenIds) -> str:
    """Say which tokens of a prompt and the action behind it a new prompt's text changes."""
    same = common_prefix_length(before, after)

    def excerpt(ids: TokenIds) -> str:
        return " ".join(map(repr, codec.pieces(ids[same : same + 8]))) or "nothing"

    return (
        f"The prompt format rewrites earlier turns: from token {same} on, {excerpt(before)} "
        f"became {excerpt(after)}. A new segment begins there, so the turns before it are "
        "computed again."
    )


def _gap(seen: str, answer: str) -> str:
    """Return the whitespace between an observation and its answer in a plain prompt."""
    if seen[-1:].isspace():
        return ""
    return "\n" if "\n" in answer else " "
