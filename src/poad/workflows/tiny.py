"""Tiny models from nothing: a byte-level BPE, a small Llama, and its training on rows of tokens.

The embedded models are made of these parts, and so are those of `poad pretrain`. On one thread, the
same rows and the same seed give the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from poad.lm import TextCodec, without_progress_bars

if TYPE_CHECKING:  # importing the model takes long
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

END, PAD = "<|end|>", "<|pad|>"
SMALLEST_VOCABULARY = 256 + 2
"""All bytes, the end of text and the padding."""


class Shape(Protocol):
    """The size of a model, as part of a recipe."""

    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def layers(self) -> int: ...  # noqa: D102
    @property
    def heads(self) -> int: ...  # noqa: D102
    @property
    def inner(self) -> int: ...  # noqa: D102


def train_bpe(
    texts: Iterable[str], vocabulary: int, words: str | None = None
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, which can encode any text, if need be byte by byte.

    Args:
        texts: the training texts, in a fixed order.
        vocabulary: the largest number of tokens.
        words: a regular expression for words. No token crosses their borders. By default, the
            expression of GPT-2.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe: Any = Tokenizer(models.BPE())
    byte_level: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    if words is not None:
        split = pre_tokenizers.Split(Regex(words), behavior="isolated")
        byte_level = pre_tokenizers.Sequence([split, byte_level])
    bpe.pre_tokenizer = byte_level
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=PAD)


def new_llama(shape: Shape, codec: TextCodec, positions: int) -> LlamaForCausalLM:
    """Create a Llama with random weights, drawn from torch's generator, and tied embeddings.

    Args:
        shape: its size.
        codec: of its tokenizer.
        positions: the longest row that it reads, in tokens.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(codec.tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=codec.end_id,
        pad_token_id=codec.pad_id,
    )
    return LlamaForCausalLM(config)


Row = tuple[Sequence[int], int]
"""Token ids, and the number of tokens at the beginning that have no loss."""


def drawn(rows: Sequence[Row], batch: int) -> Iterator[list[Row]]:
    """Yield batches forever, with rows drawn uniformly by torch's generator."""
    while True:
        yield [rows[i] for i in torch.randint(len(rows), (batch,)).tolist()]


def fit(
    model: LlamaForCausalLM,
    batches: Iterator[list[Row]],
    steps: int,
    lr: float,
    *,
    recalls: bool = False,
) -> Iterator[float]:
    """Train next-token prediction, one step per batch.

    Args:
        model: the model, which is changed.
        batches: the rows of each step.
        steps: how many steps to take.
        lr: the highest learning rate of a one-cycle schedule.
        recalls: also train its hidden states to hold what has been read (`_Recall`).

    Yields:
        The loss of each step, in nats per token.
    """
    recall = _Recall(model.config) if recalls else None
    weights = [*model.parameters(), *(recall.parameters() if recall else ())]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    padding: Any = model.config.pad_token_id
    for _ in range(steps):
        rows = next(batches)
        length = max(len(row) for row, _ in rows)
        ids = torch.full((len(rows), length), padding)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, -100)  # transformers ignores −100
        for b, (row, read) in enumerate(rows):
            ids[b, : len(row)] = torch.tensor(row)
            mask[b, : len(row)] = 1
            labels[b, read : len(row)] = ids[b, read : len(row)]
        out: Any = model(
            input_ids=ids, attention_mask=mask, labels=labels, output_hidden_states=recalls
        )
        loss: Tensor = out.loss
        (loss + recall(out.hidden_states[-1], ids, mask) if recall else loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        yield loss.item()


class _Recall(torch.nn.Module):
    """Tells from each hidden state, by a linear map, which tokens stand before it in its row.

    Random actions hardly depend on the prompt. A model that only continues random play thus learns
    to forget the prompt before it acts, and training on a task would find nothing to tell states
    apart by. The map is thrown away with this object.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.known = torch.nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the mean cross-entropy of a token's presence.

        It is that of tokens that some rows have and others do not, since only these tell them
        apart; 0 if there are none.

        Args:
            hidden: [B, T, H] last hidden states.
            ids: [B, T] int64 tokens.
            mask: [B, T] 1 where a token is no padding.
        """
        logits = self.known(hidden)
        stands = torch.zeros_like(logits).scatter_(2, ids[..., None], mask[..., None].float())
        seen = stands.cummax(1).values
        rows = seen[:, -1].sum(0)
        differs = (rows > 0) & (rows < len(ids))
        loss = binary_cross_entropy_with_logits(
            logits[..., differs], seen[..., differs], reduction="none"
        )
        return (loss.sum(2) * mask).sum() / mask.sum() / max(1, int(differs.sum()))


def save(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the weights, the tokenizer and the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    with without_progress_bars():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    # safetensors makes files for their owner only.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")


def describe(folder: Path, making: Mapping[str, Any], card: str) -> None:
    """Write `making.json` and the model card."""
    (folder / "making.json").write_text(json.dumps(making, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
