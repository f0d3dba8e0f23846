"""An OpenEnv server on loopback: one game for each WebSocket, with the messages of openenv 0.10."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any


class Guess:
    """Guess a number from 1 to 3, which the seed decides. Five tries."""

    def reset(self, seed: int) -> dict[str, Any]:
        self.number, self.tries = seed % 3 + 1, 0
        return self.answer("Guess a number from 1 to 3.", None, False)

    def step(self, action: dict[str, Any]) -> dict[str, Any]:
        guess = int(action["guess"])  # ValueError: what pydantic would call a validation error
        self.tries += 1
        won = guess == self.number
        text = "Yes." if won else "Higher." if guess < self.number else "Lower."
        return self.answer(text, float(won), won or self.tries == 5)

    def answer(self, text: str, reward: float | None, done: bool) -> dict[str, Any]:
        observation = {"result": text, "moves": ["1", "2", "3"], "metadata": {}}
        return {"observation": observation, "reward": reward, "done": done}


@contextmanager
def serving(
    game: Callable[[], Any] = Guess,
    required: tuple[str, ...] | None = ("guess",),
    capacity: int = 64,
) -> Iterator[str]:
    """Serve in a thread; give the server's address. Without required fields there is no schema."""
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.server import ServerConnection, serve

    sessions: list[ServerConnection] = []

    def talk(socket: ServerConnection) -> None:
        if len(sessions) == capacity:
            full = {"code": "CAPACITY_REACHED", "message": "full"}
            socket.send(json.dumps({"type": "error", "data": full}))
            return
        sessions.append(socket)
        world = game()
        with suppress(ConnectionClosed):
            for message in map(json.loads, socket):
                if message["type"] == "close":
                    break
                socket.send(json.dumps(answered(world, message)))
        sessions.remove(socket)

    def schema(socket: ServerConnection, request: Any) -> Any:
        if request.path != "/schema":
            return None if request.path == "/ws" else socket.respond(HTTPStatus.NOT_FOUND, "")
        if required is None:
            return socket.respond(HTTPStatus.NOT_FOUND, "no schema here")
        return socket.respond(HTTPStatus.OK, json.dumps({"action": {"required": required}}))

    with serve(talk, "127.0.0.1", 0, process_request=schema) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        for socket in [*sessions]:
            socket.close()
        thread.join()


def answered(world: Any, message: dict[str, Any]) -> dict[str, Any]:
    """Answer a reset or a step as openenv does, with errors as messages."""
    try:
        data = message["data"]
        result = world.reset(**data) if message["type"] == "reset" else world.step(data)
        return {"type": "observation", "data": result}
    except (ValueError, KeyError, TypeError) as error:
        wrong = {"loc": ["guess"], "msg": f"not a whole number ({type(error).__name__})"}
        data = {"message": "Invalid message", "code": "VALIDATION_ERROR", "errors": [wrong]}
    except Exception as error:
        data = {"message": str(error), "code": "EXECUTION_ERROR"}
    return {"type": "error", "data": data}
