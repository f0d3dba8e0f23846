"""Checks of an architecture when it is loaded: what poad computes must be what the model computes.

Each compares with plain forward passes of transformers over single rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from poad.errors import ModelError
from poad.lm.packing import pack
from poad.turns import Position, TokenIds

if TYPE_CHECKING:
    from poad.lm.model import LanguageModel

LONGEST_CHECK = 4096
"""Windows that are longer are not checked, so the context is limited to them."""
_MARGIN = 8
"""By how many tokens a row exceeds the window."""


def explain_nan(model: LanguageModel) -> str:
    """Say where numbers that are not finite come from, and what to do about it."""
    for name, weight in model.module.named_parameters():
        broken = int((~weight.isfinite()).sum())
        if broken:
            return (
                f"{broken} of the {weight.numel()} weights in {name} are not finite. Use another "
                "model, or an earlier checkpoint."
            )
    dtype = model._head.weight.dtype
    remedy = "Use another model." if dtype == torch.float32 else "Use model.dtype = float32."
    return f"its weights are finite, so its activations overflow in {dtype}. {remedy}"


@torch.no_grad()
def check_halves(model: LanguageModel) -> None:
    """Check that body and head are the whole model; set the scale and softcap between them.

    Raises:
        ModelError: something else stands between the last hidden state and the logits.
    """
    body, whole = model._body, model.causal_lm
    ids = torch.arange(4, device=model.device).remainder(model.vocabulary)[None]
    expected = whole(input_ids=ids, use_cache=False).logits.float()
    hidden = body(input_ids=ids, use_cache=False).last_hidden_state
    if not expected.isfinite().all():
        raise ModelError(
            f"The logits of {type(whole).__name__} are not finite: {explain_nan(model)}"
        )
    text = whole.config.get_text_config()
    softcaps = (getattr(text, "final_logit_softcapping", None), None)

    def error(way: tuple[float | None, float]) -> float:
        model._softcap, model._scale = way
        return float((model.logits(hidden) - expected).norm())

    best = min(product(softcaps, _scales(text)), key=error)
    if error(best) <= 0.01 * expected.norm():
        return
    raise ModelError(
        f"{type(whole).__name__} does something between its last hidden state and its logits "
        "that poad does not know, so training would optimize another policy. Use another "
        "architecture."
    )


def _scales(config: Any) -> Iterator[float]:
    """List the factors by which an architecture may multiply its logits, by their names."""
    yield 1.0
    # Cohere; Falcon-H1; Granite divides by what HyperCLOVA X multiplies with.
    for name in ("logit_scale", "lm_head_multiplier", "logits_scaling"):
        scale = getattr(config, name, None)
        if isinstance(scale, float | int) and scale:
            yield from (float(scale), 1 / scale)


@torch.no_grad()
def check_reading(model: LanguageModel) -> None:
    """Find the fastest way of reading that reads as plain rows do.

    Rows that exceed the window of the model branch and are padded, and others grow token by token.

    Raises:
        ModelError: no way reads right, or what is read is not finite.
    """
    positions = _positions(model)
    reason = ""
    alone = torch.cat([_alone(model, (*prompt, *rest)) for prompt, rest in positions])
    if not alone.isfinite().all():
        raise ModelError(
            f"The hidden states of {type(model.causal_lm).__name__} are not finite: "
            f"{explain_nan(model)}"
        )
    # Some kernels take no trees, and some feed-forward layers need whole rows, as experts do.
    ways = product((True, False) if model.branching else (False,), (True, False))
    for model.branching, model._skips_unread in ways:
        packed = pack(positions, model.codec.pad_id)
        reason = _difference(partial(model.read, packed), alone)
        if not reason:
            break
    reason = reason or _difference(partial(_grown, model, positions), alone)
    if reason:
        raise ModelError(
            f"{type(model.causal_lm).__name__} cannot read several actions behind one prompt: "
            f"{reason}. poad needs a transformer that takes an attention mask and position ids."
        )


def _positions(model: LanguageModel) -> list[Position]:
    """Choose a prompt that exceeds the window, with two ways to go on, and a short one."""
    generator = torch.Generator().manual_seed(0)
    length = min(_hinted(model), LONGEST_CHECK) + _MARGIN
    if model.context_length is not None:
        length = min(length, model.context_length - 2)
    drawn = torch.randint(min(model.vocabulary, 1000), (max(length, 1) + 6,), generator=generator)
    *prompt, a, b, c, d, e, f = drawn.tolist()
    long, other = tuple(prompt), (a + 1) % model.vocabulary
    return [(long, (a, b)), (long, (other,)), ((c, d), (e, f))]


def _hinted(model: LanguageModel) -> int:
    """Return the window, or the largest that the configuration of a body with own masks names."""
    if model.window is not None:
        return model.window
    config = model.causal_lm.config.get_text_config().to_dict()
    return max(
        (
            value
            for name, value in config.items()
            if ("window" in name or "chunk" in name) and type(value) is int
        ),
        default=0,
    )


def _alone(model: LanguageModel, row: TokenIds) -> Tensor:
    """Read one row by a plain forward pass. [1, H]."""
    ids = torch.tensor([row], device=model.device)
    return model._body(input_ids=ids, use_cache=False).last_hidden_state[:, -1]


def _grown(model: LanguageModel, positions: list[Position]) -> Tensor:
    """Read the same positions in rows that grow, with padding between their tokens. [Q, H]."""
    decoder = model.decoder()
    (long, a), (_, b), (short, c) = positions
    decoder.start([long[:-1], short])
    decoder.read([long[-1:], c[:1]], [0, 1])
    return decoder.read([a, b, c[1:]], [0, 0, 1])


def _difference(read: Callable[[], Tensor], alone: Tensor) -> str:
    """Say how readings differ from those of single rows; empty if they do not."""
    try:
        error = read().float() - alone.float()
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as failure:
        return f"its forward pass fails with {str(failure).splitlines()[0]!r}"
    # A wrong mask shows in the first digits, unless the window is long. In half precision,
    # rounding alone accounts for 0.01.
    tolerance = 1e-3 if alone.dtype in (torch.float32, torch.float64) else 0.1
    if (error.norm(dim=1) <= tolerance * alone.float().norm(dim=1)).all():
        return ""
    return "its hidden states differ from those of each action alone"
