"""Settings that run code: those of a run are asked about, those that the user names are not.

A world or a method of one's own is a module, and importing a module runs it. A run from somebody
else could name any module, or turn off the protection of programs. So poad asks for the flag
``--trust-code`` before it does what a run's settings ask for. What the user has named or trusted is
remembered outside of all runs, so that one's own runs open without a question. docs/security.md
tells more.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from poad.config import Config
from poad.envs import code_named, host_of
from poad.errors import ConfigError
from poad.runs import Run, write_json

FLAG = "--trust-code"
_REMOTE = "the remote code of a model"
_UNPROTECTED = "isolation=none"
_CONNECTION = "a connection to a server"


class _Request(NamedTuple):
    """What a setting asks for."""

    what: str
    """A module, something in it that is called, or one of the names above."""
    where: str
    """The file of the module; the model; the run whose programs would not be confined; the server's
    address."""


def trust(config: Config, run: Path | None = None) -> None:
    """Allow and remember what settings ask for that the user has named.

    Args:
        config: the settings.
        run: the directory of the run they are for.

    Raises:
        ConfigError: a module lies inside a run.
    """
    requests = list(_requests(config, run))
    known = _remembered()
    if new := [[*each] for each in requests if [*each] not in known]:
        with contextlib.suppress(OSError):  # without a home there is no memory, and poad asks
            _memory().parent.mkdir(parents=True, exist_ok=True)
            write_json(_memory(), [*known, *new])
    _open_directory(requests)


def check_stored(config: Config, run: Path, *, trusted: bool) -> None:
    """Refuse what the settings of a run ask for, unless it is trusted.

    Args:
        config: the settings.
        run: the directory of the run.
        trusted: whether the user trusts them, by ``--trust-code``.

    Raises:
        ConfigError: a module that nobody trusts, or one inside a run; or unprotected programs.
    """
    requests, known = list(_requests(config, run)), _remembered()
    asked = [f"{what} ({where})" for what, where in requests if [what, where] not in known]
    if trusted:
        trust(config, run)
    elif asked:
        raise ConfigError(
            f"{run} asks for code that is not poad's, for programs without protection or for a "
            f"connection: {', '.join(asked)}. It could do whatever you can do. If you trust it, "
            f"add {FLAG}. You are asked only once."
        )
    _open_directory(requests)


def open_run(path: Path, *, trusted: bool) -> Run:
    """Open a run whose code is trusted; errors are those of `Run.open` and `check_stored`."""
    run = Run.open(path)
    check_stored(run.config, path, trusted=trusted)
    return run


def is_in_run(file: Path) -> bool:
    """Whether a file lies inside a run."""
    needed = ("config.yaml", "versions.json")
    return any(
        all((folder / name).is_file() for name in needed) for folder in file.resolve().parents
    )


def _requests(config: Config, run: Path | None) -> Iterator[_Request]:
    method = config.credit.method.rpartition(":")[0]
    for what, module in (*code_named(config.env, config.env_args), (method, method)):
        if what == module:
            imported = module and module.partition(".")[0] != "poad" and module not in sys.modules
            file = _file_of(module) if imported else None
            if file is None:  # there is nothing to import, which is told by whoever tries
                continue
        else:  # something is called, which may do harm in any module
            file = _file_of(module)
        if file is not None and is_in_run(file):
            raise ConfigError(
                f"{module} lies inside a run ({file}), and nothing is imported from there. If you "
                "trust it, copy it to another directory."
            )
        yield _Request(what, str(file or "a module of Python itself"))
    if config.model.trust_remote_code:
        yield _Request(_REMOTE, config.model.name)
    if (host := host_of(config.env)) is not None:
        yield _Request(_CONNECTION, host)
    if config.acting.engine == "vllm":
        yield _Request(_CONNECTION, config.vllm.url)
    if run is not None and config.env_args.get("isolation") == "none":
        yield _Request(_UNPROTECTED, str(run.resolve()))


def _file_of(module: str) -> Path | None:
    """Find the file of a module without importing it or anything around it."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded is not None:
        return Path(loaded).resolve()
    first, *inner = module.split(".")
    search = [*sys.path, os.getcwd()]
    found = (finder.find_spec(first, search) for finder in sys.meta_path)
    spec = next(filter(None, found), None)
    file = None
    while spec is not None and spec.origin not in ("built-in", "frozen"):
        places = list(spec.submodule_search_locations or ())
        file = Path(spec.origin or places[0]).resolve()
        # The search for a full name would import its parents.
        spec = PathFinder.find_spec(inner.pop(0), places) if inner else None
    return file


def _open_directory(requests: list[_Request]) -> None:
    """Let the modules of the current directory be imported, if one is wanted."""
    wanted = any(each.what not in (_REMOTE, _UNPROTECTED, _CONNECTION) for each in requests)
    if wanted and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _memory() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    if home.startswith("~"):  # this user has no home, and the null device holds no files
        home = os.devnull
    return Path(home) / "poad" / "trusted.json"


def _remembered() -> list[list[str]]:
    try:
        return json.loads(_memory().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
