"""The critic V(o, w_<j): the value of a prompt and the beginning of an action.

It reads hidden states at positions. Those of the frozen body never change, so they are computed
once per rollout. Those of a shared body come with the policy's own forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from poad.lm import Bundles, LanguageModel, pack, seeded
from poad.turns import Position


class Critic(nn.Module):
    """A multi-layer perceptron from hidden state to value, in float32.

    The paper uses layers of 1024, 512 and 1 (arXiv 2405.15821). The last layer starts at zero, so
    that an untrained critic predicts 0 everywhere instead of noise.

    Args:
        width: size H of a hidden state.
        hidden: widths of the hidden layers; none makes it linear.
        seed: of the initial weights; the caller's random state is kept.
    """

    def __init__(self, width: int, hidden: Sequence[int], seed: int) -> None:
        super().__init__()
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
        return self.layers(hidden.float()).squeeze(-1)


class FrozenFeatures:
    """Hidden states of the untrained body.

    Nothing is remembered from call to call. The last bits of a hidden state depend on the batch it
    was computed in, so with a memory a resumed run, or one that was evaluated on the way, would
    drift from one that was not. One pass per rollout is cheap compared with the gradient steps.

    Args:
        model: the language model, loaded with its frozen body.
        micro_batch_tokens: tokens per forward pass.
    """

    def __init__(self, model: LanguageModel, micro_batch_tokens: int) -> None:
        self._model = model
        self._micro_batch_tokens = micro_batch_tokens

    def __call__(self, positions: Sequence[Position]) -> Tensor:
        """Read Q positions. [Q, H] float32 on the model's device, without gradient."""
        features = torch.zeros(len(positions), self._model.width, device=self._model.device)
        bundles = Bundles.divide(positions, branching=self._model.branching)
        for run in bundles.micro_batches(self._micro_batch_tokens):
            part, kept = bundles.select(run)  # [Q'] the positions in this micro-batch
            packed = pack(part.positions, self._model.codec.pad_id)
            features[kept.to(features.device)] = self._model.read_frozen(packed).float()
        return features
