"""Uniformly random actions, from whatever a world offers."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import numpy as np

from poad.errors import ConfigError
from poad.trie import Form, Grammar, Offer, arguments_of

_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_WORD: Final = 8
"""Letters of a random text without a bound of its own."""
_RANGE: Final = 10
"""Numbers to draw from where a schema leaves a side open."""
_LONG: Final = 1000
"""Bytes after which a random text of a grammar gives up."""


def draw(offer: Offer, rng: random.Random, reading: str = "") -> str:
    """Draw an action uniformly from an offer.

    Among the calls of tools, each tool has the same chance, and then each value of each argument.
    An open argument becomes a random word or number. Texts of other grammars are drawn byte after
    byte, each with the same chance.

    Args:
        offer: the offered actions.
        rng: the source of randomness; it also draws from forms of more than 2⁶³ actions.
        reading: what the agent reads. An argument of a tool has an even chance to repeat something
            that stands there, if any of its values does.

    Raises:
        ConfigError: a grammar needs llguidance, which is not installed.
        ValueError: a grammar cannot be read.
    """
    if isinstance(offer, Form):
        return offer[rng.randrange(offer.size)]
    if not isinstance(offer, Grammar):
        return offer[rng.randrange(len(offer))]
    if offer.kind == "tools":
        return "\n".join(_call(offer, rng, reading) for _ in range(rng.randint(1, offer.calls)))
    if offer.kind == "json_schema":
        schema = json.loads(offer.source)
        if _is_plain(schema):
            return json.dumps(_value(schema, rng), ensure_ascii=False)
    return _bytewise(offer, rng)


def size_of(offer: Offer) -> float:
    """Count the offered actions; infinite where a grammar describes them."""
    if isinstance(offer, Grammar):
        return math.inf
    return offer.size if isinstance(offer, Form) else len(offer)


def _call(grammar: Grammar, rng: random.Random, reading: str) -> str:
    tool = rng.choice(grammar.tools)
    parameters = arguments_of(tool)
    if not _is_plain(parameters):
        schema = {"json_schema": parameters}
        arguments = json.loads(_bytewise(Grammar.of(schema), rng))
    else:
        arguments = _value(parameters, rng, reading)
    return json.dumps({"name": tool["name"], "arguments": arguments}, ensure_ascii=False)


def _is_plain(schema: Any) -> bool:
    """Tell whether `_value` knows all that a JSON schema says."""
    known = {"type", "description", "title", "default", "examples", "enum", "const", "anyOf"}
    known |= {"oneOf", "properties", "required", "additionalProperties", "items", "minItems"}
    known |= {"maxItems", "minimum", "maximum", "minLength", "maxLength"}
    if not isinstance(schema, Mapping) or not schema.keys() <= known:
        return False
    if "enum" in schema or "const" in schema:
        return bool(schema.get("enum", True))
    if not {*schema.get("required", ())} <= {*schema.get("properties", {})}:
        return False
    inner = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    inner += [*schema.get("properties", {}).values()]
    inner += [schema["items"]] if "items" in schema else []
    simple = isinstance(schema.get("type", "object"), str) or inner
    return bool(simple) and all(map(_is_plain, inner))


def _value(schema: Mapping[str, Any], rng: random.Random, reading: str = "") -> Any:
    """Draw a value of a JSON schema that `_is_plain`; perhaps one that stands in `reading`."""
    if "const" in schema:
        return schema["const"]
    if reading and (seen := _standing(schema, reading)) and rng.random() < 0.5:
        return rng.choice(seen)
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if some := schema.get("anyOf") or schema.get("oneOf"):
        return _value(rng.choice(some), rng, reading)
    kind = schema.get("type", "object")
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "number":
        least = schema.get("minimum", schema.get("maximum", _RANGE) - _RANGE)
        return rng.uniform(least, schema.get("maximum", least + _RANGE))
    if kind == "integer":
        least = math.ceil(schema.get("minimum", schema.get("maximum", _RANGE - 1) - _RANGE + 1))
        return rng.randint(least, math.floor(schema.get("maximum", least + _RANGE - 1)))
    if kind == "string":
        least = schema.get("minLength", min(1, schema.get("maxLength", 1)))
        length = rng.randint(least, schema.get("maxLength", max(least, _WORD)))
        return "".join(rng.choice(_LETTERS) for _ in range(length))
    if kind == "array":
        least = schema.get("minItems", 0)
        count = rng.randint(least, schema.get("maxItems", least + 2))
        return [_value(schema.get("items", {"type": "null"}), rng, reading) for _ in range(count)]
    if kind == "object":
        required = schema.get("required", ())
        return {
            name: _value(inner, rng, reading)
            for name, inner in schema.get("properties", {}).items()
            if name in required or rng.random() < 0.5
        }
    return None


def _standing(schema: Mapping[str, Any], reading: str) -> list[Any]:
    """List the values of a schema that stand in a text, as whole words; none for other kinds."""
    if "enum" in schema:
        return [value for value in schema["enum"] if _stands(value, reading)]
    kind, words = schema.get("type"), sorted(set(re.findall(r"\w+", reading)))
    if kind == "string":
        least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        return [word for word in words if least <= len(word) <= most]
    if kind == "integer":
        least, most = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        return [int(word) for word in words if word.isdecimal() and least <= int(word) <= most]
    return []


def _stands(value: Any, reading: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(str(value))}(?!\w)", reading) is not None


@lru_cache(maxsize=1)
def _bytes() -> Any:
    """Make a tokenizer whose tokens are bytes, and the end of a text."""
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError as error:
        raise ConfigError(
            "Drawing a random action from a grammar of this kind needs the package llguidance: "
            'pip install "poad[structured]".'
        ) from error

    class Bytes:
        """What llguidance asks of a tokenizer."""

        eos_token_id, bos_token_id = 256, None
        tokens = (*(bytes([value]) for value in range(256)), b"<end>")
        special_token_ids = (256,)

        def __call__(self, text: str) -> list[int]:
            return list(text.encode())

    return LLTokenizer(TokenizerWrapper(Bytes()))


def _bytewise(grammar: Grammar, rng: random.Random) -> str:
    """Draw a text byte after byte, and try again if it does not come to an end."""
    tokenizer = _bytes()
    from llguidance import LLMatcher

    source = json.dumps({"grammars": [grammar.rules()]})
    for _ in range(100):
        matcher = LLMatcher(tokenizer, source, log_level=0)
        if matcher.is_error():
            raise ValueError(f"The action grammar ({grammar}) cannot be used.")
        written = b""
        while not matcher.is_stopped() and len(written) < _LONG:
            mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
            token = rng.choice(np.unpackbits(mask, bitorder="little").nonzero()[0].tolist())
            if token == 256:
                return written.decode()
            matcher.consume_token(token)
            written += bytes([token])
        if matcher.is_accepting():
            return written.decode()
    raise ValueError(f"No text of the action grammar ({grammar}) of {_LONG} bytes was found.")
