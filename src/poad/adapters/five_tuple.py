"""Gymnasium environments, and other objects whose `reset` and `step` answer like theirs."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import gymnasium
from gymnasium.error import DeprecatedEnv, UnregisteredEnv

from poad.adapters.packages import distinct_texts, function_named, without_warnings
from poad.adapters.words import WORDS, Words
from poad.envs import Form, FreeText, TextAdapter
from poad.errors import ConfigError, WorldError, beginning, did_you_mean

ENOUGH: Final = 200
"""Turns of an episode of an environment that has no limit of its own."""

_OPTIONAL: Final = (("prepare",), ("memory", "load_memory"))
"""Methods that a text world may have. Those of a pair come together."""

_UNOFFERED: Final = (
    "Nothing offers actions here, so the agent wrote this one freely. To offer actions, name them: "
    "choices=[go left, go right], or actions=[go left, go right] if they are the numbers 0 and 1."
)
"""Said of an action that made an object fail."""

_PASSED_ON = ("measures", "work", "notes", "cpu_seconds", "duration", "action_grammar")
"""Entries of an environment's info that mean the same in ours."""


class FiveTuple(TextAdapter):
    """Any object with `reset` and `step`, told in words.

    Args:
        env: the object.
        describe: a function from an observation and the object to a text, as "module:function".
            Observations that are strings need none.
        actions: what the agent reads for the numbered actions 0, 1, ...
        choices: actions that are texts, to offer in every turn.
        success: a function from the last reward, whether the episode was terminated, and the last
            info to whether it was a success, as "module:function".
        max_steps: the number of actions after which an episode is cut off.
        words: used where `describe`, `actions` and `success` are not given.

    Raises:
        ConfigError: the object cannot be told in words; the message says which argument is missing.
    """

    def __init__(
        self,
        env: Any,
        describe: str | None,
        actions: list[str] | None,
        choices: list[str] | None,
        success: str | None,
        max_steps: int | None,
        words: Words | None = None,
    ) -> None:
        super().__init__(max_steps)
        self.env = env
        self._describe: Callable[[Any, Any], object] | None = words.describe if words else None
        if describe is not None:
            self._describe = function_named(describe, "describe=")
        self._success = None if success is None else function_named(success, "success=")
        self._words = words
        if isinstance(words_end := getattr(self.inner, "free_text", None), FreeText):
            self.free_text = words_end
        functions = filter(inspect.isfunction, (self._describe, self._success))
        self.files = [Path(inspect.getfile(each)) for each in functions]
        self._seeded, self._free = _takes_seed(env), False
        space = getattr(env, "observation_space", None)
        if self._describe is None and _holds_no_text(space):
            raise self._speechless(f"has observations in {_short(space)}")
        self._numbered = _numbered(env, words.actions if actions is None and words else actions)
        self._offered = None if self._numbered is None else tuple(self._numbered)
        if choices is not None:
            if self._numbered is not None:
                raise ConfigError(
                    "choices= offers actions that are texts, and here they are numbers. Leave it "
                    "out; actions= names them."
                )
            self._offered = distinct_texts(choices, "choices", "'choices=[go left, go right]'")
        if self._numbered is None:
            self._take_optional_parts()

    def _take_optional_parts(self) -> None:
        """Have what the contract of text worlds leaves open, where the object has it."""
        for names in _OPTIONAL:
            methods = {name: getattr(self.inner, name, None) for name in names}
            if all(map(callable, methods.values())):
                self.__dict__ |= methods
        if isinstance(discount := getattr(self.inner, "step_discount", None), float):
            self.step_discount = discount

    @property
    def inner(self) -> object:
        """The object itself, without wrappers."""
        return getattr(self.env, "unwrapped", self.env)

    def begin(self, seed: int) -> tuple[str, Sequence[str] | Form | None]:
        """Reset the object, by the seed if it takes one."""
        answer = self.env.reset(seed=seed) if self._seeded else self.env.reset()
        paired = isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping)
        observation, info = answer if paired else (answer, {})
        self._take_over(info)
        self._free = self._offers(info) is None and "action_grammar" not in info
        if not self._seeded:
            note = f"{type(self.inner).__name__}.reset takes no seed, so episodes may not repeat."
            self.info["notes"] = (*self.info.get("notes", ()), note)
        return self._told(observation), self._offers(info)

    def act(self, action: str) -> tuple[str, Sequence[str] | Form | None, float, bool, bool | None]:
        """Pass an action on: by its number where actions have numbers, elsewhere as it is."""
        sent = action if self._numbered is None else self._numbered[action]
        try:
            answer: object = self.env.step(sent)
        except Exception as error:
            if self._free:
                error.add_note(_UNOFFERED)
            raise
        if not (isinstance(answer, tuple) and len(answer) in (4, 5)):
            raise WorldError(
                f"step returned {answer!r:.80}; it must return (observation, reward, terminated, "
                "truncated, info), or the four values of the old gym."
            )
        observation, reward, done, *rest = answer
        info = rest[-1] if isinstance(rest[-1], Mapping) else {}
        cut = bool(rest[0]) if len(answer) == 5 else bool(info.get("TimeLimit.truncated", False))
        # The old gym says that a truncated episode is done, too.
        terminated = bool(done) and not (cut and len(answer) == 4)
        self.truncated = cut and not terminated
        self._take_over(info)
        return (
            self._told(observation),
            self._offers(info),
            reward,
            terminated,
            self._succeeded(reward, terminated, info),
        )

    def close(self) -> None:
        """Close the object, if it can be closed."""
        close = getattr(self.env, "close", None)
        if close is not None:
            close()

    def _take_over(self, info: Mapping[str, Any]) -> None:
        self.info |= {key: info[key] for key in _PASSED_ON if key in info}
        if isinstance(info.get("goal"), str):
            self.goal = info["goal"]
        self.invalid = bool(info.get("invalid_action", False))

    def _told(self, observation: Any) -> str:
        if self._describe is not None:
            text = self._describe(observation, self.env)
            if not isinstance(text, str):
                raise WorldError(f"describe returned {text!r:.80}; it must return a string.")
            return text
        if isinstance(observation, str):
            return observation
        raise self._speechless(f"shows {observation!r:.80}")

    def _speechless(self, what: str) -> ConfigError:
        return ConfigError(
            f"{type(self.inner).__name__} {what}, and an agent reads text. Say how to put it into "
            "words: describe=my_module:function, a function from an observation and the "
            "environment to a string."
        )

    def _offers(self, info: Mapping[str, Any]) -> Sequence[str] | Form | None:
        return self._offered or info.get("admissible_actions")

    def _succeeded(self, reward: Any, terminated: bool, info: Mapping[str, Any]) -> bool | None:
        """Judge by the function or by what the object says; None leaves it to the reward."""
        if self._success is not None:
            return bool(self._success(reward, terminated, info))
        if self._words is not None:
            return self._words.success(float(reward), terminated)
        episode = info.get("episode")
        if isinstance(episode, Mapping) and "success" in episode:
            return bool(episode["success"])
        return bool(info["is_success"]) if "is_success" in info else None


class GymnasiumWorld(FiveTuple):
    """Any registered Gymnasium environment, with words for its observations and actions.

    Observations that are strings are shown as they are. Others need `describe`, and a `Discrete`
    action space needs `actions`. FrozenLake-v1, CliffWalking-v1, Taxi-v4 and Blackjack-v1 have
    words built in.

    ### Success
    The function `success` decides. Without one, `info["is_success"]` decides where it exists, or
    else the episode is a success if its last reward is positive.

    ### Arguments
    * `describe`: a function from an observation and the environment to a text, as
      "module:function".
    * `actions`: a list of texts for the actions 0, 1, ...
    * `choices`: a list of actions to offer in every turn, where actions are texts.
    * `success`: a function from the last reward, whether the episode was terminated, and the last
      info to True or False, as "module:function".
    * `max_steps`: cut episodes off after so many actions. By default the environment's own limit
      holds, or 200 if it has none.
    * Any other argument is one of the environment, such as `is_slippery=false`.
    """

    def __init__(
        self,
        id: str,
        /,
        *,
        describe: str | None = None,
        actions: list[str] | None = None,
        choices: list[str] | None = None,
        success: str | None = None,
        max_steps: int | None = None,
        **arguments: Any,
    ) -> None:
        env = _made(id, arguments)
        if max_steps is None and env.spec is not None and env.spec.max_episode_steps is None:
            max_steps = ENOUGH
        words = WORDS.get(id.rpartition(":")[2])
        super().__init__(env, describe, actions, choices, success, max_steps, words)


class ObjectWorld(FiveTuple):
    """An object of your own with `reset` and `step`, such as an environment of another library.

    `object:module:name` calls `name` in the module, a class or a function, and plays what it
    returns. `reset` returns an observation, or an observation and an info. A seed is passed to it
    if it takes one. `step` returns five values as in Gymnasium, or four as in the old gym. Both
    flags at once count as terminated. Nothing has to be registered or inherited.

    ### Success
    The function `success` decides. Without one, `info["episode"]["success"]` or
    `info["is_success"]` decide where they exist, or else the episode is a success if its last
    reward is positive.

    ### Arguments
    * `describe`: a function from an observation and the object to a text, as "module:function".
      Observations that are strings need none.
    * `actions`: a list of texts for the actions 0, 1, ..., where actions are numbers.
    * `choices`: a list of actions to offer in every turn, where actions are texts.
    * `success`: a function from the last reward, whether the episode was terminated, and the last
      info to True or False, as "module:function".
    * `max_steps`: cut episodes off after so many actions, 200 by default.
    * Any other argument is passed to the class or function.
    """

    def __init__(
        self,
        name: str,
        /,
        *,
        describe: str | None = None,
        actions: list[str] | None = None,
        choices: list[str] | None = None,
        success: str | None = None,
        max_steps: int | None = ENOUGH,
        **arguments: Any,
    ) -> None:
        env = function_named(name, "object:")(**arguments)
        for method in ("reset", "step"):
            if not callable(getattr(env, method, None)):
                raise ConfigError(
                    f"object:{name} made a {type(env).__name__}, which has no method {method}."
                )
        super().__init__(env, describe, actions, choices, success, max_steps)

    @classmethod
    def free_text_of(cls, name: str) -> FreeText:
        """Get the `free_text` of the object's class, if it has one."""
        return _free_text(function_named(name, "object:"))


def _made(id: str, arguments: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
    """Make a registered environment; the reason for a failure is one sentence."""
    try:
        with without_warnings():  # an old version is told once, as an error
            return gymnasium.make(id, disable_env_checker=True, **arguments)
    except DeprecatedEnv as error:
        raise ConfigError(f"gymnasium:{id}: {error}") from error
    except ModuleNotFoundError as error:
        raise ConfigError(f"Cannot import what gymnasium:{id} needs: {error}") from error
    except UnregisteredEnv as error:
        name = id.rpartition(":")[2]
        raise ConfigError(
            f"Gymnasium knows no environment {id!r}. {did_you_mean(name, gymnasium.registry)}"
            "If importing a module registers it, write gymnasium:module:ID."
        ) from error


def _takes_seed(env: Any) -> bool:
    """Tell whether `reset` takes a seed."""
    try:
        parameters = inspect.signature(env.reset).parameters.values()
    except (TypeError, ValueError):  # not a Python function
        return False
    return any(each.name == "seed" or each.kind is each.VAR_KEYWORD for each in parameters)


def _holds_no_text(space: object) -> bool:
    """Tell whether a space is one of Gymnasium's own that holds no texts."""
    if type(space).__module__.partition(".")[0] not in ("gymnasium", "gym"):
        return False
    return not _is_text(space) and type(space) is not gymnasium.Space


def _is_text(space: object) -> bool:
    return getattr(getattr(space, "dtype", None), "kind", "") == "U"


def _numbered(env: Any, actions: object) -> dict[str, int] | None:
    """Map the texts of numbered actions to their numbers; None where actions are texts."""
    space = getattr(env, "action_space", None)
    name = type(getattr(env, "unwrapped", env)).__name__
    count = getattr(space, "n", None) if getattr(space, "shape", ()) == () else None
    if count is None and _holds_no_text(space):
        raise ConfigError(
            f"{name} has actions in {_short(space)}, which an agent cannot write. Wrap it so that "
            "its actions are numbers from 0 (Discrete), or texts."
        )
    if count is None and actions is None:
        return None
    if count is None and _is_text(space):
        raise ConfigError(
            f"{name} has actions that are texts, and actions= names actions that are numbers. "
            "Offer texts by choices=, or let the agent write."
        )
    example = "'actions=[go left, go right]'"
    texts = () if actions is None else distinct_texts(actions, "actions", example)
    if count is not None and len(texts) != count:
        words = f"{len(texts)} words" if texts else "no words for them"
        raise ConfigError(
            f"{name} has {count} numbered actions and {words}. Name each of them, in the order of "
            f"their numbers: {example}."
        )
    return {text: number for number, text in enumerate(texts, int(getattr(space, "start", 0)))}


def _short(space: object) -> str:
    """Show a space in a line."""
    return beginning(" ".join(str(space).split()), 60)


def _free_text(creator: object) -> FreeText:
    found = getattr(creator, "free_text", None)
    return found if isinstance(found, FreeText) else FreeText()
