"""Settings of a run: frozen dataclasses with ranges, and the YAML files that hold them."""

from poad.config.files import (
    dump,
    from_dict,
    load,
    merge,
    nested,
    parse_value,
    read_yaml,
    to_dict,
    whole_number,
    write_value,
)
from poad.config.ranges import Above, AtLeast, Between, out_of_range
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
    world_seed,
)

__all__ = [
    "SEEDS_PER_RUN",
    "Above",
    "ActingConfig",
    "AtLeast",
    "Between",
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
    "nested",
    "out_of_range",
    "parse_value",
    "read_yaml",
    "to_dict",
    "whole_number",
    "world_seed",
    "write_value",
]
