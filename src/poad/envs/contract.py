"""The contract of text worlds at run time: whatever a world returns is checked before it is used.

`check_env` tests a world beforehand. `CheckedWorld` watches it while an agent plays, so that a
fault is one error that names the world, the seed and the turn, and never a wrong number.
"""

import hashlib
import json
import math
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import gymnasium

from poad.envs.registry import full_name, inner_of
from poad.envs.watch import WATCH
from poad.errors import WorldError, WorldNote
from poad.trie import Form, Grammar, Offer

LONGEST: Final = 1_000_000
"""The largest duration of an action, in primitive steps."""
MANY_TURNS: Final = 1_000
"""After so many turns a note says that an episode has not ended."""


class Shown(NamedTuple):
    """What `reset` returned."""

    prompt: str
    actions: Offer | None
    """The offered actions; None lets the agent write freely."""
    info: Mapping[str, Any]


class Happened(NamedTuple):
    """What `step` returned, in plain types."""

    prompt: str
    actions: Offer | None
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]
    """As the world gave it, with `duration` and `episode` in plain types."""


class Whereabouts:
    """Where in which world an agent is, for errors and replays.

    Args:
        name: the world's id, or the name of its class.
        full_name: the name by which `make` opens it; None if it is not registered.
    """

    def __init__(self, name: str, full_name: str | None) -> None:
        self.name, self.full_name = name, full_name
        self.begin(0)

    def begin(self, seed: int) -> None:
        """Note that the episode of a seed begins."""
        self.seed = seed
        """Seed of the episode."""
        self.actions: list[str] = []
        """What was done in the episode so far; while a step is under way, its action too."""
        self.seen: list[str] = []
        """A digest for the reset and for each turn, of all that the episode has shown so far."""

    def place(self) -> str:
        """Say where in which world this is, how it came there, and how to check the world."""
        where = "reset"
        if self.actions:
            *before, last = self.actions
            where = f"action {len(self.actions)} ({short(last)}){listed(before)}"
        full = self.full_name
        advice = f"`poad envs {full} --check` checks" if full else "poad.check_env(world) checks"
        return (
            f"This was the world {self.name!r}, seed {self.seed}, {where}. {advice} everything "
            "that a text world must keep."
        )

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Name the world, the seed and the turn in every error that leaves this context."""
        try:
            with catching_exits():
                yield
        except WorldError as error:
            raise WorldError(f"{error} {self.place()}", error.findings) from error.__cause__
        except Exception as error:
            error.add_note(WorldNote(self.place(), self.line_of(error)))
            raise

    def line_of(self, error: BaseException) -> str:
        """Find the line of the world's own code that an error came from; empty if unknown."""
        return ""


class CheckedWorld(Whereabouts):
    """A text world that is held to its contract.

    Args:
        env: the world. It is closed with this object.
    """

    def __init__(self, env: gymnasium.Env[str, str]) -> None:
        self.env = env
        name = env.spec.id if env.spec else type(env.unwrapped).__name__
        super().__init__(name, full_name(env))
        self._offers = False

    @property
    def unwrapped(self) -> gymnasium.Env[str, str]:
        """The world without any wrapper."""
        return self.env.unwrapped

    @property
    def step_discount(self) -> float | None:
        """The discount per primitive step inside an action, if the world tells it."""
        return getattr(self.unwrapped, "step_discount", None)

    @property
    def prepares(self) -> bool:
        """Whether the world wants to know an action before it is taken."""
        return hasattr(self.unwrapped, "prepare")

    def reset(self, seed: int) -> Shown:
        """Begin the episode of a seed.

        Raises:
            WorldError: the world returned something that breaks the contract.
            Exception: anything the world raised, with a note on where it happened.
        """
        self.begin(seed)
        with self.placed():
            with WATCH.over(self.place):
                answer = self.env.reset(seed=seed)
            prompt, info = answer_of(answer, "reset")
            shown = Shown(_prompt(prompt), _offers(info), info)
            _check_texts(shown.prompt, shown.actions)
            check_extras(shown.info)
        self._offers = shown.actions is not None
        self._note(shown.prompt, shown.actions, *_goal(shown.info))
        return shown

    def step(self, action: str) -> Happened:
        """Act; errors are those of `reset`."""
        self.actions.append(action)
        with self.placed():
            with WATCH.over(self.place):
                answer = self.env.step(action)
            happened = _read(answer)
            ended = happened.terminated or happened.truncated
            check_extras(happened.info)
            if not ended:  # nothing is read or chosen after the end
                _check_texts(happened.prompt, happened.actions)
                if self._offers != (happened.actions is not None):
                    self._refuse_change()
        duration = happened.info["duration"]
        self._note(*happened[:5], duration, *_goal(happened.info))
        if len(self.actions) == MANY_TURNS and not ended:
            warnings.warn(
                f"An episode of the world {self.name!r} has had {MANY_TURNS:,} turns and goes on. "
                "Success and return are those of episodes that ended, and an evaluation waits for "
                "the end of each. If there may be none, let step return truncated = True after "
                "some number of turns.",
                stacklevel=2,
            )
        return happened

    def prepare(self, action: str) -> None:
        """Announce the next action to a world that can start on it; there is no need to wait."""
        prepare = getattr(self.unwrapped, "prepare", None)
        if prepare is not None:
            with self.placed():
                prepare(action)

    def close(self) -> None:
        """Close the world."""
        with self.placed():
            self.env.close()

    def memory(self) -> Any:
        """Return what the world's copies remember between episodes, as JSON values, or None."""
        remember = getattr(self.unwrapped, "memory", None)
        return None if remember is None else remember()

    def load_memory(self, memory: Any) -> None:
        """Hand a world what `memory` returned."""
        cast(Any, self.unwrapped).load_memory(memory)

    def line_of(self, error: BaseException) -> str:
        """Find the last line of the world's own code that an error came through; may be empty."""
        return line_in(inner_of(self.env), error)

    def _note(self, *shown: object) -> None:
        before = self.seen[-1] if self.seen else ""
        text = json.dumps([before, *shown], default=_plain)
        self.seen.append(hashlib.sha256(text.encode()).hexdigest()[:16])

    def _refuse_change(self) -> None:
        if hasattr(self.unwrapped, "free_text"):
            return
        now, then = ("no actions", "some") if self._offers else ("actions", "none")
        raise WorldError(
            f"The world offers {now} after it offered {then} at reset. Return "
            "info['admissible_actions'] from every reset and step, or from none. A world that "
            "means to do both declares free_text = FreeText(...) in its class."
        )


@contextmanager
def catching_exits() -> Iterator[None]:
    """Turn what would end the process or a loop without a word into a `WorldError`."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise
        raise WorldError(f"The world raised {error!r}, which no world may do.") from error


def line_in(world: object, error: BaseException) -> str:
    """Find the last line of a world's own code that an exception came through, if there is one.

    Its own is the package of its class, or else the directory of its file without those below.
    """
    module = sys.modules.get(type(world).__module__)
    package, _, _ = (getattr(module, "__package__", None) or "").partition(".")
    home = Path(getattr(sys.modules.get(package, module), "__file__", None) or "").resolve().parent
    line = ""
    called = False  # whether the frames so far include the call of the world, in this file
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename).resolve()
        if file == Path(__file__).resolve():
            called = frame.name in ("reset", "step", "prepare", "close")
        elif called and (home in file.parents if package else home == file.parent):
            line = f"{frame.filename}, line {frame.lineno}, in {frame.name}"
    return line


def answer_of(answer: object, method: str) -> tuple[Any, ...]:
    """Return what "reset" or "step" returned, if it is a tuple of the right length.

    Raises:
        WorldError: it is not, or its info is no dictionary.
    """
    parts = {"reset": "(prompt, info)", "step": "(prompt, reward, terminated, truncated, info)"}
    if not (isinstance(answer, tuple) and len(answer) == parts[method].count(",") + 1):
        raise WorldError(f"{method} returned {short(answer)}; it must return {parts[method]}.")
    if not isinstance(answer[-1], Mapping):
        raise WorldError(f"The info is {short(answer[-1])}; it must be a dictionary.")
    return answer


def _read(answer: object) -> Happened:
    """Bring what `step` returned into plain types."""
    prompt, reward, terminated, truncated, info = answer_of(answer, "step")
    flags = _flag("terminated", terminated), _flag("truncated", truncated)
    paid = number(reward)
    if paid is None or not math.isfinite(paid):
        raise WorldError(f"A reward is {short(reward)}; it must be a finite number.")
    plain: dict[str, Any] = {"duration": _duration(info.get("duration", 1))}
    if any(flags):
        plain["episode"] = _episode(info.get("episode"))
    return Happened(_prompt(prompt), _offers(info), paid, *flags, {**info, **plain})


def number(value: object) -> float | None:
    """Return a real number as a float, also one of numpy, and None for anything else."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # type: ignore[attr-defined]
    if not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def is_text(value: object) -> bool:
    """Tell whether a value is a string that can be encoded, so without lone surrogates."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _plain(offer: Form | Grammar) -> object:
    """Bring an offer that is no tuple into the types of JSON."""
    return offer.parts if isinstance(offer, Form) else [offer.kind, offer.source, offer.calls]


def _prompt(prompt: object) -> str:
    if not is_text(prompt):
        raise WorldError(f"An observation is {short(prompt)}; it must be a string of Unicode.")
    return str(prompt)


def _offers(info: Mapping[str, Any]) -> Offer | None:
    actions, grammar = info.get("admissible_actions"), info.get("action_grammar")
    if grammar is not None:
        if actions is not None:
            raise WorldError("info has admissible_actions and action_grammar; give one of them.")
        try:
            return Grammar.of(grammar)
        except ValueError as error:
            raise WorldError(f"info['action_grammar'] cannot be used: {error}") from error
    if actions is None or isinstance(actions, Form):
        return actions
    if not isinstance(actions, tuple | list) and getattr(actions, "ndim", None) != 1:
        why = ", because the order of a set changes" if isinstance(actions, set | frozenset) else ""
        raise WorldError(
            f"info['admissible_actions'] is {short(actions)}; it must be a tuple of strings{why}."
        )
    for action in actions:
        if not is_text(action):
            raise WorldError(
                f"An offered action is {short(action)}; it must be a string of Unicode."
            )
    return tuple(map(str, actions))


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        value = value.item() if getattr(value, "ndim", None) == 0 else value  # type: ignore[attr-defined]
    if not isinstance(value, bool):
        raise WorldError(f"{name} is {short(value)}; it must be True or False.")
    return value


def _duration(duration: object) -> int:
    if isinstance(duration, Integral) and not isinstance(duration, bool):
        steps = int(duration)
        if 1 <= steps <= LONGEST:
            return steps
    raise WorldError(
        f"info['duration'] is {short(duration)}; it must be a whole number of primitive steps from "
        f"1 to {LONGEST:,}."
    )


def _episode(given: object) -> dict[str, Any]:
    kind = (
        "it must hold r (its return, a finite number), l (its length, a whole number) and success"
    )
    if isinstance(given, Mapping) and {"r", "l", "success"} <= given.keys():
        total, length, success = number(given["r"]), number(given["l"]), number(given["success"])
        if (
            total is not None
            and math.isfinite(total)
            and length is not None
            and length >= 0
            and length.is_integer()
            and success in (0, 1)
        ):
            return {**given, "r": total, "l": int(length), "success": bool(success)}
    raise WorldError(f"An episode ended with info['episode'] = {short(given)}; {kind}.")


def _check_texts(prompt: str, actions: Offer | None) -> None:
    """Check what an agent is to read, and the actions that it is to choose from."""
    if not prompt:
        raise WorldError("An observation is empty; a world must show some text.")
    if actions is None or isinstance(actions, Form | Grammar):  # these check themselves
        return
    if not actions:
        raise WorldError(
            "The world offers no action, although the episode goes on. End the episode, or leave "
            "info['admissible_actions'] out to let the agent write freely."
        )
    if not all(action.strip() for action in actions):
        raise WorldError("An offered action is blank.")
    if len(set(actions)) < len(actions):
        twice = next(a for i, a in enumerate(actions) if a in actions[:i])
        raise WorldError(f"The action {short(twice)} is offered twice.")


def check_extras(info: Mapping[str, Any]) -> None:
    """Check the optional entries that poad reads."""
    goal = info.get("goal")
    if goal is not None and not (is_text(goal) and goal.strip()):
        raise WorldError(f"info['goal'] is {short(goal)}; it must be a string with words in it.")
    notes = info.get("notes", ())
    if isinstance(notes, str) or not all(isinstance(note, str) for note in notes):
        raise WorldError(f"info['notes'] is {short(notes)}; it must be a tuple of sentences.")
    seconds = number(info.get("cpu_seconds", 0.0))
    if seconds is None or not 0 <= seconds < math.inf:
        raise WorldError(f"info['cpu_seconds'] is {short(info['cpu_seconds'])}.")
    measures = info.get("measures", {})
    for name, value in measures.items() if isinstance(measures, Mapping) else [("", measures)]:
        if not isinstance(name, str) or not _is_finite(value):
            raise WorldError(
                f"info['measures'] is {short(measures)}; it must map names to finite numbers."
            )
    work = info.get("work")
    if work is not None:
        known = {"file": is_text, "text": is_text, "score": _is_finite, "deviation": _is_finite}
        whole = isinstance(work, Mapping) and work.keys() == known.keys()
        if not whole or not all(holds(work[name]) for name, holds in known.items()):
            raise WorldError(
                f"info['work'] is {short(work)}; it must hold file and text, which are strings, "
                "and score and deviation, which are finite numbers."
            )


def _goal(info: Mapping[str, Any]) -> list[str]:
    """Return the goal that a world names, which prompts may show, if it does."""
    return [info["goal"]] if info.get("goal") is not None else []


def _is_finite(value: object) -> bool:
    found = number(value)
    return found is not None and math.isfinite(found)


def listed(actions: Sequence[str], limit: int = 200) -> str:
    """Say in about so many characters which actions came before; empty if there were none."""
    shown: list[str] = []
    for action in reversed(actions):
        limit -= len(repr(action)) + 2
        if limit < 0:
            break
        shown.insert(0, repr(action))
    left = len(actions) - len(shown)
    more = [f"{left} earlier {'one' if left == 1 else 'ones'}"] if left else []
    return f" after {', '.join([*more, *shown])}" if actions else ""


def short(value: object, limit: int = 80) -> str:
    """Show a value in about so many characters."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"a {type(value).__name__} whose repr raises {type(error).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 20]} ... ({len(text):,} characters)"
