"""Models by name: the embedded ones, those that can be fetched, and their sizes; no torch."""

from poad.models.kinds import count_weights, suitable_preset
from poad.models.known import KNOWN, SOURCE, Known, Wheel, cache_directory, fetched
from poad.models.names import ASSETS, embedded_models, is_gguf, model_card, own_names

__all__ = [
    "ASSETS",
    "KNOWN",
    "SOURCE",
    "Known",
    "Wheel",
    "cache_directory",
    "count_weights",
    "embedded_models",
    "fetched",
    "is_gguf",
    "model_card",
    "own_names",
    "suitable_preset",
]
