"""The critic V(o, w_<j): the value of a prompt and the beginning of an action.

It reads hidden states at positions. Those of the frozen body never change, so they are computed
once per rollout. Those of a shared body come with the policy's own forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from poad.config import CriticConfig
from poad.lm import (
    Bundles,
    LanguageModel,
    Packed,
    SideAdapter,
    pack,
    pack_in_passes,
    seeded,
)
from poad.turns import Beginning, Position, TokenIds


class Standardizer(nn.Module):
    """Shifts and scales each dimension of what it has observed to mean 0 and variance 1.

    Hidden states have dimensions of very different size, and most of their variance lies in a few
    of them. The statistics run over everything that was ever observed, so they settle as training
    goes on. They are buffers, so a checkpoint holds them. Before the first observation nothing is
    changed.

    Args:
        width: number H of dimensions.
    """

    count: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("spread", torch.zeros(width, dtype=torch.float64))
        """[H] the sum of squared deviations from the mean."""

    @torch.no_grad()
    def observe(self, rows: Tensor) -> None:
        """Add rows [Q, H] to the statistics."""
        if not len(rows):
            return
        rows = rows.double()
        count, mean = len(rows), rows.mean(0)
        # Parallel variance (Chan, Golub and LeVeque 1979): two groups, joined by their means.
        total, apart = self.count + count, mean - self.mean
        self.spread += ((rows - mean) ** 2).sum(0) + apart**2 * self.count * count / total
        self.mean += apart * count / total
        self.count += count

    def forward(self, rows: Tensor) -> Tensor:
        """Standardize [..., H] to float32."""
        if not self.count:
            return rows
        std = (self.spread / self.count).sqrt()
        # A dimension that hardly varies holds rounding errors; it must not be blown up.
        std = std.clamp(min=1e-3 * std.square().mean().sqrt() + 1e-12)
        return (rows.float() - self.mean.float()) / std.float()


class Critic(nn.Module):
    """A multi-layer perceptron from hidden state to value, in float32.

    The paper uses layers of 1024, 512 and 1 (arXiv 2405.15821). The last layer starts at zero, so
    that an untrained critic predicts 0 everywhere instead of noise.

    Args:
        width: size H of what it reads.
        hidden: widths of the hidden layers; none makes it linear.
        seed: of the initial weights; the caller's random state is kept.
        standardize: standardize what is read by its `standardizer`.
    """

    def __init__(
        self, width: int, hidden: Sequence[int], seed: int, standardize: bool = False
    ) -> None:
        super().__init__()
        self.standardizer = Standardizer(width) if standardize else None
        with seeded(seed, torch.device("cpu")):
            layers: list[nn.Module] = []
            for size in hidden:
                layers += [nn.Linear(width, size), nn.Tanh()]
                width = size
            last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute values [...] from hidden states [..., H] of any floating dtype."""
        if self.standardizer is not None:
            hidden = self.standardizer(hidden)
        return self.layers(hidden.float()).squeeze(-1)

    @torch.no_grad()
    def observe(self, rows: Tensor) -> Tensor:
        """Add rows [Q, H] to the statistics, if there are any, and compute their values [Q]."""
        if self.standardizer is not None:
            self.standardizer.observe(rows)
        return self(rows)


class FrozenFeatures:
    """Hidden states of the untrained body, perhaps through an adapter of the critic's own.

    Nothing is remembered from call to call. The last bits of a hidden state depend on the batch it
    was computed in, so with a memory a resumed run, or one that was evaluated on the way, would
    drift from one that was not. One pass per rollout is cheap compared with the gradient steps.

    Args:
        model: the language model, loaded with its frozen body.
        micro_batch_tokens: tokens per forward pass.
        config: what the critic reads; see `CriticConfig.root` and `CriticConfig.codes`. None
            reads hidden states alone.
        adapter: of the critic; None if there is none.
    """

    def __init__(
        self,
        model: LanguageModel,
        micro_batch_tokens: int,
        config: CriticConfig | None = None,
        adapter: SideAdapter | None = None,
    ) -> None:
        self._model, self.adapter = model, adapter
        self._micro_batch_tokens = micro_batch_tokens
        self._config = config or CriticConfig(root=False, codes=0)

    @property
    def width(self) -> int:
        """Size F of what is read at a position."""
        return critic_width(self._model.width, self._config)

    def __call__(self, positions: Sequence[Position]) -> Tensor:
        """Read Q positions. [Q, F] float32 on the model's device, without gradient."""
        model, tokens = self._model, self._micro_batch_tokens
        if self.adapter is None:
            return self._read(positions, lambda p: read_hidden(model, model.read_frozen, p, tokens))
        with self.adapter.applied() as read:
            return self._read(positions, lambda p: read_hidden(model, read, p, tokens))

    def with_gradient(
        self, positions: Sequence[Position], read: Callable[[Packed], Tensor]
    ) -> Tensor:
        """Read Q positions in one pass, with the gradient of the adapter. [Q, F] float32.

        Args:
            positions: few enough for a pass.
            read: what `SideAdapter.applied` yields.
        """
        pad_id, branching = self._model.codec.pad_id, self._model.branching
        return self._read(positions, lambda p: read(pack(p, pad_id, branching=branching)))

    def _read(
        self, positions: Sequence[Position], hidden_at: Callable[[Sequence[Position]], Tensor]
    ) -> Tensor:
        """Put together what is read at Q positions, given a reader of hidden states."""
        if not self._config.root:
            parts = [hidden_at(positions).float()]
        else:
            roots: list[Position] = [(prompt, ()) for prompt, _ in positions]
            index = {p: i for i, p in enumerate(dict.fromkeys((*positions, *roots)))}
            hidden = hidden_at(list(index)).float()
            # [distinct, H] -> [Q, H] at the positions, and [Q, H] at their roots
            parts = [hidden[[index[p] for p in some]] for some in (positions, roots)]
        if self._config.codes:
            parts.append(written(positions, self._config.codes).to(parts[0]))
        return torch.cat(parts, dim=-1)


@torch.no_grad()
def read_hidden(
    model: LanguageModel,
    read: Callable[[Packed], Tensor],
    positions: Sequence[Position],
    pass_tokens: int,
) -> Tensor:
    """Read hidden states at Q positions, in passes of bounded size.

    Args:
        model: the language model.
        read: its trained or its frozen body.
        positions: Q positions.
        pass_tokens: tokens per forward pass.

    Returns:
        [Q, H] in the model's precision and on its device, without gradient.
    """
    if not positions:
        return torch.zeros(0, model.width, device=model.device)
    bundles = Bundles.divide(positions, branching=model.branching)
    mine = model.ranks.share(bundles.cost)

    def compute(tokens: int) -> tuple[Tensor | None, Tensor]:
        parts, order = [], []
        for run in bundles.micro_batches(tokens, mine):
            part, kept = bundles.select(run)  # [Q'] the positions in this micro-batch
            passes = pack_in_passes(part.positions, model.codec.pad_id, tokens, model.branching)
            for packed, here in passes:
                parts.append(read(packed))
                order.append(kept[here])
        if not parts:
            return None, torch.zeros(0, dtype=torch.int64)
        return torch.cat(parts), torch.cat(order)

    rows, places = model.passes.within(compute, pass_tokens, model.ranks)
    return model.ranks.put_together(rows, places, len(positions), model.device)


def critic_width(hidden: int, config: CriticConfig) -> int:
    """Compute the size F of what a critic reads of a frozen body whose states have size H."""
    return hidden * (1 + config.root) + 2 * config.codes


def written(positions: Sequence[Position], width: int) -> Tensor:
    """Encode which tokens of an action have been written, by random codes.

    The last hidden state predicts the next token, and keeps of the earlier ones only what this
    prediction needs. Where two words are followed by the same spelling, it hardly tells them apart,
    although they decide what the action is worth. So each token, and each pair of neighbours, has a
    fixed random vector, as in feature hashing (arXiv 0902.2206). A position is described by the sum
    over all tokens so far, and by the last token alone.

    Args:
        positions: Q positions.
        width: number R of dimensions.

    Returns:
        [Q, 2R] float32: the sum and the last token's code. Both are 0 at the root.
    """
    running: dict[int, NDArray[np.float32]] = {}  # by the identity of an action's tokens
    rows = []
    for _, beginning in positions:
        tokens = beginning.tokens if isinstance(beginning, Beginning) else beginning
        if id(tokens) not in running:  # all beginnings of an action share its tokens
            running[id(tokens)] = _running_codes(tokens, width)
        rows.append(running[id(tokens)][len(beginning)])
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, 2 * width)


def _running_codes(tokens: TokenIds, width: int) -> NDArray[np.float32]:
    """Encode all beginnings of n tokens, from none to all of them. [n + 1, 2R]."""
    codes = np.zeros((len(tokens) + 1, width), dtype=np.float32)
    for j in range(len(tokens)):
        codes[j + 1] = _code(tokens[j : j + 1], width)
        if j:
            codes[j + 1] += _code(tokens[j - 1 : j + 1], width)
    return np.concatenate([codes.cumsum(0), codes], axis=1)


@lru_cache(maxsize=65_536)
def _code(tokens: TokenIds, width: int) -> NDArray[np.float32]:
    """Draw the fixed random vector of a token or of two neighbours. [R]."""
    seed = [width, len(tokens), *tokens]
    return np.random.default_rng(seed).standard_normal(width, dtype=np.float32)
