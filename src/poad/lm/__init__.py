"""Language models: loading, prompts, packing and forward passes."""

from poad.lm.cache import Decoder
from poad.lm.loading import (
    ASSETS,
    embedded_models,
    load_model,
    model_source,
    resolve_model,
    with_adapters,
    without_progress_bars,
)
from poad.lm.model import LanguageModel, seeded
from poad.lm.packing import (
    Bundles,
    Packed,
    pack,
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
    "embedded_models",
    "load_model",
    "model_source",
    "pack",
    "packed_tokens",
    "renumber",
    "resolve_model",
    "seeded",
    "with_adapters",
    "without_progress_bars",
]
