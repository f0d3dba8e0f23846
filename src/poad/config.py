"""One run, described: frozen dataclasses that read from and write to YAML.

Every field carries its meaning as a docstring below it; the command line shows the same words in
``--help``. A configuration never changes after it is made: ``dataclasses.replace`` makes another.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from poad.errors import ConfigError

SEEDS_PER_RUN = 1_000_003
"""Training episodes take seeds from (2 + run seed)·1,000,003 up: no two runs share them, and none
trains on the episodes it is examined in (from 1,000,000 up)."""


@dataclass(frozen=True)
class ModelConfig:
    """The language model that acts."""

    name: str = "auto"
    """An embedded model (`poad envs` lists them), a local directory, or a hub name. `auto` takes
    the embedded model of the world."""
    tuning: Literal["full", "lora"] = "full"
    """Train every weight, or low-rank adapters on a frozen base."""
    lora_rank: int = 8
    """Rank of the adapters (paper: 8)."""
    lora_alpha: int = 16
    """Scale of the adapters; their output is multiplied by alpha / rank (paper: 16)."""
    lora_dropout: float = 0.0
    """Share of the adapters' inputs dropped in gradient steps; never while acting or comparing."""
    lora_targets: tuple[str, ...] = ()
    """Names of the layers that get adapters; empty: the query and value projections (paper)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the model's weights. Adapters and critic are always float32."""
    quantize: Literal["none", "8bit", "4bit"] = "none"
    """Keep the frozen base in 8 bits or 4 (NF4) and train adapters on it (QLoRA); needs `pip
    install 'poad[quantize]'`."""
    attention: Literal["sdpa", "flash_attention_2"] = "sdpa"
    """Attention kernel. `flash_attention_2` takes no mask of ours, so actions that branch behind a
    prompt get rows of their own."""
    gradient_checkpointing: bool = False
    """Compute the layers again in the backward pass instead of keeping them: less memory, about a
    third more time."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1` …; `auto` takes a GPU if there is one."""


@dataclass(frozen=True)
class PromptConfig:
    """How an observation becomes the model's prompt."""

    format: Literal["plain", "chat"] = "plain"
    """`plain`: the text as the world shows it. `chat`: through the model's chat template."""
    system: str | None = None
    """What stands before everything: the system message, or in a plain prompt its first lines."""
    examples: tuple[tuple[str, str], ...] = ()
    """Turns to show before the first, each an observation and the action to take there."""
    history: Literal["none", "last", "episode"] = "none"
    """`last`: show the last turns of the episode before the observation. `episode`: all of them, as
    one growing sequence whose beginning is computed once."""
    last: int = 4
    """Turns shown with history = last."""
    thinking: int = 0
    """Tokens the agent may write freely before each action; they are trained like the action's."""
    thinking_open: str = "<think>\n"
    """What opens its thoughts."""
    thinking_close: str = "\n</think>\n\n"
    """What closes them: written by the agent, or for it when its tokens are used up."""


@dataclass(frozen=True)
class ActingConfig:
    """How text becomes an action."""

    scheme: Literal["auto", "trie", "score", "published"] = "auto"
    """`trie`: walk the offered actions token by token (exact token-level policy). `score`: softmax
    over whole-action scores. `published`: sample by score, form ratios from full-vocabulary token
    log-probabilities, as the paper's code does. `auto`: what the method calls for, the trie for
    poad, whose published acting learned none of four tasks (study `main`). Where a world offers no
    actions, the agent writes freely whatever stands here."""
    score: Literal["auto", "word", "token", "sum"] = "auto"
    """Normalization of whole-action scores: mean log-probability per word (TWOSOME), per token, or
    the plain sum (GLAM). `auto`: what the method calls for."""
    score_end: bool = False
    """Count the end-of-action token in whole-action scores."""
    temperature: float = 1.0
    """Divides the logits, in sampling and in training alike."""
    engine: Literal["own", "transformers"] = "own"
    """What writes freely while training: our decoder, or transformers' continuous batching (a paged
    cache, for many long rows on a GPU). Evaluations always use our own."""
    max_action_tokens: int | None = None
    """Token budget of a freely written action; running into it ends the action, not the episode.
    None: what the world asks for, else 64."""
    stop: tuple[str, ...] | None = None
    """Texts that end a freely written action (the model's end token always does). None: what the
    world asks for, else the end of the line."""


@dataclass(frozen=True)
class CreditConfig:
    """Who gets credit for a reward: the method and its discounts."""

    method: str = "poad"
    """poad, ntpo, twosome, glam, turn_ppo, archer_adrl or reinforce (`poad train --help` below)."""
    gamma: float = 0.99
    """Discount between actions: per primitive step with `discount=duration`, else per action."""
    discount: Literal["duration", "turn"] = "duration"
    """`duration`: γ to the power of the primitive steps the action took (semi-Markov; the same as
    `turn` in worlds whose actions all take one step). `turn`: γ per action."""
    lam: float = 0.95
    """λ of the advantage trace between actions."""
    lam_token: float | None = None
    """λ inside an action; none: 1 for methods without a discount there, so that the trace does not
    depend on the action's length, and `lam` for those with one (ntpo). The paper's code has `lam`
    for poad, too; with every token a slot that unlearns long actions and late rewards (studies
    `length` and `main`), with slots at choices it changes nothing (`ablations`)."""
    gamma_token: float | None = None
    """γ_w, the discount inside an action; none: the method's own (1 for poad, γ for ntpo)."""
    slots: Literal["auto", "choices", "tokens"] = "auto"
    """What counts as a decision: real choices, or every token (the published code). `auto`: the
    method's own."""


@dataclass(frozen=True)
class CriticConfig:
    """The critic V(o, w_<j): what a prompt and the beginning of an action are worth."""

    body: Literal["frozen", "shared"] = "frozen"
    """`frozen`: read the untrained model's last hidden state, computed once (paper). `shared`: read
    the trained model's hidden state and shape it too."""
    hidden: tuple[int, ...] = (256,)
    """Widths of the hidden layers (paper: 1024 512)."""
    lr: float = 1e-3
    """Learning rate (paper, 7B model: 1e-5 to 5e-5)."""
    coefficient: float = 0.5
    """Weight of the value loss (paper: 0.5)."""
    clip: float | None = 0.2
    """Largest change of a value per update that still counts (PPO's value clipping); none: off."""


@dataclass(frozen=True)
class PPOConfig:
    """The learner: clipped PPO over decision slots."""

    lr: float = 5e-4
    """Learning rate of the policy (paper, 7B model: 5e-7 to 1e-6; LoRA on a tiny model wants about
    ten times more than full tuning)."""
    anneal: bool = True
    """Let both learning rates fall linearly to 0 over the run."""
    epochs: int = 4
    """Passes over a rollout (paper: 5 on restricted actions, 1 on code)."""
    minibatches: int = 2
    """Gradient steps per pass. Identical rows share one forward pass, so a minibatch is a share of
    the distinct prompts, not of the turns."""
    clip: float = 0.2
    """How far a ratio may leave 1 before its gradient stops (paper: 0.2)."""
    ratio: Literal["token", "turn"] = "token"
    """`token`: a ratio for every decision. `turn`: one for the whole action, the product over its
    decisions, where the method gives the action one advantage (turn_ppo)."""
    kl_stop: float | None = 0.05
    """Stop an update's passes when the approximate KL exceeds this (paper: 0.02); none: never."""
    entropy: float = 0.05
    """Weight of the entropy bonus over admissible tokens (paper: 1e-4 to 1e-2). Times the
    advantages' standard deviation it must outweigh what a step costs (docs/training.md): at .02,
    which a small search liked better, 3 of 10 tomato-lettuce runs never reached 90 % (`main`)."""
    entropy_free: float = 0.0
    """The same over the whole vocabulary, where the agent writes freely or the scheme is
    `published`. Even little of it destroys what a small model writes."""
    std_floor: float = 0.1
    """Advantages are divided by their standard deviation, but never by less than this: without the
    floor, near-constant returns blow step penalties up into noise."""
    max_grad_norm: float = 0.5
    """Global gradient-norm clip (paper: 0.5)."""
    micro_batch_tokens: int = 16_384
    """Tokens per forward pass; a larger minibatch accumulates gradients over several."""
    recompute_logprob: bool = False
    """Take the ratio's denominator from a fresh pass before the update instead of the
    log-probability recorded while sampling."""
    importance_cap: float | None = None
    """With recompute_logprob, weigh every term by the fresh over the recorded probability, but by
    this at most (truncated importance sampling): for samplers that compute otherwise."""
    drift_stop: float | None = 0.1
    """Stop when sampler and learner, before any step, differ in log-probability by more than this
    on average: then one of them computes something else. None: never."""
    kl_reference: float = 0.0
    """Weight of the KL penalty that keeps the policy near the untrained model."""


@dataclass(frozen=True)
class EvalConfig:
    """How the agent is examined."""

    episodes: int = 100
    """Episodes of the final evaluation, sampled and greedy each; 0 skips it."""
    every: int = 0
    """Also evaluate every so many iterations; 0: only at the end."""
    seed: int = 1_000_000
    """Seed of the first evaluation episode; the others count up from it."""
    streams: int = 64
    """Episodes played side by side."""
    turns: bool = True
    """Keep every turn of the episodes on record; without, only how they ended, which is a tenth of
    the time and next to no disk."""


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    env: str = "poad/TomatoSalad-v0"
    """The text world: a registered name, or `package.module:EnvId`."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the world's constructor."""
    seed: int = 0
    """Seed of everything random in the run."""
    steps: int = 12_288
    """Turns (environment steps) to train for, over all streams; the last iteration is whole."""
    streams: int = 16
    """Episodes played side by side (N)."""
    horizon: int = 32
    """Turns per stream and iteration (T)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    acting: ActingConfig = field(default_factory=ActingConfig)
    credit: CreditConfig = field(default_factory=CreditConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint_every: int = 10
    """Iterations between checkpoints (one is always written at the end); 0: only at the end."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints to keep."""
    threads: int = 1
    """CPU threads of torch; 1 is fastest for tiny models. 0 leaves torch's own choice."""
    mirrors: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Also send the metrics to these (each an extra to install)."""

    def __post_init__(self) -> None:
        """Reject what could not be trained, at once and in one message."""
        wrong = [message for bad, message in _range_checks(self) if bad]
        if wrong:
            raise ConfigError("This configuration cannot be trained:\n  " + "\n  ".join(wrong))


def _range_checks(c: Config) -> list[tuple[bool, str]]:
    def unit(name: str, value: float | None) -> tuple[bool, str]:
        bad = value is not None and not 0.0 <= value <= 1.0
        return bad, f"{name} = {value}: must lie between 0 and 1."

    def positive(name: str, value: float) -> tuple[bool, str]:
        return not value > 0, f"{name} = {value}: must be above 0."

    def given(value: float | None) -> float:
        return 1.0 if value is None else value

    def not_negative(name: str, value: float) -> tuple[bool, str]:
        return not value >= 0, f"{name} = {value}: must not be negative."

    return [
        unit("credit.gamma", c.credit.gamma),
        unit("credit.lam", c.credit.lam),
        unit("credit.lam_token", c.credit.lam_token),
        unit("credit.gamma_token", c.credit.gamma_token),
        positive("steps", c.steps),
        positive("streams", c.streams),
        positive("horizon", c.horizon),
        positive("acting.temperature", c.acting.temperature),
        positive("acting.max_action_tokens", given(c.acting.max_action_tokens)),
        positive("model.lora_rank", c.model.lora_rank),
        unit("model.lora_dropout", c.model.lora_dropout),
        positive("prompt.last", c.prompt.last),
        not_negative("prompt.thinking", c.prompt.thinking),
        (not c.prompt.thinking_close.strip(), "prompt.thinking_close: must not be blank."),
        *_contradictions(c),
        ("" in (c.acting.stop or ()), "acting.stop: an empty text would end every action at once."),
        positive("ppo.lr", c.ppo.lr),
        positive("ppo.epochs", c.ppo.epochs),
        positive("ppo.minibatches", c.ppo.minibatches),
        positive("ppo.clip", c.ppo.clip),
        positive("ppo.max_grad_norm", c.ppo.max_grad_norm),
        positive("ppo.std_floor", c.ppo.std_floor),
        positive("ppo.micro_batch_tokens", c.ppo.micro_batch_tokens),
        positive("ppo.kl_stop", given(c.ppo.kl_stop)),
        positive("critic.clip", given(c.critic.clip)),
        positive("critic.hidden", min(c.critic.hidden, default=1)),
        positive("model.lora_alpha", c.model.lora_alpha),
        not_negative("critic.coefficient", c.critic.coefficient),
        positive("critic.lr", c.critic.lr),
        positive("eval.streams", c.eval.streams),
        positive("keep_checkpoints", c.keep_checkpoints),
        not_negative("eval.episodes", c.eval.episodes),
        not_negative("eval.every", c.eval.every),
        not_negative("checkpoint_every", c.checkpoint_every),
        not_negative("threads", c.threads),
        not_negative("seed", c.seed),
        not_negative("eval.seed", c.eval.seed),
        not_negative("ppo.entropy", c.ppo.entropy),
        not_negative("ppo.entropy_free", c.ppo.entropy_free),
        not_negative("ppo.kl_reference", c.ppo.kl_reference),
        positive("ppo.importance_cap", given(c.ppo.importance_cap)),
        positive("ppo.drift_stop", given(c.ppo.drift_stop)),
    ]


def _contradictions(c: Config) -> list[tuple[bool, str]]:
    """Settings that are fine alone and make no sense together."""
    full, capped = c.model.tuning == "full", c.ppo.importance_cap is not None
    return [
        (
            full and c.model.quantize != "none",
            f"model.quantize = {c.model.quantize}: a quantized base cannot be trained itself; use "
            "model.tuning = lora.",
        ),
        (
            full and c.model.dtype == "float16",
            "model.dtype = float16: whole weights would underflow in training; use bfloat16 or "
            "float32, or model.tuning = lora.",
        ),
        (
            full and c.model.lora_dropout > 0,
            "model.lora_dropout: there are no adapters with model.tuning = full.",
        ),
        (
            capped and not c.ppo.recompute_logprob,
            "ppo.importance_cap: needs ppo.recompute_logprob, which tells what the sampler's "
            "log-probabilities should have been.",
        ),
    ]


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain dicts, lists and scalars, ready for YAML."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        return value

    return plain(config)


def from_dict(data: Mapping[str, Any], base: Config | None = None, where: str = "config") -> Config:
    """The configuration that ``data`` describes; what it leaves out is taken from ``base``.

    Args:
        data: nested mappings, as YAML gives them.
        base: the values of absent keys (default: ``Config()``).
        where: what to call the source in errors.

    Raises:
        ConfigError: an unknown key (named with its nearest neighbours) or a value of another type.
    """
    return merge(base if base is not None else Config(), data, where)


def load(path: str | Path, base: Config | None = None) -> Config:
    """Read a YAML configuration.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds what :func:`from_dict` rejects.
    """
    return from_dict(read_yaml(path), base, str(path))


def read_yaml(path: str | Path) -> Mapping[str, Any]:
    """The settings in a YAML file, not yet looked at.

    Raises:
        ConfigError: the file is missing, is not YAML, or is no mapping.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if data is None:
        data = {}
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path}: expected 'key: value' lines, found {type(data).__name__}.")
    return data


def dump(config: Config) -> str:
    """The configuration as YAML text that :func:`load` reads back unchanged."""
    text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    if any(mark in text for mark in "\x85\u2028\u2029"):  # written plainly, they read as line ends
        text = yaml.safe_dump(to_dict(config), sort_keys=False)
    return text


def merge(base: Any, data: Mapping[str, Any], where: str, prefix: str = "") -> Any:
    """A frozen dataclass with the fields that ``data`` names changed, nested ones too.

    Args:
        base: the dataclass.
        data: new values by field name.
        where: what to call the source in errors.
        prefix: what stands before the names in errors.

    Raises:
        ConfigError: an unknown field, named with its nearest neighbours, or a value of another
            type.
    """
    hints = typing.get_type_hints(type(base))
    changes: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if key not in hints:
            raise ConfigError(_unknown_key(name, str(key), list(hints), where))
        current = getattr(base, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {name} is a group of settings, not {value!r}.")
            changes[key] = merge(current, value, where, f"{name}.")
        else:
            changes[key] = _convert(hints[key], value, name, where)
    return dataclasses.replace(base, **changes)


def _unknown_key(name: str, key: str, known: list[str], where: str) -> str:
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"{where}: unknown key {name!r}. {hint}Known here: {', '.join(known)}."


def _convert(hint: Any, value: Any, name: str, where: str) -> Any:
    """``value`` as the annotated type, or an error that says what was expected."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in args:
            return value
        near = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
        mean = f" Did you mean {near[0]!r}?" if near else ""
        options = ", ".join(str(a) for a in args)
        raise ConfigError(f"{where}: {name} = {value!r} is not one of: {options}.{mean}")
    if origin is types.UnionType:
        inner = next(a for a in args if a is not type(None))
        return None if value is None else _convert(inner, value, name, where)
    if origin is tuple and isinstance(value, list | tuple):
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise ConfigError(f"{where}: {name} = {value!r} needs {len(args)} entries.")
        return tuple(_convert(args[0], item, name, where) for item in value)
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:  # YAML 1.1 reads 1e-4 as a string
            return float(value)
        except ValueError:
            pass
    elif isinstance(hint, type) and isinstance(value, hint) and type(value) is hint:
        return value
    wanted = getattr(hint, "__name__", str(hint))
    raise ConfigError(f"{where}: {name} = {value!r} has the wrong type; expected {wanted}.")
