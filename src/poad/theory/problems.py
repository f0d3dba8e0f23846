"""Small language problems that are known completely, and episodes sampled from them.

A *language MDP* has S states. Each state offers actions, which are token strings of different
lengths. A whole action leads to a reward and a next state.

The actions of a state form a token tree. The nodes of all trees share one numbering: first the S
roots, then level by level. A node stands for the prefix that ends in it and, as an option, for the
token that leads to it. Shapes: S states, A actions of all states together, M nodes, C outcomes of
an action. Everything is float64.
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
"""The sign of all rewards, and therefore of all values."""


class Level(NamedTuple):
    """The nodes at one depth, in G groups of siblings."""

    options: slice
    """The numbers of the nodes. Siblings are consecutive."""
    starts: Ints
    """[G] where each group of siblings begins within the slice."""
    parents: Ints
    """[G] the parent of each group."""


@dataclass(frozen=True, eq=False)
class Tree:
    """The token trees of all states as arrays."""

    parent: Ints
    """[M] the parent of each node; −1 for roots."""
    leaf: Ints
    """[A] the last node of each action."""
    path: Ints
    """[A, D] the nodes of each action's tokens, followed by −1."""
    levels: tuple[Level, ...]
    """The first tokens, the second tokens, and so on."""

    @classmethod
    def of(cls, tries: Sequence[ActionTrie]) -> Tree:
        """Number the nodes of all tries."""
        numbers = [{ROOT: state} for state in range(len(tries))]  # per state: trie node -> number
        parent = [-1] * len(tries)
        levels: list[Level] = []
        above = [(state, ROOT) for state in range(len(tries))]
        while above:  # breadth first: the children of one level are the options of the next
            begin, starts, parents, below = len(parent), [], [], []
            for state, node in above:
                children = tries[state].children[node + 1]  # index 0 belongs to the root, −1
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
        leaf = np.array([nodes[-1] for nodes in paths])  # [A]
        return cls(np.array(parent), leaf, path, tuple(levels))

    @cached_property
    def length(self) -> Ints:
        """[A] the number of tokens of each action."""
        return (self.path >= 0).sum(1)

    @cached_property
    def root(self) -> Ints:
        """[M] the root above each node; a root is its own."""
        root = np.arange(len(self.parent))
        for options, _, _ in self.levels:
            root[options] = root[self.parent[options]]  # parents lie one level up: already known
        return root

    @cached_property
    def is_choice(self) -> NDArray[np.bool_]:
        """[M] bool. True where the token has an alternative; False at roots."""
        # [M] the number of children of each node, which its children look up at their parent
        siblings = np.bincount(self.parent[self.parent >= 0], minlength=len(self.parent))
        return np.where(self.parent >= 0, siblings[self.parent] > 1, False)

    def path_sum(self, tokens: Floats) -> Floats:
        """[A] the sum of numbers [M] over each action's tokens, for example log-probabilities."""
        # [M] -> [A, D] -> [A]; the −1 after an action's end picks a number that is overwritten
        return np.where(self.path >= 0, tokens[self.path], 0.0).sum(1)


@dataclass(frozen=True, eq=False)
class LanguageMDP:
    """A Markov decision process whose actions are token strings."""

    tries: tuple[ActionTrie, ...]
    """[S] the actions that each state offers. The A actions are numbered state by state."""
    gamma: float
    """γ, the discount between actions, in [0, 1)."""
    probability: Floats
    """[A, C] the probabilities of an action's outcomes."""
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
        """[A] the state that each action belongs to."""
        return np.repeat(np.arange(self.states), [len(trie.leaves) for trie in self.tries])

    @cached_property
    def first(self) -> Ints:
        """[S] each state's first action."""
        return np.searchsorted(self.state, np.arange(self.states))

    @cached_property
    def expected_reward(self) -> Floats:
        """[A] R(o,a)."""
        return (self.probability * self.reward).sum(1)

    @cached_property
    def transition(self) -> Floats:
        """[A, S] the probability of each next state. The rest of a row ends the episode."""
        # Outcomes may share a next state, so probabilities add up. Column S, the end, is dropped.
        matrix = np.zeros((len(self.state), self.states + 1))
        rows = np.broadcast_to(np.arange(len(matrix))[:, None], self.successor.shape)
        np.add.at(matrix, (rows, self.successor), self.probability)
        return matrix[:, :-1]

    def action_values(self, value: Floats) -> Floats:
        """[A] Q(o,a) = R(o,a) + γ E V(o′), from state values V [S]."""
        return self.expected_reward + self.gamma * (self.transition @ value)


def random_policy(mdp: LanguageMDP, seed: int) -> Floats:
    """[M] the log-probability of every token given its prefix, from normal logits; 0 at roots."""
    logits = np.random.default_rng(seed).normal(size=len(mdp.tree.parent))
    log_policy = np.zeros_like(logits)
    normalizer = np.full_like(logits, np.nan)  # [M] log Σ exp over a node's children
    for options, starts, parents in mdp.tree.levels:
        # [options] -> [G] over each group of siblings, then back to every sibling by its parent
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
    """Draw a language MDP at random.

    A state offers 1 to `actions` actions of 1 to `depth` tokens; the first state offers the full
    number. Each new action branches off from the earlier ones at a random node of the tree. Tokens
    without an alternative and states with a single action occur. `problem_with` describes the
    rewards and transitions.

    Raises:
        ValueError: a size is below 1, or the `vocabulary` is smaller than `actions`.
    """
    if min(states, actions, depth) < 1:
        raise ValueError(
            f"states, actions and depth are {states}, {actions} and {depth}; "
            "each must be at least 1."
        )
    if vocabulary < actions:
        raise ValueError(
            f"vocabulary is {vocabulary}; it must be at least the number of actions, {actions}."
        )
    rng = np.random.default_rng(seed)
    counts = [actions, *rng.integers(1, actions + 1, states - 1)]
    offers = [_random_strings(rng, int(count), depth, vocabulary) for count in counts]
    return problem_with(offers, rng, gamma=gamma, sign=sign, outcomes=outcomes)


def _random_strings(
    rng: np.random.Generator, count: int, depth: int, vocabulary: int
) -> list[tuple[int, ...]]:
    """Draw token strings, none of which is a prefix of another."""
    # For each inner node, as a prefix: the tokens that follow it. A new string branches off at a
    # node by a token that is not among them, so it neither extends nor repeats another.
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


def problem_with(
    offers: Sequence[Sequence[tuple[int, ...]]],
    rng: np.random.Generator,
    *,
    gamma: float = 0.95,
    sign: Sign = "any",
    outcomes: int = 4,
) -> LanguageMDP:
    """Draw rewards and transitions at random for the given actions.

    `offers` [S] holds each state's token strings. Every action has `outcomes` outcomes, whose
    probabilities are uniform on the simplex. An outcome has a normal reward of the given sign and a
    uniform next state, except that the last one ends the episode.

    Raises:
        ValueError: `gamma` lies outside [0, 1), `outcomes` is below 1, the `sign` is unknown, or
            the strings of a state do not form a tree of actions (see `poad.trie`).
    """
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma is {gamma}; it must lie in [0, 1).")
    if outcomes < 1:
        raise ValueError(f"outcomes is {outcomes}; it must be at least 1.")
    if sign not in get_args(Sign):
        raise ValueError(f"Unknown sign {sign!r}; known: {', '.join(get_args(Sign))}.")
    tries = tuple(ActionTrie.build(strings, [str(s) for s in strings]) for strings in offers)
    shape = sum(map(len, offers)), outcomes
    reward = rng.normal(size=shape)
    if sign != "any":
        reward = np.abs(reward) if sign == "positive" else -np.abs(reward)
    successor = rng.integers(0, len(offers), size=shape)
    successor[:, -1] = len(offers)
    probability = rng.dirichlet(np.ones(outcomes), size=shape[0])  # [A, C], rows sum to 1
    return LanguageMDP(tries, gamma, probability, reward, successor)


class Episodes(NamedTuple):
    """N episodes of at most T turns. Every array is [N, T]; after the end `action` is −1."""

    action: Ints
    reward: Floats
    successor: Ints
    """The next state; S where the turn ended the episode."""

    def select(self, rows: Ints, turns: int) -> Episodes:
        """Take some of the episodes, and only their first turns."""
        return Episodes._make(each[rows, :turns] for each in self)


def sample_episodes(
    mdp: LanguageMDP, log_action: Floats, episodes: int, rng: np.random.Generator, turns: int
) -> Episodes:
    """Sample episodes from a policy over whole actions, log π [A]. Their first state is uniform.

    Episodes that do not end within `turns` turns are cut off.
    """
    # Inverse transform sampling for all states at once. The probabilities of each state's actions
    # sum to 1, so state s owns the interval [s, s + 1) of the cumulative sum over all A actions,
    # and s + u picks one of its actions. Likewise for the outcomes, action by action: [A·C].
    cumulative_action = np.cumsum(np.exp(log_action))
    cumulative_outcome = np.cumsum(mdp.probability)
    last = np.append(mdp.first[1:], len(mdp.state)) - 1  # [S] each state's last action
    outcomes = mdp.probability.shape[1]
    action, successor = np.full((2, episodes, turns), -1)
    reward = np.zeros((episodes, turns))
    state, running = rng.integers(0, mdp.states, episodes), np.arange(episodes)
    for t in range(turns):
        chosen = np.searchsorted(cumulative_action, state + rng.random(len(state)))
        # The sums are rounded: an interval's end may belong to its neighbor.
        chosen = np.clip(chosen, mdp.first[state], last[state])
        outcome = np.searchsorted(cumulative_outcome, chosen + rng.random(len(state)))
        outcome = np.clip(outcome - chosen * outcomes, 0, outcomes - 1)
        action[running, t] = chosen
        reward[running, t] = mdp.reward[chosen, outcome]
        successor[running, t] = state = mdp.successor[chosen, outcome]
        running, state = running[state < mdp.states], state[state < mdp.states]
        if not len(running):
            return Episodes(action, reward, successor).select(np.arange(episodes), t + 1)
    return Episodes(action, reward, successor)
