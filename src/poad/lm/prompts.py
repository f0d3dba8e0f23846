"""What the model reads: an episode's texts and actions as one prompt after another.

A world shows texts, and a model expects them in a form: plain, or through its chat template, with
what comes before them. A :class:`Dialogue` makes each turn's prompt. With ``history = episode`` it
grows by token ids: what was sampled stays as it was sampled, and only what is new is encoded. Some
templates write earlier turns anew (they cut thoughts, say); that is noticed, told, and a new
segment begins with what the template wants now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from poad.config import PromptConfig
from poad.errors import PromptError
from poad.lm.packing import common
from poad.lm.tokenizer import TextCodec
from poad.turns import Action, TokenIds

_MARK = "open"
"""A word that no template changes."""


def codec_for(tokenizer: Any, config: PromptConfig) -> TextCodec:
    """The codec whose border between prompt and action is the one these prompts call for.

    Behind a chat template's prompt an action begins as the template begins it, and ends with the
    token by which the template ends it.

    Raises:
        PromptError: the model has no chat template, or it takes no system message.
    """
    end_id, opening, lead = None, " ", " "
    if config.format == "chat":
        lead, closing = _chat_border(tokenizer, config)
        opening = lead
        ids = tokenizer(closing.lstrip(), add_special_tokens=False)["input_ids"]
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        end_id = next((i for i in ids[:1] if i in special), None)
    if config.thinking:
        opening = "" if config.thinking_close[-1].isspace() else " "
    return TextCodec(tokenizer, opening=opening, lead=lead, end_id=end_id)


class Dialogue:
    """One stream of episodes, prompt by prompt.

    Args:
        codec: made by :func:`codec_for` with the same configuration.
        config: the form of the prompts.
        longest: tokens that a prompt may have; none: any number.

    Raises:
        PromptError: there is no room for a prompt at all.
    """

    def __init__(self, codec: TextCodec, config: PromptConfig, longest: int | None = None) -> None:
        if longest is not None and longest < 1:
            raise PromptError(
                "The model reads no more tokens than an action and its thoughts may have, so there "
                "is no room for a prompt: lower prompt.thinking or acting.max_action_tokens."
            )
        self._codec, self._config, self._longest = codec, config, longest
        self._turns: list[tuple[str, str]] = []
        self._shown = self._text = ""
        self._ids: TokenIds = ()
        self.note: str | None = None
        """In words, what about these prompts is not as one would expect; none: nothing."""

    def begin(self, shown: str) -> TokenIds:
        """The first prompt of an episode.

        Args:
            shown: the world's text.
        """
        self._turns = []
        return self._start(shown)

    def go_on(self, action: Action, shown: str) -> TokenIds:
        """The prompt after an action.

        Args:
            action: what was written behind the last prompt.
            shown: the world's text now.
        """
        if self._config.history == "none":
            return self._start(shown)
        self._turns.append((self._shown, self._said(action)))
        if self._config.history == "last":
            del self._turns[: -self._config.last]
            return self._start(shown)
        text = self._render(shown)
        bridge = self._bridge(text, action)
        if bridge is None:
            self.note = self._difference(text, action)
            return self._start(shown)
        kept, beyond = action.token_ids, bridge
        if kept and kept[-1] == self._codec.end_id:
            end = self._codec.tokenizer.decode([self._codec.end_id])
            if beyond.startswith(end):
                beyond = beyond.removeprefix(end)
            else:  # a plain text goes on where a chat would close the turn
                kept = kept[:-1]
        self._shown, self._text = shown, text
        self._ids = (*self._ids, *kept, *self._codec.following(beyond))
        if self._too_long(self._ids):
            return self._start(shown)
        return self._ids

    def _start(self, shown: str) -> TokenIds:
        """A new segment; where everything is too long, the oldest turns are left out."""
        self._shown = shown
        while True:
            self._text = self._render(shown)
            self._ids = self._encode(self._text)
            if not self._too_long(self._ids):
                return self._ids
            if not self._turns:
                return self._cut()
            # Half of them, so that the next turns find room and grow again.
            del self._turns[: (len(self._turns) + 1) // 2]

    def _cut(self) -> TokenIds:
        """The end of a prompt that is too long alone; nothing can grow behind it."""
        assert self._longest is not None
        self.note = (
            f"A prompt of {len(self._ids)} tokens is too long: with an action behind it the model "
            f"reads {self._longest} at most. Its first tokens are left out."
        )
        self._ids = self._ids[-self._longest :]
        return self._ids

    def _too_long(self, ids: TokenIds) -> bool:
        return self._longest is not None and len(ids) > self._longest

    def _encode(self, text: str) -> TokenIds:
        chat = self._config.format == "chat"
        return self._codec.rendered(text) if chat else self._codec.prompt(text)

    def _said(self, action: Action) -> str:
        """An action as a later prompt shows it, thoughts included."""
        tokens = action.token_ids
        if tokens and tokens[-1] == self._codec.end_id:
            tokens = tokens[:-1]
        said = self._codec.tokenizer.decode(list(tokens)).strip()
        return self._config.thinking_open + said if self._config.thinking else said

    def _render(self, shown: str) -> str:
        turns = [*self._config.examples, *self._turns]
        if self._config.format == "chat":
            text = _chat(self._codec.tokenizer, _messages(self._config.system, turns, shown))
        else:
            before = [] if self._config.system is None else [self._config.system]
            told = [f"{seen}{_gap(seen, said)}{said}" for seen, said in turns]
            text = "\n\n".join([*before, *told, shown])
        opened = self._config.thinking_open
        if not self._config.thinking:
            return text
        lead = self._codec.lead if self._config.format == "chat" else _gap(text, opened)
        return text + lead + opened

    def _bridge(self, text: str, action: Action) -> str | None:
        """What a text has behind the last prompt and the action; none if it begins otherwise."""
        if not text.startswith(self._text):
            return None
        said = self._said(action).removeprefix(self._config.thinking_open).strip()
        rest = text[len(self._text) :]
        before, found, after = rest.partition(said) if said else ("", True, rest)
        if before.strip() or not found:
            return None
        tokens = [t for t in action.token_ids if t != self._codec.end_id]
        written = self._codec.tokenizer.decode(tokens)
        return after.removeprefix(written[len(written.rstrip()) :])

    def _difference(self, text: str, action: Action) -> str:
        """In words, which tokens a text has otherwise than what was read and written."""
        before, after = (*self._ids, *action.token_ids), self._encode(text)
        same = common(before, after)

        def some(ids: Sequence[int]) -> str:
            pieces = self._codec.pieces(ids[same : same + 8])
            return " ".join(map(repr, pieces)) or "nothing"

        return (
            f"The prompt's format writes earlier turns anew: from token {same} on, {some(before)} "
            f"became {some(after)}. A new segment begins there, so what was computed for the turns "
            "before is computed again."
        )


def _gap(shown: str, said: str) -> str:
    """What stands between an observation and what is said to it, in a plain prompt."""
    if shown[-1:].isspace():
        return ""
    return "\n" if "\n" in said else " "


def _messages(
    system: str | None, turns: Sequence[tuple[str, str]], shown: str | None
) -> list[dict[str, str]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for seen, said in turns:
        messages.append({"role": "user", "content": seen})
        messages.append({"role": "assistant", "content": said})
    if shown is not None:
        messages.append({"role": "user", "content": shown})
    return messages


def _chat(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """Messages through the chat template; behind a user's, the beginning of an answer."""
    from jinja2 import TemplateError

    asks = messages[-1]["role"] == "user"
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
    except (TemplateError, ValueError) as error:
        system = any(message["role"] == "system" for message in messages)
        hint = " Perhaps it takes no system message: leave prompt.system out." if system else ""
        raise PromptError(
            f"The model's chat template refuses these messages: {error}{hint} "
            "prompt.format = plain needs no template."
        ) from error


def _chat_border(tokenizer: Any, config: PromptConfig) -> tuple[str, str]:
    """What the template puts before and behind an answer."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise PromptError(
            "prompt.format = chat: this model's tokenizer has no chat template. Use an instruct "
            "model, or prompt.format = plain."
        )
    turns = [*config.examples, (_MARK, _MARK)]
    asked = _chat(tokenizer, _messages(config.system, turns[:-1], _MARK))
    answered = _chat(tokenizer, _messages(config.system, turns, None))
    if answered.startswith(asked):
        before, _, behind = answered[len(asked) :].partition(_MARK)
        return before, behind
    return "", answered.rpartition(_MARK)[2]  # it asks with words that it later leaves out
