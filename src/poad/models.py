"""Load a transformers causal language model and read hidden states at positions.

The only module that knows adapters (peft) and the transformers forward call. A
:class:`LanguageModel` has two halves: a body that turns tokens into hidden states, and a head that
turns hidden states into logits, so that logits are computed at decisions only. Beside the trained
body stands the *frozen* one, the model as it was before training.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from poad.batch import Packed, TokenIds
from poad.codec import TextCodec
from poad.config import ModelConfig

ASSETS = Path(__file__).parent / "assets"
_WORLD_MODELS = {
    "poad/TomatoSalad-v0": "tiny-kitchen",
    "poad/TomatoLettuceSalad-v0": "tiny-kitchen",
}


class ModelError(ValueError):
    """A model that cannot be loaded or used; the message says what would do."""


def embedded_models() -> list[str]:
    """Names of the tiny models that come with the package."""
    return sorted(path.parent.name for path in ASSETS.glob("*/config.json"))


def resolve_model(name: str, env: str) -> str:
    """Turn ``auto`` into the embedded model of the world.

    Raises:
        ModelError: the world has no embedded model.
    """
    if name != "auto":
        return name
    if env in _WORLD_MODELS:
        return _WORLD_MODELS[env]
    raise ModelError(
        f"No embedded model knows the words of {env!r}; name one with --model.name: a directory, "
        f"a hub name, or one of {', '.join(embedded_models())}."
    )


class LanguageModel:
    """A causal language model, trained in place, and its untrained self.

    Args:
        causal: a transformers causal LM, or a PEFT model around one.
        codec: its tokenizer.
        keep_frozen: also keep the untrained body (a copy with full tuning; nothing extra with
            adapters, which are switched off instead).
    """

    def __init__(self, causal: nn.Module, codec: TextCodec, keep_frozen: bool = True) -> None:
        self.module = causal.eval()  # never any dropout: it would move the first ratio off 1
        self.codec = codec
        self._adapted = hasattr(causal, "disable_adapter")
        plain: Any = causal.get_base_model() if self._adapted else causal  # pyright: ignore
        self._body, self._head = plain.base_model, plain.get_output_embeddings()
        self._softcap: float | None = getattr(plain.config, "final_logit_softcapping", None)
        self._frozen: nn.Module | None = None
        if keep_frozen and not self._adapted:
            self._frozen = copy.deepcopy(self._body).requires_grad_(False)
        self._takes_positions = "position_ids" in inspect.signature(self._body.forward).parameters
        self._check_halves(plain)

    @property
    def width(self) -> int:
        """Size H of a hidden state."""
        return int(self._head.weight.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._head.weight.device

    def parameters(self) -> list[nn.Parameter]:
        """The weights that are trained."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def state(self) -> dict[str, Tensor]:
        """The trained weights by name, tied ones once."""
        return {n: p.detach() for n, p in self.module.named_parameters() if p.requires_grad}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what :meth:`state` gave.

        Raises:
            ModelError: the names or shapes are another model's.
        """
        own = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        if own.keys() != tensors.keys() or any(own[n].shape != t.shape for n, t in tensors.items()):
            raise ModelError("The saved weights belong to another model or another tuning mode.")
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)

    def read(self, packed: Packed) -> Tensor:
        """Hidden states [Q, H] of the trained body at a batch's reading places."""
        return self._read(self._body, packed)

    @torch.no_grad()
    def read_frozen(self, packed: Packed) -> Tensor:
        """Hidden states [Q, H] of the untrained body; no gradient."""
        if self._adapted:
            with self.module.disable_adapter():  # pyright: ignore
                return self._read(self._body, packed)
        if self._frozen is None:
            raise ModelError("This model was loaded without its frozen body.")
        return self._read(self._frozen, packed)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [..., V] in float32 from hidden states [..., H]."""
        logits = self._head(hidden).float()
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    def decoder(self) -> Decoder:
        """A fresh incremental reader of growing rows (keys and values are kept)."""
        return Decoder(self._body, self.codec.pad_id, self._takes_positions, self.device)

    def _read(self, body: nn.Module, packed: Packed) -> Tensor:
        packed = packed.to(self.device)
        mask = packed.mask.long() if packed.attention is None else packed.attention
        arguments: dict[str, Any] = {"attention_mask": mask, "use_cache": False}
        if self._takes_positions:
            arguments["position_ids"] = packed.position_ids
        hidden = body(input_ids=packed.token_ids, **arguments).last_hidden_state
        return hidden[packed.row, packed.column]

    @torch.no_grad()
    def _check_halves(self, plain: Any) -> None:
        """Body then head must be the whole model; an architecture with extras must not pass."""
        ids = torch.arange(4, device=self.device).remainder(self._head.weight.shape[0])[None]
        whole = plain(input_ids=ids, use_cache=False).logits.float()
        halves = self.logits(self._body(input_ids=ids, use_cache=False).last_hidden_state)
        if not torch.allclose(whole, halves, rtol=1e-2, atol=1e-2):
            raise ModelError(
                f"{type(plain).__name__} does something between its last hidden state and its "
                "logits that poad does not know; training it would optimize another policy."
            )


class Decoder:
    """Rows that grow: a prompt is computed once, then only what is written behind it."""

    def __init__(
        self, body: nn.Module, pad_id: int, takes_positions: bool, device: torch.device
    ) -> None:
        self._body, self._pad_id, self._device = body, pad_id, device
        self._takes_positions = takes_positions
        self._cache: Any = None
        self._mask = torch.zeros(0, 0, dtype=torch.long)

    @torch.no_grad()
    def read(self, chunks: Sequence[TokenIds], parents: Sequence[int] | None = None) -> Tensor:
        """Append tokens to rows and read the last hidden state of each.

        Args:
            chunks: R non-empty token sequences, one for each resulting row.
            parents: the row of the previous call that each continues (rows may be dropped or
                continued twice); none on the first call.

        Returns:
            [R, H].
        """
        width = max(map(len, chunks))
        ids = torch.full((len(chunks), width), self._pad_id)
        mask = torch.zeros(len(chunks), width, dtype=torch.long)
        for r, chunk in enumerate(chunks):
            ids[r, width - len(chunk) :] = torch.tensor(chunk)
            mask[r, width - len(chunk) :] = 1
        if self._cache is None:
            past = torch.zeros(len(chunks), 0, dtype=torch.long)
        else:
            index = torch.tensor(parents)
            if not torch.equal(index, torch.arange(len(self._mask))):
                self._cache.batch_select_indices(index.to(self._device))
            past = self._mask[index]
        self._mask = torch.cat([past, mask], 1)
        positions = (past.sum(1, keepdim=True) + mask.cumsum(1) - 1).clamp(min=0)
        arguments: dict[str, Any] = {"attention_mask": self._mask.to(self._device)}
        if self._takes_positions:
            arguments["position_ids"] = positions.to(self._device)
        out = self._body(
            input_ids=ids.to(self._device), past_key_values=self._cache, use_cache=True, **arguments
        )
        self._cache = out.past_key_values
        return out.last_hidden_state[:, -1]


def load_model(config: ModelConfig, env: str, seed: int, keep_frozen: bool = True) -> LanguageModel:
    """Load the model a run asks for.

    Args:
        config: which model and how to tune it.
        env: the world's id, for ``name="auto"``.
        seed: of the adapters' initial weights.
        keep_frozen: whether the untrained body is needed (by a critic that reads it).

    Raises:
        ModelError: not found, not a causal language model, or adapters that fit no layer.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = resolve_model(config.name, env)
    source = str(ASSETS / name) if name in embedded_models() else name
    device = _device(config.device)
    torch.manual_seed(seed)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        causal = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, config.dtype), attn_implementation="sdpa"
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"Cannot load the model {name!r}: {str(error).splitlines()[0]} Expected an embedded "
            f"model ({', '.join(embedded_models())}), a directory, or a hub name."
        ) from error
    causal.to(device)  # pyright: ignore[reportArgumentType]
    if config.tuning == "lora":
        causal = _with_adapters(causal, config)
    return LanguageModel(causal, TextCodec(tokenizer), keep_frozen)


def _with_adapters(causal: Any, config: ModelConfig) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    targets = list(config.lora_targets) or _attention_projections(causal)
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=targets,
        fan_in_fan_out="c_attn" in targets,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(causal, lora)
    except ValueError as error:
        leaves = {n.split(".")[-1] for n, m in causal.named_modules() if isinstance(m, nn.Linear)}
        raise ModelError(
            f"No layer is called {' or '.join(targets)}; this model's linear layers are "
            f"{', '.join(sorted(leaves))}. Set model.lora_targets."
        ) from error


def _attention_projections(causal: nn.Module) -> list[str]:
    """Query and value projections as the paper adapts them, or the fused layer that holds them."""
    names = {name.split(".")[-1] for name, _ in causal.named_modules()}
    for known in (["q_proj", "v_proj"], ["c_attn"], ["query_key_value"], ["qkv_proj"], ["Wqkv"]):
        if names.issuperset(known):
            return known
    raise ModelError(
        "The attention projections of this architecture are not known; name the layers to adapt "
        "with model.lora_targets."
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"Unknown device {name!r}: use cpu, cuda, cuda:1 …") from error


def model_card(name: str) -> dict[str, Any]:
    """How an embedded model was made: its ``making.json``."""
    return json.loads((ASSETS / name / "making.json").read_text(encoding="utf-8"))
