"""What can be known of a model and a world before any weights are loaded.

The model is built without memory (on torch's `meta` device), the world is played by a uniformly
random agent for one rollout. :mod:`poad.plan.predict` reckons with the outcome.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from poad.config import Config, ModelConfig, PromptConfig
from poad.envs import make
from poad.errors import ModelError, did_you_mean
from poad.lm import (
    Dialogue,
    TextCodec,
    codec_for,
    common_prefix_length,
    embedded_models,
    model_source,
    packed_tokens,
    resolve_model,
    with_adapters,
)
from poad.trie import ROOT, ActionTrie
from poad.turns import Action, Position, TokenIds

_PLAYED = 2048
"""Turns played at most; a larger rollout is taken to be so many of these."""
_COUNTED = 67
"""Tokens sent through a model without memory; no size of a model is this number."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model. Numbers are counts of parameters unless they say otherwise."""

    architecture: str
    weights: int
    """Of the base model, tied ones once."""
    body: int
    """All but the head's; what is tied to the head included."""
    multiplied: int
    """Of the body's, those that every token is multiplied with: no embeddings."""
    head: int
    """Of the head, multiplied where logits are computed."""
    quantizable: int
    """In the linear layers of the body."""
    largest: int
    """Of the largest linear layer of the body."""
    adapters: int
    """Low-rank, float32; 0 with full tuning."""
    layers: int
    width: int
    feed: int
    """Largest output of a linear layer of the body, in numbers a token."""
    cached: int
    """Keys and values kept while acting, in numbers a token."""
    vocabulary: int
    saved: int
    """Bytes that the backward pass needs of each token, attention matrices aside."""


def model_shape(config: ModelConfig, env: str) -> Shape:
    """Build a model without memory and count.

    ``saved`` is the coefficient of Korthikanti et al. (arXiv 2205.05198, equation 1), which for a
    GPT layer in 16 bits is 34 bytes a token and unit of width, plus 5·heads bytes for each pair of
    tokens. Here it is counted: what torch's graph keeps in a forward pass on `meta`, for this very
    architecture, precision and tuning. Their second term belongs to attention kernels that keep the
    whole matrix; those used here do not. Where the pass cannot be made without memory, their 34 is
    taken.

    Args:
        config: which model and how it is tuned; whether it fits anywhere does not matter.
        env: the world's id, for ``name="auto"``.

    Raises:
        ModelError: no such model, no causal language model, or adapters that fit no layer.
    """
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    described = _describe(config.name, env)
    dtype = getattr(torch, config.dtype)
    try:
        with torch.device("meta"):
            causal: Any = AutoModelForCausalLM.from_config(
                described, dtype=dtype, attn_implementation="sdpa"
            )
    except ValueError as error:
        raise ModelError(
            f"{config.name!r} is no causal language model: {str(error).splitlines()[0]}"
        ) from error
    causal.eval()
    body, head = causal.base_model, causal.get_output_embeddings()
    text = described.get_text_config()
    linear = [m for m in body.modules() if isinstance(m, nn.Linear | Conv1D)]
    embedded = {
        id(p) for m in body.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    heads = int(text.num_attention_heads)
    width = int(text.hidden_size)
    per_head = getattr(text, "head_dim", None) or width // heads
    keys = getattr(text, "num_key_value_heads", None) or heads
    weights = sum(p.numel() for p in causal.parameters())
    counts: dict[str, Any] = {
        "architecture": type(causal).__name__,
        "weights": weights,
        "body": sum(p.numel() for p in body.parameters()),
        "multiplied": sum(p.numel() for p in body.parameters() if id(p) not in embedded),
        "head": int(head.weight.numel()),
        "quantizable": sum(m.weight.numel() for m in linear),
        "largest": max(m.weight.numel() for m in linear),
        "layers": int(text.num_hidden_layers),
        "width": width,
        "feed": max(m.nf if isinstance(m, Conv1D) else m.out_features for m in linear),
        "cached": 2 * int(text.num_hidden_layers) * keys * per_head,
        "vocabulary": int(head.weight.shape[0]),
    }
    if config.tuning == "lora":
        causal = with_adapters(causal, config)
    adapters = sum(p.numel() for p in causal.parameters()) - weights
    saved = _saved(causal, body) or 17 * dtype.itemsize * width * int(text.num_hidden_layers)
    return Shape(**counts, adapters=adapters, saved=saved)


def _describe(name: str, env: str) -> Any:
    """The transformers configuration of a model."""
    from transformers import AutoConfig

    name = resolve_model(name, env)
    try:
        return AutoConfig.from_pretrained(model_source(name))
    except (OSError, ValueError, KeyError) as error:
        hint = did_you_mean(name, embedded_models(), 1)
        raise ModelError(
            f"Cannot find the configuration of the model {name!r}. {hint}Expected an embedded "
            f"model ({', '.join(embedded_models())}), a directory with a config.json, or a hub "
            f"name: {str(error).splitlines()[0]}"
        ) from error


def _saved(causal: nn.Module, body: nn.Module) -> int:
    """Bytes a token that the graph of a forward pass keeps; 0 if it cannot be made on `meta`."""
    own = {p.untyped_storage()._cdata for p in causal.parameters()}
    sizes: dict[int, int] = {}
    kept: list[torch.Tensor] = []  # so that no storage's number is given away again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept.append(tensor)
        if storage._cdata not in own and tensor.shape[-2:] != (_COUNTED, _COUNTED):
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    ids = torch.zeros(1, _COUNTED, dtype=torch.long, device="meta")
    mask: Any = torch.ones(1, 1, _COUNTED, _COUNTED, dtype=torch.bool, device="meta")
    settings: Any = body.config
    if getattr(settings.get_text_config(), "layer_types", None):
        mask = {"full_attention": mask, "sliding_attention": mask}
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            body(input_ids=ids, attention_mask=mask, position_ids=ids, use_cache=False)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return 0
    return sum(sizes.values()) // _COUNTED


# --- the world ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One rollout of a uniformly random agent, in numbers of tokens."""

    turns: int
    prompts: int
    """Distinct."""
    prompt_tokens: float
    """Of a prompt, mean."""
    action_tokens: float
    """Of an action, mean; its budget where the agent writes freely."""
    longest: int
    """Of prompt and action together."""
    offered: bool
    """Whether actions are chosen from an offer, not written freely."""
    acting: int
    """To be computed while acting: what repeats is computed once."""
    passes: int
    """Forward passes one after the other while acting."""
    updating: int
    """To be computed in one pass of the update."""
    readings: int
    """Distinct places where logits are computed in one pass of the update."""
    features: int
    """To be computed for the critic, if it reads the frozen body."""
    values: int
    """Distinct places where the critic reads."""
    tokenizer: bool = True
    """Whether the model's own tokenizer counted, not a guess."""


def load_codec(config: Config) -> tuple[TextCodec, bool]:
    """The model's tokenizer, or if there is none a guess, and which of them it is.

    Raises:
        PromptError: prompts that cannot be made as configured.
    """
    from transformers import AutoTokenizer

    name = resolve_model(config.model.name, config.env)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_source(name))
        TextCodec(tokenizer).prompt("word")  # without its files, a tokenizer may come up empty
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return TextCodec(_Guess()), False
    return codec_for(tokenizer, config.prompt), True


def _form(config: Config, codec: TextCodec) -> PromptConfig:
    """How prompts are made; where the tokenizer is a guess, without its chat template."""
    guessed = isinstance(codec.tokenizer, _Guess)
    return replace(config.prompt, format="plain") if guessed else config.prompt


def _room(config: Config) -> int | None:
    """Tokens that a prompt may have."""
    text = _describe(config.model.name, config.env).get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    behind = (config.acting.max_action_tokens or 0) + config.prompt.thinking
    return None if longest is None else longest - behind


class _Guess:
    """Cuts English about as usual tokenizers do: words of up to seven letters, or signs."""

    eos_token_id, pad_token_id = 0, None

    def __init__(self) -> None:
        self._known: dict[str, int] = {"": 0}

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        pieces = re.findall(r" ?[^\W\d]{1,7}|\d| ?[^\w\s]|\s|_", text)
        return {"input_ids": [self._known.setdefault(p, len(self._known)) for p in pieces]}

    def decode(self, token_ids: Sequence[int]) -> str:
        """Back to text."""
        pieces = list(self._known)
        return "".join(pieces[i] for i in token_ids)


@dataclass(frozen=True)
class _Step:
    """One turn of one stream: where the policy and the critic read."""

    prompt: TokenIds
    decisions: list[Position]
    values: list[Position]
    tokens: int


def sample_world(config: Config, codec: TextCodec, tokenizer: bool = True) -> Sample:
    """Play a rollout at random and count.

    A world that offers no actions is only reset, not stepped: nobody knows what an agent would
    write. Each action is then taken to fill its token budget.

    Args:
        config: resolved.
        codec: counts the tokens.
        tokenizer: whether it is the model's own.
    """
    streams = max(1, min(config.streams, _PLAYED // config.horizon))
    rng = random.Random(0)
    env = make(config.env, **config.env_args)
    try:
        played = [_play(env, config, codec, rng, seed) for seed in range(streams)]
    finally:
        env.close()
    steps = [step for stream, _ in played for step in stream]
    offered = all(offers for _, offers in played)
    once = config.prompt.history == "episode"
    decisions = list(dict.fromkeys(p for step in steps for p in step.decisions))
    values = list(dict.fromkeys(p for step in steps for p in step.values))
    known: set[Position] = set()
    acting = passes = 0
    for together in zip(*(stream for stream, _ in played), strict=True):
        unknown = [[p for p in step.decisions if p not in known] for step in together]
        new = list(dict.fromkeys(p for one in unknown for p in one))
        acting += _cost(new, once)
        known |= set(new)
        deep = max((len({len(b) for _, b in one}) for one in unknown), default=0)
        passes += min(deep, 1) if offered and config.acting.scheme != "trie" else deep
    more = config.streams / streams
    prompts = {step.prompt for step in steps}
    return Sample(
        turns=config.streams * config.horizon,
        prompts=round(more * len(prompts)),
        prompt_tokens=sum(map(len, prompts)) / len(prompts),
        action_tokens=sum(step.tokens for step in steps) / len(steps),
        longest=max(len(step.prompt) + step.tokens for step in steps),
        offered=offered,
        acting=round(more * acting),
        passes=passes,
        updating=round(more * _cost(decisions, once)),
        readings=round(more * len(decisions)),
        features=round(more * _cost(values, once)),
        values=round(more * len(values)),
        tokenizer=tokenizer,
    )


def _play(
    env: Any, config: Config, codec: TextCodec, rng: random.Random, seed: int
) -> tuple[list[_Step], bool]:
    """The turns of a stream, and whether actions were offered in all of them."""
    prompt, info = env.reset(seed=seed)
    dialogue = Dialogue(codec, _form(config, codec), _room(config))
    ids = dialogue.first_prompt(prompt)
    steps: list[_Step] = []
    offered = True
    for _ in range(config.horizon):
        offer = info.get("admissible_actions")
        thought = _anything(codec, rng, config.prompt.thinking)
        own = [thought[:j] for j in range(len(thought))]
        if offer is None:
            offered = False
            written = (*thought, *_anything(codec, rng, config.acting.max_action_tokens or 64))
            places = [written[:j] for j in range(len(written))]
            steps.append(_step(ids, places, places, len(written)))
            continue
        trie, action = codec.trie(tuple(offer)), rng.choice(tuple(offer))
        leaf = trie.leaves[trie.texts.index(action)]
        read, valued = _where(config, trie, leaf)
        places = own + [(*thought, *beginning) for beginning in read]
        rooted = own + [(*thought, *beginning) for beginning in valued]
        written = (*thought, *trie.token_path(leaf))
        steps.append(_step(ids, places, rooted, len(written)))
        prompt, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            seed += 1_000
            prompt, info = env.reset(seed=seed)
            ids = dialogue.first_prompt(prompt)
        else:
            ids = dialogue.next_prompt(Action(action, written, (), ()), prompt)
    return steps, offered


def _step(
    prompt: TokenIds, read: Sequence[TokenIds], valued: Sequence[TokenIds], tokens: int
) -> _Step:
    return _Step(prompt, [(prompt, b) for b in read], [(prompt, b) for b in valued], tokens)


def _anything(codec: TextCodec, rng: random.Random, tokens: int) -> TokenIds:
    """Tokens nobody has written before."""
    return tuple(rng.randrange(len(codec.tokenizer)) for _ in range(tokens))


def _where(config: Config, trie: ActionTrie, leaf: int) -> tuple[list[TokenIds], list[TokenIds]]:
    """Beginnings at which a turn's decisions and its values are read."""
    path = (ROOT, *trie.path(leaf)[:-1])
    choices = [node for node in path if len(trie.children[node + 1]) > 1]
    if config.acting.scheme == "trie":
        read = [trie.token_path(node) for node in choices]
    elif config.acting.scheme == "published":
        read = [trie.token_path(node) for node in path]
    else:
        every = [trie.token_path(end) for end in trie.leaves]
        read = list(dict.fromkeys(way[:j] for way in every for j in range(len(way))))
    if config.acting.scheme == "score":
        return read, [()]
    slots = path if config.credit.slots == "tokens" else [ROOT, *choices]
    return read, list(dict.fromkeys(trie.token_path(node) for node in slots))


def _cost(positions: Sequence[Position], once: bool) -> int:
    """Tokens to compute for some positions, whose common beginnings share a row.

    Args:
        positions: any number.
        once: share beginnings however long the rows become.
    """
    if not once:
        return packed_tokens(positions)
    total = 0
    before: TokenIds = ()
    for way in sorted({(*prompt, *beginning) for prompt, beginning in positions}):
        total += len(way) - common_prefix_length(before, way)
        before = way
    return total
