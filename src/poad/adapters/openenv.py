"""OpenEnv servers: one WebSocket for each copy of a world."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from poad.adapters.packages import needed
from poad.envs import TextAdapter
from poad.errors import ConfigError, WorldError, beginning

READ: Final = ("result", "prompt", "error")
"""Fields of an observation that are looked for when none is named, in this order."""
PATIENCE: Final = 10.0
"""Seconds in which a server must accept a connection."""


class OpenEnvWorld(TextAdapter):
    """An environment behind an OpenEnv server.

    Each copy of the world holds one WebSocket of the server, so the server must allow as many
    sessions as poad opens copies (`streams`, and those of evaluations). The server has no way to
    say that it cuts an episode off; `max_steps` does so here.

    ### Actions
    If the server's action has one required field, what the agent writes goes there as it is.
    Otherwise the agent writes the action as JSON, such as `{"row": 1, "column": 2}`. Text that is
    no such object does not reach the server: the agent is told what was wrong.

    ### Success
    An episode is a success if its last reward is positive.

    ### Arguments
    * `text`: the field of the observation that the agent reads. By default the first of `result`,
      `prompt` and `error` that holds text.
    * `legal`: the field of the observation that lists the actions to offer.
    * `field`: the field of the action that takes the text, for a server whose `/schema` does not
      say so.
    * `max_steps`: cut episodes off after so many actions, 200 by default.
    * `timeout`: seconds to wait for an answer; null waits forever.
    """

    def __init__(
        self,
        url: str,
        /,
        *,
        text: str | None = None,
        legal: str | None = None,
        field: str | None = None,
        max_steps: int | None = 200,
        timeout: float | None = 300.0,
    ) -> None:
        super().__init__(max_steps)
        self._text_field, self._legal, self._timeout = text, legal, timeout
        self._http, self._ws = _addresses(url)
        self._library = needed("websockets.sync.client", "openenv", "'poad[openenv]'")
        self._errors = needed("websockets.exceptions", "openenv", "'poad[openenv]'")
        self._fields = [field] if field else self._required_fields()
        self._open, self._lists = ExitStack(), list[str]()
        self._socket = self._connected()

    def begin(self, seed: int) -> tuple[str, Sequence[str] | None]:
        """Ask the server for an episode of a seed."""
        return self._told(self._observed("reset", self._asked("reset", {"seed": seed})))

    def act(self, action: str) -> tuple[str, Sequence[str] | None, float, bool, None]:
        """Send an action to the server."""
        sent: object = {self._fields[0]: action} if len(self._fields) == 1 else _parsed(action)
        if isinstance(sent, str):
            return self._refused(sent)
        answer = self._asked("step", sent)
        if self._legal is None and (wrong := _mistake(answer)) is not None:
            return self._refused(f"not what the environment takes: {wrong}")
        data = self._observed("step", answer)
        return *self._told(data), float(data.get("reward") or 0.0), bool(data.get("done")), None

    def _refused(self, why: str) -> tuple[str, None, float, bool, None]:
        """Tell the agent what is wrong with an action that the world never saw."""
        self.invalid = True
        needs = f" Write JSON with {', '.join(self._fields)}." if len(self._fields) > 1 else ""
        return f"The action is {why}.{needs}", None, 0.0, False, None

    def close(self) -> None:
        """Say good-bye to the server."""
        gone = OSError, self._errors.WebSocketException
        with self._open, suppress(*gone):
            self._socket.send(json.dumps({"type": "close"}))

    def _required_fields(self) -> list[str]:
        """Ask the server which fields an action must have."""
        try:
            with urllib.request.urlopen(f"{self._http}/schema", timeout=PATIENCE) as answer:
                schema = json.load(answer)
            return [str(name) for name in schema["action"].get("required", [])]
        except urllib.error.HTTPError as error:
            why = f"it answers {error.code} to GET {self._http}/schema"
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ConfigError(
                f"No OpenEnv server answers at {self._http} ({reason}). Start it, or correct the "
                "address."
            ) from error
        except (KeyError, TypeError, AttributeError):
            why = f"{self._http}/schema does not describe an action"
        raise ConfigError(
            f"{self._http} is no OpenEnv server of a known kind: {why}. If it is one, name the "
            "field of its actions that takes the text: field=NAME."
        )

    def _connected(self) -> Any:
        try:
            return self._open.enter_context(
                self._library.connect(
                    self._ws, open_timeout=PATIENCE, close_timeout=1.0, max_size=None
                )
            )
        except (OSError, self._errors.WebSocketException) as error:
            raise ConfigError(
                f"The OpenEnv server at {self._http} takes no connection at {self._ws}: {error}. "
                "If it runs, let it serve more sessions at once (max_concurrent_envs)."
            ) from error

    def _asked(self, kind: str, data: object) -> object:
        """Send a message and return the answer.

        Raises:
            WorldError: there is no answer, or it is no JSON.
        """
        try:
            # A server that is full says so and closes, so its last words come before the question.
            with suppress(self._errors.ConnectionClosed):
                self._socket.send(json.dumps({"type": kind, "data": data}))
            return json.loads(self._socket.recv(timeout=self._timeout))
        except TimeoutError as error:
            self._open.close()  # lest the answer be taken for that of a later question
            raise WorldError(
                f"The OpenEnv server at {self._http} has not answered a {kind} for "
                f"{self._timeout:g} s. Pass a larger timeout= if it needs longer."
            ) from error
        except (OSError, self._errors.WebSocketException) as error:
            raise WorldError(
                f"The OpenEnv server at {self._http} closed the connection: {error}."
            ) from error
        except ValueError as error:
            raise WorldError(f"The OpenEnv server at {self._http} sent no JSON.") from error

    def _observed(self, kind: str, answer: object) -> Mapping[str, Any]:
        """Return the data of an answer that holds an observation.

        Raises:
            WorldError: the answer is an error, or something else.
        """
        message = answer if isinstance(answer, Mapping) else {}
        data = message.get("data")
        if isinstance(data, Mapping):
            if message.get("type") == "observation" and "observation" in data:
                return data
            if data.get("code") == "CAPACITY_REACHED":
                raise WorldError(
                    f"The OpenEnv server at {self._http} serves no more sessions at once, and poad "
                    "opens one for each copy of the world. Start the server with a larger "
                    "max_concurrent_envs, or train with fewer streams (--streams)."
                )
        said = beginning(json.dumps(answer, ensure_ascii=False), 300)
        hint = ""
        if kind == "step" and self._legal is None and self._lists:
            name = self._lists[0]
            hint = f" If {name!r} lists what it takes, offer that: legal={name}."
        raise WorldError(f"The OpenEnv server at {self._http} answered a {kind} with {said}.{hint}")

    def _told(self, data: Mapping[str, Any]) -> tuple[str, Sequence[str] | None]:
        """Find the text and the offers in an observation."""
        observation = data["observation"]
        fields = observation if isinstance(observation, Mapping) else {"result": observation}
        names = READ if self._text_field is None else (self._text_field,)
        text = next((fields[name] for name in names if _is_text(fields.get(name))), None)
        self._lists = [name for name, value in fields.items() if _are_texts(value)]
        has = f"Its fields are {', '.join(map(str, fields))}"
        if text is None:
            looked = " or ".join(map(repr, names))
            raise WorldError(
                f"The observation of the OpenEnv server at {self._http} has no text in {looked}. "
                f"{has}; name the one to read: text=NAME."
            )
        if self._legal is not None and self._legal not in fields:
            raise WorldError(
                f"The observation of the OpenEnv server at {self._http} has no field "
                f"{self._legal!r} (legal=). {has}."
            )
        # Nothing is offered where nothing follows.
        legal = None if self._legal is None else fields[self._legal]
        return text, None if data.get("done") else legal


def _addresses(url: str) -> tuple[str, str]:
    """Return the address for HTTP without a slash at its end, and that of the WebSocket."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    secure = {"http": False, "ws": False, "https": True, "wss": True}.get(parts.scheme)
    if secure is None or not parts.netloc:
        raise ConfigError(
            f"{url!r} is no address of an OpenEnv server. Write openenv:http://localhost:8000."
        )
    path = parts.path.rstrip("/").removesuffix("/ws")
    http = urlunsplit(("https" if secure else "http", parts.netloc, path, "", ""))
    return http, urlunsplit(("wss" if secure else "ws", parts.netloc, f"{path}/ws", "", ""))


def _parsed(action: str) -> dict[str, Any] | str:
    """Read a JSON object; if it is none, say what it is."""
    try:
        value = json.loads(action)
    except (ValueError, RecursionError) as error:
        return f"no JSON ({error})"
    return value if isinstance(value, dict) else "JSON, but no object"


def _mistake(answer: object) -> str | None:
    """Tell what is wrong with an action, if the server says that it is none of its kind."""
    data = answer.get("data") if isinstance(answer, Mapping) else None
    if not isinstance(data, Mapping) or data.get("code") != "VALIDATION_ERROR":
        return None
    errors = data.get("errors") or [{}]
    wrong = (f"{'.'.join(map(str, e.get('loc', ())))}: {e.get('msg', 'invalid')}" for e in errors)
    return "; ".join(each.removeprefix(": ") for each in wrong)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
