"""The policy is what a plain language model says, token by token, and training sees the same.

Everything is held against brute force: one forward pass of transformers for one token of one
candidate, without cache, padding or neighbours.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tiny_models import ACTIONS, CONFIGURATIONS, PROMPTS, Zoo, assert_same, next_token_logits
from tolerance import EXACT, drift, float32
from torch import Tensor

from poad.agent.build import load_agent
from poad.agent.critic import read_hidden
from poad.agent.likelihood import evaluate
from poad.agent.policy import Policy
from poad.agent.sampling import ActingCache
from poad.agent.settings import Acting
from poad.config import Config, PromptConfig
from poad.envs.registry import make
from poad.errors import ModelError
from poad.lm.model import LanguageModel
from poad.lm.packing import pack
from poad.trie import ActionTrie, Grammar, Offer
from poad.turns import Action, Observation, TokenIds, Turn

pytestmark = pytest.mark.usefixtures("float64")

SCHEMES = {
    "trie": Acting(scheme="trie"),
    "word": Acting(scheme="score", score="word"),
    "token": Acting(scheme="score", score="token"),
    "sum": Acting(scheme="score", score="sum"),
    "word with end": Acting(scheme="score", score="word", score_end=True),
    "token with end": Acting(scheme="score", score="token", score_end=True),
    "published": Acting(scheme="published"),
}
# Whole-word tokens are short; a stop text that many of them hold ends writing at all lengths.
FREE: dict[str, Any] = {"stop": ("o", "\n"), "max_action_tokens": 6}
TUNINGS: tuple[Literal["full", "lora"], ...] = ("full", "lora")

OFFER = Observation(PROMPTS[0], ACTIONS)
OTHER_OFFER = Observation(PROMPTS[1], ("open", "open door", "take tomato"))
FORCED = Observation(PROMPTS[2], ("take tomato",))
# Forced tokens between choices, at a prompt where other actions are offered too.
FAR = Observation(
    PROMPTS[0],
    ("go to the red door", "go to the blue door", "go to the red tomato", "open the red door"),
)
WRITE = Observation(PROMPTS[3])
MIXED = [
    *(OFFER, WRITE, OTHER_OFFER, FORCED, FAR),
    Observation(PROMPTS[0]),
    Observation(PROMPTS[3], ACTIONS),
]


def policy_of(model: LanguageModel, scheme: str = "trie", **changes: Any) -> Policy:
    return Policy(model, replace(SCHEMES[scheme], **(FREE | changes)))


def listed(offer: Offer | None) -> tuple[str, ...]:
    assert not isinstance(offer, Grammar), "a grammar is not listed"
    return tuple(offer or ())


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def act(policy: Policy, observation: Observation, seed: int = 0, **rest: Any) -> Action:
    (action,) = policy.act([observation], rng(seed), **rest)
    return action


def turn_of(policy: Policy, observation: Observation, action: Action) -> Turn:
    return Turn(policy.codec.prompt(observation.prompt), action, reward=0.0)


@contextmanager
def counting(model: LanguageModel) -> Iterator[list[int]]:
    """The sizes of all forward passes of the body, padding included."""
    sizes: list[int] = []

    def note(_: Any, __: Any, given: dict[str, Any]) -> None:
        sizes.append(given["input_ids"].numel())

    handle = model._body.register_forward_pre_hook(note, with_kwargs=True)
    yield sizes
    handle.remove()


# --- brute force ------------------------------------------------------------------------------


class Plain:
    """What transformers says of single rows, each computed once and with gradient."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.logits = cache(lambda *ids: next_token_logits(policy.model, *ids))

    def token(self, prompt: TokenIds, tokens: TokenIds, j: int, temperature: float) -> Tensor:
        """Full-vocabulary log-probability of token j."""
        logits = self.logits(*prompt, *tokens[:j]) / temperature
        return logits.log_softmax(-1)[tokens[j]]

    def written(self, prompt: TokenIds, tokens: TokenIds) -> Tensor:
        """[n] log-probability of each freely written token."""
        temperature = self.policy.acting.temperature
        return torch.stack([self.token(prompt, tokens, j, temperature) for j in range(len(tokens))])

    def offered(self, prompt: TokenIds, texts: Sequence[str]) -> Tensor:
        """[K] log-probability of each offered action, from the definition of each scheme."""
        policy, temperature = self.policy, self.policy.acting.temperature
        sequences = [policy.codec.action(text) for text in texts]
        if policy.acting.scheme == "trie":
            return torch.stack([self._walk(prompt, tokens, sequences) for tokens in sequences])
        scores: list[Tensor] = []
        for text, tokens in zip(texts, sequences, strict=True):
            counted = tokens if policy.acting.score_end else tokens[:-1]
            divisor = {"word": len(text.split()), "token": len(counted), "sum": 1}[
                policy.acting.score
            ]
            each = [self.token(prompt, tokens, j, 1.0) for j in range(len(counted))]
            scores.append(torch.stack(each).sum() / divisor)
        return (torch.stack(scores) / temperature).log_softmax(-1)

    def _walk(self, prompt: TokenIds, tokens: TokenIds, sequences: list[TokenIds]) -> Tensor:
        total = torch.zeros(())
        for j, token in enumerate(tokens):
            children = sorted({s[j] for s in sequences if s[:j] == tokens[:j] and len(s) > j})
            logits = self.logits(*prompt, *tokens[:j])[children] / self.policy.acting.temperature
            total = total + logits.log_softmax(-1)[children.index(token)]
        return total


# --- scores -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "tokenizer", "tuning"),
    [
        *((architecture, "bytes", "full") for architecture in CONFIGURATIONS),
        *(("llama", tokenizer, "lora") for tokenizer in ("bytes_without_pad", "pieces")),
    ],
)
def test_probabilities_equal_brute_force(zoo: Zoo, architecture, tokenizer, tuning):
    model = zoo.load(architecture, tokenizer, tuning)
    plain = Plain(policy_of(model))
    for scheme in SCHEMES:
        plain.policy = policy = policy_of(model, scheme, temperature=0.7)
        for observation in (OFFER, OTHER_OFFER, FAR):
            found = torch.tensor(policy.probabilities(observation))
            prompt, texts = policy.codec.prompt(observation.prompt), observation.admissible_actions
            with torch.no_grad():
                assert_same(found.log(), plain.offered(prompt, listed(texts)))
            assert_same(found.sum(), 1.0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_half_precision_probabilities_sum_to_one(zoo: Zoo, scheme):
    policy = policy_of(zoo.load(dtype="bfloat16"), scheme)
    for observation in (OFFER, OTHER_OFFER, FAR):
        found = torch.tensor(policy.probabilities(observation))
        assert found.isfinite().all()
        assert found.sum().item() == pytest.approx(1.0, abs=1e-2)
    for action in policy.act(MIXED, rng()):
        assert all(-math.inf < logprob <= 0.0 for logprob in action.logprob)


def test_the_end_counts_in_scores_only_if_asked_to(zoo: Zoo):
    model = zoo.load()
    for score in ("word", "token"):
        without, counted = (policy_of(model, name) for name in (score, f"{score} with end"))
        one, other = (torch.tensor(p.probabilities(OFFER)) for p in (without, counted))
        assert (one - other).abs().max() > 0.01


def test_offers_of_single_tokens_are_scored_by_words_too(zoo: Zoo):
    policy = policy_of(zoo.load(), "word")
    prompt, end = policy.codec.prompt(PROMPTS[0]), policy.codec.end_id
    for texts in (("look", "wait"), ("red door", "look")):  # the first is a word in two
        trie = ActionTrie.build([(60, end), (61, end)], texts)
        action = Action(texts[0], (60, end), (True, False), (0.0, 0.0), trie, (0, 1))
        batch, decision, option = policy.decisions([Turn(prompt, action, 0.0)])
        assert batch.read.shape == (1, 2, 1)
        with torch.no_grad():
            scores = next_token_logits(policy.model, *prompt).log_softmax(-1)[[60, 61]]
            scores = scores / torch.tensor([len(text.split()) for text in texts])
            assert_same(policy.evaluate(batch).logprob[decision[0]], scores.log_softmax(-1))
        assert option[0] == 0


# --- what is recorded -------------------------------------------------------------------------


def acted(policy: Policy, times: int = 3) -> list[tuple[Observation, Action]]:
    observations = MIXED * times
    return list(zip(observations, policy.act(observations, rng()), strict=True))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_recorded_logprobs_equal_brute_force(zoo: Zoo, scheme):
    policy = policy_of(zoo.load(), scheme, temperature=0.7)
    plain = Plain(policy)
    for observation, action in acted(policy):
        prompt, offered = policy.codec.prompt(observation.prompt), observation.admissible_actions
        with torch.no_grad():
            if offered is None or scheme == "published":
                expected = plain.written(prompt, action.token_ids)
                counted = torch.tensor(action.choice)
                assert_same(torch.tensor(action.logprob), expected.where(counted, torch.zeros(())))
            else:
                expected = plain.offered(prompt, listed(offered))[
                    listed(offered).index(action.text)
                ]
                assert_same(sum(action.logprob), expected)


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("architecture", CONFIGURATIONS)
def test_before_the_first_update_the_learner_sees_what_was_recorded(zoo, architecture, tuning):
    model = zoo.load(architecture, tuning=tuning)
    for scheme in SCHEMES:
        for temperature in (1.0, 0.7):
            policy = policy_of(model, scheme, temperature=temperature)
            turns = [turn_of(policy, *pair) for pair in acted(policy)]
            for seed in (0, 1):  # other company, other order, other padding
                order = rng(seed).permutation(len(turns))[: len(turns) - 7 * seed]
                some_turns = [turns[i] for i in order]
                recorded = [logprob for turn in some_turns for logprob in turn.action.logprob]
                batch, decision, option = policy.decisions(some_turns)
                bundles = torch.randperm(len(batch.bundles.cost))
                compared = 0
                for some in bundles.split(2 + seed):
                    part, kept, _ = batch.select(some)
                    with torch.no_grad():
                        logprob = policy.evaluate(part).logprob
                    for q, whole in enumerate(kept.tolist()):
                        for m in (decision == whole).nonzero().squeeze(1).tolist():
                            found = logprob[q, option[m]].item()
                            assert found == pytest.approx(recorded[m], abs=EXACT), (scheme, m)
                            compared += 1
                assert compared == int((decision >= 0).sum()) > 0


@pytest.mark.parametrize("architecture", CONFIGURATIONS)
def test_in_float32_the_learner_sees_what_was_recorded_up_to_rounding(zoo: Zoo, architecture):
    with float32():
        policy = policy_of(zoo.load(architecture))
        assert policy.model.module.dtype is torch.float32
        turns = [turn_of(policy, *pair) for pair in acted(policy)]
        batch, decision, option = policy.decisions(turns)
        with torch.no_grad():
            found = policy.evaluate(batch).logprob[decision, option]
    recorded = torch.tensor([value for turn in turns for value in turn.action.logprob])
    apart = (found - recorded)[decision >= 0].abs()
    assert float(apart.max()) <= drift()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_choice_is_a_decision_and_nothing_else_is(zoo: Zoo, scheme):
    policy = policy_of(zoo.load(), scheme)
    pairs = acted(policy)
    _, decision, _ = policy.decisions([turn_of(policy, *pair) for pair in pairs])
    lengths = [len(action.token_ids) for _, action in pairs]
    for (_, action), row in zip(pairs, decision.split(lengths), strict=True):
        assert len(action.choice) == len(action.logprob) == len(row)
        assert tuple((row >= 0).tolist()) == action.choice
        for choice, logprob in zip(action.choice, action.logprob, strict=True):
            assert logprob <= 0.0 if choice else logprob == 0.0


def test_equal_decisions_are_computed_once(zoo: Zoo):
    policy = policy_of(zoo.load())
    turns = [turn_of(policy, *pair) for pair in acted(policy, times=1)]
    once, several = (policy.decisions(turns * times)[0] for times in (1, 4))
    assert once.positions == several.positions
    assert torch.equal(once.token, several.token)


# --- offered actions --------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_acted_was_offered_token_for_token(zoo: Zoo, scheme):
    policy = policy_of(zoo.load(), scheme)
    for action in policy.act([OFFER] * 40, rng()):
        assert action.text in ACTIONS
        assert action.token_ids == policy.codec.action(action.text)
        trie = policy.codec.trie(ACTIONS)
        assert action.trie is trie
        assert trie.path(action.nodes[-1]) == action.nodes
        assert tuple(trie.tokens[node] for node in action.nodes) == action.token_ids


def test_along_the_trie_a_token_is_a_choice_where_it_has_a_rival(zoo: Zoo):
    policy = policy_of(zoo.load())
    found = {a.text: a.choice for a in policy.act([OFFER] * 400, rng(), cache=ActingCache())}
    # Forced are: door behind red and blue, most of the rest of look, chop, take and wait, and the
    # end wherever nothing goes on. Only behind "open" the end has rivals.
    assert found["open"] == (True, True)
    assert found["open door"] == (True, True, False)
    assert found["open red door"] == (True, True, False, False)
    for text in ("look", "take tomato"):
        assert found[text] == (True, *(False,) * (len(found[text]) - 1))


def test_an_action_may_begin_another(zoo: Zoo):
    policy = policy_of(zoo.load())
    offered = ("open", "open door")
    observation = Observation(PROMPTS[0], offered)
    prompt, end = policy.codec.prompt(PROMPTS[0]), policy.codec.end_id
    both = {a.text: a for a in policy.act([observation] * 200, rng())}
    assert both["open"].choice == (False, True)
    assert both["open door"].choice == (False, True, False)
    with torch.no_grad():
        (opening, door, _) = policy.codec.action("open door")
        logits = next_token_logits(policy.model, *prompt, opening)
        assert_same(both["open"].logprob[1], logits[[end, door]].log_softmax(-1)[0])
    assert_same(sum(policy.probabilities(observation)), 1.0)


@pytest.mark.parametrize("scheme", ["word", "sum"])
def test_a_whole_action_is_one_decision_at_its_first_token(zoo: Zoo, scheme):
    policy = policy_of(zoo.load(), scheme)
    for action in policy.act([OFFER] * 20, rng()):
        assert action.choice == (True, *(False,) * (len(action.token_ids) - 1))


@pytest.mark.parametrize("score_end", [False, True])
def test_the_published_code_counts_every_token(zoo: Zoo, score_end):
    policy = policy_of(zoo.load(), "published", score_end=score_end)
    for action in policy.act([OFFER, FORCED] * 9, rng()):
        assert action.choice == (*(True,) * (len(action.token_ids) - 1), score_end)


@pytest.mark.parametrize("scheme", ["trie", "word", "sum"])
def test_a_single_offered_action_costs_nothing(zoo: Zoo, scheme):
    policy = policy_of(zoo.load(), scheme)
    with counting(policy.model) as sizes:
        action = act(policy, FORCED)
        assert policy.probabilities(FORCED) == [1.0]
    assert sizes == []
    assert action.text == "take tomato"
    assert set(action.logprob) == {0.0}
    assert not any(action.choice)
    with pytest.raises(ValueError, match="held a choice"):
        policy.decisions([turn_of(policy, FORCED, action)])


@pytest.mark.parametrize(
    ("offered", "error"),
    [
        ((), "at least one"),
        (("look", " "), "no tokens"),
        (("look", "look"), "have the same tokens"),
    ],
)
@pytest.mark.parametrize("scheme", ["trie", "word"])
def test_offers_that_cannot_be_are_errors(zoo: Zoo, scheme, offered, error):
    with pytest.raises(ValueError, match=error):
        act(policy_of(zoo.load(), scheme), Observation("You see.", offered))


# --- cost -------------------------------------------------------------------------------------


def through_rooms(count: int) -> Observation:
    """Offers of which each has two or three choices, and a long forced tail."""
    names = [f"go {a} {b} then wait and look" for a in "abcdefghij" for b in "vwxyz"]
    return Observation(PROMPTS[1], (*names[: count - 1], "look"))


@pytest.mark.parametrize("count", [5, 50])
def test_a_decision_costs_its_path_up_to_the_last_choice(zoo: Zoo, count):
    policy = policy_of(zoo.load())
    observation = through_rooms(count)
    prompt = policy.codec.prompt(observation.prompt)
    for seed in range(6):
        with counting(policy.model) as sizes:
            action = act(policy, observation, seed)
        before_last_choice = max(j for j, choice in enumerate(action.choice) if choice)
        if len(sizes) > 1 or count == 50:  # far behind the prompt: walked to
            assert sum(sizes) == len(prompt) + before_last_choice
        else:  # close: all of them read at once
            assert sum(sizes) <= len(prompt) + 8
        batch, _, _ = policy.decisions([turn_of(policy, observation, action)])
        assert pack(batch.positions, batch.pad_id).tokens == len(prompt) + before_last_choice
        with counting(policy.model) as sizes:
            policy.evaluate(batch)
        assert sizes == [pack(batch.positions, batch.pad_id).tokens]


def test_whole_actions_are_scored_in_one_pass_with_the_prompt_once(zoo: Zoo):
    policy = policy_of(zoo.load(), "sum")
    with counting(policy.model) as sizes:
        act(policy, OFFER)
    sequences = [policy.codec.action(text) for text in ACTIONS]
    # The last token that counts is predicted, and neither it nor the end behind it is ever read.
    behind = {tokens[:j] for tokens in sequences for j in range(1, len(tokens) - 1)}
    assert sizes == [len(policy.codec.prompt(OFFER.prompt)) + len(behind)]


def test_equal_observations_share_one_row(zoo: Zoo):
    policy = policy_of(zoo.load())
    with counting(policy.model) as sizes:
        policy.act([OTHER_OFFER] * 30, rng())
    prompt = policy.codec.prompt(OTHER_OFFER.prompt)
    assert sizes == [len(prompt) + 1]  # the root, and behind "open"


@pytest.mark.parametrize("scheme", ["trie", "word", "published"])
def test_passes_of_bounded_size_act_the_same(zoo: Zoo, scheme):
    """The draws come in the same order, so even a shared source of randomness gives the same."""
    model, budget = zoo.load(), 300
    crowd = [Observation(f"{PROMPTS[i % 4]} " * (1 + 2 * (i % 3)) + str(i)) for i in range(12)]
    crowd += [replace(o, admissible_actions=ACTIONS) for o in crowd]
    acted, columns = [], []
    for tokens in (budget, 10**6):
        policy = policy_of(model, scheme, pass_tokens=tokens, max_action_tokens=6)
        with counting(model) as sizes:
            acted.append(policy.act(crowd, rng()))
        columns.append(max(sizes))
    assert columns[0] <= budget < columns[1]
    for one, other in zip(*acted, strict=True):
        assert (one.text, one.token_ids, one.choice) == (other.text, other.token_ids, other.choice)
        assert one.logprob == pytest.approx(other.logprob, abs=EXACT)


def test_a_thousand_offers_of_one_prompt_keep_to_the_budget(zoo: Zoo):
    """The softmax runs over all of them, although no pass reads all."""
    model = zoo.load()
    offers = tuple(f"{a} the {b} {c}" for a in "abcdefghij" for b in range(10) for c in range(10))
    observation, budget = Observation(PROMPTS[1], offers), 500
    probabilities, acted = [], []
    for tokens in (budget, 10**6):
        policy = policy_of(model, "word", pass_tokens=tokens)
        with counting(model) as sizes:
            probabilities.append(policy.probabilities(observation))
            acted.append(act(policy, observation).text)
        assert max(sizes) <= budget or (tokens > budget and max(sizes) > 10 * budget)
    assert_same(*map(torch.tensor, probabilities))
    assert sum(probabilities[0]) == pytest.approx(1.0, abs=EXACT)
    assert acted[0] == acted[1]


def test_what_the_backward_pass_of_many_offers_keeps_is_bounded(zoo: Zoo):
    """With four times as many offers, a pass of the same size keeps hardly more."""
    policy, kept = policy_of(zoo.load(), "word"), []
    for count in (100, 400):
        offers = tuple(f"open door number {i} and look" for i in range(count))
        observation = Observation(PROMPTS[1], offers)
        batch, _, _ = policy.decisions([turn_of(policy, observation, act(policy, observation))])
        for tokens in (300, 10**6):
            sizes: list[int] = []

            def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
                sizes.append(tensor.numel())
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                policy.evaluate(batch, tokens)
            kept.append(sum(sizes))
    few, few_at_once, many, many_at_once = kept
    assert many < many_at_once / 20
    assert many - few < (many_at_once - few_at_once) / 20


# --- the limit of the context -----------------------------------------------------------------


@pytest.mark.parametrize("thinking", [0, 8])
@pytest.mark.parametrize("scheme", ["trie", "word", "free"])
def test_prompt_thoughts_and_action_fit_into_the_context(zoo: Zoo, scheme, thinking):
    """Also thoughts that had to be closed, and offers longer than a written action may be."""
    model = zoo.load("gpt2")
    limit = model.context_length
    assert limit == 128
    if scheme == "word" and thinking:
        return  # whole-action scores take no thoughts
    prompt = PromptConfig(thinking=thinking)
    acting = replace(SCHEMES["trie" if scheme == "free" else scheme], max_action_tokens=6)
    policy = Policy(model, acting, prompt)
    offered = None if scheme == "free" else tuple(f"{a} {'qzxy ' * 12}{a}" for a in ACTIONS)
    observation = Observation("xyzq " * 60 + "You", offered)
    ids = policy.prompt_ids(observation)
    for seed in range(3):
        action = act(policy, observation, seed)
        assert len(ids) + len(action.token_ids) - 1 <= limit  # the last one is never read
        batch, decision, option = policy.decisions([Turn(ids, action, 0.0)])
        mine = decision >= 0
        found = policy.evaluate(batch).logprob[decision[mine], option[mine]]
        assert_same(found, torch.tensor(action.logprob)[torch.tensor(action.choice)])
    if offered:  # the prompt is no shorter than it must be
        longest = max(len(policy.codec.action(each)) for each in offered)
        assert len(ids) + longest >= limit - thinking - 12


# --- models that are broken -------------------------------------------------------------------


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("scheme", ["trie", "word", "published", "free"])
@pytest.mark.parametrize(
    ("layer", "factor", "says"),
    [
        ("model.layers.1.mlp.down_proj", math.nan, "1536 of the 1536 weights in .*down_proj"),
        ("lm_head", 1e307, "its weights are finite, so its activations overflow"),
    ],
)
def test_a_model_without_probabilities_does_not_act(zoo: Zoo, scheme, greedy, layer, factor, says):
    model = zoo.load()
    with torch.no_grad():
        for name in (layer, "model.norm"):
            model.module.get_parameter(f"{name}.weight").mul_(factor)
    policy = policy_of(model, "trie" if scheme == "free" else scheme)
    offered = None if scheme == "free" else ACTIONS
    observation = Observation(PROMPTS[0], offered)
    with pytest.raises(ModelError, match=r"not finite behind the prompt .*Your action:.*" + says):
        act(policy, observation, greedy=greedy)
    if offered:
        with pytest.raises(ModelError, match=says):
            policy.probabilities(observation)


# --- sampling ---------------------------------------------------------------------------------


def chi_square(counts: Sequence[int], probabilities: Sequence[float]) -> tuple[float, int]:
    """The statistic and its degrees of freedom, rare outcomes taken together."""
    total = sum(counts)
    cells = [(c, p * total) for c, p in zip(counts, probabilities, strict=True) if p * total >= 5]
    rest = total - sum(c for c, _ in cells), total - sum(e for _, e in cells)
    cells += [rest] if rest[1] >= 1 else []
    return sum((c - e) ** 2 / e for c, e in cells), len(cells) - 1


@pytest.mark.parametrize(
    ("scheme", "temperature"),
    [("trie", 1.0), ("trie", 2.0), ("word", 1.0), ("sum", 5.0), ("published", 0.7)],
)
def test_actions_are_sampled_as_often_as_they_are_likely(zoo: Zoo, scheme, temperature):
    policy = policy_of(zoo.load(), scheme, temperature=temperature)
    actions = policy.act([OFFER] * 3000, rng())
    counts = [sum(a.text == text for a in actions) for text in ACTIONS]
    statistic, freedom = chi_square(counts, policy.probabilities(OFFER))
    assert freedom >= 3
    assert statistic < freedom + 6 * math.sqrt(2 * freedom)  # the seed is fixed; about 1 in 10⁵


def test_tokens_are_written_as_often_as_they_are_likely(zoo: Zoo):
    policy = policy_of(zoo.load(), max_action_tokens=1, temperature=0.8)
    prompt = policy.codec.prompt(PROMPTS[2])
    actions = policy.act([Observation(PROMPTS[2])] * 3000, rng())
    with torch.no_grad():
        expected = (next_token_logits(policy.model, *prompt) / 0.8).softmax(-1).tolist()
    counts = np.bincount([a.token_ids[0] for a in actions], minlength=len(expected)).tolist()
    statistic, freedom = chi_square(counts, expected)
    assert freedom >= 10
    assert statistic < freedom + 6 * math.sqrt(2 * freedom)


def test_greedy_takes_the_likeliest_at_every_node(zoo: Zoo):
    for scheme in ("trie", "word", "published"):
        policy = policy_of(zoo.load(), scheme)
        observations = [Observation(prompt, ACTIONS) for prompt in PROMPTS]
        for observation, action in zip(
            observations, policy.act(observations, rng(), greedy=True), strict=True
        ):
            if scheme != "trie":
                probabilities = policy.probabilities(observation)
                assert action.text == ACTIONS[int(np.argmax(probabilities))]
                continue
            batch, decision, option = policy.decisions([turn_of(policy, observation, action)])
            best = policy.evaluate(batch).logprob.argmax(1)
            for j, choice in enumerate(action.choice):
                assert not choice or best[decision[j]] == option[j]


def test_greedy_writing_takes_the_likeliest_token(zoo: Zoo):
    policy = policy_of(zoo.load(), temperature=3.0)
    for action, prompt in zip(
        policy.act([Observation(p) for p in PROMPTS], rng(), greedy=True), PROMPTS, strict=True
    ):
        ids = policy.codec.prompt(prompt)
        for j, token in enumerate(action.token_ids):
            logits = next_token_logits(policy.model, *ids, *action.token_ids[:j])
            assert token == int(logits.argmax())


@pytest.mark.parametrize("scheme", ["trie", "word", "published"])
def test_with_a_generator_each_what_one_does_depends_on_no_other(zoo: Zoo, scheme):
    policy = policy_of(zoo.load(), scheme)
    together = policy.act(MIXED, [rng(seed) for seed in range(len(MIXED))])
    for seed, (observation, action) in enumerate(zip(MIXED, together, strict=True)):
        alone = act(policy, observation, seed)
        assert (alone.text, alone.token_ids) == (action.text, action.token_ids)
        assert_same(alone.logprob, action.logprob)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_cache_changes_nothing_and_saves_every_pass(zoo: Zoo, scheme):
    policy = policy_of(zoo.load(), scheme)
    offers = [o for o in MIXED if o.admissible_actions]
    cache = ActingCache()
    for seed in range(60):  # in other company
        policy.act(offers[:: 1 - 2 * (seed % 2)], rng(seed), cache=cache)
    each = range(3, 3 + len(offers))
    fresh = policy.act(offers, [rng(seed) for seed in each])
    with counting(policy.model) as sizes:
        remembered = policy.act(offers, [rng(seed) for seed in each], cache=cache)
    assert sizes == []
    for one, other in zip(fresh, remembered, strict=True):
        assert (one.text, one.token_ids, one.choice) == (other.text, other.token_ids, other.choice)
        assert_same(one.logprob, other.logprob)


def test_a_cache_forgets_when_prompts_never_repeat(zoo: Zoo, monkeypatch):
    monkeypatch.setattr("poad.agent.sampling._CACHED_TOKENS", 200)
    policy, cache = policy_of(zoo.load()), ActingCache()
    for day in range(30):
        seen = [Observation(f"Day {day}, room {room}.", ("open", "look")) for room in range(3)]
        acted = policy.act(seen, [rng(day) for _ in seen], cache=cache)
        assert sum(len(prompt) for prompt, _, _ in cache.node_choices) <= 200
        assert acted == policy.act(seen, [rng(day) for _ in seen])
    assert cache.node_choices


def test_probabilities_are_remembered_too(zoo: Zoo):
    policy = policy_of(zoo.load())
    cache = ActingCache()
    first = policy.probabilities(OFFER, cache)
    with counting(policy.model) as sizes:
        assert policy.probabilities(OFFER, cache) == first
    assert sizes == []
    policy.act([OFFER], rng(), cache=cache)  # one cache serves both
    assert_same(policy.probabilities(OFFER), first)


# --- writing freely ---------------------------------------------------------------------------


def scripted(policy: Policy, monkeypatch: pytest.MonkeyPatch, *tokens: int) -> Action:
    """The action of a model that is bound to write these tokens and then nothing special."""
    script = iter(tokens)

    def logits(_: Tensor) -> Tensor:
        one_hot = torch.zeros(1, len(policy.codec.tokenizer))
        one_hot[0, next(script)] = 50.0
        return one_hot

    monkeypatch.setattr(policy.model, "logits", logits)
    (action,) = policy.act([WRITE], rng())
    return action


def ids(policy: Policy, text: str) -> list[int]:
    return policy.codec.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_writing_stops_at_a_stop_text_and_leaves_it_out(zoo: Zoo, monkeypatch):
    policy = policy_of(zoo.load(), stop=("\n",), max_action_tokens=50)
    tokens = ids(policy, " open door\n look")
    action = scripted(policy, monkeypatch, *tokens)
    upto = len(ids(policy, " open door\n"))
    assert action.text == "open door"
    assert list(action.token_ids) == tokens[:upto]  # the stop itself was sampled and is learned
    assert action.choice == (True,) * upto
    assert action.trie is None


def test_the_earliest_of_several_stop_texts_cuts(zoo: Zoo, monkeypatch):
    policy = policy_of(zoo.load(), stop=("!", "en do", "zzz"), max_action_tokens=50)
    action = scripted(policy, monkeypatch, *ids(policy, " open door! look"))
    assert action.text == "op"  # a stop text may lie across tokens and inside one
    assert list(action.token_ids) == ids(policy, " open door")


def test_writing_stops_at_the_end_token(zoo: Zoo, monkeypatch):
    policy = policy_of(zoo.load(), stop=(), max_action_tokens=50)
    tokens = [*ids(policy, " look"), policy.codec.end_id, *ids(policy, " wait")]
    action = scripted(policy, monkeypatch, *tokens)
    assert action.text == "look"
    assert action.token_ids == policy.codec.action("look")


def test_the_token_budget_ends_the_action_and_is_no_error(zoo: Zoo, monkeypatch):
    policy = policy_of(zoo.load(), stop=(), max_action_tokens=2)
    action = scripted(policy, monkeypatch, *ids(policy, " open red door"))
    assert action.text == "open red"
    assert len(action.token_ids) == len(action.logprob) == 2


@pytest.mark.parametrize("tokenizer", ["bytes", "pieces"])
def test_writing_ends_where_it_should_and_nowhere_else(zoo: Zoo, tokenizer):
    policy = policy_of(zoo.load("llama", tokenizer))
    actions = policy.act([WRITE, Observation(PROMPTS[0])] * 40, rng())
    assert len({len(action.token_ids) for action in actions}) > 3
    decode, stops = policy.codec.tokenizer.decode, policy.acting.stop or ()
    for action in actions:
        *inner, last = action.token_ids
        assert not any(stop in decode(inner) for stop in stops)
        assert policy.codec.end_id not in inner
        stopped = any(stop in decode(action.token_ids) for stop in stops)
        full = len(action.token_ids) == policy.acting.max_action_tokens
        assert stopped or full or last == policy.codec.end_id
        assert not any(stop in action.text for stop in stops)
        assert decode(action.token_ids).strip().startswith(action.text)


def test_writing_computes_a_prompt_once_and_then_one_token_at_a_time(zoo: Zoo):
    policy = policy_of(zoo.load())
    with counting(policy.model) as sizes:
        actions = policy.act([WRITE] * 20, rng())
    prompt = len(policy.codec.prompt(WRITE.prompt))
    lengths = [len(action.token_ids) for action in actions]
    assert sizes[0] == prompt  # equal prompts share it
    assert sizes[1:] == [sum(n > j for n in lengths) for j in range(1, max(lengths))]


def test_an_action_is_handed_over_while_others_are_still_being_written(zoo: Zoo):
    policy = policy_of(zoo.load())
    generators = [rng(seed) for seed in range(20)]
    whole = policy.act([WRITE] * 20, generators)
    lengths = [len(action.token_ids) for action in whole]
    assert min(lengths) < max(lengths)
    with counting(policy.model) as sizes:
        passes = {}
        for i, action in policy.act_each([WRITE] * 20, [rng(seed) for seed in range(20)]):
            assert action == whole[i]
            passes[i] = len(sizes)
    assert [passes[i] for i in range(20)] == lengths


def test_what_one_writes_depends_on_no_prompt_beside_it(zoo: Zoo):
    policy = policy_of(zoo.load())
    other = Observation(PROMPTS[0])
    alone = [policy.act([WRITE], rng(seed))[0] for seed in range(6)]
    mixed = policy.act([WRITE, other] * 6, [rng(seed // 2) for seed in range(12)])[::2]
    for one, beside in zip(alone, mixed, strict=True):
        assert one.token_ids == beside.token_ids
        assert one.logprob == pytest.approx(beside.logprob, abs=EXACT)


@pytest.mark.parametrize("scheme", ["trie", "word", "published"])
def test_worlds_that_offer_and_worlds_that_do_not_act_side_by_side(zoo: Zoo, scheme):
    policy = policy_of(zoo.load(), scheme)
    for observation, action in acted(policy):
        assert (action.trie is None) == (observation.admissible_actions is None)
        if observation.admissible_actions:
            assert action.text in listed(observation.admissible_actions)
        else:
            assert all(action.choice)


# --- learning ---------------------------------------------------------------------------------


def distribution_at(plain: Plain, turn: Turn, j: int) -> tuple[Tensor, list[int]]:
    """Log-probabilities of the tokens that a turn's token j was chosen from, and these tokens."""
    action, policy = turn.action, plain.policy
    logits = plain.logits(*turn.prompt_ids, *action.token_ids[:j]) / policy.acting.temperature
    if action.trie is None or policy.acting.scheme == "published":
        return logits.log_softmax(-1), list(range(len(logits)))
    siblings = action.trie.options(action.trie.parent(action.nodes[j]))
    tokens = [action.trie.token(node) for node in siblings]
    return logits[tokens].log_softmax(-1), tokens


def expected_terms(plain: Plain, turn: Turn, j: int) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of the decision at a turn's token j, by brute force."""
    prompt, action, policy = turn.prompt_ids, turn.action, plain.policy
    if action.trie is not None and policy.acting.scheme == "score":
        texts = listed(action.trie.offer)
        distribution, taken = plain.offered(prompt, texts), texts.index(action.text)
    else:
        distribution, tokens = distribution_at(plain, turn, j)
        taken = tokens.index(action.token_ids[j])
    return distribution[taken], -(distribution.exp() * distribution).sum()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("architecture", "tuning"), [("llama", "full"), ("gpt2", "lora")])
def test_entropies_and_gradients_equal_brute_force(zoo: Zoo, architecture, tuning, scheme):
    model = zoo.load(architecture, tuning=tuning)
    policy = policy_of(model, scheme, temperature=0.7)
    turns = [turn_of(policy, *pair) for pair in acted(policy, times=1)]
    batch, decision, option = policy.decisions(turns)
    found = policy.evaluate(batch)
    plain = Plain(policy)
    places = [(turn, j) for turn in turns for j in range(len(turn.action.token_ids))]
    slots = (decision >= 0).nonzero().squeeze(1).tolist()
    weights = torch.randn(len(slots), 2, generator=torch.Generator().manual_seed(0))
    one, other = torch.zeros(()), torch.zeros(())
    for m, weight in zip(slots, weights, strict=True):
        terms = found.logprob[decision[m], option[m]], found.entropy[decision[m]]
        expected = expected_terms(plain, *places[m])
        for term, target, w in zip(terms, expected, weight, strict=True):
            assert_same(term, target)
            one, other = one + w * term, other + w * target
    gradient, brute = (
        torch.cat([part.flatten() for part in torch.autograd.grad(whole, model.parameters())])
        for whole in (one, other)
    )
    assert float(brute.norm()) > 1.0
    assert float((gradient - brute).norm()) <= EXACT * float(brute.norm())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("architecture", "rest"),
    [
        ("llama", {}),
        ("qwen", {"gradient_checkpointing": True}),
        ("gpt2", {"tuning": "lora"}),
    ],
    ids=["full", "checkpointed", "lora"],
)
def test_decisions_read_in_several_passes_are_the_same(zoo: Zoo, architecture, rest, scheme):
    """Whatever a pass leaves out: probabilities, entropies, divergences and their gradients."""
    model = zoo.load(architecture, keep_reference=True, **rest)
    policy = policy_of(model, scheme, temperature=0.7)
    offers = [f"{one} the {other} zygote" for one in ("open", "take", "chop") for other in "abcd"]
    crowd = [Observation(PROMPTS[0], tuple(offers)), Observation(PROMPTS[0])]
    crowd = crowd[: 2 if policy.acting.scheme == "trie" else 1]
    turns = [turn_of(policy, o, act(policy, o, seed)) for o in crowd for seed in range(12)]
    also = [(t.prompt_ids, t.action.beginnings[j]) for t in turns for j in (0, -1)]
    batch, _, _ = policy.decisions(turns, also, divide=False)
    assert len(batch.bundles.cost) == 1
    frozen = read_hidden(model, model.read_frozen, batch.positions, sys.maxsize)
    batch = replace(batch, reference=frozen)
    longest = max(len(prompt) + len(beginning) for prompt, beginning in batch.positions)
    codes = torch.randn(model.vocabulary, 3, generator=torch.Generator().manual_seed(0))
    found, gradients, columns = [], [], []
    for tokens in (10**6, 1):
        with counting(model) as sizes:
            found.append(evaluate(model, batch, policy.acting, tokens, codes))
            columns.append(list(sizes))
            options = torch.exp(found[-1].logprob)
            terms = torch.cat([part.flatten() for part in (options, *found[-1][1:])])
            total = (terms * torch.linspace(1, 2, len(terms))).sum()
            gradient = torch.autograd.grad(total, model.parameters())
            gradients.append(torch.cat([part.flatten() for part in gradient]))
            assert len(sizes) == len(columns[-1]) * (2 if tokens == 1 else 1)
    assert len(columns[0]) == 1 < len(columns[1])
    assert max(columns[1]) <= 2 * longest  # a single row is not divided
    assert max(columns[1]) < columns[0][0]
    for one, other in zip(*found, strict=True):
        assert_same(one, other)
    assert float(gradients[0].norm()) > 0.1
    assert_same(gradients[1], gradients[0])


@pytest.mark.parametrize("scheme", ["trie", "published"])
def test_what_is_known_before_a_decision_equals_brute_force(zoo: Zoo, scheme):
    """Its entropy, and the mean of the codes of the tokens that may be taken."""
    model = zoo.load()
    policy = policy_of(model, scheme, temperature=0.7)
    turns = [turn_of(policy, *pair) for pair in acted(policy, times=1)]
    batch, decision, _ = policy.decisions(turns)
    codes = torch.randn(model.vocabulary, 3, generator=torch.Generator().manual_seed(0))
    entropy, mean_code = policy.outlook(batch, 40, codes)
    plain = Plain(policy)
    places = [(turn, j) for turn in turns for j in range(len(turn.action.token_ids))]
    for m in (decision >= 0).nonzero().squeeze(1).tolist():
        distribution, tokens = distribution_at(plain, *places[m])
        assert_same(entropy[decision[m]], -(distribution.exp() * distribution).sum())
        assert_same(mean_code[decision[m]], distribution.exp() @ codes[tokens])


@pytest.mark.parametrize("tokens", [10**6, 40], ids=["one pass", "several passes"])
@pytest.mark.parametrize(("architecture", "tuning"), [("llama", "full"), ("gpt2", "lora")])
def test_choices_between_tokens_need_no_other_logits(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, architecture, tuning, tokens: int
):
    """Logits of the options alone give what those of the whole vocabulary give."""
    monkeypatch.setattr("poad.lm.model.LARGE_VOCABULARY", 1)
    model = zoo.load(architecture, tuning=tuning, keep_reference=True)
    policy = policy_of(model, temperature=0.7)
    offers = [o for o in MIXED if o.admissible_actions]
    turns = [turn_of(policy, o, act(policy, o, seed)) for o in offers for seed in range(6)]
    also = [(t.prompt_ids, ()) for t in turns]
    batch, _, _ = policy.decisions(turns, also)
    frozen = read_hidden(model, model.read_frozen, batch.positions, sys.maxsize)
    batch = replace(batch, reference=frozen)
    assert batch.between_single_tokens
    with torch.no_grad():
        for i, weight in enumerate(model.parameters()):
            weight += 0.05 * torch.sin(torch.arange(weight.numel()).reshape(weight.shape) + i)
    codes = torch.randn(model.vocabulary, 3, generator=torch.Generator().manual_seed(0))
    found, gradients = [], []
    for restricted in (True, False):
        if not restricted:
            monkeypatch.setattr(type(batch), "between_single_tokens", False)
        asked: list[bool] = []
        logits = type(model).logits

        def spy(*arguments: Any, asked: list[bool] = asked, logits: Any = logits) -> Tensor:
            asked.append(len(arguments) > 2 and arguments[2] is not None)
            return logits(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(type(model), "logits", spy)
            found.append(evaluate(model, batch, policy.acting, tokens, codes))
        assert set(asked) == {restricted}
        options = torch.exp(found[-1].logprob)
        terms = torch.cat([part.flatten() for part in (options, *found[-1][1:])])
        gradient = torch.autograd.grad(
            (terms * torch.linspace(1, 2, len(terms))).sum(), model.parameters()
        )
        gradients.append(torch.cat([part.flatten() for part in gradient]))
    assert float(found[1].kl_reference.detach().sum()) > 0.01
    for one, other in zip(*found, strict=True):
        assert_same(one, other)
    assert float(gradients[1].norm()) > 0.1
    assert_same(*gradients)


# --- a temperature of its own for free writing ------------------------------------------------


def test_free_writing_has_a_temperature_of_its_own(zoo: Zoo):
    """Offered actions are chosen at one temperature, tokens are written at the other."""
    model = zoo.load()
    policy = policy_of(model, temperature=3.0, temperature_free=0.6)
    plain = Plain(policy_of(model, temperature=3.0))
    for observation, action in acted(policy, times=2):
        prompt, offered = policy.codec.prompt(observation.prompt), observation.admissible_actions
        with torch.no_grad():
            if offered is None:
                plain.policy = policy_of(model, temperature=0.6)
                assert_same(action.logprob, plain.written(prompt, action.token_ids))
            else:
                plain.policy = policy_of(model, temperature=3.0)
                expected = plain.offered(prompt, listed(offered))[
                    listed(offered).index(action.text)
                ]
                assert_same(sum(action.logprob), expected)
    for observation in (OFFER, FAR):
        found = policy.probabilities(observation)
        assert found == policy_of(model, temperature=3.0).probabilities(observation)


@pytest.mark.parametrize(
    ("scheme", "thinking"), [("trie", 0), ("trie", 5), ("word", 0), ("published", 0)]
)
def test_with_two_temperatures_the_learner_sees_what_was_recorded(zoo: Zoo, scheme, thinking: int):
    model = zoo.load(keep_reference=True)
    acting = replace(SCHEMES[scheme], **FREE, temperature=2.5, temperature_free=0.7)
    policy = Policy(model, acting, PromptConfig(thinking=thinking))
    turns = [
        Turn(policy.prompt_ids(o), act(policy, o, seed), 0.0) for o in MIXED for seed in range(3)
    ]
    recorded = torch.tensor([each for turn in turns for each in turn.action.logprob])
    batch, decision, option = policy.decisions(turns)
    for tokens in (sys.maxsize, 60):
        with torch.no_grad():
            found = policy.evaluate(batch, tokens).logprob[decision, option]
        chosen = decision >= 0
        assert_same(found[chosen], recorded[chosen])
    free = ~batch.renormalize
    assert free.any()
    assert scheme != "trie" or not free.all()


@pytest.mark.parametrize("scheme", ["trie", "word", "published"])
def test_without_one_free_writing_takes_the_temperature_of_choices(zoo: Zoo, scheme):
    model = zoo.load(keep_reference=True)
    found = []
    for free in (None, 0.7, 1.4):
        policy = policy_of(model, scheme, temperature=0.7, temperature_free=free)
        turns = [turn_of(policy, *pair) for pair in acted(policy, times=2)]
        batch, _, _ = policy.decisions(turns)
        reference = read_hidden(model, model.read_frozen, batch.positions, sys.maxsize)
        batch = replace(batch, reference=reference)
        evaluated = evaluate(model, batch, policy.acting, codes=torch.eye(model.vocabulary, 3))
        found.append(([turn.action for turn in turns], evaluated))
    assert found[0][0] == found[1][0]
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert torch.equal(one, other)
    assert found[0][0] != found[2][0]


def test_options_that_are_padding_are_impossible(zoo: Zoo):
    policy = policy_of(zoo.load())
    batch, _, _ = policy.decisions([turn_of(policy, *pair) for pair in acted(policy)])
    evaluated = policy.evaluate(batch)
    assert not batch.option_mask.all()
    assert (evaluated.logprob[~batch.option_mask] == -math.inf).all()
    assert evaluated.logprob[batch.option_mask].isfinite().all()
    assert evaluated.entropy.isfinite().all()
    assert evaluated.extra_hidden.shape == (0, policy.model.width)


def test_further_positions_are_read_in_the_same_pass(zoo: Zoo):
    policy = policy_of(zoo.load())
    turn = turn_of(policy, OFFER, act(policy, OFFER))
    also = [(turn.prompt_ids, ()), (turn.prompt_ids, turn.action.token_ids[:2]), ((5, 6), ())]
    batch, _, _ = policy.decisions([turn], also)
    hidden = policy.evaluate(batch).extra_hidden
    for state, (prompt, rest) in zip(hidden, also, strict=True):
        with torch.no_grad():
            logits = policy.model.logits(state), next_token_logits(policy.model, *prompt, *rest)
            assert_same(*(each.log_softmax(-1) for each in logits))


def test_a_hundred_offered_actions_are_one_trie_and_cost_a_path():
    """Distractors made of the world's own words: the walk stays exact, and stays cheap."""
    agent = load_agent(Config(env="poad/FoodPreparation-v0"))
    computed: list[int] = []
    for distractors in (0, 97):
        prompt, info = make("poad/FoodPreparation-v0", distractors=distractors).reset(seed=0)
        offered = info["admissible_actions"]
        assert len(offered) >= 5 + distractors
        seen = Observation(prompt, offered)
        assert sum(agent.policy.probabilities(seen)) == pytest.approx(1.0, abs=EXACT)
        with counting(agent.model) as sizes:
            for seed in range(20):
                (action,) = agent.policy.act([seen], np.random.default_rng(seed))
                assert action.text in offered
        computed.append(sum(sizes))
    assert computed[1] <= 1.3 * computed[0]
