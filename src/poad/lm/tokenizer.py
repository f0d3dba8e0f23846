"""Text to token ids and back. This module alone defines the border between prompt and action.

The tokens of an action are those that follow the tokens of the prompt if the action prefix (a
space, in plain prompts) and the action are written behind it. Prompt and action are never tokenized
tokenized together, so no token straddles the border. One end-of-action token closes every action.

A world's text must not become control tokens, such as those that end the turns of a chat: a world
could end its own turn and speak for the agent. Their names are spelled out in ordinary tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, TypeVar, overload

from poad.errors import ModelError
from poad.lm.cursor import GrammarReader
from poad.lm.grammar import GrammarTree
from poad.trie import ActionTrie, CallForm, Form, FormTree, Grammar, TokenTree
from poad.turns import TokenIds

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
"""Around the number of a control token whose name a text holds. Unicode has no such characters."""
ESCAPED = f"{_OPEN}\\d+{_CLOSE}"
"""The regular expression of a name that `TextCodec.escape` marked."""

MAX_NODES = 20_000
"""A form's tree with more nodes is not used again: over a long run it would fill the memory."""
_ANCHORS = (":", "\n")
"""Texts to encode a continuation behind; at least one does not merge with what follows it."""


class TextCodec:
    """A tokenizer with a cache: the texts of a small world repeat, so each is encoded once.

    Args:
        tokenizer: a tokenizer of transformers, fast or slow.
        cache_bytes: how much memory the encoded texts of each kind may take, about, before they are
            forgotten.
        action_prefix: the text between a prompt and an action. It belongs to the action.
        answer_prefix: the text between an observation and the agent's answer, which begins with its
            thoughts if it has any.
        end_id: the token that closes an action; by default the tokenizer's end of text.
        control_tokens: let the names of control tokens in a world's text become control tokens.
        calls: how calls of tools are written; None means as JSON.

    Raises:
        ValueError: the tokenizer has no end-of-text token, and no ``end_id`` is given.
    """

    def __init__(
        self,
        tokenizer: Any,
        cache_bytes: int = 2**26,
        action_prefix: str = " ",
        answer_prefix: str = " ",
        end_id: int | None = None,
        control_tokens: bool = False,
        calls: CallForm | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.action_prefix, self.answer_prefix, self.calls = action_prefix, answer_prefix, calls
        self.end_id = _end_token(tokenizer) if end_id is None else end_id
        pad = tokenizer.pad_token_id
        self.pad_id: int = self.end_id if pad is None else pad
        self.vocabulary: int | None = None
        """Number of tokens that the model knows, once there is one."""
        self.spare_tokens = 64  # an action by a grammar has at most so many beyond a short one
        self._controls = {} if control_tokens else _control_tokens(tokenizer)
        names = [*self._controls, _OPEN, _CLOSE]
        self._names = sorted(names, key=len, reverse=True)  # the longest that fits is meant
        self._named = re.compile("|".join(map(re.escape, self._names)))
        self._prompts: _Cache[str, TokenIds] = _Cache(cache_bytes)
        self._rendered: _Cache[str, TokenIds] = _Cache(cache_bytes)
        self._actions: _Cache[str, TokenIds] = _Cache(cache_bytes)
        self._tries: _Cache[tuple[str, ...], ActionTrie] = _Cache(cache_bytes)
        self._trees: _Cache[Form | Grammar, FormTree | GrammarTree] = _Cache(cache_bytes)
        self._reader: GrammarReader | None = None

    def prompt(self, text: str) -> TokenIds:
        """Encode an observation, with the special tokens that the model expects before it.

        Raises:
            ValueError: the observation has no tokens, so nothing could be predicted from it.
        """
        ids = self._prompts.get(text)
        if ids is None:
            ids = self._spelled_out(text, self._open)
            if not ids:
                raise ValueError(
                    f"The observation {text!r} has no tokens; a world must show some text."
                )
            self._prompts.remember(text, ids, len(text), len(ids))
        return ids

    def rendered(self, text: str) -> TokenIds:
        """Encode a prompt that already contains its special tokens, as chat templates make it."""
        ids = self._rendered.get(text)
        if ids is None:
            ids = self._spelled_out(text, self._encode)
            self._rendered.remember(text, ids, len(text), len(ids))
        return ids

    def continuation(self, text: str) -> TokenIds:
        """Encode a text as it continues another one, with nothing put before it.

        Some tokenizers put a space before every text, so it is encoded behind an anchor.
        """
        return self._spelled_out(text, self._continue)

    def escape(self, text: str) -> str:
        """Mark the names of control tokens in a world's text, so that they will be spelled out."""

        def mark(found: re.Match[str]) -> str:
            return f"{_OPEN}{self._names.index(found[0])}{_CLOSE}"

        return self._named.sub(mark, text)

    def closing_tokens(self, close: str) -> int:
        """Bound the number of tokens that close thoughts for an agent that has not done so."""
        # An agent that wrote the mark itself may lack the whitespace behind it, or some of it.
        space = close[len(close.rstrip()) :]
        missing = (close, *(space[i:] for i in range(len(space))))
        return max(len(self.continuation(text)) for text in missing)

    def action(self, text: str) -> TokenIds:
        """Encode an action as it follows a prompt, closed by the end-of-action token.

        Raises:
            ValueError: the action is blank or has no tokens, so the agent could not write it.
            ModelError: the model does not know one of its tokens.
        """
        ids = self._actions.get(text)
        if ids is None:
            shown = self.action_prefix + self.escape(text)
            written = self.continuation(shown) if text.strip() else ()
            if not written:
                raise ValueError(
                    f"The action {text!r} has no tokens; a world must offer actions with words in "
                    "them that the tokenizer knows."
                )
            ids = (*written, self.end_id)
            self.check_known(ids)
            self._actions.remember(text, ids, len(text), len(ids))
        return ids

    @overload
    def trie(self, offered: Sequence[str]) -> ActionTrie: ...

    @overload
    def trie(self, offered: Form) -> FormTree: ...

    @overload
    def trie(self, offered: Grammar) -> GrammarTree: ...

    @overload
    def trie(self, offered: Sequence[str] | Form | Grammar) -> TokenTree: ...

    def trie(self, offered: Sequence[str] | Form | Grammar) -> TokenTree:
        """Merge the offered actions into one token tree, the same object for the same offer.

        The parts of a form are encoded one by one, the first behind the action prefix. These are
        the tokens of the whole action where no token of it crosses a border between parts. The tree
        of a form or a grammar grows as it is walked, and a new one is begun where it has grown too
        large to keep.

        Raises:
            ValueError: there is no action, a blank one, or two with the same text or tokens; or a
                grammar that cannot be used.
            ConfigError: there is a grammar, but no package that reads it.
        """
        if isinstance(offered, Form | Grammar):
            return self._growing(offered)
        key = tuple(offered)
        trie = self._tries.get(key)
        if trie is None:
            trie = ActionTrie.build([self.action(text) for text in key], key)
            self._tries.remember(key, trie, sum(map(len, key)), 5 * len(trie.tokens))
        return trie

    def longest(self, offered: Sequence[str] | Form | Grammar) -> int:
        """Return the number of tokens of the longest offered action; 0 if there is none."""
        if isinstance(offered, Form | Grammar):
            return self._growing(offered).longest
        return max((len(self.action(text)) for text in offered), default=0)

    def _growing(self, offer: Form | Grammar) -> FormTree | GrammarTree:
        """Return the tree of an offer that is never listed."""
        tree, spare = self._trees.get(offer), self.spare_tokens
        if tree is None or tree.grown > MAX_NODES or getattr(tree, "spare", spare) != spare:
            if isinstance(offer, Form):
                tree = FormTree(offer, self._spell_form(offer), self.end_id)
            else:
                self._reader = self._reader or GrammarReader(self.tokenizer, self.end_id)
                self._reader.vocabulary = self.vocabulary
                tree = GrammarTree(offer, self._reader, self.action_prefix, spare, self.calls)
        # It grew since it was last remembered, so its size is told again.
        texts = [offer.source] if isinstance(offer, Grammar) else chain(*offer.parts)
        self._trees.remember(offer, tree, sum(map(len, texts)), 6 * tree.grown)
        return tree

    def _spell_form(self, form: Form) -> list[list[TokenIds]]:
        """Encode each alternative of each part of a form, as `action` does a whole action."""
        before = (self.action_prefix, *("" for _ in form.parts))
        spelled = [
            [self.continuation(prefix + self.escape(text)) for text in part]
            for prefix, part in zip(before, form.parts, strict=False)
        ]
        if all(() in part for part in spelled):
            raise ValueError(
                f"An action of the form {form} has no tokens; a world must offer actions with "
                "words in them that the tokenizer knows."
            )
        self.check_known([token for part in spelled for ids in part for token in ids])
        return spelled

    def _encode(self, text: str) -> TokenIds:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _open(self, text: str) -> TokenIds:
        """Encode the beginning of a prompt."""
        ids = tuple(self.tokenizer(text, add_special_tokens=True)["input_ids"])
        if ids and ids[-1] == self.tokenizer.eos_token_id and len(ids) > 1:
            ids = ids[:-1]  # some tokenizers close every text, but this one goes on
        return ids

    def _continue(self, text: str) -> TokenIds:
        """Encode a text as it follows another one."""
        for mark in _ANCHORS:
            anchor, joined = self._encode(mark), self._encode(mark + text)
            if joined[: len(anchor)] == anchor:
                return joined[len(anchor) :]
        return self._encode(text)

    def _spelled_out(self, text: str, encode: Callable[[str], TokenIds]) -> TokenIds:
        """Encode a text in which `escape` marked names; its beginning by the given function."""
        if _OPEN not in text:
            return encode(text)
        first, *rest = re.split(f"{_OPEN}(\\d+){_CLOSE}", text)
        ids = encode(first)
        for number, behind in zip(rest[::2], rest[1::2], strict=True):
            ids += self._spell(self._names[int(number)])
            ids += self._continue(behind) if behind else ()
        return ids

    def _spell(self, name: str) -> TokenIds:
        """Encode the name of a control token in ordinary tokens."""
        ids = self._continue(name)
        if not {*ids} & {*self._controls.values()}:
            return ids
        # Cut apart, it is not recognized. A name of one character cannot be spelled, so it is left
        # out.
        return self._spell(name[:1]) + self._spell(name[1:]) if len(name) > 1 else ()

    def text(self, token_ids: Sequence[int]) -> str:
        """Decode the tokens of an action, without special tokens and surrounding space."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True).strip()

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """Decode each token by itself."""
        return [self.tokenizer.decode([token]) for token in token_ids]

    def without_token(self, count: int) -> list[int]:
        """List the ids below ``count`` that stand for no token, as many models have."""
        known = {*self.tokenizer.get_vocab().values(), *self.tokenizer.added_tokens_decoder}
        highest = max(known)
        # Two tokens may share a name, so an id among the others is asked for by itself.
        named = {i for i in range(min(count, highest + 1)) if _has(self.tokenizer, i)}
        return [i for i in range(count) if i not in known and i not in named]

    def check_known(self, token_ids: Sequence[int]) -> None:
        """Check that the model knows some tokens.

        Raises:
            ModelError: it has no row for one of them.
        """
        if self.vocabulary is not None and (highest := max(token_ids)) >= self.vocabulary:
            raise ModelError(
                f"The text has the token {self.pieces([highest])[0]!r} (id {highest:,}), but the "
                f"model knows {self.vocabulary:,} tokens only. Use the model's own tokenizer."
            )


_K = TypeVar("_K")
_V = TypeVar("_V")


class _Cache(dict[_K, _V]):
    """A dictionary that is emptied when it grows too large.

    Args:
        limit: in bytes, of all keys and values together.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit, self._size = limit, 0
        self._sizes: dict[_K, int] = {}

    def remember(self, key: _K, value: _V, characters: int, numbers: int) -> None:
        """Add a value that holds, with its key, about so many characters and whole numbers.

        A value that has grown is added again.
        """
        size = 300 + characters + 40 * numbers  # a number is an object and a pointer to it
        if self._size - self._sizes.get(key, 0) + size > self._limit:
            self.clear()
            self._sizes.clear()
            self._size = 0
        self._size += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self[key] = value


def _has(tokenizer: Any, token: int) -> bool:
    """Check whether an id stands for a token."""
    try:
        return tokenizer.convert_ids_to_tokens(token) is not None
    except (LookupError, ValueError):  # of a slow tokenizer
        return False


def _control_tokens(tokenizer: Any) -> dict[str, int]:
    """Find the tokens that mean something to the model apart from what they spell, by name.

    These are the special ones, and what else the tokenizer was given for its chat template.
    """
    template = str(getattr(tokenizer, "chat_template", None) or "")
    special = {*getattr(tokenizer, "all_special_ids", ())}
    return {
        token.content: number
        for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()
        if number in special
        or token.special
        or (token.content.strip() and token.content.strip() in template)
    }


def _end_token(tokenizer: Any) -> int:
    """Return the tokenizer's end of text, which closes actions."""
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no end-of-text token to close actions with; set tokenizer.eos_token."
        )
    return int(tokenizer.eos_token_id)
