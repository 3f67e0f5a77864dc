"""HTTP calls of this project: every call has a deadline, and no proxy of the environment is used.

`http_session` is for every call that may take a millisecond more; `KeptConnection` is for the calls of a control step.
"""

from __future__ import annotations

import base64
import functools
import http.client
import math
import socket
import ssl
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import DecodeError, HTTPError, LocationParseError
from urllib3.response import BaseHTTPResponse
from urllib3.util import parse_url

from actuators.errors import ConfigError

if TYPE_CHECKING:
    import requests

MAX_BODY_BYTES = 64 * 2**20
"""Longest response body that is read by default."""

_CHUNK_BYTES = 2**20
_ENCODINGS = ("", "identity", "gzip", "x-gzip", "deflate")


def http_session(timeout_s: float, *, connect_timeout_s: float | None = None) -> requests.Session:
    """A `requests.Session` whose calls have a timeout when they name none; a context manager.

    Args:
        timeout_s: longest wait for each part of a response.
        connect_timeout_s: longest wait for a connection; `timeout_s` when None.
    """
    import requests  # noqa: PLC0415 - `--help` imports this module for the options of its users and must answer at once

    session = requests.Session()
    session.trust_env = False
    timeout = (timeout_s if connect_timeout_s is None else connect_timeout_s, timeout_s)
    session.request = functools.partial(session.request, timeout=timeout)  # type: ignore[method-assign]
    return session


def responds(url: str, timeout_s: float = 5.0) -> bool:
    """Whether a GET of the URL gets a status below 400 within `timeout_s`; over a connection that is not kept."""
    with http_session(timeout_s) as session:
        try:
            return session.get(url).ok
        except OSError:  # requests.RequestException is one
            return False


class NoResponseError(Exception):
    """No whole response came; the text is the reason. A retry may help."""


class TooLongError(NoResponseError):
    """The body is longer than allowed. A retry does not help."""


class KeptConnection:
    """One kept connection to one HTTP server, on urllib3; not for threads.

    A call over `requests.Session`, which stands on the same library, costs 0.5 to 0.7 ms more CPU time. A control step
    has three calls in its critical milliseconds. Bodies in gzip and deflate are decoded.

    Args:
        url: ``http[s]://[USER:PASSWORD@]HOST[:PORT][/PATH]``; the credentials are sent and appear in no error.
        connect_timeout_s: longest wait for a connection.
        read_timeout_s: longest time for a whole response, also when the server sends it byte by byte, or headers or
            interim responses without an end.
        max_bytes: longest body that is read, after decoding.
        where: option or field that holds the URL, for the error.

    Raises:
        ConfigError: the URL is not an HTTP address.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_s: float,
        read_timeout_s: float,
        max_bytes: int = MAX_BODY_BYTES,
        where: str = "",
    ) -> None:
        self._connect_timeout_s, self._read_timeout_s, self._max_bytes = connect_timeout_s, read_timeout_s, max_bytes
        try:
            parts = parse_url(url)
        except LocationParseError as error:
            raise _not_http(url, where) from error
        if parts.scheme not in ("http", "https") or not parts.host or parts.port == 0:
            raise _not_http(url, where)
        self._target = parts.request_uri
        self._headers = {} if parts.auth is None else {"Authorization": _basic(parts.auth)}
        host = parts.host.strip("[]")
        self._connection: _TimedConnection | _TimedTlsConnection = (
            _TimedTlsConnection(host, parts.port, ssl_context=_tls()) if parts.scheme == "https"
            else _TimedConnection(host, parts.port)
        )  # fmt: skip

    def request(
        self, method: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of one call; redirects are not followed.

        A call that breaks is repeated once over a new connection: a reload of NGINX closes kept connections. So calls
        must have the same effect twice as once. Both together end within the time-outs; a call that timed out is not
        repeated.

        Raises:
            NoResponseError: the server did not respond in time, or with something that is not HTTP, too long, or in an
                encoding that is not read.
        """
        until_s = time.monotonic() + self._read_timeout_s + self._connect_timeout_s
        try:
            return self._once(method, body, headers, until_s)
        except TimeoutError as error:
            raise NoResponseError(_reason(error)) from error
        except (HTTPError, OSError, http.client.HTTPException) as error:
            first = error
        try:
            return self._once(method, body, headers, until_s)
        except (HTTPError, OSError, http.client.HTTPException) as error:
            before = "" if _reason(error) == _reason(first) else f"; before that: {_reason(first)}"
            raise NoResponseError(f"{_reason(error)}{before}") from error

    def close(self) -> None:
        """Closes the connection; a later `request` opens a new one."""
        self._connection.close()

    def _once(
        self, method: str, body: bytes | None, headers: Mapping[str, str] | None, until_s: float
    ) -> tuple[int, bytes]:
        connection = self._connection
        try:
            if not connection.is_connected:
                connection.close()
                connection.timeout = min(self._connect_timeout_s, _left_s(until_s))
                connection.connect()
            until_s = min(until_s, time.monotonic() + self._read_timeout_s)
            sock = connection.sock
            assert isinstance(sock, _TimedSocket | _TimedTlsSocket)
            connection.timeout = _left_s(until_s)
            sock.settimeout(connection.timeout)
            sock.until_s = until_s
            connection.request(method, self._target, body, {**self._headers, **(headers or {})}, preload_content=False)
            response = connection.getresponse()
            return response.status, self._read(response)
        except BaseException:
            # What is left of a response must not be read as the next one.
            connection.close()
            raise

    def _read(self, response: BaseHTTPResponse) -> bytes:
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in _ENCODINGS:
            raise NoResponseError(f"encoded as '{encoding[:40]}'; let the server send it plain, in gzip or in deflate")
        body = bytearray()
        try:
            while chunk := response.read1(_CHUNK_BYTES):
                body += chunk
                if len(body) > self._max_bytes:
                    raise TooLongError(f"more than {self._max_bytes} bytes; raise max_bytes if that is right")
        except DecodeError as error:
            raise NoResponseError(f"the body is not in {encoding}, as its header says") from error
        return bytes(body)


class _TimedSocket(socket.socket):
    """A socket whose reads end at `until_s` of the monotonic clock, however often a byte comes."""

    until_s = math.inf

    def recv_into(self, *args: Any) -> int:
        self.settimeout(_left_s(self.until_s))
        return super().recv_into(*args)


class _TimedTlsSocket(ssl.SSLSocket):
    """The same over TLS."""

    until_s = math.inf

    def recv_into(self, *args: Any) -> int:
        self.settimeout(_left_s(self.until_s))
        return super().recv_into(*args)


class _TimedConnection(HTTPConnection):
    """Its sockets have a deadline."""

    def _new_conn(self) -> socket.socket:
        return _connected(self.host, self.port, self.timeout)


class _TimedTlsConnection(HTTPSConnection):
    """The same over TLS; needs the context of `_tls`."""

    def _new_conn(self) -> socket.socket:
        return _connected(self.host, self.port, self.timeout)


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.sslsocket_class = _TimedTlsSocket
    return context


def _connected(host: str, port: int, timeout: Any) -> _TimedSocket:
    """A connection to the first address that takes one. All addresses together have `timeout` seconds, and each an
    equal share of those that are left: the first one may never answer."""
    until_s, failure = time.monotonic() + float(timeout), OSError(f"{host} has no address")
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for tried, (family, kind, protocol, _, address) in enumerate(found):
        sock = _TimedSocket(family, kind, protocol)
        try:
            sock.settimeout(_left_s(until_s) / (len(found) - tried))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            failure = error
    raise failure


def _left_s(until_s: float) -> float:
    """Seconds until then; TimeoutError when there are none."""
    left_s = until_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    return left_s


def _basic(auth: str) -> str:
    """The header of `USER:PASSWORD` as a URL quotes it."""
    return "Basic " + base64.b64encode(unquote_to_bytes(auth)).decode()


def _not_http(url: str, where: str) -> ConfigError:
    return ConfigError(f"'{url}' is not an HTTP address", where=where, remedy="write http://HOST:PORT/PATH")


def _reason(error: Exception) -> str:
    """The system's or the parser's words, without urllib3's wrapping."""
    last = error.args[-1] if error.args else None
    cause = error.__cause__ or (last if isinstance(last, Exception) else error)
    reason = (cause.strerror if isinstance(cause, OSError) else "") or str(cause) or type(cause).__name__
    return reason[:120]
