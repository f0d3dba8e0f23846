"""Load a transformers causal language model and read hidden states at positions.

The only module that knows adapters (peft) and the transformers forward call. A
:class:`LanguageModel` has two halves: a body that turns tokens into hidden states, and a head that
turns hidden states into logits, so that logits are computed at decisions only. Beside the trained
body stands the *frozen* one, the model as it was before training.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from poad.batch import Packed, TokenIds, pack
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

    Raises:
        ModelError: an architecture whose probabilities would come out wrong.
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
        self._window = _Window.of(plain.config)
        self._check_halves(plain)
        self._check_packing(plain)

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
        return Decoder(self._body, self.codec.pad_id, self._window, self.device)

    def _read(self, body: nn.Module, packed: Packed) -> Tensor:
        packed = packed.to(self.device)
        positions = packed.position_ids
        mask: Any = packed.mask.long() if packed.attention is None else packed.attention
        if packed.attention is not None and self._window is not None:
            mask = self._window.mask(packed.attention, positions, positions)
        hidden = body(
            input_ids=packed.token_ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
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

    @torch.no_grad()
    def _check_packing(self, plain: Any) -> None:
        """Branches of a padded tree must read as they do alone, or scores would be wrong."""
        vocabulary = self._head.weight.shape[0]
        a, b, c, d = (i % vocabulary for i in range(4))
        positions = [((a, b, c), (d, a)), ((a, b, c), (b,)), ((d,), (c,))]
        rows = [torch.tensor([[*prompt, *beginning]]) for prompt, beginning in positions]
        alone = torch.cat(
            [self._body(input_ids=r.to(self.device)).last_hidden_state[:, -1] for r in rows]
        ).float()
        try:
            error = self.read(pack(positions, self.codec.pad_id)).float() - alone
        except (TypeError, ValueError, RuntimeError) as trouble:
            reason = f"it answers {str(trouble)!r}"
        else:
            if error.norm() <= 0.1 * alone.norm():  # a wrong mask is off by about 1, bf16 by 0.01
                return
            reason = "they come out different"
        raise ModelError(
            f"{type(plain).__name__} cannot read several actions behind one prompt: {reason}. poad "
            "needs a transformer that takes an attention mask and position ids of its own."
        )


@dataclass(frozen=True)
class _Window:
    """Layers that look back a fixed number of positions only."""

    size: int
    mixed: bool
    """Whether other layers see everything; such a body takes a mask for each kind."""

    @classmethod
    def of(cls, config: Any) -> _Window | None:
        """The window a configuration asks for, if any."""
        size, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
        if size is None or (kinds and "sliding_attention" not in kinds):
            return None
        return cls(size, mixed=bool(kinds))

    def mask(self, sees: Tensor, queries: Tensor, keys: Tensor) -> Any:
        """The attention mask a body takes.

        Transformers measures a window in columns, which in a tree or behind padding are not
        positions, and leaves prepared masks alone; so the window is cut here.

        Args:
            sees: [B, 1, Lq, Lk] bool, what a layer without a window may look at.
            queries: [B, Lq] positions.
            keys: [B, Lk] positions.
        """
        near = sees & (queries[:, None, :, None] - keys[:, None, None, :] < self.size)
        return {"full_attention": sees, "sliding_attention": near} if self.mixed else near


class Decoder:
    """Rows that grow: a prompt is computed once, then only what is written behind it."""

    def __init__(
        self, body: nn.Module, pad_id: int, window: _Window | None, device: torch.device
    ) -> None:
        from transformers import DynamicCache

        self._body, self._pad_id, self._device = body, pad_id, device
        self._window = window
        self._cache = DynamicCache()  # told of no window: it would forget by columns
        self._mask = torch.zeros(0, 0, dtype=torch.long)
        self._positions = self._mask

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
        if parents is None:
            past = places = torch.zeros(len(chunks), 0, dtype=torch.long)
        else:
            index = torch.tensor(parents)
            if not torch.equal(index, torch.arange(len(self._mask))):
                self._cache.batch_select_indices(index.to(self._device))
            past, places = self._mask[index], self._positions[index]
        positions = (past.sum(1, keepdim=True) + mask.cumsum(1) - 1).clamp(min=0)
        self._mask = torch.cat([past, mask], 1)
        self._positions = torch.cat([places, positions], 1)
        out = self._body(
            input_ids=ids.to(self._device),
            attention_mask=self._attention(width),
            position_ids=positions.to(self._device),
            past_key_values=self._cache,
            use_cache=True,
        )
        return out.last_hidden_state[:, -1]

    def _attention(self, width: int) -> Any:
        """What the newest ``width`` columns may look at."""
        if self._window is None:
            return self._mask.to(self._device)
        length = self._mask.shape[1]
        causal = torch.ones(width, length, dtype=torch.bool).tril(length - width)
        own = causal & ~causal.tril(length - width - 1)  # padding sees itself, as in `pack`
        sees = ((causal & self._mask[:, None, :].bool()) | own)[:, None].to(self._device)
        places = self._positions.to(self._device)
        return self._window.mask(sees, places[:, -width:], places)


def load_model(config: ModelConfig, env: str, seed: int, keep_frozen: bool = True) -> LanguageModel:
    """Load the model a run asks for.

    Args:
        config: which model and how to tune it.
        env: the world's id, for ``name="auto"``.
        seed: of the adapters' initial weights.
        keep_frozen: whether the untrained body is needed (by a critic that reads it).

    Raises:
        ModelError: not found, damaged, not a causal language model, without an end-of-text token,
            adapters that fit no layer, or a device that is not there.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = resolve_model(config.name, env)
    source = str(ASSETS / name) if name in embedded_models() else name
    device = _device(config.device)
    torch.manual_seed(seed)
    try:
        with _quiet(source):
            tokenizer = AutoTokenizer.from_pretrained(source)
            causal = AutoModelForCausalLM.from_pretrained(
                source, dtype=getattr(torch, config.dtype), attn_implementation="sdpa"
            )
        codec = TextCodec(tokenizer)
    except (OSError, ValueError, SafetensorError) as error:
        local = "" if Path(source).is_dir() else "there is no such directory, and from the hub: "
        raise ModelError(
            f"Cannot load the model {name!r}: {local}{str(error).splitlines()[0]} Expected an "
            f"embedded model ({', '.join(embedded_models())}), a directory, or a hub name."
        ) from error
    causal.to(device)  # pyright: ignore[reportArgumentType]
    if config.tuning == "lora":
        causal = _with_adapters(causal, config)
    return LanguageModel(causal, codec, keep_frozen)


@contextmanager
def _quiet(source: str) -> Iterator[None]:
    """No progress bar while a local directory is read; a download from the hub keeps its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled() and Path(source).is_dir()
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _with_adapters(causal: Any, config: ModelConfig) -> nn.Module:
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    targets = list(config.lora_targets) or _attention_projections(causal)
    linear = {
        n.split(".")[-1]: m for n, m in causal.named_modules() if isinstance(m, nn.Linear | Conv1D)
    }
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(linear.get(name), Conv1D) for name in targets),
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():  # peft asks transformers by a name that is going away
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            return get_peft_model(causal, lora)
    except ValueError as error:
        raise ModelError(
            f"No layer is called {' or '.join(targets)}; this model's linear layers are "
            f"{', '.join(sorted(linear))}. Set model.lora_targets."
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
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"Device {name!r} cannot be used ({str(error).splitlines()[0]}); use cpu, or cuda or "
            "cuda:1 … where there is a GPU."
        ) from error


def model_card(name: str) -> dict[str, Any]:
    """How an embedded model was made: its ``making.json``."""
    return json.loads((ASSETS / name / "making.json").read_text(encoding="utf-8"))
