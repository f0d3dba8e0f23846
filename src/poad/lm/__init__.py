"""Language models: loading, prompts, packing and forward passes."""

from poad.lm.adapters import save_adapters, with_adapters
from poad.lm.beside import SideAdapter
from poad.lm.cache import Decoder
from poad.lm.checks import explain_nan
from poad.lm.cursor import allowed_tokens
from poad.lm.gguf import what_is_missing
from poad.lm.loading import (
    find_source,
    is_path,
    load_model,
    load_tokenizer,
    model_source,
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
from poad.models import ASSETS

__all__ = [
    "ASSETS",
    "LARGE_VOCABULARY",
    "Bundles",
    "Decoder",
    "Dialogue",
    "LanguageModel",
    "Packed",
    "PassLimit",
    "SideAdapter",
    "TextCodec",
    "advice_on_memory",
    "all_whole",
    "allowed_tokens",
    "codec_for",
    "computed_twice",
    "context_length",
    "explain_nan",
    "find_source",
    "is_path",
    "load_model",
    "load_tokenizer",
    "model_source",
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
    "save_adapters",
    "seeded",
    "shard",
    "text_body",
    "what_is_missing",
    "whole",
    "with_adapters",
    "without_progress_bars",
]
