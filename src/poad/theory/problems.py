"""Small language problems, written out completely: random ones, and episodes sampled from them.

A *language MDP* has S states. Each offers actions, which are token strings of unequal length; the
world answers a whole action with a reward and a next state.

All nodes of all token trees have one numbering: the S roots first, then level by level. A node
stands for the prefix that ends in it, and, as an option, for the token that leads to it. S states,
A actions of all states together, M nodes, C outcomes of an action. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from poad.trie import ROOT, ActionTrie

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Sign = Literal["any", "positive", "negative"]
"""Of the rewards, and so of the values."""


class Level(NamedTuple):
    """The tokens at one depth; siblings stand side by side."""

    options: slice
    starts: Ints
    """[G] where each group of siblings begins, within the slice."""
    parents: Ints
    """[G] the prefix they continue."""


@dataclass(frozen=True, eq=False)
class Tree:
    """The token trees of all states as arrays."""

    parent: Ints
    """[M] the node before it; −1 for roots."""
    leaf: Ints
    """[A] where each action ends."""
    path: Ints
    """[A, D] the nodes of an action's tokens, −1 beyond its end."""
    levels: tuple[Level, ...]
    """First tokens, second tokens, and so on."""

    @classmethod
    def of(cls, tries: Sequence[ActionTrie]) -> Tree:
        """Number the nodes of all tries."""
        numbers = [{ROOT: state} for state in range(len(tries))]
        parent = [-1] * len(tries)
        levels: list[Level] = []
        above = [(state, ROOT) for state in range(len(tries))]
        while above:
            begin, starts, parents, below = len(parent), [], [], []
            for state, node in above:
                children = tries[state].children[node + 1]
                if children:
                    starts.append(len(parent) - begin)
                    parents.append(numbers[state][node])
                for child in children:
                    numbers[state][child] = len(parent)
                    parent.append(numbers[state][node])
                    below.append((state, child))
            if below:
                level = slice(begin, len(parent))
                levels.append(Level(level, np.array(starts), np.array(parents)))
            above = below
        paths = [
            [numbers[state][node] for node in trie.path(leaf)]
            for state, trie in enumerate(tries)
            for leaf in trie.leaves
        ]
        path = np.full((len(paths), max(map(len, paths))), -1)
        for row, nodes in zip(path, paths, strict=True):
            row[: len(nodes)] = nodes
        leaf = np.array([nodes[-1] for nodes in paths])
        return cls(np.array(parent), leaf, path, tuple(levels))

    @cached_property
    def length(self) -> Ints:
        """[A] tokens of each action."""
        return (self.path >= 0).sum(1)

    @cached_property
    def root(self) -> Ints:
        """[M] the root above each node; a root's own is itself."""
        root = np.arange(len(self.parent))
        for options, _, _ in self.levels:
            root[options] = root[self.parent[options]]
        return root

    @cached_property
    def is_choice(self) -> NDArray[np.bool_]:
        """[M] whether another token could have stood in this one's place; False at roots."""
        siblings = np.bincount(self.parent[self.parent >= 0], minlength=len(self.parent))
        return np.where(self.parent >= 0, siblings[self.parent] > 1, False)

    def path_sum(self, tokens: Floats) -> Floats:
        """[A] the sum over each action's tokens of [M] numbers, as of log-probabilities."""
        return np.where(self.path >= 0, tokens[self.path], 0.0).sum(1)


@dataclass(frozen=True, eq=False)
class LanguageMDP:
    """A world whose actions are token strings, with everything about it known."""

    tries: tuple[ActionTrie, ...]
    """[S] what each state offers; the A actions are counted state by state."""
    gamma: float
    """γ, the discount between actions, in [0, 1)."""
    chance: Floats
    """[A, C] probabilities of an action's outcomes."""
    reward: Floats
    """[A, C]"""
    successor: Ints
    """[A, C] the next state; S where the episode ends."""

    @property
    def states(self) -> int:
        """S, the number of states."""
        return len(self.tries)

    @cached_property
    def tree(self) -> Tree:
        """The offered actions as arrays."""
        return Tree.of(self.tries)

    @cached_property
    def state(self) -> Ints:
        """[A] the state that offers each action."""
        return np.repeat(np.arange(self.states), [len(trie.leaves) for trie in self.tries])

    @cached_property
    def first(self) -> Ints:
        """[S] each state's first action."""
        return np.searchsorted(self.state, np.arange(self.states))

    @cached_property
    def expected_reward(self) -> Floats:
        """[A] R(o,a)."""
        return (self.chance * self.reward).sum(1)

    @cached_property
    def transition(self) -> Floats:
        """[A, S] probability of each next state; what is missing to 1 ends the episode."""
        matrix = np.zeros((len(self.state), self.states + 1))
        rows = np.broadcast_to(np.arange(len(matrix))[:, None], self.successor.shape)
        np.add.at(matrix, (rows, self.successor), self.chance)
        return matrix[:, :-1]

    def whole(self, value: Floats) -> Floats:
        """[A] R + γ E V(o′) for state values [S]: what a whole action is worth."""
        return self.expected_reward + self.gamma * (self.transition @ value)


def random_policy(mdp: LanguageMDP, seed: int) -> Floats:
    """Log-probability of every token given its prefix, [M], by normal logits; 0 at roots."""
    logits = np.random.default_rng(seed).normal(size=len(mdp.tree.parent))
    log_policy = np.zeros_like(logits)
    normalizer = np.full_like(logits, np.nan)
    for options, starts, parents in mdp.tree.levels:
        normalizer[parents] = np.log(np.add.reduceat(np.exp(logits[options]), starts))
        log_policy[options] = logits[options] - normalizer[mdp.tree.parent[options]]
    return log_policy


def random_problem(
    seed: int,
    *,
    states: int = 8,
    actions: int = 6,
    depth: int = 6,
    vocabulary: int = 8,
    gamma: float = 0.95,
    sign: Sign = "any",
    outcomes: int = 4,
) -> LanguageMDP:
    """A language MDP drawn at random.

    A state offers 1 to `actions` actions (the first state all of them) of 1 to `depth` tokens; each
    new action leaves the earlier ones at a random place of the tree. Tokens without an alternative
    and states with a single action occur. See `problem_of` for what actions do.

    Raises:
        ValueError: fewer tokens in the `vocabulary` than `actions`, or sizes below 1.
    """
    if min(states, actions, depth) < 1:
        raise ValueError(
            f"states, actions and depth are {states}, {actions} and {depth}; each must be above 0."
        )
    if vocabulary < actions:
        raise ValueError(
            f"vocabulary is {vocabulary}, below the {actions} actions; "
            "as many tokens as actions always suffice."
        )
    rng = np.random.default_rng(seed)
    counts = [actions, *rng.integers(1, actions + 1, states - 1)]
    offers = [_random_strings(rng, int(count), depth, vocabulary) for count in counts]
    return problem_of(offers, rng, gamma=gamma, sign=sign, outcomes=outcomes)


def _random_strings(
    rng: np.random.Generator, count: int, depth: int, vocabulary: int
) -> list[tuple[int, ...]]:
    """Token strings of which none begins another."""
    used: dict[tuple[int, ...], set[int]] = {(): set()}
    strings: list[tuple[int, ...]] = []
    while len(strings) < count:
        open_at = [prefix for prefix, tokens in used.items() if len(tokens) < vocabulary]
        prefix = open_at[rng.integers(len(open_at))]
        token = int(rng.choice([w for w in range(vocabulary) if w not in used[prefix]]))
        more = int(rng.integers(0, depth - len(prefix)))
        string = (*prefix, token, *map(int, rng.integers(0, vocabulary, more)))
        for j in range(len(prefix), len(string)):
            used.setdefault(string[:j], set()).add(string[j])
        strings.append(string)
    return strings


def problem_of(
    offers: Sequence[Sequence[tuple[int, ...]]],
    rng: np.random.Generator,
    *,
    gamma: float = 0.95,
    sign: Sign = "any",
    outcomes: int = 4,
) -> LanguageMDP:
    """A language MDP with the given actions, whose rewards and transitions are drawn at random.

    `offers` [S] holds each state's token strings. Every action has `outcomes` outcomes with random
    chances (uniform on the simplex): a reward, normal and of the given sign, and a next state; one
    of them ends the episode.

    Raises:
        ValueError: a `gamma` outside [0, 1), an unknown `sign`, or strings that are no set of
            actions (see `poad.trie`).
    """
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma is {gamma}; it must lie in [0, 1).")
    if outcomes < 1:
        raise ValueError(f"outcomes is {outcomes}; an action has at least one.")
    if sign not in get_args(Sign):
        raise ValueError(f"Unknown sign {sign!r}; there are {', '.join(get_args(Sign))}.")
    tries = tuple(ActionTrie.build(strings, [str(s) for s in strings]) for strings in offers)
    shape = sum(map(len, offers)), outcomes
    reward = rng.normal(size=shape)
    if sign != "any":
        reward = np.abs(reward) if sign == "positive" else -np.abs(reward)
    successor = rng.integers(0, len(offers), size=shape)
    successor[:, -1] = len(offers)
    chance = rng.dirichlet(np.ones(outcomes), size=shape[0])
    return LanguageMDP(tries, gamma, chance, reward, successor)


class Episodes(NamedTuple):
    """N episodes of at most T turns, all [N, T]; where an episode is over, `action` is −1."""

    action: Ints
    reward: Floats
    successor: Ints
    """The next state; S where the episode ended with this turn."""

    def of(self, rows: Ints, turns: int) -> Episodes:
        """Some of the episodes, and only their first turns."""
        first = self.action[rows, :turns], self.reward[rows, :turns], self.successor[rows, :turns]
        return Episodes(*first)


def play(
    mdp: LanguageMDP, log_action: Floats, episodes: int, rng: np.random.Generator, turns: int
) -> Episodes:
    """Sample episodes from a policy over whole actions, log π [A]; they begin in random states.

    Those that do not end within `turns` are cut there.
    """
    of_action, of_outcome = np.cumsum(np.exp(log_action)), np.cumsum(mdp.chance)
    last = np.append(mdp.first[1:], len(mdp.state)) - 1
    outcomes = mdp.chance.shape[1]
    action, successor = np.full((2, episodes, turns), -1)
    reward = np.zeros((episodes, turns))
    state, going = rng.integers(0, mdp.states, episodes), np.arange(episodes)
    for t in range(turns):
        # Probabilities add up to 1 per state, so state + u falls among that state's actions.
        chosen = np.searchsorted(of_action, state + rng.random(len(state)))
        chosen = np.clip(chosen, mdp.first[state], last[state])
        outcome = np.searchsorted(of_outcome, chosen + rng.random(len(state)))
        outcome = np.clip(outcome - chosen * outcomes, 0, outcomes - 1)
        action[going, t] = chosen
        reward[going, t] = mdp.reward[chosen, outcome]
        successor[going, t] = state = mdp.successor[chosen, outcome]
        going, state = going[state < mdp.states], state[state < mdp.states]
        if not len(going):
            return Episodes(action[:, : t + 1], reward[:, : t + 1], successor[:, : t + 1])
    return Episodes(action, reward, successor)
