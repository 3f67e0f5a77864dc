"""HTTP calls end within their deadline, whatever the server does, and go to it directly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import requests

from actuators.errors import ConfigError
from actuators.http_client import KeptConnection, NoResponseError, http_session
from tests.support.http_server import CLOSE, HANG, OK, Received, ScriptedServer

REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
DRIP = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000


def kept(server: ScriptedServer, path: str = "/status", **limits: float) -> KeptConnection:
    chosen = {"connect_timeout_s": 0.3, "read_timeout_s": 0.3, **limits}
    return KeptConnection(f"http://{server.address}{path}", **chosen)  # type: ignore[arg-type]


def answers(*bodies: bytes) -> Callable[[Received], bytes]:
    left = list(bodies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def test_calls_share_one_connection_and_do_not_follow_redirects() -> None:
    with ScriptedServer(answers(OK, REDIRECT, OK)) as server:
        connection = kept(server)
        assert [connection.request("POST", b"x", {"X-A": "b"})[0] for _ in range(3)] == [200, 302, 200]
        assert [request.served for request in server.requests] == [0, 1, 2]
        assert (server.requests[0].body, server.requests[0].headers["X-A"]) == (b"x", "b")


def test_a_closed_connection_is_opened_once_more() -> None:
    with ScriptedServer(answers(OK, CLOSE, OK, CLOSE)) as server:
        connection = kept(server)
        assert [connection.request("GET") for _ in range(2)] == [(200, b"ok"), (200, b"ok")]
        with pytest.raises(NoResponseError, match="closed connection"):
            connection.request("GET")


@pytest.mark.parametrize(
    ("answer", "piece_bytes", "match"),
    [
        (HANG, 0, "timed out"),
        (b"nonsense", 0, "nonsense"),
        (DRIP, 1, "took more than 0.02 s"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\nConnection: close\r\n\r\nab", 0, "."),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n" + b"x" * 3000, 0, "more than 2000 bytes"),
    ],
)
def test_a_bad_response_is_one_error(answer: bytes, piece_bytes: int, match: str) -> None:
    with ScriptedServer(lambda _: answer) as server:
        server.piece_bytes = piece_bytes
        limits = {"read_timeout_s": 0.02, "max_bytes": 10_000} if piece_bytes else {"max_bytes": 2000}
        connection = kept(server, **limits)
        for _ in range(2):
            with pytest.raises(NoResponseError, match=match):
                connection.request("GET")


def test_a_url_carries_user_and_quoted_characters() -> None:
    with ScriptedServer() as server:
        url = f"http://me:p%40ss@{server.address}/a b?c=ä"
        assert KeptConnection(url, connect_timeout_s=1, read_timeout_s=1).request("GET") == (200, b"ok")
        assert server.requests[0].line == "GET /a%20b?c=%C3%A4 HTTP/1.1"
        lowered = {name.lower(): value for name, value in server.requests[0].headers.items()}
        assert lowered["authorization"] == "Basic bWU6cEBzcw=="


@pytest.mark.parametrize(
    "url", ["nope", "ftp://host/", "http://", "http://host:99999/", "http://host:0/", "http://[::1"]
)
def test_what_is_not_an_http_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="not an HTTP address"):
        KeptConnection(url, connect_timeout_s=1, read_timeout_s=1)


def test_a_session_has_a_timeout_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with ScriptedServer(answers(OK, HANG)) as server, http_session(0.2) as session:
        assert session.get(f"http://{server.address}/").text == "ok"
        with pytest.raises(requests.Timeout):
            session.get(f"http://{server.address}/")
