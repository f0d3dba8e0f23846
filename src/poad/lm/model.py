"""A causal language model as actor and critic see it: hidden states at positions, then logits.

The only module that makes the transformers forward call. A :class:`LanguageModel` has two halves: a
body that turns tokens into hidden states, and a head that turns hidden states into logits, so that
logits are computed at decisions only. Beside the trained body stands the *frozen* one, the model as
it was before training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from poad.errors import ModelError
from poad.lm.cache import Decoder, Window
from poad.lm.packing import Packed, pack
from poad.lm.tokenizer import TextCodec


class LanguageModel:
    """A causal language model, trained in place, and its untrained self.

    Args:
        causal: a transformers causal LM, or a PEFT model around one.
        codec: its tokenizer.
        keep_frozen: also keep the untrained body (a copy with full tuning; nothing extra with
            adapters, which are switched off instead).
        keep_reference: also keep the untrained head, so that :meth:`frozen_logits` can be asked.
        branching: whether rows may be trees; some attention kernels take no mask of ours.
        recompute: compute the layers again in the backward pass instead of keeping what they made
            (gradient checkpointing, arXiv 1604.06174).

    Raises:
        ModelError: an architecture whose probabilities would come out wrong.
    """

    def __init__(
        self,
        causal: nn.Module,
        codec: TextCodec,
        keep_frozen: bool = True,
        keep_reference: bool = False,
        branching: bool = True,
        recompute: bool = False,
    ) -> None:
        self.module = causal.eval()  # dropout (but `dropping`) would move the first ratio off 1
        for module in causal.modules():
            if type(module).__name__ == "Linear4bit":  # in eval mode it may forget its gradient
                module.training = True
        self.codec = codec
        self._adapted = hasattr(causal, "disable_adapter")
        plain: Any = causal.get_base_model() if self._adapted else causal  # pyright: ignore
        self.plain = plain
        """The transformers model itself, adapters inside."""
        self._body, self._head = plain.base_model, plain.get_output_embeddings()
        self._softcap: float | None = getattr(plain.config, "final_logit_softcapping", None)
        self._frozen: nn.Module | None = None
        self._frozen_head: nn.Module | None = None
        if not self._adapted and (keep_frozen or keep_reference):
            kept = (self._body, self._head if keep_reference else None)
            self._frozen, self._frozen_head = copy.deepcopy(kept)  # what is tied stays tied
            for half in filter(None, (self._frozen, self._frozen_head)):
                half.requires_grad_(False)
        self._window = Window.of(plain.config)
        self.branching = branching
        """Whether rows may be trees."""
        if self._window is not None and not branching:
            raise ModelError(
                f"{type(plain).__name__} looks back {self._window.size} tokens in some layers, "
                "which model.attention = flash_attention_2 cannot be told; use sdpa."
            )
        self._dropouts = [
            module
            for name, module in causal.named_modules()
            if "lora_dropout" in name and isinstance(module, nn.Dropout) and module.p > 0
        ]
        self._check_halves(plain)
        self._sparing = True
        try:
            self._check_packing(plain)
        except ModelError:  # its feed-forward layers may be of another kind
            self._sparing = False
            self._check_packing(plain)
        if recompute:
            self._recompute_layers(plain)

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
        return self._capped(self._head(hidden).float())

    @torch.no_grad()
    def frozen_logits(self, hidden: Tensor) -> Tensor:
        """The untrained model's logits [..., V] from :meth:`read_frozen`'s hidden states."""
        if self._adapted:
            with self.module.disable_adapter():  # pyright: ignore
                return self.logits(hidden)
        if self._frozen_head is None:
            raise ModelError("This model was loaded without its untrained head.")
        return self._capped(self._frozen_head(hidden).float())

    @property
    def drops(self) -> bool:
        """Whether its adapters have dropout."""
        return bool(self._dropouts)

    @contextmanager
    def dropping(self, seed: Callable[[], int]) -> Iterator[None]:
        """With the adapters' dropout, if they have any; a gradient step's business alone.

        Args:
            seed: asked for what is dropped, so that a resumed run drops the same.
        """
        if not self._dropouts:
            yield
            return
        torch.manual_seed(seed())
        for module in self._dropouts:
            module.train()
        try:
            yield
        finally:
            for module in self._dropouts:
                module.eval()

    def decoder(self, remember: bool = False) -> Decoder:
        """A fresh incremental reader of growing rows (keys and values are kept).

        Args:
            remember: also those of rows that ended, for prompts that go on from them.
        """
        return Decoder(self._body, self.codec.pad_id, self._window, self.device, remember)

    @property
    def longest(self) -> int | None:
        """Tokens of a sequence that it has learned to read; none where nothing says so."""
        return getattr(self._body.config, "max_position_embeddings", None)

    def _capped(self, logits: Tensor) -> Tensor:
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    def _read(self, body: nn.Module, packed: Packed) -> Tensor:
        if not self.branching:
            packed = packed.linear(self.codec.pad_id)
        packed = packed.to(self.device)
        positions = packed.position_ids
        mask: Any = packed.mask.long() if packed.attention is None else packed.attention
        if packed.attention is not None and self._window is not None:
            mask = self._window.mask(packed.attention, positions, positions)
        with self._sparingly(body, packed):
            hidden = body(
                input_ids=packed.token_ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=False,
            ).last_hidden_state
        return hidden[packed.row, packed.column]

    def _sparingly(self, body: nn.Module, packed: Packed) -> AbstractContextManager[None]:
        """Where less than half is read, the last feed-forward layer computes only that."""
        layer = _last_feed_forward(body) if self._sparing else None
        places = packed.row * packed.token_ids.shape[1] + packed.column
        if layer is None or 2 * len(places) >= packed.tokens:
            return nullcontext()
        return _only_at(layer, places.unique())

    def _recompute_layers(self, plain: Any) -> None:
        blocks = _blocks(self._body)
        if blocks is None:
            raise ModelError(
                f"The layers of {type(plain).__name__} are not where poad looks for them; train it "
                "with model.gradient_checkpointing = false."
            )
        # What is left out of the last layer while it is read sparingly could not be recomputed.
        for block in blocks[:-1] if self._sparing else blocks:
            block.forward = partial(_recomputed, block.forward)

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


def _blocks(body: nn.Module) -> nn.ModuleList | None:
    """The layers of a body, if they go by the usual names."""
    blocks = getattr(body, "layers", None) or getattr(body, "h", None)
    return blocks if isinstance(blocks, nn.ModuleList) else None


def _last_feed_forward(body: nn.Module) -> nn.Module | None:
    blocks = _blocks(body)
    return None if blocks is None else getattr(blocks[-1], "mlp", None)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A layer whose inner results are forgotten and computed again for the backward pass."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


@contextmanager
def _only_at(layer: nn.Module, places: Tensor) -> Iterator[None]:
    """Let a layer that treats each position by itself compute some of them; the others get zeros.

    Behind the last attention no position looks at another, so what is not read need not be right.

    Args:
        layer: [B, L, H] to [B, L, H].
        places: [S] int64, distinct, into the B·L positions.
    """
    shape = torch.Size()

    def narrow(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal shape
        shape = inputs[0].shape
        return (inputs[0].flatten(0, 1)[None, places], *inputs[1:])

    def widen(_: nn.Module, __: tuple[Tensor, ...], some: Tensor) -> Tensor:
        every = some.new_zeros(shape).flatten(0, 1)
        return every.index_copy(0, places, some[0]).view(shape)

    handles = layer.register_forward_pre_hook(narrow), layer.register_forward_hook(widen)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
