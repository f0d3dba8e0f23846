"""Other people's packages and the user's own functions, imported by name."""

import importlib
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

from poad.errors import ConfigError, did_you_mean, imported

_ONE_AT_A_TIME: Final = threading.Lock()


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore all warnings, one thread at a time: two would leave them switched off."""
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def needed(module: str, scheme: str, install: str) -> ModuleType:
    """Import a module of a package that a scheme needs.

    Args:
        module: the module.
        scheme: the scheme, to say so in the error.
        install: what pip has to install.

    Raises:
        ConfigError: it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise ConfigError(
            f"{scheme}: needs the package {missing.partition('.')[0]}, which is not installed. "
            f"Install it with: pip install {install}"
        ) from error


def function_named(name: object, given: str) -> Callable[..., Any]:
    """Import a function, a class or anything else that can be called, by ``module:name``.

    Args:
        name: the name as the user wrote it.
        given: what stood before the name, such as ``describe=``, to say so in errors.

    Raises:
        ConfigError: there is no such module or name in it, or it cannot be called.
    """
    module, _, attribute = str(name).rpartition(":")
    if not (isinstance(name, str) and module and attribute):
        raise ConfigError(f"{given}{name} must name something in a module: {given}my_module:name.")
    found = imported(module, f"{module!r} for {given}{name}")
    value = getattr(found, attribute, None)
    if not callable(value):
        offered = [each for each, what in vars(found).items() if callable(what)]
        what = "is not callable" if hasattr(found, attribute) else "does not exist"
        raise ConfigError(
            f"{given}{name}: {attribute!r} {what} in the module {module!r}. "
            f"{did_you_mean(attribute, offered)}".rstrip()
        )
    return value


def distinct_texts(value: object, argument: str, example: str) -> tuple[str, ...]:
    """Check a list of texts that an agent is to choose from.

    Args:
        value: the list.
        argument: what it was given for.
        example: how to write it on a command line, where YAML and the shell have traps.

    Raises:
        ConfigError: it is no list of distinct texts.
    """
    texts = tuple(value) if isinstance(value, list | tuple) else ()
    good = all(isinstance(text, str) and text.strip() for text in texts)
    if not (texts and good and len(set(texts)) == len(texts)):
        raise ConfigError(
            f"{argument} must be a list of distinct texts, not {value!r}. Write {example}."
        )
    return texts
