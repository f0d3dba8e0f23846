"""One rollout of a random agent, counted in tokens and forward passes.

The real collector and the real policy act in the real world; only the language model is a stand-in
without weights. What an update and the critic would read is found by the learner's own functions.
:mod:`poad.plan.predict` turns the counts into memory and time.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poad.agent import (
    DecisionBatch,
    FrozenFeatures,
    Policy,
    Settings,
    listed_leaves,
    read_hidden,
)
from poad.config import SEEDS_PER_RUN, Config
from poad.envs import make
from poad.learn import Collector, lay_out
from poad.lm import (
    LARGE_VOCABULARY,
    Decoder,
    Packed,
    PassLimit,
    TextCodec,
    codec_for,
    context_length,
    find_source,
    load_tokenizer,
    pack_in_passes,
    packed_tokens,
    resolve_model,
)
from poad.plan.shape import describe
from poad.ranks import ALONE
from poad.trie import Form
from poad.turns import Position, Rollout

_TURNS = 2048
"""Turns to play at most. A larger rollout is scaled up from these."""
_WRITTEN = 4096
"""Tokens to write freely at most."""
_LOGITS = 500_000_000
"""Logits to compute at most; a few seconds' work."""
_WRITING_VOCABULARY = 4096
"""Tokens to draw from where nothing is offered. Fewer than a model has, to draw quickly."""


@dataclass(frozen=True)
class Sample:
    """The size of one rollout and of the update that follows it."""

    turns: int
    prompts: int
    """Distinct prompts."""
    prompt_tokens: float
    """Mean tokens of a distinct prompt."""
    action_tokens: float
    """Mean tokens of an action, thoughts included. Freely written actions fill their budget."""
    longest: int
    """Tokens of the longest prompt with its action."""
    offered: bool
    """True if every action was chosen from an offer."""
    acting_tokens: int
    """Tokens computed while acting."""
    acting_passes: int
    """Forward passes while acting, one after the other."""
    acting_logits: int
    """Positions where logits are computed in one pass of acting, at most."""
    update_tokens: int
    """Tokens computed in the update's first pass over the rollout."""
    update_passes: int
    """Forward passes in the update's first pass over the rollout."""
    tokens_at_once: int
    """Tokens that one forward pass would compute if it read the whole rollout."""
    update_positions: int
    """Distinct positions where an update computes logits."""
    few_logits: bool
    """True if logits are computed of the offered tokens alone, of a large vocabulary."""
    critic_tokens: int
    """Tokens computed for the critic's values before the first step."""
    critic_positions: int
    """Distinct positions where the critic reads."""
    tokenizer: bool = True
    """True if the model's own tokenizer counted the tokens, False if they are a guess."""


# --- a model that counts --------------------------------------------------------------------------


class CountingModel:
    """A language model without weights: every token is equally likely, and all work is counted.

    It has the part of :class:`poad.lm.LanguageModel` that acting and reading use. Its decoder is
    the real one around a body without layers, so that its caches decide what is computed again.

    Args:
        codec: the tokenizer.
        vocabulary: V, the number of logits.
        context_length: tokens of the longest sequence the model reads; None: no limit.
        branching: whether rows may be trees.
    """

    width = 1
    device = torch.device("cpu")
    ranks = ALONE
    shards = None

    def __init__(
        self,
        codec: TextCodec,
        vocabulary: int,
        context_length: int | None = None,
        branching: bool = True,
    ) -> None:
        self.codec, self.context_length, self.branching = codec, context_length, branching
        self._row, self.passes = torch.zeros(vocabulary), PassLimit()
        self._tokens = self._passes = 0
        self.most_logits = 0
        """Rows of logits asked for at once, at most."""

    @property
    def vocabulary(self) -> int:
        """V, the number of logits."""
        return len(self._row)

    def write_to_the_end(self) -> None:
        """Never draw the token that ends an action, so that free writing fills its budget."""
        self._row = self._row[:_WRITING_VOCABULARY].clone()
        self._row[self.codec.end_id : self.codec.end_id + 1] = -1e4  # finite, as of real models

    def count(self) -> tuple[int, int]:
        """Return the tokens and forward passes since the last call, padding not included."""
        counted = self._tokens, self._passes
        self._tokens = self._passes = 0
        return counted

    def read(self, packed: Packed) -> Tensor:
        """Count the tokens of packed rows, and return zeros [Q, 1] in place of hidden states."""
        if not self.branching:
            packed = packed.without_branches(self.codec.pad_id)
        self._add(packed.mask)
        return torch.zeros(len(packed.row), self.width)

    read_frozen = read

    def logits(self, hidden: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return equal logits for hidden states [..., 1]: [..., V], or [..., K] of some tokens."""
        if tokens is not None and self.vocabulary >= LARGE_VOCABULARY:
            return self._row[tokens]
        self.most_logits = max(self.most_logits, hidden.numel())
        every = self._row.expand(*hidden.shape[:-1], -1)
        return every if tokens is None else every.gather(-1, tokens)

    def decoder(self, remember: bool = False, pass_tokens: int = sys.maxsize) -> Decoder:
        """Make a real decoder around a body that only counts."""
        body: Any = self._body
        parts = body, self.codec.pad_id, False, self.device
        return Decoder(*parts, remember, pass_tokens=pass_tokens)

    def _body(
        self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Any, **_: Any
    ) -> SimpleNamespace:
        """The forward call of a transformers body with one layer, one head and one dimension."""
        rows, new = input_ids.shape
        self._add(attention_mask[:, -new:])  # [R, past + new], where the past is cached
        nothing = torch.zeros(rows, 1, new, 1)
        past_key_values.update(nothing, nothing, 0)
        return SimpleNamespace(last_hidden_state=nothing[:, 0])

    def _add(self, mask: Tensor) -> None:
        self._tokens += int(mask.sum())
        self._passes += 1


# --- tokens ---------------------------------------------------------------------------------------


def load_codec(config: Config) -> tuple[TextCodec, bool]:
    """Load the model's tokenizer, or a guess if it has none, and whether it is the model's own.

    Raises:
        PromptError: prompts cannot be made as configured.
    """
    name = resolve_model(config.model.name, config.env)
    source = find_source(replace(config.model, name=name))
    try:
        tokenizer = load_tokenizer(source)
        TextCodec(tokenizer).prompt("word")  # without its files, a tokenizer may come up empty
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return TextCodec(_Guess()), False
    return codec_for(tokenizer, config.prompt), True


class _Guess:
    """Cuts English about as common tokenizers do: words of up to seven letters, or signs."""

    eos_token_id, pad_token_id = 0, None

    def __init__(self) -> None:
        self._known: dict[str, int] = {"": 0}

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        pieces = re.findall(r" ?[^\W\d]{1,7}|\d| ?[^\w\s]|\s|_", text)
        return {"input_ids": [self._known.setdefault(p, len(self._known)) for p in pieces]}

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode tokens; one that was never read becomes a question mark."""
        pieces = list(self._known)
        return "".join(pieces[i] if i < len(pieces) else "?" for i in token_ids)


# --- the rollout ----------------------------------------------------------------------------------


class _OfferedOnly:
    """A world that is stepped by offered actions only.

    A freely written action shows the same observation again, because nobody knows what the agent
    will write, and a world may run it as a program.
    """

    def __init__(self, env: Any) -> None:
        self._env, self.spec = env, env.spec
        self._shown: tuple[str, dict[str, Any]] = "", {}
        if hasattr(env.unwrapped, "free_text"):
            self.free_text = env.unwrapped.free_text

    @property
    def unwrapped(self) -> _OfferedOnly:
        """Itself: the world inside must not be asked to prepare for an action either."""
        return self

    def reset(self, *, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode."""
        self._shown = self._env.reset(seed=seed)
        return self._shown

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take an offered action; ignore any other."""
        prompt, info = self._shown
        if info.get("admissible_actions") is None:
            return prompt, 0.0, False, False, info
        prompt, reward, terminated, truncated, info = self._env.step(action)
        self._shown = prompt, info
        return prompt, reward, terminated, truncated, info

    def close(self) -> None:
        """Close the world."""
        self._env.close()


def sample_world(settings: Settings, codec: TextCodec, tokenizer: bool = True) -> Sample:
    """Play a rollout with a uniformly random model and count.

    Where the world offers no actions, every action fills its token budget and leads to the same
    observation, so an episode lasts as long as the rollout. A rollout that would take long is
    played in part and scaled up, as if the rest repeated none of its prompts. The codec counts the
    tokens; ``tokenizer`` says whether it is the model's own.
    """
    config = settings.config
    text = describe(config.model, config.env).get_text_config()
    model = CountingModel(
        codec,
        text.vocab_size if tokenizer else max(text.vocab_size, 32_000),
        context_length(text),
        branching=config.model.attention != "flash_attention_2",
    )
    with closing(_world(config)) as world:  # open to the end: its copies may share what is costly
        _, info = world.reset(seed=0)
        streams, horizon = _affordable(config, model, info.get("admissible_actions"))
        policy, rollout = _play(settings, model, tokenizer, streams, horizon)
    acting, passes = model.count()
    positions, batch = _readings(settings, policy, rollout)
    read = () if batch is None else batch.positions
    if batch is not None:
        _read(config, policy, batch)
    updating, updates = model.count()
    if config.critic.apart and positions:
        FrozenFeatures(policy.model, config.ppo.micro_batch_tokens, config.critic)(positions)
    else:
        read_hidden(policy.model, policy.model.read, positions, config.ppo.micro_batch_tokens)
    features, _ = model.count()
    turns = rollout.turns
    prompts = {turn.prompt_ids for turn in turns}
    more = config.streams * config.horizon / len(turns)
    if more > 1:
        updates = max(updates, math.ceil(more * updating / config.ppo.micro_batch_tokens))
    return Sample(
        turns=config.streams * config.horizon,
        prompts=round(more * len(prompts)),
        prompt_tokens=sum(map(len, prompts)) / len(prompts),
        action_tokens=sum(len(turn.action.token_ids) for turn in turns) / len(turns),
        longest=max(len(turn.prompt_ids) + len(turn.action.token_ids) for turn in turns),
        offered=all(turn.action.trie is not None for turn in turns),
        acting_tokens=round(more * acting),
        acting_passes=round(config.horizon / horizon * passes),  # streams act side by side
        acting_logits=round(config.streams / streams * model.most_logits),
        update_tokens=round(more * updating),
        update_passes=updates,
        tokens_at_once=round(more * packed_tokens(read)),
        update_positions=round(more * len(read)),
        few_logits=(
            batch is not None
            and batch.between_single_tokens
            and model.vocabulary >= LARGE_VOCABULARY
        ),
        critic_tokens=round(more * features),
        critic_positions=round(more * len(positions)),
        tokenizer=tokenizer,
    )


def _world(config: Config) -> Any:
    return _OfferedOnly(make(config.env, **config.env_args))


def _affordable(
    config: Config, model: CountingModel, offer: Sequence[str] | Form | None
) -> tuple[int, int]:
    """Choose how many streams and turns to play, so that planning takes seconds."""
    written, rows = config.prompt.thinking, 0
    if offer is None:
        written += config.acting.max_action_tokens or 0
        model.write_to_the_end()
    elif config.acting.scheme != "trie":  # it normalizes logits along every offered action
        trie = model.codec.trie(offer)
        rows = len({node for leaf in listed_leaves(trie) for node in trie.path(leaf)})
    turns = min(_TURNS, _WRITTEN // max(1, written))
    rows += written
    turns = max(1, min(turns, _LOGITS // (model.vocabulary * max(1, rows))))
    horizon = min(config.horizon, turns)
    return max(1, min(config.streams, turns // horizon)), horizon


def _play(
    settings: Settings, model: Any, tokenizer: bool, streams: int, horizon: int
) -> tuple[Policy, Rollout]:
    """Act as the run's first iteration would with a uniformly random model."""
    config = settings.config
    # A guessed tokenizer has no chat template.
    prompt = config.prompt if tokenizer else replace(config.prompt, format="plain")
    policy = Policy(model, replace(settings.acting, stop=()), prompt)
    seed = (config.seed + 2) * SEEDS_PER_RUN
    own = range(streams) if config.randomness == "stream" else None
    collector = Collector(lambda: _world(config), policy, streams, seed, own)
    try:
        return policy, collector.collect(horizon, np.random.default_rng(config.seed))
    finally:
        collector.close()


def _readings(
    settings: Settings, policy: Policy, rollout: Rollout
) -> tuple[list[Position], DecisionBatch | None]:
    """Find the distinct positions where the critic reads, and the decisions of an update, if any.

    Where the critic shares the policy's body, the decisions' batch holds its positions too.
    """
    turns, config = rollout.turns, settings.config
    if not any(any(turn.action.choice) for turn in turns):  # then nothing is learned
        return [], None
    positions = lay_out(rollout.streams, settings.credit).positions
    extra = () if config.critic.apart else positions
    batch, _, _ = policy.decisions(turns, extra, divide=config.ppo.ratio != "turn")
    return positions, batch


def _minibatches(config: Config, batch: DecisionBatch) -> Sequence[Tensor]:
    """Divide a batch's bundles into minibatches as the learner does in its first pass."""
    count = len(batch.bundles.cost)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))
    return order.tensor_split(min(config.ppo.minibatches, count))


def _read(config: Config, policy: Policy, batch: DecisionBatch) -> None:
    """Read a batch as an update does, minibatch after minibatch."""
    model, tokens = policy.model, config.ppo.micro_batch_tokens
    for bundles in _minibatches(config, batch):
        for run in batch.bundles.micro_batches(tokens, bundles):
            part = batch.select(run)[0]
            for packed, _ in pack_in_passes(part.positions, part.pad_id, tokens, model.branching):
                model.read(packed)
