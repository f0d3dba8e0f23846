"""Language models: loading, prompts, packing and forward passes."""

from poad.lm.adapters import with_adapters
from poad.lm.cache import Decoder
from poad.lm.checks import explain_nan
from poad.lm.cursor import allowed_tokens
from poad.lm.gguf import is_gguf, what_is_missing
from poad.lm.kinds import count_weights, suitable_preset
from poad.lm.known import KNOWN, SOURCE, Known, Wheel, cache_directory
from poad.lm.loading import (
    ASSETS,
    embedded_models,
    find_source,
    is_path,
    load_model,
    load_tokenizer,
    model_source,
    own_names,
    resolve_device,
    resolve_model,
    without_progress_bars,
)
from poad.lm.memory import PassLimit, advice_on_memory
from poad.lm.mixed import resolve_precision
from poad.lm.model import (
    LARGE_VOCABULARY,
    LanguageModel,
    computed_twice,
    context_length,
    renew,
    seeded,
    shard,
    text_body,
)
from poad.lm.packing import (
    Bundles,
    Packed,
    pack,
    pack_in_passes,
    packed_tokens,
    renumber,
)
from poad.lm.prompts import Dialogue, codec_for
from poad.lm.shards import all_whole, own_part, part_of, whole
from poad.lm.tokenizer import TextCodec

__all__ = [
    "ASSETS",
    "KNOWN",
    "LARGE_VOCABULARY",
    "SOURCE",
    "Bundles",
    "Decoder",
    "Dialogue",
    "Known",
    "LanguageModel",
    "Packed",
    "PassLimit",
    "TextCodec",
    "Wheel",
    "advice_on_memory",
    "all_whole",
    "allowed_tokens",
    "cache_directory",
    "codec_for",
    "computed_twice",
    "context_length",
    "count_weights",
    "embedded_models",
    "explain_nan",
    "find_source",
    "is_gguf",
    "is_path",
    "load_model",
    "load_tokenizer",
    "model_source",
    "own_names",
    "own_part",
    "pack",
    "pack_in_passes",
    "packed_tokens",
    "part_of",
    "renew",
    "renumber",
    "resolve_device",
    "resolve_model",
    "resolve_precision",
    "seeded",
    "shard",
    "suitable_preset",
    "text_body",
    "what_is_missing",
    "whole",
    "with_adapters",
    "without_progress_bars",
]
