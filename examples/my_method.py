"""A credit method of your own: a pure function of the recursion's five sequences, and a row.

Train, resume and evaluate with it from this directory. Its name is module:NAME:

    poad train --credit.method my_method:TD0 --run runs/td0
    poad train --resume runs/td0 --steps 16384
    poad eval runs/td0
"""

import torch

from poad.credit import METHODS, Method, token_credit


def one_step(reward, value, next_value, discount, trace):
    """Temporal difference without a trace, TD(0). Every argument and result is [N, L]."""
    target = reward + discount * next_value
    return target - value, target


TD0 = Method(name="td0", summary="One-step temporal difference.", estimator=one_step)

if __name__ == "__main__":
    reward = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    value = torch.tensor([[0.5, 0.6, 0.7, 0.8]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    turns = torch.tensor([[0, 0, 1, 1]])  # two actions of two tokens
    for method in (TD0, METHODS["poad"]):
        credit = token_credit(reward, value, mask, turns, method=method, gamma=0.9, lam=0.95)
        print(f"{method.name:5}", [round(a, 3) for a in credit.advantage[0].tolist()])
