"""Pages are served to this machine's browsers, and to nobody else."""

from __future__ import annotations

import http.client
import socket
from urllib.parse import urlsplit

import pytest

from poad.errors import ConfigError, RunError
from poad.pages import LocalServer


def ask(
    url: str, host: str | None = None, path: str = "/", method: str = "GET"
) -> tuple[int, bytes]:
    place = urlsplit(url)
    assert place.hostname
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=10)
    try:
        connection.request(method, path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_the_page_is_made_anew_for_each_request():
    pages = iter(["one", "zwei: ü"])
    with LocalServer(lambda: next(pages)) as server:
        assert ask(server.url) == (200, b"one")
        assert ask(server.url) == (200, "zwei: ü".encode())


def test_only_this_address_may_stand_in_the_host_header():
    """A page of another site, whose name leads here, cannot read ours (DNS rebinding)."""
    with LocalServer(lambda: "secret") as server:
        port = urlsplit(server.url).port
        for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
            assert ask(server.url, host)[0] == 200
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1",
            f"127.0.0.1.evil:{port}",
            "",
        ):
            status, body = ask(server.url, host)
            assert status == 403
            assert b"secret" not in body


def test_the_server_listens_on_loopback_alone():
    with LocalServer(lambda: "page") as server:
        place = urlsplit(server.url)
        assert place.hostname == "127.0.0.1"
        others = {each[4][0] for each in socket.getaddrinfo(socket.gethostname(), None)}
        for address in others - {"127.0.0.1", "127.0.1.1", "::1"}:
            with (
                pytest.raises(OSError),
                socket.create_connection((str(address), place.port or 0), 2),
            ):
                pass


def test_there_is_one_page_and_no_way_to_write():
    with LocalServer(lambda: "page") as server:
        assert ask(server.url, path="/etc/passwd")[0] == 404
        assert ask(server.url, path="/../x")[0] == 404
        assert ask(server.url, path="/data")[0] == 404
        assert ask(server.url, method="HEAD") == (200, b"")
        assert ask(server.url, method="POST")[0] == 501


def test_data_is_served_beside_the_page_and_an_error_is_an_answer():
    def broken() -> str:
        raise RunError("läufe/跑/metrics.jsonl is just being written.\nMore.")

    with LocalServer(lambda: "page", data=lambda: "[1]") as server:
        assert ask(server.url, path="/data") == (200, b"[1]")
        assert ask(server.url, "evil.example", path="/data")[0] == 403
    with LocalServer(broken) as server:
        status, body = ask(server.url)
        assert status == 503
        assert "läufe/跑/metrics.jsonl is just being written." in body.decode()


def test_a_port_that_is_taken_or_impossible_is_told():
    with LocalServer(lambda: "page") as server:
        port = urlsplit(server.url).port
        assert port
        with pytest.raises(ConfigError, match=f"Cannot serve on port {port}: .* or 0 for any"):
            LocalServer(lambda: "page", port)
    with pytest.raises(ConfigError, match="Port 70000 does not exist"):
        LocalServer(lambda: "page", 70_000)
