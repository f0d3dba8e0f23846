"""A causal language model in two halves: hidden states at positions, then logits.

This is the only module that calls the forward pass of transformers. The body turns tokens into
hidden states and the head turns hidden states into logits, so logits are computed only where a
decision needs them. Next to the trained body stands the *frozen* one: the model before training.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from poad.errors import ModelError
from poad.lm.cache import Decoder
from poad.lm.checks import LONGEST_CHECK, check_halves, check_reading
from poad.lm.identity import Identity
from poad.lm.lower import LowerLayers
from poad.lm.masks import over_positions, window_of
from poad.lm.memory import PassLimit
from poad.lm.packing import Packed
from poad.lm.shards import Shards, part_of
from poad.lm.tokenizer import TextCodec
from poad.ranks import ALONE, Ranks

_Computed = TypeVar("_Computed")
LARGE_VOCABULARY = 4096
"""From this size on, the logits of a few tokens are cheaper than those of all."""


class LanguageModel:
    """A causal language model that is trained in place, and its untrained copy.

    Args:
        causal: a causal language model of transformers, or a PEFT model around one.
        codec: its tokenizer.
        keep_frozen: also keep the untrained body. This is a copy if every weight is trained, and
            costs nothing with adapters, which are switched off instead.
        keep_reference: also keep the untrained head, for :meth:`frozen_logits`.
        branching: whether rows may be trees. Some attention kernels take no custom mask.
        gradient_checkpointing: compute the layers again in the backward pass instead of keeping
            their activations (arXiv 1604.06174).

    Raises:
        ModelError: the probabilities of this architecture would come out wrong.
    """

    ranks: Ranks = ALONE
    """The processes among which the reading of many positions is divided just now."""
    shards: Shards | None = None  # the weights' division among processes, made by `shard`

    def __init__(
        self,
        causal: nn.Module,
        codec: TextCodec,
        keep_frozen: bool = True,
        keep_reference: bool = False,
        branching: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        # Always in eval mode: dropout would move the first ratio away from 1. The only exception
        # is the adapters' dropout, inside `dropout`.
        self.module = causal.eval()
        for module in causal.modules():
            # In eval mode the output of bitsandbytes' layer may lose its gradient.
            if type(module).__name__ == "Linear4bit":
                module.training = True
        self.codec, self._adapted = codec, hasattr(causal, "disable_adapter")
        causal_lm: Any = causal.get_base_model() if self._adapted else causal  # pyright: ignore
        self.causal_lm = causal_lm
        """The model of transformers, with any adapters inside."""
        self.identity: Identity = {}  # what tells the untrained model from others
        self.notes: tuple[str, ...] = ()  # sentences that the user should read before training
        self.passes = PassLimit()  # what is known of the machine's memory
        self._body, self._head = text_body(causal_lm), causal_lm.get_output_embeddings()
        self._softcap: float | None = None
        self._scale = 1.0
        self.context_length = context_length(causal_lm.config)
        """Number of tokens the model can read at once, None if it does not say."""
        codec.vocabulary = int(causal_lm.get_input_embeddings().weight.shape[0])
        codec.check_known([codec.end_id])
        if codec.pad_id >= codec.vocabulary:  # what stands in the padding never matters
            codec.pad_id = codec.end_id
        _train_what_is_read(self)
        self._frozen: nn.Module | None = None
        self._frozen_head: nn.Module | None = None
        if not self._adapted and (keep_frozen or keep_reference):
            # Copied in one call, so that tied embeddings stay tied.
            halves = (self._body, self._head if keep_reference else None)
            self._frozen, self._frozen_head = copy.deepcopy(halves)
            for half in filter(None, (self._frozen, self._frozen_head)):
                half.requires_grad_(False)
        self.window = window_of(self._body, self.context_length or 2**17, self.device)
        """Positions that the layer with the shortest view sees, None if all see the whole row."""
        self.branching = branching
        """True if rows may be trees."""
        _limit_window(self)
        self._dropouts = _dropouts_of_adapters(causal)
        self.lower = LowerLayers(self._body, layers_of(self._body) if self._adapted else None)
        """The layers below the first with adapters, which can be remembered."""
        self._skips_unread = True
        self._unwritable: Tensor | None = None
        check_halves(self)
        check_reading(self)
        self._unwritable = _without_token(self)
        if gradient_checkpointing:
            _checkpoint_layers(self)

    # --- weights ------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Size H of a hidden state."""
        return int(self._head.weight.shape[1])

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self._head.weight.device

    @property
    def vocabulary(self) -> int:
        """Number V of tokens that the model knows."""
        return int(self._head.weight.shape[0])

    def parameters(self) -> list[nn.Parameter]:
        """List the weights that are trained."""
        return [*self._trained().values()]

    def _trained(self) -> dict[str, nn.Parameter]:
        own = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        return own if self.shards is None else self.shards.trained

    def state(self) -> dict[str, Tensor]:
        """Return the trained weights by name, tied ones once; of sharded ones, this rank's part."""
        return {n: p.detach() for n, p in self._trained().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore the weights that :meth:`state` returned, whole.

        Raises:
            ModelError: the names or shapes are not those of this model.
        """
        own = self._trained()
        if own.keys() != tensors.keys() or any(own[n].shape != t.shape for n, t in tensors.items()):
            raise ModelError("The saved weights belong to another model or another tuning mode.")
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(part_of(tensor, own[name]))
        renew(self)

    # --- forward passes -----------------------------------------------------------------------

    def read(self, packed: Packed) -> Tensor:
        """Compute the hidden states [Q, H] of the trained body at the readings of packed rows."""
        return self.read_body(self._body, packed)

    @torch.no_grad()
    def read_frozen(self, packed: Packed) -> Tensor:
        """Compute the hidden states [Q, H] of the untrained body, without gradient.

        Raises:
            ModelError: the model was loaded without its frozen body.
        """
        with untrained(self) as body:
            return self.read_body(body, packed)

    def logits(self, hidden: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Compute next-token logits in float32; -inf for ids that stand for no token.

        Args:
            hidden: [..., H] states.
            tokens: [..., K] int64: the only tokens to compute. Where few options are compared, this
                leaves out the rest of a large vocabulary.

        Returns:
            [..., V], or [..., K].
        """
        return _scaled(self, _projected(self._head, hidden, tokens), tokens)

    @torch.no_grad()
    def frozen_logits(self, hidden: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Compute the untrained logits from the hidden states of :meth:`read_frozen`.

        Arguments and result are those of :meth:`logits`.

        Raises:
            ModelError: the model was loaded without its untrained head.
        """
        if self._adapted:
            with self.module.disable_adapter():  # pyright: ignore
                return self.logits(hidden, tokens)
        if self._frozen_head is None:
            raise ModelError("This model was loaded without its untrained head.")
        return _scaled(self, _projected(self._frozen_head, hidden, tokens), tokens)

    def decoder(self, remember: bool = False, pass_tokens: int = sys.maxsize) -> Decoder:
        """Make an incremental reader of growing rows, which caches keys and values.

        Args:
            remember: also keep those of rows that end, for prompts that continue them.
            pass_tokens: columns of one forward pass; no limit by default.
        """
        windowed, check = self.window is not None, self._check_readable
        parts = self._body, self.codec.pad_id, windowed, self.device
        return Decoder(*parts, remember, check, pass_tokens)

    @property
    def has_dropout(self) -> bool:
        """True if the adapters have dropout."""
        return bool(self._dropouts)

    @contextmanager
    def dropout(self, generator: torch.Generator) -> Iterator[None]:
        """Switch the dropout of the adapters on, for the forward and backward pass of a step.

        Args:
            generator: the source of the seed, so that a resumed run drops the same inputs. It is
                not advanced if there is no dropout.
        """
        if not self._dropouts:
            yield
            return
        with seeded(int(torch.randint(2**62, (), generator=generator)), self.device):
            for module in self._dropouts:
                module.train()
            try:
                yield
            finally:
                for module in self._dropouts:
                    module.eval()

    def _check_readable(self, token_ids: Tensor, position_ids: Tensor) -> None:
        """Check tokens and positions on the CPU, before they index the embeddings.

        Raises:
            ModelError: the model has no such token, or the row is too long.
        """
        self.codec.check_known([int(token_ids.max())])
        length = int(position_ids.max()) + 1
        if self.context_length is not None and length > self.context_length:
            raise ModelError(
                f"A row of {length:,} tokens is longer than the {self.context_length:,} that the "
                "model can read. Use shorter prompts or actions."
            )

    def read_body(self, body: nn.Module, packed: Packed) -> Tensor:
        """Run a body over packed rows: [B, L] tokens -> [B, L, H] -> [Q, H] readings."""
        if not self.branching:
            packed = packed.without_branches(self.codec.pad_id)
        self._check_readable(packed.token_ids, packed.position_ids)
        packed = packed.to(self.device)
        positions = packed.position_ids
        # Without a mask of its own a row is plain text: transformers takes a padding mask [B, L]
        # and adds causality. A tree needs its whole mask [B, 1, L, L].
        masks: AbstractContextManager[None] = nullcontext()
        if packed.attention is not None:
            masks = over_positions(body, packed.attention, positions, positions)
        with masks, self._skipping_unread(body, packed), self.lower.reused(packed):
            hidden = body(
                input_ids=packed.token_ids,
                attention_mask=packed.mask.long(),
                position_ids=positions,
                use_cache=False,
            ).last_hidden_state
        return hidden[packed.row, packed.column]

    def _skipping_unread(self, body: nn.Module, packed: Packed) -> AbstractContextManager[None]:
        """Restrict the last feed-forward layer to what is read, if that is less than half."""
        layer = _last_feed_forward(body) if self._skips_unread else None
        # [Q]: (row, column) as an index into the B·L flattened columns
        places = packed.row * packed.token_ids.shape[1] + packed.column
        if layer is None or 2 * len(places) >= packed.tokens:
            return nullcontext()
        return _restricted_to(layer, places.unique())


# --- the architecture --------------------------------------------------------------------------


def text_body(causal_lm: Any) -> Any:
    """Return the part of a causal language model that reads text: no head, no image encoder."""
    # The first names the causal language model itself in Llama 4, and a head in ModernBERT.
    found = (causal_lm.get_decoder(), causal_lm.base_model, getattr(causal_lm, "model", None))
    return next(body for body in found if hasattr(body, "config") and body is not causal_lm)


def context_length(config: Any) -> int | None:
    """Return the number of tokens up to which a model reads the same in rows of any length.

    Some rotary embeddings change for all tokens once a row exceeds a length: LongRoPE (Phi-3) at
    the length before it was extended, dynamic NTK at the length that the model states. Beyond it a
    token's probability would depend on the other rows of its batch, so that length is the limit.

    Args:
        config: of transformers; of a composite model either the whole or that of its text.
    """
    text = config.get_text_config()
    limits = [getattr(text, "max_position_embeddings", None)]
    rope = getattr(text, "rope_parameters", None) or {}
    for kind in (rope, *rope.values()):  # one for all layers, or one for each type of layer
        if isinstance(kind, dict) and kind.get("rope_type") == "longrope":
            limits.append(kind.get("original_max_position_embeddings"))
    if getattr(text, "attn_temperature_tuning", False):
        # Llama 4 scales attention by column. A tree has up to twice the columns of a row.
        limits.append(text.floor_scale // 2)
    return min((int(limit) for limit in limits if limit), default=None)


def _without_token(model: LanguageModel) -> Tensor | None:
    """Return the ids that stand for no token; None if there are none."""
    ids = model.codec.without_token(model.vocabulary)
    return torch.tensor(ids, device=model.device) if ids else None


def _projected(head: nn.Module, hidden: Tensor, tokens: Tensor | None) -> Tensor:
    """Compute logits [..., V] from states [..., H], or those of some tokens [..., K]."""
    if tokens is None or type(head) is not nn.Linear or len(head.weight) < LARGE_VOCABULARY:
        logits = head(hidden).float()
        return logits if tokens is None else logits.gather(-1, tokens)
    # [..., K, H] · [..., H, 1] -> [..., K]
    logits = (F.embedding(tokens, head.weight) @ hidden[..., None]).squeeze(-1).float()
    return logits if head.bias is None else logits + head.bias[tokens]


def _scaled(model: LanguageModel, logits: Tensor, tokens: Tensor | None) -> Tensor:
    """Scale logits and squash them into ±softcap (Gemma 2, arXiv 2408.00118), if need be.

    Ids that stand for no token get -inf, so that an agent never writes one.
    """
    unwritable, softcap = model._unwritable, model._softcap
    if model._scale != 1.0:
        logits = logits * model._scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if unwritable is None:
        return logits
    if tokens is None:
        return logits.index_fill(-1, unwritable, -math.inf)
    return logits.masked_fill(torch.isin(tokens, unwritable), -math.inf)


def _train_what_is_read(model: LanguageModel) -> None:
    """Freeze what no text passes through, and check that something is left to train.

    Raises:
        ModelError: nothing is trained.
    """
    used = {id(p) for half in (model._body, model._head) for p in half.parameters()}
    for parameter in model.module.parameters():
        if id(parameter) not in used:
            parameter.requires_grad_(False)
    if getattr(model.causal_lm, "is_quantized", False) and not model._adapted:
        raise ModelError(
            f"The weights of this {type(model.causal_lm).__name__} are quantized, so they cannot "
            "be trained. Set model.tuning = lora."
        )
    if not model.parameters():
        raise ModelError(
            f"No weight of this {type(model.causal_lm).__name__} can be trained. Set "
            "model.tuning = lora, or name other layers with model.lora_targets."
        )


def _dropouts_of_adapters(causal: nn.Module) -> list[nn.Dropout]:
    return [
        module
        for name, module in causal.named_modules()
        if "lora_dropout" in name and isinstance(module, nn.Dropout) and module.p > 0
    ]


def _limit_window(model: LanguageModel) -> None:
    """Limit the context to a window that is too long to check.

    Raises:
        ModelError: the attention kernel cannot be told of the window.
    """
    if model.window is None:
        return
    if not model.branching:
        raise ModelError(
            f"Some layers of {type(model.causal_lm).__name__} look back {model.window} tokens "
            "only, which model.attention = flash_attention_2 does not support here; use sdpa."
        )
    if model.window > LONGEST_CHECK:
        model.context_length, model.window = model.window, None


def _checkpoint_layers(model: LanguageModel) -> None:
    """Wrap the layers so that their activations are recomputed in the backward pass."""
    layers = layers_of(model._body)
    if layers is None:
        raise ModelError(
            f"The layers of {type(model.causal_lm).__name__} have an unknown name, so they "
            "cannot be checkpointed; train with model.gradient_checkpointing = false."
        )
    copied = None if model._frozen is None else layers_of(model._frozen)
    # The hooks that restrict the last layer are gone by the time of the backward pass, so its
    # recomputation would not match.
    last = -1 if model._skips_unread else None
    for layer in (*layers[:last], *(copied or [])[:last]):
        layer.forward = partial(_checkpointed, layer.forward)


def renew(model: LanguageModel) -> None:
    """Let all ranks know of weights that were changed by hand, each on its own part."""
    if model.shards is not None:
        model.shards.gather()


def shard(model: LanguageModel, ranks: Ranks, compute: torch.dtype | None = None) -> None:
    """Divide the trained weights, and those of the untrained body, among ranks, block by block.

    Args:
        model: fully trained, with the same weights on all ranks.
        ranks: more than one.
        compute: the precision of passes, the untrained body's as well; None: as the weights are.

    Raises:
        ModelError: its blocks are not found.
    """
    blocks, frozen = layers_of(model._body), model._frozen
    if blocks is None:
        raise ModelError(
            f"The layers of {type(model.causal_lm).__name__} have an unknown name, so its weights "
            "cannot be sharded; train with model.shard = none."
        )
    untrained = nn.ModuleList() if frozen is None else layers_of(frozen) or nn.ModuleList()
    if frozen is not None:
        frozen.to(compute)
    model.shards = Shards(model.module, [*blocks], [*untrained], ranks, compute)


@contextmanager
def untrained(model: LanguageModel) -> Iterator[nn.Module]:
    """Make the untrained body of a model ready to be read: any adapters are switched off.

    Raises:
        ModelError: the model was loaded without its frozen body.
    """
    if model._adapted:
        with model.module.disable_adapter():  # pyright: ignore
            yield model._body
        return
    if model._frozen is None:
        raise ModelError("This model was loaded without its frozen body.")
    yield model._frozen


# --- helpers of the forward pass --------------------------------------------------------------


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of torch that a device uses, and restore their state afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if device.type == "cuda":
            torch.manual_seed(seed)
        else:  # `torch.manual_seed` would also seed every GPU, whose states are not restored
            torch.default_generator.manual_seed(seed)
        yield


def computed_twice(compute: Callable[[], _Computed], device: torch.device) -> _Computed:
    """Call a function of a model on some device, and once more in the backward pass.

    Its activations are not kept in between (arXiv 1604.06174). Dropout repeats itself.
    """
    # The argument only tells torch which device's random state it has to repeat.
    place = torch.empty(0, device=device)
    return checkpoint(lambda _: compute(), place, use_reentrant=False)


def layers_of(body: nn.Module) -> nn.ModuleList | None:
    """Find the layers of a body by their usual names."""
    layers = getattr(body, "layers", None) or getattr(body, "h", None)
    return layers if isinstance(layers, nn.ModuleList) else None


def _last_feed_forward(body: nn.Module) -> nn.Module | None:
    layers = layers_of(body)
    return None if layers is None else getattr(layers[-1], "mlp", None)


def _checkpointed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a layer without keeping its activations, which the backward pass computes again."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


@contextmanager
def _restricted_to(layer: nn.Module, places: Tensor) -> Iterator[None]:
    """Let a position-wise layer compute some positions only; the others become zero.

    Behind the last attention no position looks at another, so what is not read need not be right.

    Args:
        layer: a map from [B, L, H] to [B, L, H].
        places: [S] int64, distinct indices into the B·L positions.
    """
    shape = torch.Size()

    def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal shape
        shape = inputs[0].shape
        return (inputs[0].flatten(0, 1)[None, places], *inputs[1:])  # [B, L, H] -> [1, S, H]

    def scatter(_: nn.Module, __: tuple[Tensor, ...], some: Tensor) -> Tensor:
        every = some.new_zeros(shape).flatten(0, 1)  # [B·L, H]
        return every.index_copy(0, places, some[0]).view(shape)  # [1, S, H] -> [B, L, H]

    handles = layer.register_forward_pre_hook(gather), layer.register_forward_hook(scatter)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
