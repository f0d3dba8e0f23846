"""Settings of a run: frozen dataclasses with ranges, and the YAML files that hold them."""

from poad.config.files import (
    dump,
    from_dict,
    load,
    merge,
    parse_value,
    read_yaml,
    to_dict,
    whole_number,
)
from poad.config.settings import (
    SEEDS_PER_RUN,
    ActingConfig,
    Config,
    CreditConfig,
    CriticConfig,
    EvalConfig,
    ModelConfig,
    PPOConfig,
    PromptConfig,
)

__all__ = [
    "SEEDS_PER_RUN",
    "ActingConfig",
    "Config",
    "CreditConfig",
    "CriticConfig",
    "EvalConfig",
    "ModelConfig",
    "PPOConfig",
    "PromptConfig",
    "dump",
    "from_dict",
    "load",
    "merge",
    "parse_value",
    "read_yaml",
    "to_dict",
    "whole_number",
]
