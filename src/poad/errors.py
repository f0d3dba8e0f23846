"""The errors of poad, as one tree, and the suggestion that goes with a mistyped name.

    PoadError                   the base: `except PoadError` catches whatever poad explains itself
    ├── ConfigError             settings that cannot be used
    ├── ModelError              a language model that cannot be loaded or used
    ├── EngineError             a sampling engine that cannot be reached or used
    ├── PromptError             a prompt format that does not suit the model
    ├── WorldError              a world that breaks the contract of text worlds
    ├── DivergenceError         a training that diverged, or whose sampler is another policy
    ├── RankError               a training of several processes of which one is gone
    ├── RunError                a run directory that cannot be created, read or written
    │   ├── LockedError         another process is writing there
    │   └── TrackerError        a tracker that cannot be opened
    ├── ExportError             a model that cannot be exported
    ├── LanguageError           a language evaluation that cannot run
    ├── HardwareError           a machine that cannot be measured
    ├── DataError               a data set that cannot be used
    └── SandboxError            programs cannot be run safely here

Every message says what is wrong, where, and what to do about it, so the command line prints the
message alone. It tells what a world raised in one message as well, by the `WorldNote` on it.
Anything else that is raised is a bug and shows a traceback.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from types import ModuleType


class PoadError(Exception):
    """Base of all errors that poad explains itself."""


class ConfigError(PoadError, ValueError):
    """Settings that cannot be used; the message says which, why, and what to use instead."""


class ModelError(PoadError, ValueError):
    """A model that cannot be loaded or used; the message says what to use instead."""


class EngineError(PoadError, RuntimeError):
    """A sampling engine that cannot be reached or used; the message says what to do about it."""


class PromptError(PoadError, ValueError):
    """A prompt format that does not suit the model; the message says what to use instead."""


class WorldError(PoadError, AssertionError):
    """A world that breaks the contract; the message names the world, the place and the fix.

    Args:
        message: what the world did, and where.
        findings: each broken rule with what was first seen; empty outside `check_env`.
    """

    def __init__(self, message: str, findings: Mapping[str, object] | None = None) -> None:
        self.findings = dict(findings or {})
        super().__init__(message)


class WorldNote(str):
    """The note on whatever a world raised: it names the world, the seed and the turn.

    Args:
        text: the note.
        line: the last line of the world's own code that was running; empty if there was none.
    """

    line: str

    def __new__(cls, text: str, line: str) -> WorldNote:
        """Make a string that also holds the line."""
        note = super().__new__(cls, text)
        note.line = line
        return note


class DivergenceError(PoadError, ArithmeticError):
    """Training diverged: a loss or gradient is not finite, or the sampler is another policy."""


class RankError(PoadError, RuntimeError):
    """A training of several processes in which one is gone, or does something else."""


class RunError(PoadError, RuntimeError):
    """A run that cannot be created, read or written; the message says what to do about it."""


class LockedError(RunError):
    """Another process holds the lock of a directory; the message names the process."""


class TrackerError(RunError):
    """A tracker that is not installed or cannot be opened."""


class ExportError(PoadError, RuntimeError):
    """A model that cannot be exported, or an export that cannot be played."""


class LanguageError(PoadError, RuntimeError):
    """A language evaluation that cannot run here; the message says what is missing."""


class HardwareError(PoadError, ValueError):
    """A machine that cannot be measured; the message says what to specify instead."""


class DataError(PoadError, ValueError):
    """A data set that cannot be used; the message names the file and the column."""


class SandboxError(PoadError, RuntimeError):
    """Programs cannot be run safely here; the message says what is missing and how to get it."""


TRACEBACK = "POAD_TRACEBACK"
"""The environment variable that shows the traceback of an error which is told without one."""


def explained(error: Exception) -> str | None:
    """Say in one message what is wrong and where; None if nothing but the traceback tells.

    Args:
        error: of poad or, with a `WorldNote`, of a world.
    """
    # The notes say where in a world this happened.
    notes: list[str] = getattr(error, "__notes__", [])
    if isinstance(error, PoadError):
        return " ".join([str(error), *notes])
    place = next((note for note in notes if isinstance(note, WorldNote)), None)
    if place is None or not place.line:
        return None
    try:
        text = str(error)
    except Exception:  # of a class of the world's own
        text = "an error without words"
    text = beginning(text, 500)
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    more = "".join(f" {note}" for note in notes if note is not place)
    return (
        f"The world raised {what} ({place.line}). {place} With {TRACEBACK}=1 in the environment, "
        f"poad shows the traceback.{more}"
    )


def beginning(text: str, most: int) -> str:
    """Cut a text off behind so many characters, and say so."""
    return text if len(text) <= most else f"{text[:most]} ... ({len(text):,} characters)"


_ELSEWHERE = {
    "learning_rate": "lr",
    "lambda": "lam",
    "gae_lambda": "lam",
    "clip_range": "clip",
    "clip_eps": "clip",
    "beta": "kl_reference",
    "kl_coef": "kl_reference",
    "ent_coef": "entropy",
    "vf_coef": "coefficient",
    "n_epochs": "epochs",
    "n_steps": "horizon",
    "n_envs": "streams",
    "num_envs": "streams",
    "total_timesteps": "steps",
    "max_new_tokens": "max_action_tokens",
}
"""What other libraries call our settings, with our names."""


def own_name(name: str) -> str:
    """Return our name for what other libraries call a setting; any other name as it is."""
    return _ELSEWHERE.get(name, name)


def _last_part(name: str) -> str:
    """The setting that a dotted name or a flag stands for."""
    return name.removeprefix("--").rpartition(".")[2].replace("-", "_")


def imported(module: str, what: str, near: str = "") -> ModuleType:
    """Import a module that a user named.

    Args:
        module: its name.
        what: what cannot be imported if it fails, for the message.
        near: a suggestion, if the name may be mistyped.

    Raises:
        ConfigError: there is no such module, or it fails when it is imported.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"Cannot import {what}: {error}. {near}Run poad from the directory that holds the "
            "module, or install its package."
        ) from error
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        raise ConfigError(f"Cannot import {what}: {type(error).__name__}: {error}") from error


def did_you_mean(name: object, known: Iterable[object], count: int = 2) -> str:
    """Suggest the nearest known names, as a sentence with a trailing space; empty if none is near.

    Args:
        name: the name that was not found.
        known: the names that exist.
        count: how many suggestions to make at most.
    """
    options = [str(each) for each in known]
    meant = _ELSEWHERE.get(_last_part(str(name)))
    near = [each for each in options if _last_part(each) == meant][:count]
    near = near or difflib.get_close_matches(str(name), options, count, 0.5)
    return f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
