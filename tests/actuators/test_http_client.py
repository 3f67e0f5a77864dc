"""HTTP calls end within their deadline, whatever the server does, and go to it directly."""

from __future__ import annotations

import base64
import contextlib
import gzip
import socket
import zlib
from collections.abc import Callable

import pytest
import requests

from actuators.errors import ConfigError
from actuators.http_client import KeptConnection, NoResponseError, http_session
from tests.support.http_server import CLOSE, HANG, OK, Received, ScriptedServer
from tests.support.waiting import PATIENCE_S

REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
DRIP = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000
CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\nConnection: close\r\n\r\nab"


def kept(server: ScriptedServer, path: str = "/status", **limits: float) -> KeptConnection:
    chosen = {"connect_timeout_s": PATIENCE_S, "read_timeout_s": PATIENCE_S, **limits}
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
        (DRIP, 1, "timed out"),
        (CUT, 0, "."),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n" + b"x" * 3000, 0, "more than 2000 bytes"),
    ],
)
def test_a_bad_response_is_one_error(answer: bytes, piece_bytes: int, match: str) -> None:
    with ScriptedServer(lambda _: answer) as server:
        server.piece_bytes = piece_bytes
        limits = {"read_timeout_s": 0.3 if answer in (HANG, CUT) else PATIENCE_S, "max_bytes": 2000}
        if piece_bytes:
            limits = {"read_timeout_s": 0.02, "max_bytes": 10_000}
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


SLOW_HEADERS = b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(90)) + b"Content-Length: 0\r\n\r\n"
ENDLESS = b"HTTP/1.1 100 Continue\r\n\r\n" * 200_000


@pytest.mark.parametrize("answer", [SLOW_HEADERS, ENDLESS, b"HTTP/1.1 100 Continue\r\n" + b"X: y\r\n" * 90])
def test_headers_that_drip_and_interim_responses_without_an_end_end_with_the_call(answer: bytes) -> None:
    """Every piece comes within the time-out of a read; the whole never would."""
    with ScriptedServer(lambda _: answer + b" content-length") as server:
        server.piece_bytes, server.pause_s = (1, 0.01) if answer is not ENDLESS else (25, 0.0)
        with pytest.raises(NoResponseError, match="timed out"):
            kept(server, read_timeout_s=0.2).request("GET")


def encoded(encoding: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


RAW_DEFLATE = zlib.compressobj(wbits=-15)
TEXT = b'{"a": 1}' * 20_000


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(TEXT)),
        ("X-GZIP", gzip.compress(TEXT)),
        ("gzip", gzip.compress(TEXT[:8000]) + gzip.compress(TEXT[8000:])),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", RAW_DEFLATE.compress(TEXT) + RAW_DEFLATE.flush()),
        ("identity", TEXT),
    ],
)
def test_compressed_bodies_are_decoded(encoding: str, body: bytes) -> None:
    with ScriptedServer(lambda _: encoded(encoding, body)) as server:
        connection = kept(server)
        assert [connection.request("GET") for _ in range(2)] == [(200, TEXT)] * 2
        assert [request.served for request in server.requests] == [0, 1]


@pytest.mark.parametrize(
    ("encoding", "body", "match"),
    [
        ("br", b"xy", "encoded as 'br'; let the server send it plain"),
        ("gzip, br", b"xy", "encoded as 'gzip, br'"),
        ("gzip", b"not gzip", "not in gzip, as its header says"),
        ("gzip", gzip.compress(b"0" * 50_000_000), "more than 1000000 bytes"),
    ],
)
def test_what_cannot_be_decoded_is_refused(encoding: str, body: bytes, match: str) -> None:
    with ScriptedServer(lambda _: encoded(encoding, body)) as server:
        connection = kept(server, max_bytes=1_000_000)
        with pytest.raises(NoResponseError, match=match):
            connection.request("GET")


def test_credentials_of_any_letters_are_sent() -> None:
    with ScriptedServer() as server:
        KeptConnection(f"http://ä€:@{server.address}/", connect_timeout_s=1, read_timeout_s=1).request("GET")
        lowered = {name.lower(): value for name, value in server.requests[0].headers.items()}
        assert base64.b64decode(lowered["authorization"].removeprefix("Basic ")).decode() == "ä€:"


def test_all_addresses_of_a_name_share_the_time_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first address never answers, because its queue of connections is full; the second is the server's."""
    with socket.socket() as deaf, contextlib.ExitStack() as queued, ScriptedServer() as server:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(4):
            waiting = queued.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        host, port = server.address.split(":")
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", each) for each in (deaf.getsockname(), (host, int(port)))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        connection = KeptConnection(f"http://{server.address}/", connect_timeout_s=2.0, read_timeout_s=PATIENCE_S)
        assert connection.request("GET") == (200, b"ok")


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
