"""Compute credit for another trainer: from its flat [B, L] tensors to advantages and targets."""

import torch

from poad import token_credit

# A conversation of two turns: prompt, 3 action tokens, an observation, 2 action tokens, padding.
mask = torch.tensor([[0, 0, 1, 1, 1, 0, 0, 1, 1, 0]], dtype=torch.bool)
turns = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1, 1, 1]])
reward = torch.zeros(1, 10)
reward[0, 8] = 1.0  # at the last token of the second action
value = torch.zeros(1, 10)  # the critic's value before each token

for method in ("poad", "ntpo", "turn_ppo"):
    credit = token_credit(reward, value, mask, turns, method=method, gamma=0.9, lam=1.0)
    shown = [f"{a:.2f}" if m else "  . " for a, m in zip(credit.advantage[0], mask[0], strict=True)]
    print(f"{method:9}", *shown)
