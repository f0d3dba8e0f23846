"""Text to token ids and back; the border between prompt and action is defined here and only here.

An action's tokens are those that follow the prompt's when the opening (a space, in plain prompts)
and the action are written behind it; prompt and action are never tokenized together, so no token
straddles the border. One end-of-action token closes every action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from poad.trie import ActionTrie
from poad.turns import TokenIds

_ANCHORS = (":", "\n")


class TextCodec:
    """A tokenizer with memory: texts of a small world repeat, so each is encoded once.

    Args:
        tokenizer: a transformers tokenizer (fast or slow).
        memory: how many texts to remember before starting afresh.
        opening: what stands between a prompt and the action behind it; it belongs to the action.
        lead: what stands between an observation and what is said to it, thoughts included.
        end_id: the token that closes an action; none: the tokenizer's end of text.
    """

    def __init__(
        self,
        tokenizer: Any,
        memory: int = 65_536,
        opening: str = " ",
        lead: str = " ",
        end_id: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.opening, self.lead = opening, lead
        self.end_id = _end_token(tokenizer) if end_id is None else end_id
        pad = tokenizer.pad_token_id
        self.pad_id: int = self.end_id if pad is None else pad
        self._memory = memory
        self._prompts: dict[str, TokenIds] = {}
        self._actions: dict[str, TokenIds] = {}
        self._tries: dict[tuple[str, ...], ActionTrie] = {}

    def prompt(self, text: str) -> TokenIds:
        """Token ids of an observation, with the special tokens the model expects before it.

        Raises:
            ValueError: the observation has no tokens, so nothing could be predicted from it.
        """
        ids = self._prompts.get(text)
        if ids is None:
            ids = tuple(self.tokenizer(text, add_special_tokens=True)["input_ids"])
            if ids and ids[-1] == self.tokenizer.eos_token_id and len(ids) > 1:
                ids = ids[:-1]  # some tokenizers close every text; this one goes on
            if not ids:
                raise ValueError(
                    f"The observation {text!r} has no tokens; a world must show some text."
                )
            self._remember(self._prompts, text, ids)
        return ids

    def following(self, text: str) -> TokenIds:
        """Token ids of a text as it follows others: nothing is put before it.

        Some tokenizers put a space before every text that stands alone, so it is encoded behind an
        anchor, and the anchor's tokens are taken off again, where they do not merge with it.
        """

        def encode(piece: str) -> list[int]:
            return list(self.tokenizer(piece, add_special_tokens=False)["input_ids"])

        for mark in _ANCHORS:
            anchor, joined = encode(mark), encode(mark + text)
            if joined[: len(anchor)] == anchor:
                return tuple(joined[len(anchor) :])
        return tuple(encode(text))

    def rendered(self, text: str) -> TokenIds:
        """Token ids of a text that already holds the special tokens it needs."""
        key = "\0" + text
        ids = self._prompts.get(key)
        if ids is None:
            ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            self._remember(self._prompts, key, ids)
        return ids

    def action(self, text: str) -> TokenIds:
        """Token ids of an action as they follow a prompt, closed by the end-of-action token.

        Raises:
            ValueError: the action is blank or has no tokens, so the agent could not write it.
        """
        ids = self._actions.get(text)
        if ids is None:
            written = self.following(self.opening + text) if text.strip() else ()
            if not written:
                raise ValueError(
                    f"The action {text!r} has no tokens; a world must offer actions with words in "
                    "them that the tokenizer knows."
                )
            ids = (*written, self.end_id)
            self._remember(self._actions, text, ids)
        return ids

    def trie(self, offered: Sequence[str]) -> ActionTrie:
        """The offered actions as one token tree; the same object for the same offer.

        Raises:
            ValueError: no actions, a blank one, or two that are the same string or the same tokens.
        """
        key = tuple(offered)
        trie = self._tries.get(key)
        if trie is None:
            trie = ActionTrie.build([self.action(text) for text in key], key)
            self._remember(self._tries, key, trie)
        return trie

    def text(self, token_ids: Sequence[int]) -> str:
        """What an action's tokens say, without the end token and the space before it."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True).strip()

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """Each token as readable text."""
        return [self.tokenizer.decode([token]) for token in token_ids]

    def _remember(self, store: dict[Any, Any], key: Any, value: Any) -> None:
        if len(store) >= self._memory:
            store.clear()
        store[key] = value


def _end_token(tokenizer: Any) -> int:
    """The token that closes an action: the tokenizer's end of text."""
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no end-of-text token to close actions with; set tokenizer.eos_token."
        )
    return int(tokenizer.eos_token_id)
