"""Serve a page to browsers of this machine alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from poad.errors import ConfigError, PoadError

ADDRESS = "127.0.0.1"


class LocalServer:
    """Serves one page on the loopback address, in threads of its own, inside a `with` statement.

    Other machines cannot reach that address. A web page in the user's browser could try to, under a
    name of its own that leads here, so requests are answered only if their Host header names this
    address.

    Args:
        page: makes the page anew for each request.
        port: 0 takes a free one.
        data: makes the JSON that the page's script asks for under ``/data``; None for none.

    Raises:
        ConfigError: the port cannot be used.
    """

    def __init__(
        self, page: Callable[[], str], port: int = 0, data: Callable[[], str] | None = None
    ) -> None:
        if not 0 <= port < 65536:
            raise ConfigError(f"Port {port} does not exist; ports go from 0 (any) to 65535.")
        try:
            self._server = ThreadingHTTPServer((ADDRESS, port), _handler(page, data))
        except OSError as error:
            raise ConfigError(
                f"Cannot serve on port {port}: {error.strerror or error}. Use another one, "
                "or 0 for any that is free."
            ) from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self._server.server_port}/"

    def __enter__(self) -> LocalServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(
    page: Callable[[], str], data: Callable[[], str] | None
) -> type[BaseHTTPRequestHandler]:
    offered = {"/": (page, "text/html")}
    if data is not None:
        offered["/data"] = (data, "application/json")

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "poad", ""

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, with_body: bool) -> None:
            assert isinstance(self.server, ThreadingHTTPServer)
            port = self.server.server_port
            if self.headers.get("Host") not in (f"{ADDRESS}:{port}", f"localhost:{port}"):
                self.send_error(403, "This page is for the browsers of this machine")
                return
            if self.path not in offered:
                self.send_error(404)
                return
            make, kind = offered[self.path]
            try:
                content = make().encode("utf-8", "xmlcharrefreplace")
            except PoadError as error:  # files that are just being written, for example
                # Not the reason in the status line, which is latin-1 and cannot hold every path.
                self.send_error(503, explain=str(error))
                return
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Referrer-Policy", "no-referrer")
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it was closed
                self.end_headers()
                if with_body:
                    self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the terminal shows what the command has to say."""

    return Handler
