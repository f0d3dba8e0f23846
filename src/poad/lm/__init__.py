"""Language models: loading, prompts, packing and forward passes."""

from poad.lm.cache import Decoder
from poad.lm.loading import (
    ASSETS,
    embedded_models,
    find_source,
    load_model,
    load_tokenizer,
    model_source,
    resolve_model,
    with_adapters,
    without_progress_bars,
)
from poad.lm.model import LanguageModel, computed_twice, context_length, seeded, text_body
from poad.lm.packing import (
    Bundles,
    Packed,
    pack,
    pack_in_passes,
    packed_tokens,
    renumber,
)
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
    "computed_twice",
    "context_length",
    "embedded_models",
    "find_source",
    "load_model",
    "load_tokenizer",
    "model_source",
    "pack",
    "pack_in_passes",
    "packed_tokens",
    "renumber",
    "resolve_model",
    "seeded",
    "text_body",
    "with_adapters",
    "without_progress_bars",
]
