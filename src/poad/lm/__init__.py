"""Language models: loading, prompts, packing and forward passes."""

from poad.lm.cache import Decoder
from poad.lm.loading import (
    ASSETS,
    embedded_models,
    load_model,
    resolve_model,
    where,
    with_adapters,
    without_bars,
)
from poad.lm.model import LanguageModel
from poad.lm.packing import Bundles, Packed, common, pack, packed_tokens
from poad.lm.prompts import Dialogue, codec_for
from poad.lm.tokenizer import TextCodec

__all__ = [
    "ASSETS",
    "Bundles",
    "Decoder",
    "Dialogue",
    "LanguageModel",
    "Packed",
    "TextCodec",
    "codec_for",
    "common",
    "embedded_models",
    "load_model",
    "pack",
    "packed_tokens",
    "resolve_model",
    "where",
    "with_adapters",
    "without_bars",
]
