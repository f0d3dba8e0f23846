"""`check_env`: test a text world against the rules that poad's trainer relies on."""

import math
import random
import sys
from collections.abc import Callable, Mapping
from functools import partial
from itertools import zip_longest
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import gymnasium
from gymnasium.error import ResetNeeded

from poad.envs.contract import LONGEST, answer_of, catching_exits, check_extras, is_text, short
from poad.envs.draw import draw
from poad.envs.registry import make
from poad.errors import ConfigError, PoadError, WorldError
from poad.trie import Form, Grammar

World: TypeAlias = gymnasium.Env[str, str]
Choose: TypeAlias = Callable[[int, dict[str, Any]], str | None]
"""From the number of turns so far and the last `info` to an action, or to None to stop."""
Watch: TypeAlias = Callable[[int, int], object]
"""From the number of episodes so far, and of turns in the current one, to nothing of use."""
Record: TypeAlias = tuple[Any, ...]
"""What must repeat exactly: action, prompt, reward, both flags, and the entries of `CONTRACT`."""

NOT_OFFERED: Final = "whistle at the moon"
"""A string that no world should offer."""
CONTRACT: Final = (
    "admissible_actions",
    "action_grammar",
    "duration",
    "invalid_action",
    "episode",
    "goal",
)
"""The keys of `info` that have a meaning in every text world. A world may add keys of its own."""

# The rules. Each is the key of what was seen when it was broken.
REPEATS = "equal seed and actions give equal episodes"
PROMPTS = "prompts lie in observation_space"
TUPLE = "offered actions are a non-empty tuple without repeats"
OFFERS = "offered actions lie in action_space"
FUNCTION = "offered actions are a function of the prompt, unless aliased=True"
REWARDS = "rewards are finite floats"
FLAGS = "terminated and truncated are bools, never both True"
DURATION = "info['duration'] is an int from 1"
VALID = "offered actions are valid"
EPISODE_AT_END = "the last step has info['episode']: r (float), l (int), success (bool)"
EPISODE_ONLY_AT_END = "info['episode'] is absent before the last step"
INVALID = "a string that is not offered becomes info['invalid_action'], not an exception"
BEFORE = "a step before the first reset raises ResetNeeded"
AFTER = "a step after the end of an episode raises ResetNeeded"
RAISES = "reset and step do not raise"
ENDS = "episodes end"
TORCH = "a world does not import torch"

RULES: Final[Mapping[str, str]] = MappingProxyType(
    {
        REPEATS: "Draw all randomness from self.np_random after super().reset(seed=seed), and let "
        "no state survive reset or be shared between copies.",
        PROMPTS: "Widen observation_space (its max_length or charset), or change the prompt.",
        TUPLE: "Return a tuple of distinct strings, or a Form, as info['admissible_actions'], or "
        "leave the key out to let the agent write freely.",
        OFFERS: "Widen action_space (its max_length or charset), or rename the action.",
        FUNCTION: "Mention in the prompt what the offered actions depend on. If the world hides it "
        "on purpose, call check_env(..., aliased=True) or `poad envs ID --check --aliased`.",
        REWARDS: "Return float(reward), and never NaN or infinity.",
        FLAGS: "Convert both flags with bool(), and set truncated only if terminated is False.",
        DURATION: "Set it to the number of primitive steps that the action took, or leave it out.",
        VALID: "Set info['invalid_action'] only for strings that were not offered.",
        EPISODE_AT_END: "Set it on the step that terminates or truncates the episode: the "
        "return, the length, and whether the goal was reached.",
        EPISODE_ONLY_AT_END: "Set it only on the step that terminates or truncates the episode.",
        INVALID: "In step, accept any string, set info['invalid_action'] = action if it was not "
        "offered, and let the episode go on.",
        BEFORE: "Raise gymnasium.error.ResetNeeded in step until reset has been called.",
        AFTER: "Raise gymnasium.error.ResetNeeded in step once the episode has ended. Do not reset "
        "automatically.",
        RAISES: "Return (prompt, info) from reset and five values from step, and catch exceptions "
        "in the world. An agent's mistake is an observation and a reward.",
        ENDS: "Truncate episodes that take too long, or pass a larger max_turns to check_env.",
        TORCH: "Remove the import. Listing and playing worlds must not wait for torch to load.",
    }
)
"""Every rule that `check_env` tests, with the usual fix."""


def check_env(
    world: str | World | Callable[[], World],
    *,
    aliased: bool = False,
    episodes: int = 20,
    seed: int = 0,
    max_turns: int = 1000,
    watch: Watch = lambda episode, turn: None,
) -> tuple[str, ...]:
    """Play random episodes and check all of `RULES`.

    Two copies of the world play the same seeds and actions, and their episodes are compared.

    Args:
        world: a name for `poad.envs.make`, a function that opens a copy, or one open world. An open
            world is compared with itself, and is not tested before its first reset.
        aliased: allow the offered actions to depend on more than the prompt, and report it.
        episodes: the number of episodes, with seeds `seed`, `seed + 1`, ...
        seed: the first episode's seed. It also seeds the choice of actions.
        max_turns: the number of turns after which an episode is abandoned. At least one episode
            must end.
        watch: is called in every turn of both copies, with the number of episodes played so far and
            the number of turns in the current one.

    Returns:
        With `aliased`, a line about the first prompt that came with different offers, if there was
        one. Otherwise an empty tuple.

    Raises:
        WorldError: the world breaks rules. The message lists each of them with what was seen first
            and how to fix it; the attribute `findings` maps the rules to what was seen.
        ConfigError: the world cannot be played with these arguments.
    """
    torch_was_loaded = "torch" in sys.modules
    check = _Check(aliased)
    if isinstance(world, gymnasium.Env):
        _play_twice(check, world, world, range(seed, seed + episodes), max_turns, watch)
    else:
        first, second = (make(world) if isinstance(world, str) else world() for _ in range(2))
        check.refuses_to_step(first, BEFORE)
        _play_twice(check, first, second, range(seed, seed + episodes), max_turns, watch)
        first.close()
        second.close()
    check.expect(
        ENDS, check.ended or not check.stepped, f"no episode ended within {max_turns} turns"
    )
    check.expect(TORCH, torch_was_loaded or "torch" not in sys.modules, "torch in sys.modules")
    if check.findings:
        errors = (seen for seen in check.findings.values() if isinstance(seen, Exception))
        raise WorldError(_report(check.findings), check.findings) from next(errors, None)
    return tuple(check.allowed[:1])


def _play_twice(
    check: "_Check",
    first: World,
    second: World,
    seeds: range,
    turns: int,
    watch: Watch,
) -> None:
    """Play each seed with random actions on one copy, then repeat the actions on the other."""
    rng = random.Random(seeds.start)
    first.action_space.seed(seeds.start)
    # This also resets one copy more often than the other, so that anything that carries over
    # between episodes shows as a difference.
    check.accepts_any_string(second, seeds.start)

    def choose(turn: int, info: dict[str, Any]) -> str | None:
        if turn >= turns:
            return None
        actions = _offer(info)
        if actions is None:
            return first.action_space.sample()
        return draw(actions, rng) if actions else None

    for played, seed in enumerate(seeds):
        seen = partial(watch, played)
        records = check.play(first, seed, choose, seen)
        script = [*(record[0] for record in records[1:]), None]
        again = check.play(second, seed, lambda turn, _, script=script: script[turn], seen)
        for turn, (one, other) in enumerate(zip_longest(records, again)):
            if not _equal(one, other):
                where = f"after action {turn} ({short(script[turn - 1])})" if turn else "at reset"
                difference = f"seed {seed}, turn {turn}: {_difference(one, other)}"
                check.expect(REPEATS, False, f"two runs first differ {where}, {difference}")
                break


def _offer(info: Mapping[str, Any]) -> Any:
    """Return what a world offers; a grammar is read, and refused if it is none."""
    grammar = info.get("action_grammar")
    return info.get("admissible_actions") if grammar is None else Grammar.of(grammar)


def _extremes(form: Form) -> tuple[str, ...]:
    """Give a few actions of a form with every alternative among them, and the longest action."""
    rows = range(max(map(len, form.parts)))
    some = ("".join(part[row % len(part)] for part in form.parts) for row in rows)
    return (*some, "".join(max(part, key=len) for part in form.parts))


def _equal(one: Any, other: Any) -> bool:
    """Compare two records. Values that cannot be compared, such as arrays, are not equal."""
    try:
        return bool(one == other)
    except ValueError:
        return False


def _difference(one: Record | None, other: Record | None) -> str:
    """Describe where two records differ first. None is a turn that one episode does not have."""
    if one is None or other is None:
        return "one of two equal episodes ends before it"
    names = ("action", "prompt", "reward", "terminated", "truncated", *CONTRACT)
    pairs = zip(names, one, other, strict=True)
    name, a, b = next(each for each in pairs if not _equal(*each[1:]))
    if isinstance(a, str) and isinstance(b, str):
        start = next((i for i, (c, d) in enumerate(zip(a, b, strict=False)) if c != d), len(a))
        a, b = (text[max(0, start - 20) : start + 60] for text in (a, b))
        return f"the {name} has {a!r} the first time and {b!r} the second time"
    return f"{name} is {short(a)} the first time and {short(b)} the second time"


def _report(findings: Mapping[str, object]) -> str:
    count = "a rule" if len(findings) == 1 else f"{len(findings)} rules"
    lines = [f"This world breaks {count} of text worlds:"]
    for rule, seen in findings.items():
        spoken = isinstance(seen, PoadError) or rule == REPEATS
        shown = str(seen) if spoken else short(seen, 400)
        lines += [f"- {rule}", f"    seen: {shown}", f"    fix:  {RULES[rule]}"]
    return "\n".join(lines)


class _Check:
    """The findings so far. Each method checks a few rules."""

    def __init__(self, aliased: bool) -> None:
        self.findings: dict[str, object] = {}
        self.allowed: list[str] = []
        self.stepped = self.ended = False
        self._aliased = aliased
        self._offers = False
        self._offered: dict[str, object] = {}

    def expect(self, rule: str, holds: bool, seen: object) -> None:
        if not holds:
            self.findings.setdefault(rule, seen)

    def play(
        self, world: World, seed: int, choose: Choose, watch: Callable[[int], object]
    ) -> list[Record]:
        """Play one episode, checking each turn, until it ends or `choose` returns None."""
        records: list[Record] = []
        try:
            with catching_exits():
                prompt, info = answer_of(world.reset(seed=seed), "reset")
            self._offers = _offer(info) is not None
            action, reward, terminated, truncated = "", 0.0, False, False
            while True:
                watch(len(records))
                contract = (info.get(key) for key in CONTRACT)
                records.append((action, prompt, reward, terminated, truncated, *contract))
                ended = bool(terminated or truncated)
                self._check_prompt(world, prompt, info, ended)
                self._check_outcome(reward, terminated, truncated, info)
                check_extras(info)
                if ended:
                    self.ended = True
                    self.refuses_to_step(world, AFTER)
                    return records
                chosen = choose(len(records) - 1, info)
                if chosen is None:
                    return records
                action = chosen
                with catching_exits():
                    answer = answer_of(world.step(action), "step")
                prompt, reward, terminated, truncated, info = answer
                self.stepped = True
        except ConfigError:
            raise
        except Exception as error:
            self.expect(RAISES, False, error)
            return records

    def accepts_any_string(self, world: World, seed: int) -> None:
        try:
            with catching_exits():
                _, info = answer_of(world.reset(seed=seed), "reset")
        except ConfigError:
            raise
        except Exception as error:
            self.expect(RAISES, False, error)
            return
        try:
            with catching_exits():
                named: object = answer_of(world.step(NOT_OFFERED), "step")[4].get("invalid_action")
            good = named == NOT_OFFERED or _offer(info) is None
        except Exception as error:
            named, good = error, False
        self.expect(INVALID, good, named)

    def refuses_to_step(self, world: World, rule: str) -> None:
        try:
            with catching_exits():
                world.step(NOT_OFFERED)
            seen: object = "no exception"
        except WorldError as error:
            seen = error
        except (ResetNeeded, RuntimeError, AssertionError):
            return
        except Exception as error:
            seen = error
        self.expect(rule, False, seen)

    def _check_prompt(self, world: World, prompt: str, info: dict[str, Any], ended: bool) -> None:
        good = is_text(prompt)
        some = bool(prompt) or ended
        self.expect(PROMPTS, good and some and prompt in world.observation_space, prompt)
        actions = _offer(info)
        if actions is not None and not isinstance(actions, Grammar):
            some = _extremes(actions) if isinstance(actions, Form) else actions
            texts = isinstance(some, tuple) and all(map(is_text, some))
            # A form itself refuses actions that are blank or repeated.
            distinct = texts and 0 < len(some) == len(set(some)) and all(a.strip() for a in some)
            self.expect(TUPLE, distinct or isinstance(actions, Form), actions)
            if texts:
                inside = all(action in world.action_space for action in some)
                self.expect(OFFERS, inside, actions)
        if ended or not good:  # the last prompt is not acted on
            return
        if self._offers != (actions is not None) and not hasattr(world.unwrapped, "free_text"):
            seen = "actions are offered in some turns only, and the class has no free_text"
            self.expect(TUPLE, False, seen)
        before = self._offered.setdefault(prompt, actions)
        if before == actions:
            return
        seen = prompt, before, actions
        if self._aliased:
            rule = "allowed by aliased=True: offered actions are not a function of the prompt"
            self.allowed.append(f"{rule}; seen: {short(seen, 400)}")
        else:
            self.expect(FUNCTION, False, seen)

    def _check_outcome(
        self, reward: object, terminated: object, truncated: object, info: dict[str, Any]
    ) -> None:
        self.expect(REWARDS, isinstance(reward, float) and math.isfinite(reward), reward)
        flags = terminated, truncated
        good = all(isinstance(flag, bool) for flag in flags) and not all(flags)
        self.expect(FLAGS, good, flags)
        duration = info.get("duration", 1)
        whole = isinstance(duration, int) and not isinstance(duration, bool)
        self.expect(DURATION, whole and 1 <= duration <= LONGEST, duration)
        good = "invalid_action" not in info or _offer(info) is None
        self.expect(VALID, good, info.get("invalid_action"))
        episode = info.get("episode")
        if any(flags):
            fields = {"r": float, "l": int, "success": bool}
            complete = (
                isinstance(episode, dict)
                and all(isinstance(episode.get(key), kind) for key, kind in fields.items())
                and math.isfinite(episode["r"])
                and episode["l"] >= 0
            )
            self.expect(EPISODE_AT_END, complete, episode)
        else:
            self.expect(EPISODE_ONLY_AT_END, episode is None, episode)
