"""A place in the texts that a grammar describes: which tokens may come next, by llguidance."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Final

import numpy as np

from poad.errors import ConfigError, ModelError
from poad.trie import CallForm, Grammar

FEW: Final = 128
"""Up to so many admissible tokens are listed as the children of a node."""
_AHEAD: Final = 4
"""Tokens to look ahead for one that the tokenizer would not write behind those before it."""
_LONGEST_ENDING: Final = 1024
"""Tokens after which the search for an end of an action gives up."""
_TRIED: Final = 8
"""Tokens to try on the way to the end, besides those of a single byte."""
_KIND: Final = 1000
"""The distance of the ranks of two kinds of tokens."""
_CLOSERS: Final = frozenset(b"\"'])}>")
_OPENERS: Final = frozenset(b"([{<")


class GrammarReader:
    """A tokenizer as llguidance reads it.

    Args:
        tokenizer: a fast tokenizer of transformers.
        end: the end-of-action token.

    Raises:
        ConfigError: llguidance is not installed.
        ModelError: the tokenizer is a slow one.
    """

    def __init__(self, tokenizer: Any, end: int) -> None:
        try:
            import llguidance.hf
        except ImportError as error:
            raise ConfigError(
                "The world describes its actions by a grammar (action_grammar), which needs the "
                'package llguidance: pip install "poad[structured]".'
            ) from error
        try:
            self.tokenizer = llguidance.hf.from_tokenizer(tokenizer, eos_token=end)
        except ValueError as error:
            raise ModelError(
                "The world describes its actions by a grammar, which needs a fast tokenizer, but "
                f"the model has a {type(tokenizer).__name__}. Take another model."
            ) from error
        self.end = end
        self.vocabulary: int | None = None
        """Number of tokens that the model knows, once there is one."""
        self._ranks: np.ndarray | None = None
        self.single: set[int] = set()
        """The tokens of a single byte, once the ranks are known."""

    @property
    def ranks(self) -> np.ndarray:
        """[V] int: how soon an action may end behind each token; the lowest lead there first."""
        if self._ranks is None:
            spelled = [self.tokenizer.decode_bytes([t]) for t in range(self.tokenizer.vocab_size)]
            self._ranks = np.array([_rank(each) for each in spelled])
            self.single = {token for token, each in enumerate(spelled) if len(each) == 1}
        return self._ranks

    def literal(self, text: str) -> str:
        """Write a text as Lark does; the names of control tokens become these tokens."""
        tokens = self.tokenizer.tokenize_str(text, parse_special=True)
        pieces = [""]
        for token in tokens:
            if self.tokenizer.is_special_token(token):
                pieces += [f"<[{token}]>", ""]
            else:
                pieces[-1] += self.tokenizer.decode_str([token])
        return " ".join(
            piece if number % 2 else json.dumps(piece)
            for number, piece in enumerate(pieces)
            if piece
        )

    def matcher(self, grammar: str) -> Any:
        """Compile a grammar in the words of llguidance.

        Raises:
            ValueError: it is no grammar.
        """
        from llguidance import LLMatcher

        matcher = LLMatcher(self.tokenizer, grammar, log_level=0)
        if matcher.is_error():
            first = matcher.get_error().partition("\n")[0]
            raise ValueError(re.sub(r"^at \d+\(\d+\): ", "", first))
        return matcher


class Cursor:
    """A place in the texts that a grammar describes, which can be moved.

    Args:
        grammar: the offer.
        reader: the tokenizer.
        prefix: a text before each of the texts.
        form: how calls of tools are written; None means as JSON.

    Raises:
        ValueError: the grammar cannot be read, or admits an empty text.
    """

    def __init__(
        self, grammar: Grammar, reader: GrammarReader, prefix: str, form: CallForm | None
    ) -> None:
        self._grammar, self._reader = grammar, reader
        try:
            body = grammar.rules(form, reader.literal)
            if reader.matcher(json.dumps({"grammars": [body]})).is_accepting():
                raise ValueError("it admits an empty action.")
            before = reader.literal(prefix) if prefix else ""
            head = {"lark_grammar": f"start: {before} @body"}
            parts = {"grammars": [head, body | {"name": "body"}]}
            self._start = reader.matcher(json.dumps(parts))
        except ValueError as error:
            raise ValueError(f"The action grammar ({grammar}) cannot be used: {error}") from error
        # Copies are left behind and never rolled back: llguidance (1.9) then remembers rows of the
        # way that was left, and admits what belongs there.
        self._matcher = self._start.deep_copy()
        self._read: list[int] = []  # the tokens before this place
        self._stuck = b""  # the mask of a place that no single token leads away from

    def go_to(self, path: Sequence[int]) -> None:
        """Move behind some tokens, none of which is the end-of-action token."""
        same = 0
        while same < min(len(path), len(self._read)) and path[same] == self._read[same]:
            same += 1
        if same < len(self._read):
            self._matcher, self._read, same = self._start.deep_copy(), [], 0
        self._on(path[same:])

    def forced(self) -> list[int]:
        """Return the tokens that must follow, as far as the tokenizer's spelling is settled."""
        if self._matcher.is_stopped():
            return [self._reader.end]
        return self._matcher.compute_ff_tokens()

    def admissible(self) -> tuple[list[int], bytes]:
        """List the tokens that may come next; the same as bits."""
        mask: bytes = self._matcher.compute_bitmask()
        tokens = unpacked(mask).nonzero()[0].tolist()
        if not tokens or self._matcher.is_error():
            spelled = self._reader.tokenizer.decode_str(self._read)
            raise ValueError(
                f"The action grammar ({self._grammar}) describes no text that begins with "
                f"{spelled!r}."
            )
        return tokens, mask

    def ending(self) -> list[int]:
        """Find a short way from here to the end of an action, the end token included.

        Raises:
            ValueError: none was found.
        """
        ending, seen = list[int](), set[bytes]()
        with self._returning():
            while not self._matcher.is_accepting():
                step = self.forced() or [self._towards_the_end(seen)]
                self._on(step)
                ending += step
                if len(ending) > _LONGEST_ENDING:
                    raise ValueError(
                        f"The action grammar ({self._grammar}) cannot be used: no action of up to "
                        f"{_LONGEST_ENDING:,} tokens was found. Bound its repetitions."
                    )
        return [*ending, self._reader.end]

    def _towards_the_end(self, seen: set[bytes]) -> int:
        """Choose a token behind which an action may end soon.

        A token that leads back to a mask which was ``seen`` on the way, as another letter of an
        open text does, leads nowhere. Where all do, the text may be counted, and any will do.
        """
        tokens, mask = self.admissible()
        seen.add(mask)
        ranked = [tokens[i] for i in self._reader.ranks[tokens].argsort(kind="stable").tolist()]
        if mask == self._stuck:
            return ranked[0]
        # Each single byte, too, since there may be thousands of longer tokens before it.
        bytes_ = (token for token in ranked[_TRIED:] if token in self._reader.single)
        for token in chain(ranked[:_TRIED], bytes_):
            with self._returning():
                self._on([token])
                if self._matcher.is_accepting() or self._matcher.compute_bitmask() not in seen:
                    return token
        self._stuck = mask
        return ranked[0]

    def is_spelling(self, before: list[int], token: int) -> bool:
        """Check whether the tokenizer could write a token here, behind some others."""
        if token == self._reader.end:
            return True
        return self._is_canonical([*before, token]) and self._takes([*before, token], _AHEAD)

    def _takes(self, tokens: list[int], ahead: int) -> bool:
        """Take the last of some tokens, see whether these can begin a text, and go back."""
        with self._returning():
            self._on(tokens[-1:])
            return self._goes_on(tokens, ahead)

    def _goes_on(self, tokens: list[int], ahead: int) -> bool:
        """Check whether some text goes on from here, of which these are the last tokens."""
        if self._matcher.is_accepting():
            return True
        forced = self._matcher.compute_ff_bytes()
        if forced:
            spelling = self._reader.tokenizer
            whole = spelling.tokenize_bytes(spelling.decode_bytes(tokens) + forced)
            # With two tokens behind them, what comes later is no longer joined with these. With
            # fewer it may be, so that what is forced alone cannot speak against them.
            if whole[: len(tokens)] == tokens and len(whole) > len(tokens) + 1:
                return True
        admissible, _ = self.admissible()
        if not ahead or len(admissible) > FEW:
            return True
        longer = ([*tokens, token] for token in admissible)
        return any(self._takes(each, ahead - 1) for each in longer if self._is_canonical(each))

    def _is_canonical(self, tokens: list[int]) -> bool:
        spelling = self._reader.tokenizer
        return spelling.tokenize_bytes(spelling.decode_bytes(tokens)) == tokens

    def _on(self, tokens: Sequence[int]) -> None:
        if not self._matcher.consume_tokens(list(tokens)):
            why = self._matcher.get_error()[:200]
            raise ValueError(f"The action grammar ({self._grammar}) cannot be followed: {why}")
        self._read.extend(tokens)

    @contextmanager
    def _returning(self) -> Iterator[None]:
        """Come back to this place behind the block."""
        here, read = self._matcher.deep_copy(), [*self._read]
        try:
            yield
        finally:
            self._matcher, self._read = here, read


def _rank(spelled: bytes) -> int:
    """Rank a token by how soon an action may end behind it: kinds, and lengths within a kind."""
    length = min(len(spelled), _KIND // 2 - 1)
    if not spelled:  # a control token
        return 9 * _KIND
    if spelled[0] == ord('"') and _CLOSERS.issuperset(spelled):  # an open string ends here alone
        return _KIND - length
    if _CLOSERS.issuperset(spelled):
        return 2 * _KIND - length
    if spelled.isdigit():
        return 2 * _KIND + length
    if not _OPENERS.isdisjoint(spelled):
        return 8 * _KIND + length
    if spelled.isspace():
        return 6 * _KIND + length
    # Words, the longest first; then what is neither, such as the @ of an address.
    return 4 * _KIND - length if spelled.strip().isalnum() else 5 * _KIND + length


def unpacked(mask: bytes) -> np.ndarray:
    """Unpack bits, the lowest of each byte first, into numbers that are 0 or 1."""
    return np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")


def allowed_tokens(mask: bytes, vocabulary: int) -> np.ndarray:
    """Unpack the bits of `GrammarTree.allowed` into [vocabulary] bool."""
    bits = unpacked(mask)[:vocabulary]
    return np.pad(bits, (0, vocabulary - len(bits))).astype(bool)
