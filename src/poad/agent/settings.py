"""Settings with everything decided: what `auto` and None in a configuration mean.

A `Config` is what a person writes. `resolve` turns it into `Settings`, once; the parts of an agent
take theirs from it and never look at an `auto` again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from poad.config import ActingConfig, Config, ModelConfig, PPOConfig, has_frozen_float32
from poad.credit import Method, Rates, find_method
from poad.envs import FreeText, free_text_of
from poad.errors import ConfigError
from poad.lm import resolve_device, resolve_model, resolve_precision
from poad.ranks import launched

Scheme = Literal["trie", "score", "published"]
Score = Literal["word", "token", "sum"]


@dataclass(frozen=True)
class Acting:
    """The way from text to action. The fields, but the last, are those of `ActingConfig`."""

    scheme: Scheme = "trie"
    score: Score = "word"
    score_end: bool = False
    temperature: float = 1.0
    temperature_free: float | None = None
    engine: Literal["own", "transformers", "vllm"] = "own"
    max_action_tokens: int = FreeText().max_tokens
    stop: tuple[str, ...] = FreeText().stop
    pass_tokens: int = PPOConfig().micro_batch_tokens
    """Tokens per forward pass, padding included: `poad.config.PPOConfig.micro_batch_tokens`."""

    @property
    def free_temperature(self) -> float:
        """The temperature of decisions between all tokens of the vocabulary."""
        return self.temperature if self.temperature_free is None else self.temperature_free


@dataclass(frozen=True)
class CreditSettings:
    """A credit method and its rates."""

    method: Method
    rates: Rates
    by_duration: bool
    """True raises γ to the power of the primitive steps that a turn took."""
    group: int = 1
    """Streams whose episodes are compared; 1 for methods that compare none."""
    fitted: bool = False
    """True if training chooses `lam_actor`."""


@dataclass(frozen=True)
class Settings:
    """A configuration that has been resolved."""

    config: Config
    """These settings as a configuration, for files. Every `auto` and default None is decided,
    except for what depends on the machine (`model.device`)."""
    acting: Acting
    credit: CreditSettings


def resolve(config: Config) -> Settings:
    """Decide every `auto` and default None of a configuration.

    Raises:
        ConfigError: settings that contradict each other.
        ModelError: a world without an embedded model.
    """
    try:
        method = find_method(config.credit.method)
    except ValueError as error:
        raise ConfigError(f"credit.method: {error}") from error
    model = _resolve_model(config)
    acting = _resolve_acting(config, method, free_text_of(config.env))
    _refuse_contradictions(config, acting, method)
    credit = config.credit
    slots = None if credit.slots == "auto" else credit.slots
    fitted = credit.lam_actor == "auto"
    rates = method.rates(
        credit.gamma,
        credit.lam,
        credit.lam_token,
        credit.gamma_token,
        slots,
        None if credit.lam_actor == "auto" else credit.lam_actor,
        credit.trace,
        credit.beta,
    )
    _refuse_regression(config, method, rates)
    if rates.lam_actor == 1 and not fitted:  # nothing fades, so it need not be known what counts
        rates = rates._replace(trace="token")
    resolved = replace(
        config,
        acting=ActingConfig(**{k: v for k, v in vars(acting).items() if k != "pass_tokens"}),
        credit=replace(
            credit,
            slots=rates.slots,
            lam_token=rates.lam_token,
            gamma_token=rates.gamma_token,
            lam_actor="auto" if fitted else rates.lam_actor,
        ),
        model=model,
        randomness=_resolve_randomness(config),
    )
    by_duration = credit.discount == "duration"
    group = 1 if method.compared == "none" else credit.group
    return Settings(resolved, acting, CreditSettings(method, rates, by_duration, group, fitted))


def _resolve_randomness(config: Config) -> Literal["shared", "stream"]:
    """Decide where streams take their randomness from.

    Raises:
        ConfigError: there are several processes, and one source for all streams.
    """
    several = launched().size > 1
    if config.randomness == "shared" and several:
        raise ConfigError(
            "randomness = shared: the streams of several processes cannot share one source. Use "
            "randomness = stream, or auto. A run that has begun with `shared` goes on in one "
            "process."
        )
    if config.randomness == "auto":
        # transformers takes one seed for all rows.
        return "stream" if several or config.acting.engine != "transformers" else "shared"
    return config.randomness


def _resolve_model(config: Config) -> ModelConfig:
    """Decide which model acts, and how precisely it is computed here."""
    model, suitable = config.model, has_frozen_float32(config.model)
    precision = model.precision
    if precision == "auto":
        precision = resolve_precision(suitable, resolve_device(model.device))
    return replace(model, name=resolve_model(model.name, config.env), precision=precision)


def _resolve_acting(config: Config, method: Method, free_text: FreeText) -> Acting:
    """Fill in what the method and the world call for."""
    acting = config.acting
    by_tokens = method.score == "trie"
    scheme: Scheme = "trie" if by_tokens else "score"
    score: Score = "word" if method.score == "trie" else method.score
    budget, stop = acting.max_action_tokens, acting.stop
    return Acting(
        scheme=scheme if acting.scheme == "auto" else acting.scheme,
        score=score if acting.score == "auto" else acting.score,
        score_end=acting.score_end,
        temperature=acting.temperature,
        temperature_free=acting.temperature_free,
        engine=acting.engine,
        max_action_tokens=free_text.max_tokens if budget is None else budget,
        stop=free_text.stop if stop is None else stop,
        pass_tokens=config.ppo.micro_batch_tokens,
    )


def _refuse_contradictions(config: Config, acting: Acting, method: Method) -> None:
    """Reject settings that contradict each other.

    Raises:
        ConfigError: says which settings contradict each other, and what to use instead.
    """
    if method.whole_action and acting.scheme != "score":
        raise ConfigError(
            f"acting.scheme = {acting.scheme} decides token by token, but {method.name} credits "
            "the action as one decision; use score."
        )
    if method.decision == "token" and acting.scheme == "score":
        raise ConfigError(
            f"acting.scheme = score makes the whole action one decision, but {method.name} credits "
            "its tokens; use trie (exact) or published (as in the paper's code)."
        )
    if config.ppo.ratio == "turn" and method.decision != "turn":
        raise ConfigError(
            f"ppo.ratio = turn is one ratio for the whole action, but {method.name} gives each of "
            "its tokens an advantage of its own; use credit.method = turn_ppo, or ratio = token."
        )
    _refuse_critics(config, method)
    if acting.engine == "vllm" and config.model.tuning != "lora":
        raise ConfigError(
            f"acting.engine = vllm: the server is handed adapters, but model.tuning = "
            f"{config.model.tuning} trains all weights; use model.tuning = lora, or acting.engine "
            "= own."
        )
    if method.compared != "none":
        _refuse_groups(config, method)
    if config.prompt.thinking and acting.scheme != "trie":
        raise ConfigError(
            f"acting.scheme = {acting.scheme} scores whole actions, so prompt.thinking cannot put "
            "thoughts before them; use acting.scheme = trie and a method that judges tokens, such "
            "as poad."
        )


def _refuse_critics(config: Config, method: Method) -> None:
    """Reject a critic that would learn alone and cannot, and one on a body that is divided.

    Raises:
        ConfigError: says which settings contradict each other, and what to use instead.
    """
    critic = config.critic
    for name, given, none in (("warmup", critic.warmup, "0"), ("pretrain", critic.pretrain, "''")):
        if given and not (critic.apart and method.uses_critic):
            why = f"{method.name} has no critic"
            if method.uses_critic:
                why = "with critic.body = shared it learns in the policy's passes"
            raise ConfigError(
                f"critic.{name} = {given} lets the critic learn alone, but {why}; use "
                f"critic.{name} = {none}."
            )
    if critic.pretrain and (config.prompt.history != "none" or config.prompt.thinking):
        raise ConfigError(
            f"critic.pretrain = {critic.pretrain}: recorded episodes hold the text of each "
            "observation, without the history and the thoughts of the prompt; use prompt.history = "
            "none and prompt.thinking = 0, or leave it out."
        )
    if critic.body == "adapter" and config.model.shard != "none":
        raise ConfigError(
            "critic.body = adapter trains adapters on the untrained model, which model.shard = "
            f"{config.model.shard} divides among processes; use model.shard = none, or "
            "critic.body = frozen."
        )


def _refuse_regression(config: Config, method: Method, rates: Rates) -> None:
    """Reject a regression that would divide what is no advantage of a whole action.

    Raises:
        ConfigError: says which settings contradict each other, and what to use instead.
    """
    credit = config.credit
    if not credit.regress:
        return
    asked = f"credit.regress = {credit.regress} divides an action's advantage among its decisions"
    if method.whole_action:
        raise ConfigError(
            f"{asked}, but {method.name} takes the action for a single one; use credit.method = "
            "poad or turn_ppo, or credit.regress = 0."
        )
    if config.ppo.ratio == "turn":
        raise ConfigError(
            f"{asked}, but with ppo.ratio = turn they share one ratio; use ppo.ratio = token, or "
            "credit.regress = 0."
        )
    found = {name: getattr(rates, name) for name in ("gamma_token", "lam_token", "lam_actor")}
    found |= {"lam_actor": "auto"} if credit.lam_actor == "auto" else {}
    for name, value in found.items():
        if method.decision == "token" and value != 1:
            raise ConfigError(
                f"{asked}, but with credit.{name} = {value} each has another one already; use "
                f"credit.{name} = 1, or credit.regress = 0."
            )


def _refuse_groups(config: Config, method: Method) -> None:
    """Reject streams that cannot be put into groups.

    Raises:
        ConfigError: says which settings contradict each other, and what to use instead.
    """
    if config.streams % config.credit.group:
        raise ConfigError(
            f"credit.group = {config.credit.group}: {method.name} puts the streams into groups of "
            f"so many, but there are {config.streams}; use a divisor of streams."
        )
    if config.on_world_error == "restart":
        raise ConfigError(
            f"on_world_error = restart: {method.name} compares the episodes of a group one by one, "
            "and an episode that broke off would move those behind it; use stop."
        )
    if _resolve_randomness(config) == "shared":
        raise ConfigError(
            f"randomness = shared: under {method.name} the streams of a group begin the same "
            "episodes, so each needs random numbers of its own; use randomness = stream."
        )


def refuse_free_writing(method: Method, world: str = "the world") -> None:
    """Reject freely written actions where the method judges whole offered actions.

    Raises:
        ConfigError: the method cannot judge them; says what to use.
    """
    if method.whole_action:
        raise ConfigError(
            f"credit.method = {method.name} chooses between offered actions, but {world} lets the "
            "agent write freely; use a method that judges tokens, such as poad, or turn_ppo."
        )
