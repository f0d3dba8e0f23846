"""Values inside the actions of `poad/Order-v0`: an oracle in place of a critic.

V(o, w_<j) is the expected discounted pay from here on, given the prompt and the fields that have
been filled in so far. The policy may be any that fills in fields one after the other, each in the
light of all before it. What is exact, and when:

* `exact_values` goes through the whole tree of a form, 2^K - 1 decisions for K fields.
* If only a perfect form pays, `perfect_values` is exact for any K: one path through the tree
  decides.
* `sampled_values` is unbiased for any K where each right field pays. It draws the rest of the form,
  but counts each field on the way by its probability of being right instead of by what was drawn.
  So its error comes only from how earlier fields change the policy's taste in later ones.

Taking the probabilities along the path that was taken for those of the fields to come would cost
nothing, but the value of a beginning would then depend on what was chosen after it, which biases
advantages. So it is not offered here. Noise in the pay has mean 0 and changes no value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Literal

import numpy as np
import torch

from poad.agent import DecisionTable, Policy
from poad.envs import make
from poad.theory.problems import Floats
from poad.trie import ROOT, TokenTree
from poad.turns import Observation, Position, TokenIds

Filled = tuple[int, ...]
"""The options, 0 or 1, of the first fields of a form."""
Chances = Callable[[Sequence[Filled]], Floats]
"""From B beginnings, none of them complete, to the next field's probabilities [B, 2]. A table or a
model can answer."""
MAX_EXACT = 12
"""Forms with more fields are not gone through as a whole."""


def exact_values(
    chances: Chances, right: Filled, pay: Literal["additive", "all"] = "additive"
) -> list[Floats]:
    """Compute the expected pay of one form after every beginning.

    Args:
        chances: the policy. It is asked once, for all beginnings.
        right: the right option of each of the K fields.
        pay: ``additive`` for the share of right fields, ``all`` for 1 if all are right, else 0.

    Returns:
        K + 1 arrays. The array number j has the values [2^j] of all beginnings with j fields, in
        the order of `itertools.product`; the last has the pay of each complete form.

    Raises:
        ValueError: there are more fields than `MAX_EXACT`.
    """
    if len(right) > MAX_EXACT:
        raise ValueError(
            f"A form with {len(right)} fields is too large to go through (at most {MAX_EXACT}); "
            "use sampled_values, or perfect_values if only a perfect form pays."
        )
    levels = [list(product((0, 1), repeat=j)) for j in range(len(right) + 1)]
    share = (np.array(levels[-1]) == right).mean(1)  # [2^K]
    values = [share if pay == "additive" else (share == 1).astype(float)]
    asked = chances([filled for level in levels[:-1] for filled in level])  # [2^K - 1, 2]
    for j in reversed(range(len(right))):
        # [2^j, 2]: level j begins behind the 2^j - 1 beginnings of the shorter ones
        options = asked[2**j - 1 : 2 ** (j + 1) - 1]
        values.append((options * values[-1].reshape(-1, 2)).sum(1))
    return values[::-1]


def perfect_values(chances: Chances, right: Filled, beginnings: Sequence[Filled]) -> Floats:
    """Compute the probability of a perfect form after each of B beginnings, exactly. [B]."""
    asked = chances([right[:j] for j in range(len(right))])  # [K, 2]
    each = np.append(asked[np.arange(len(right)), list(right)], 1.0)
    onward = each[::-1].cumprod()[::-1]  # [K + 1] the probability that the rest is right
    return np.array([onward[len(b)] * (b == right[: len(b)]) for b in beginnings])


def sampled_values(
    chances: Chances,
    right: Filled,
    beginnings: Sequence[Filled],
    samples: int,
    rng: np.random.Generator,
) -> Floats:
    """Estimate the expected share of right fields after each of B beginnings, without bias. [B].

    Args:
        chances: the policy. It is asked at most once for each field.
        right: the right option of each of the K fields.
        beginnings: of any lengths up to K.
        samples: how often the rest of the form is drawn for each beginning.
        rng: draws it.
    """
    ways = [list(b) for b in beginnings for _ in range(samples)]
    count = np.array([sum(a == b for a, b in zip(way, right, strict=False)) for way in ways], float)
    for j in range(len(right)):
        going = [i for i, way in enumerate(ways) if len(way) == j]
        if going:
            options = chances([tuple(ways[i]) for i in going])  # [n, 2]
            count[going] += options[:, right[j]]
            for i, second in zip(going, rng.random(len(going)) < options[:, 1], strict=True):
                ways[i].append(int(second))
    return count.reshape(len(beginnings), samples).mean(1) / len(right)


class OrderOracle:
    """Values of positions under a policy as it is now, in place of a critic's.

    It knows what a critic could know at best: the prompt and the action so far. With
    ``pay="late"`` it therefore counts earlier orders by their mean, as the prompt does not tell how
    they went.

    Offered forms are valued exactly if `pay` is ``all`` or if they have at most `exact` fields,
    otherwise by `sampled_values`. Freely written actions are finished `samples` times by the policy
    and paid, which is unbiased whatever it writes, but noisy and slow.

    Args:
        policy: acts token by token in ``poad/Order-v0``, without history or thoughts.
        gamma: the discount per turn.
        exact: the largest number of fields for which the whole tree is computed.
        samples: completions of each beginning where values are sampled.
        seed: of these.
        env_args: arguments of the world.
    """

    def __init__(
        self,
        policy: Policy,
        gamma: float,
        *,
        exact: int = 8,
        samples: int = 16,
        seed: int = 0,
        **env_args: Any,
    ) -> None:
        world: Any = make("poad/Order-v0", **env_args).unwrapped
        self._world, self._policy, self._gamma = world, policy, gamma
        self._exact, self._samples = exact, samples
        self._rng = np.random.default_rng(seed)
        # The codec forgets trees that have grown large, and then numbers their nodes anew.
        self._trees: dict[int, TokenTree] = {}
        self._prompts = {
            (turn, n): policy.prompt_ids(Observation(world.prompt(turn, n)))
            for turn in range(world.turns)
            for n in world.customers
        }

    @torch.no_grad()
    def __call__(self, positions: Sequence[Position]) -> list[float]:
        """Compute V(o, w_<j) at some positions, in their order.

        Raises:
            ValueError: a position whose prompt is none of this world's.
        """
        self._trees.clear()
        places = {ids: place for place, ids in self._prompts.items()}
        begun: dict[tuple[int, int], dict[TokenIds, float]] = {}
        for prompt_ids, tokens in positions:
            if prompt_ids not in places:
                raise ValueError(
                    "A position has a prompt that this world does not show by itself; the oracle "
                    "knows no history, thoughts or other arguments of the world."
                )
            begun.setdefault(places[prompt_ids], {})[tuple(tokens)] = 0.0
        if self._world.turns > 1:  # the other orders of an episode count too
            for place in self._prompts:
                begun.setdefault(place, {}).setdefault((), 0.0)
        for place, values in begun.items():
            values.update(zip(values, self._form_values(place, list(values)), strict=True))
        roots = [
            float(np.mean([begun[turn, n][()] for n in self._world.customers]))
            for turn in range(self._world.turns if self._world.turns > 1 else 0)
        ]
        return [self._value(places[p][0], begun[places[p]][tuple(w)], roots) for p, w in positions]

    def _value(self, turn: int, own: float, roots: Sequence[float]) -> float:
        """The value at a position, from its own form's and the means of all turns' forms."""
        later = roots[turn + 1 :]
        if self._world.pay == "late":
            return self._gamma ** len(later) * (sum(roots[:turn]) + own + sum(later))
        return own + sum(self._gamma ** (k + 1) * value for k, value in enumerate(later))

    def _form_values(self, place: tuple[int, int], begun: Sequence[TokenIds]) -> Sequence[float]:
        """The expected pay of one form after each of some beginnings, as tokens."""
        if not self._world.offered:
            return [self._finished(place, tokens) for tokens in begun]
        tree = self._tree(place[1])
        right = self._world.right(place[1])
        beginnings = [
            _fields(tree, nodes[-1] if (nodes := tree.walk(tokens)) else ROOT) for tokens in begun
        ]

        def chances(asked: Sequence[Filled]) -> Floats:
            return self._chances(place, asked)

        if self._world.pay == "all":
            return perfect_values(chances, right, beginnings).tolist()
        if len(right) <= self._exact:
            table = exact_values(chances, right)
            return [float(table[len(b)][_number(b)]) for b in beginnings]
        distinct = list(dict.fromkeys(beginnings))
        found = sampled_values(chances, right, distinct, self._samples, self._rng)
        known = dict(zip(distinct, found.tolist(), strict=True))
        return [known[b] for b in beginnings]

    def _chances(self, place: tuple[int, int], asked: Sequence[Filled]) -> Floats:
        """Ask the policy for the next field after each of B beginnings of one form. [B, 2]."""
        table, tree = DecisionTable(), self._tree(place[1])
        ids = self._prompts[place]
        numbers = [table.at_node(ids, tree, self._node(place[1], filled)) for filled in asked]
        batch = table.batch(self._policy.codec.pad_id, branching=self._policy.model.branching)
        logprob = torch.zeros(len(table), 2)
        for run in batch.bundles.micro_batches(8192):
            part, kept, _ = batch.select(run)
            logprob[kept] = self._policy.evaluate(part).logprob[:, :2].cpu()
        return logprob.double().exp().numpy()[numbers]

    def _finished(self, place: tuple[int, int], tokens: TokenIds) -> float:
        """The mean pay of a freely written action when the policy finishes it several times."""
        policy, world = self._policy, self._world
        left = policy.acting.max_action_tokens - len(tokens)
        finisher = Policy(policy.model, replace(policy.acting, max_action_tokens=left))
        seen = Observation("", prompt_ids=(*self._prompts[place], *tokens))
        pays = []
        for rest in finisher.act([seen] * self._samples, self._rng):
            text = policy.codec.text((*tokens, *rest.token_ids))
            for stop in policy.acting.stop:
                text = text.partition(stop)[0]
            share = world.share(text, place[1])
            pays.append(float(share == 1) if world.pay == "all" else share)
        return float(np.mean(pays))

    def _tree(self, customer: int) -> TokenTree:
        if customer not in self._trees:
            self._trees[customer] = self._policy.codec.trie(self._world.form(customer))
        return self._trees[customer]

    def _node(self, customer: int, filled: Filled) -> int:
        """The node where the field after some others is chosen, or the end of a complete form."""
        tree, node, options = self._tree(customer), ROOT, iter(filled)
        while after := tree.options(node):
            option = next(options, None) if len(after) > 1 else 0
            if option is None:
                break
            node = after[option]
        return node


def _fields(tree: TokenTree, node: int) -> Filled:
    """The options taken on the way to a node."""
    taken = (n for n in tree.path(node) if tree.is_choice(n))
    return tuple(tree.options(tree.parent(n)).index(n) for n in taken)


def _number(filled: Filled) -> int:
    """The place of a beginning among those of its length, in the order of `itertools.product`."""
    return int("".join(map(str, filled)) or "0", 2)
