"""Grammars as token trees: which tokens may come next, by llguidance.

A grammar describes too many actions to list them, so its tree grows where it is walked. At a node
with few admissible tokens these are its children, and only such spellings remain that the tokenizer
itself would choose, so that each text has one. Text that the grammar forces is spelled the same way
and is no choice. Where many tokens are admissible, as inside an open string, the agent writes as it
does freely: any spelling counts, and the tree keeps a mask of the tokens instead of children.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np

from poad.errors import ConfigError, ModelError
from poad.trie import MAX_LISTED, ROOT, Border, Grammar, TokenTree

FEW: Final = 128
"""Up to so many admissible tokens are listed as the children of a node."""
_AHEAD: Final = 4
"""Tokens to look ahead for one that the tokenizer would not write behind those before it."""
_LONGEST_ENDING: Final = 1024
"""Tokens after which the search for an end of an action gives up."""
_MARGIN: Final = 16
"""Tokens by which the way to the end may grow between two searches for it."""
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


class _Cursor:
    """A place in the texts that a grammar describes, which can be moved.

    Args:
        grammar: the offer.
        reader: the tokenizer.
        prefix: a text before each of the texts.
        border: what stands around calls of tools.

    Raises:
        ValueError: the grammar cannot be read, or admits an empty text.
    """

    def __init__(
        self, grammar: Grammar, reader: GrammarReader, prefix: str, border: Border | None
    ) -> None:
        self._grammar, self._reader = grammar, reader
        try:
            body = grammar.rules(border, reader.literal)
            if reader.matcher(json.dumps({"grammars": [body]})).is_accepting():
                raise ValueError("it admits an empty action.")
            before = reader.literal(prefix) if prefix else ""
            head = {"lark_grammar": f"start: {before} @body"}
            parts = {"grammars": [head, body | {"name": "body"}]}
            self._matcher = reader.matcher(json.dumps(parts))
        except ValueError as error:
            raise ValueError(f"The action grammar ({grammar}) cannot be used: {error}") from error
        self._read: list[int] = []  # the tokens before this place
        self._stuck = b""  # the mask of a place that no single token leads away from

    def go_to(self, path: Sequence[int]) -> None:
        """Move behind some tokens, none of which is the end-of-action token."""
        same = 0
        while same < min(len(path), len(self._read)) and path[same] == self._read[same]:
            same += 1
        self._back(len(self._read) - same)
        self._on(path[same:])

    def forced(self) -> list[int]:
        """Return the tokens that must follow, as far as the tokenizer's spelling is settled."""
        if self._matcher.is_stopped():
            return [self._reader.end]
        return self._matcher.compute_ff_tokens()

    def admissible(self) -> tuple[list[int], bytes]:
        """List the tokens that may come next; the same as bits."""
        mask: bytes = self._matcher.compute_bitmask()
        bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")
        tokens = bits.nonzero()[0].tolist()
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
        while not self._matcher.is_accepting():
            step = self.forced() or [self._towards_the_end(seen)]
            self._on(step)
            ending += step
            if len(ending) > _LONGEST_ENDING:
                raise ValueError(
                    f"The action grammar ({self._grammar}) cannot be used: no action of up to "
                    f"{_LONGEST_ENDING:,} tokens was found. Bound its repetitions."
                )
        self._back(len(ending))
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
            self._on([token])
            moved = self._matcher.is_accepting() or self._matcher.compute_bitmask() not in seen
            self._back(1)
            if moved:
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
        self._on(tokens[-1:])
        found = self._goes_on(tokens, ahead)
        self._back(1)
        return found

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

    def _back(self, count: int) -> None:
        if count:
            self._matcher.rollback(count)
            del self._read[-count:]


class GrammarTree(TokenTree):
    """The actions of a grammar as a token tree that grows where it is walked.

    Args:
        grammar: the offer.
        reader: the tokenizer.
        prefix: the text between a prompt and an action. It belongs to the action.
        border: what a chat template writes around calls of tools; None leaves it out.
        spare: the most choices of an action, and half of the tokens that it may have beyond a short
            one. Behind them, the way to the end is forced, so that every action is complete.

    Raises:
        ValueError: the grammar cannot be read, describes no text, or admits an empty action.
    """

    def __init__(
        self,
        grammar: Grammar,
        reader: GrammarReader,
        prefix: str,
        spare: int,
        border: Border | None = None,
    ) -> None:
        self._grammar, self._reader, self._prefix = grammar, reader, prefix.encode()
        self._cursor = _Cursor(grammar, reader, prefix, border)
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._options: dict[int, tuple[int, ...]] = {}
        self._masks: dict[int, bytes] = {}
        self._children: dict[int, dict[int, int]] = {}  # of nodes with a mask, by token
        self._leaves: tuple[int, ...] | None = None
        self._open = {ROOT: 0}  # how many tokens up to a node may be spelled in any way
        shortest = len(self._cursor.ending())
        self._needs = {ROOT: shortest}  # how many tokens lead to the end from where it was looked
        self._made: list[int] = []  # how many choices lead to each node
        self.spare = spare
        """The most choices of an action."""
        self._last = max(shortest, *_shortest_calls(grammar, reader, prefix, border)) + 2 * spare
        self.longest = self._last + _MARGIN
        """The number of tokens of the longest action, unless one of its tokens opens a part that
        cannot be closed with `_MARGIN` more."""

    @property
    def grown(self) -> int:
        """The size of the tree, counted in nodes."""
        return len(self._tokens) + sum(map(len, self._masks.values())) // 40

    @property
    def offer(self) -> Grammar:
        """The actions as the world offers them."""
        return self._grammar

    def options(self, node: int) -> tuple[int, ...]:
        """The children of a node; none if it is a leaf.

        Raises:
            ValueError: they are not listed, since there are too many; see `allowed`.
        """
        self._expand(node)
        if node in self._masks:
            raise ValueError("The tokens after this node are too many to be listed.")
        return self._options[node]

    def allowed(self, node: int) -> bytes | None:
        """The admissible tokens after a node where they are many, one bit each, lowest first."""
        self._expand(node)
        return self._masks.get(node)

    def child(self, node: int, token: int) -> int:
        """The node of a token after another node.

        Raises:
            ValueError: the token is not admissible there.
        """
        mask = self.allowed(node)
        if mask is None:
            return super().child(node, token)
        known = self._children[node]
        if token not in known:
            if not (token // 8 < len(mask) and mask[token // 8] >> token % 8 & 1):
                tokens = [*self.token_path(node), token]
                raise ValueError(f"No offered action begins with the tokens {tokens}.")
            known[token] = self._grow(node, token, choice=True)
            self._open[known[token]] = len(self.path(known[token]))
        return known[token]

    def token(self, node: int) -> int:
        """The token of a node."""
        return self._tokens[node]

    def parent(self, node: int) -> int:
        """The node before another one, or `ROOT`."""
        return self._parents[node]

    def text(self, leaf: int) -> str:
        """The action that ends in a leaf."""
        spelled = self._reader.tokenizer.decode_bytes(list(self.token_path(leaf)[:-1]))
        text = spelled.removeprefix(self._prefix).decode(errors="replace")
        return "\n".join(_calls_in(text)) if self._grammar.tools else text

    def all_leaves(self) -> Sequence[int]:
        """The last node of each action.

        Raises:
            ValueError: there are more than `MAX_LISTED`.
        """
        if self._leaves is None:
            self._leaves = self._find_leaves()
        if not self._leaves:
            raise ValueError(f"A grammar of more than {MAX_LISTED:,} actions is not listed.")
        return self._leaves

    def _find_leaves(self) -> tuple[int, ...]:
        """Search the tree; nothing is found if there are open texts or too many actions."""
        leaves, waiting = list[int](), [ROOT]
        while waiting:
            node = waiting.pop()
            if self.allowed(node) is not None or len(leaves) == MAX_LISTED:
                return ()
            options = self.options(node)
            waiting.extend(reversed(options))
            leaves += [] if options else [node]
        return tuple(leaves)

    def _expand(self, node: int) -> None:
        """Find what may follow a node, once."""
        if node in self._options or node in self._masks:
            return
        if node != ROOT and self._tokens[node] == self._reader.end:
            self._options[node] = ()
            return
        path = list(self.token_path(node))
        self._cursor.go_to(path)
        if forced := self._cursor.forced():
            self._chain(node, forced)
            return
        tokens, mask = self._cursor.admissible()
        if len(tokens) > 1 and (ending := self._last_call(node, len(path))):
            self._chain(node, ending)
        elif len(tokens) > FEW:
            self._masks[node], self._children[node] = mask, {}
        else:
            before = path[self._above(self._open, node) :]
            kept = [token for token in tokens if self._cursor.is_spelling(before, token)]
            # If the search looked too short a way ahead, none is left. Then each spelling counts.
            choice = len(kept or tokens) > 1
            self._options[node] = tuple(self._grow(node, t, choice) for t in kept or tokens)

    def _last_call(self, node: int, length: int) -> list[int]:
        """Return the tokens to the end if an action of so many tokens must now come to it."""
        done = node != ROOT and self._made[node] >= self.spare
        if not done and length + self._above(self._needs, node) + _MARGIN < self._last:
            return []
        ending = self._cursor.ending()
        self._needs[node] = len(ending)
        return ending if done or length + len(ending) >= self._last else []

    def _above(self, known: Mapping[int, int], node: int) -> int:
        """Return what is known of a node, or else of the nearest one above it."""
        while node not in known:
            node = self._parents[node]
        return known[node]

    def _chain(self, node: int, tokens: Sequence[int]) -> None:
        """Add tokens without an alternative behind a node."""
        for token in tokens:
            child = self._grow(node, token)
            self._options[node] = (child,)
            node = child

    def _grow(self, node: int, token: int, choice: bool = False) -> int:
        known = self._reader.vocabulary
        if known is not None and token >= known:
            raise ModelError(
                f"The action grammar ({self._grammar}) needs the token {token:,}, but the model "
                f"knows {known:,} tokens only. Use the model's own tokenizer."
            )
        self._tokens.append(token)
        self._parents.append(node)
        self._made.append((0 if node == ROOT else self._made[node]) + choice)
        return len(self._tokens) - 1


def _shortest_calls(
    grammar: Grammar, reader: GrammarReader, prefix: str, border: Border | None
) -> Iterator[int]:
    """Yield the length of a short call of each tool; 0 for other grammars."""
    yield 0
    for tool in json.loads(grammar.source) if grammar.kind == "tools" else ():
        alone = Grammar.of({"tools": [tool]})
        yield len(_Cursor(alone, reader, prefix, border).ending())


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


def _calls_in(text: str) -> Iterator[str]:
    """Yield the calls in a text, without what a chat template writes around them."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        _, end = decoder.raw_decode(text, at)
        yield text[at:end]
        at = text.find("{", end)


def allowed_tokens(mask: bytes, vocabulary: int) -> np.ndarray:
    """Unpack the bits of `GrammarTree.allowed` into [vocabulary] bool."""
    bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")[:vocabulary]
    return np.pad(bits, (0, vocabulary - len(bits))).astype(bool)
