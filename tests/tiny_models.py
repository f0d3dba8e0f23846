"""Tiny random language models and tokenizers trained on the spot: the zoo of these tests."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from poad.codec import TextCodec
from poad.config import ModelConfig
from poad.models import LanguageModel

PROMPTS = (
    "You see a door.\nYour action:",
    "You stand in the kitchen and see a red door, a blue door and a tomato.\nYour action:",
    "It is dark.",
    "A tomato lies on the board; the knife is in the drawer. What do you do?",
)
OFFERED = (
    "open",
    "open door",
    "open red door",
    "open blue door",
    "look",
    "chop tomato",
    "take tomato",
    "wait",
)
"""Some begin others; shared beginnings, one word to three, choices and forced tokens."""


def _trained(model: Any, trainer: Any, pre_tokenizer: Any, decoder: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    texts = [*PROMPTS, *(f" {action}" for action in OFFERED)]
    tokenizer.train_from_iterator(texts * 3, trainer)
    return tokenizer


def byte_level(pad: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE as of GPT-2 and Qwen: no beginning of text, any string has an encoding."""
    trainer: Any = trainers.BpeTrainer(
        vocab_size=320,  # pyright: ignore
        special_tokens=["<|end|>", "<|pad|>"] if pad else ["<|end|>"],  # pyright: ignore
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # pyright: ignore
        show_progress=False,  # pyright: ignore
    )
    before: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = _trained(models.BPE(), trainer, before, decoders.ByteLevel())
    special = {"eos_token": "<|end|>"} | ({"pad_token": "<|pad|>"} if pad else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def sentencepiece_like(prepend: str = "always", closes: bool = False) -> PreTrainedTokenizerFast:
    """BPE over ▁words with byte fallback as of Llama 2; ``closes``: ends every text, as T5 does."""
    special = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)  # pyright: ignore
    trainer: Any = trainers.BpeTrainer(
        vocab_size=400,  # pyright: ignore
        special_tokens=special,  # pyright: ignore
        show_progress=False,  # pyright: ignore
    )
    before: Any = pre_tokenizers.Metaspace(prepend_scheme=prepend)  # pyright: ignore
    after: Any = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]  # pyright: ignore
    )
    tokenizer = _trained(model, trainer, before, after)
    template: Any = processors.TemplateProcessing(
        single="<s> $A </s>" if closes else "<s> $A",  # pyright: ignore
        special_tokens=[("<s>", 1), ("</s>", 2)],  # pyright: ignore
    )
    tokenizer.post_processor = template
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )


_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = _SMALL | {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8}
ARCHITECTURES = ("llama", "qwen3", "gpt2", "gpt_neox", "mistral")


def config_of(name: str, vocabulary: int) -> Any:
    """A tiny configuration; weights large enough for distributions that are not flat."""
    common = {"vocab_size": vocabulary, "initializer_range": 0.3}
    common |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if name == "llama":
        return LlamaConfig(**_LLAMA, **common)
    if name == "qwen3":
        return Qwen3Config(**_LLAMA, **common, tie_word_embeddings=True)
    if name == "gpt2":
        return GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, **common)
    if name == "gpt_neox":
        return GPTNeoXConfig(**_SMALL, **common, intermediate_size=48, rotary_pct=0.5)
    if name == "mistral":
        return MistralConfig(**_LLAMA, **common, sliding_window=6)
    raise KeyError(name)


def causal(name: str, vocabulary: int, dtype: torch.dtype = torch.float32) -> Any:
    """A random model of an architecture, always the same one."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = config_of(name, vocabulary)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
