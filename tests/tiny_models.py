"""Tiny random language models and tokenizers trained on the spot: the zoo of these tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tolerance import EXACT, float32
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.utils import logging

from poad.config import ModelConfig
from poad.lm.loading import load_model
from poad.lm.model import LanguageModel
from poad.lm.packing import Packed
from poad.turns import TokenIds

PROMPTS = (
    "You see a door.\nYour action:",
    "You stand in the kitchen and see a red door, a blue door and a tomato.\nYour action:",
    "It is dark.",
    "A tomato lies on the board; the knife is in the drawer. What do you do?",
)
ACTIONS = (
    "open",
    "open door",
    "open red door",
    "open blue door",
    "look",
    "chop tomato",
    "take tomato",
    "wait",
)
"""One word to three, some the beginning of others, with forced tokens and choices."""


def _trained(model: Any, trainer: Any, pre_tokenizer: Any, decoder: Any) -> Any:
    tokenizer: Any = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    texts = [*PROMPTS, *(f" {action}" for action in ACTIONS)]
    tokenizer.train_from_iterator(texts * 3, trainer)
    return tokenizer


def byte_level(pad: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE as of GPT-2 and Qwen: nothing opens a text, any string has an encoding."""
    arguments: Any = {
        "vocab_size": 320,
        "special_tokens": ["<|end|>", "<|pad|>"] if pad else ["<|end|>"],
        "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(),
        "show_progress": False,
    }
    before = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    trainer = trainers.BpeTrainer(**arguments)
    tokenizer = _trained(models.BPE(), trainer, before, decoders.ByteLevel())  # pyright: ignore
    special = {"eos_token": "<|end|>"} | ({"pad_token": "<|pad|>"} if pad else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def sentencepiece_like(
    prepend: Literal["always", "first", "normalizer"] = "always", closes: bool = False
) -> PreTrainedTokenizerFast:
    """BPE over ▁words with byte fallback.

    Args:
        prepend: who puts a space before a text: the pre-tokenizer, or a normalizer (as of Llama 2).
        closes: every text ends with the end token, as T5's do.
    """
    arguments: Any = {
        "vocab_size": 400,
        "special_tokens": ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{b:02X}>" for b in range(256))],
        "show_progress": False,
    }
    bpe: Any = models.BPE
    metaspace: Any = pre_tokenizers.Metaspace
    parts: Any = decoders
    tokenizer = _trained(
        bpe(unk_token="<unk>", byte_fallback=True, fuse_unk=True),
        trainers.BpeTrainer(**arguments),
        metaspace(prepend_scheme="first" if prepend == "first" else "always"),
        parts.Sequence(
            [parts.Replace("▁", " "), parts.ByteFallback(), parts.Fuse(), parts.Strip(" ", 1, 0)]
        ),
    )
    if prepend == "normalizer":
        tokenizer.pre_tokenizer = None
        spaces: Any = normalizers
        tokenizer.normalizer = spaces.Sequence([spaces.Prepend("▁"), spaces.Replace(" ", "▁")])
    template: Any = processors.TemplateProcessing
    single = "<s> $A </s>" if closes else "<s> $A"
    tokenizer.post_processor = template(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    as_json = json.loads(tokenizer.to_str())
    as_json["added_tokens"] = as_json["added_tokens"][:4]  # bytes are words like others
    tokenizer = Tokenizer.from_str(json.dumps(as_json))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": byte_level,
    "bytes_without_pad": lambda: byte_level(pad=False),
    "pieces": sentencepiece_like,
    "pieces_first": lambda: sentencepiece_like("first"),
    "pieces_normalized": lambda: sentencepiece_like("normalizer"),
    "pieces_closed": lambda: sentencepiece_like(closes=True),
}

_SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_GATED: dict[str, Any] = _SMALL | {"intermediate_size": 48, "num_key_value_heads": 2}
_QWEN: dict[str, Any] = _GATED | {"head_dim": 8}
_GPT2: dict[str, Any] = _SMALL | {"n_positions": 128}
CONFIGURATIONS: dict[str, Callable[..., Any]] = {
    "llama": lambda **rest: LlamaConfig(**_GATED | rest),
    "qwen": lambda **rest: Qwen3Config(**_QWEN | rest, tie_word_embeddings=True),
    "gpt2": lambda **rest: GPT2Config(**_GPT2 | rest),
    "neox": lambda **rest: GPTNeoXConfig(**_SMALL | rest, intermediate_size=48),
    # Two whose layers, or some of them, look back six positions only.
    "mistral": lambda **rest: MistralConfig(**_GATED | rest, sliding_window=6),
    "qwen_window": lambda **rest: Qwen3Config(
        **_QWEN | rest, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
}


class Zoo:
    """Builds models into directories and loads them the way a run does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = cache(self._path)

    def _path(self, architecture: str = "llama", tokenizer: str = "bytes", layers: int = 2) -> Path:
        """A directory as `save_pretrained` leaves it; weights large enough to have opinions."""
        from chats import TEMPLATES, chatting

        words = chatting(tokenizer) if tokenizer in TEMPLATES else TOKENIZERS[tokenizer]()
        special: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        special |= {"vocab_size": len(words), "num_hidden_layers": layers}
        config = CONFIGURATIONS[architecture](initializer_range=0.2, **special)
        with torch.random.fork_rng(), float32():
            torch.manual_seed(7)
            causal: Any = AutoModelForCausalLM.from_config(config)
        path = self.folder / f"{architecture}-{tokenizer}-{layers}"
        logging.disable_progress_bar()
        causal.save_pretrained(path)
        logging.enable_progress_bar()
        words.save_pretrained(path)
        return path

    def load(
        self,
        architecture: str = "llama",
        tokenizer: str = "bytes",
        tuning: Literal["full", "lora"] = "full",
        layers: int = 2,
        **rest: Any,
    ) -> LanguageModel:
        """A fresh model. Adapters are random, so that they count, as after some training."""
        keep: dict[str, Any] = {k: rest.pop(k) for k in list(rest) if k.startswith("keep")}
        name = str(self.path(architecture, tokenizer, layers))
        config = ModelConfig(name=name, tuning=tuning, device="cpu", **rest)
        model = load_model(config, **keep)
        if tuning == "lora":
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for weight in model.parameters():
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
        return model


def counted(model: LanguageModel) -> list[int]:
    """Grows with the tokens of each forward pass, padding included."""
    sizes: list[int] = []
    model._body.register_forward_pre_hook(
        lambda _, __, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    return sizes


def next_token_logits(model: LanguageModel, *token_ids: int) -> torch.Tensor:
    """[V] what a plain, whole forward pass of transformers over one row says, with gradient."""
    causal: Any = model.module
    return causal(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0, -1].float()


def assert_same(found: Any, expected: Any) -> None:
    """Equal in float64. Of logits compare the logarithms of the probabilities instead."""
    found, expected = (torch.as_tensor(part).detach() for part in (found, expected))
    assert found.dtype is expected.dtype is torch.float64, "use the fixture float64"
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)


def columns_seen(packed: Packed, reading: int) -> torch.Tensor:
    """The columns that the model looks at where it makes a reading."""
    row, column = int(packed.row[reading]), int(packed.column[reading])
    if packed.attention is not None:
        return packed.attention[row, 0, column].nonzero().squeeze(1)
    return packed.mask[row, : column + 1].nonzero().squeeze(1)


def tokens_seen(packed: Packed, reading: int) -> TokenIds:
    """The tokens in them."""
    return tuple(packed.token_ids[packed.row[reading], columns_seen(packed, reading)].tolist())
