"""HTTP/1.1 for the stand-in servers: listener, connections, responses in order, resets. Knows no endpoint.

Own code on httptools: server frameworks cannot defer a response, reset connections, or close and reopen a port as a
crash and a recovery do.
"""

from __future__ import annotations

import asyncio
import http
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import httptools

from actuators.errors import ServiceError

MAX_BODY_BYTES = 1 << 20
_MAX_TARGET_BYTES = 8192
_MAX_PIPELINED = 128
_BACKLOG = 4096
_LINGER_RESET = struct.pack("ii", 1, 0)
_HEADS = {
    (int(status), keep_alive): (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
        f"Connection: {'keep-alive' if keep_alive else 'close'}\r\nContent-Length: "
    ).encode()
    for status in http.HTTPStatus
    for keep_alive in (True, False)
}


class Exchange:
    """One request and, later, its response.

    Attributes:
        sequence: value of the header X-Request-Sequence; empty without one.
        request_type: for the handler.
        prepared: the response is known.
        due: for the handler: the response may be sent as soon as it is known.
        status: of the response.
        on_gone: for the handler: called when the client closes the connection before the response.
    """

    __slots__ = (
        "_body", "_connection", "_keep_alive", "data", "due", "method", "on_gone", "path", "prepared", "query",
        "request_type", "sent", "sequence", "status",
    )  # fmt: skip

    def __init__(self, connection: HttpConnection, target: bytes) -> None:
        self._connection, self._keep_alive = connection, True
        if not target.startswith(b"/"):
            # Absolute form, as DeathStarBench's scripts send it: drop scheme and authority.
            target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
        path, _, self.query = target.partition(b"?")
        self.path = path.decode("latin-1")
        self.method = self.sequence = self.request_type = ""
        self.data = self._body = b""
        self.status = 200
        self.prepared = self.due = self.sent = False
        self.on_gone: Callable[[], None] | None = None

    def complete(self, method: str, *, keep_alive: bool) -> None:
        """The whole request has arrived."""
        self.method, self._keep_alive = method, keep_alive

    def prepare(self, status: int, body: bytes) -> None:
        """Keeps a JSON response until `send`."""
        self.status, self._body, self.prepared = status, body, True

    def send(self) -> None:
        """Sends the response after all earlier ones of the connection; no effect when the client has gone."""
        self.sent = True
        self._connection.flush()

    def answer(self, status: int, body: bytes) -> None:
        """Prepares and sends."""
        self.prepare(status, body)
        self.send()

    def fail(self, status: int, error: str) -> None:
        """Responds with a JSON object whose `error` says what is wrong."""
        self.answer(status, json.dumps({"error": error}).encode())

    @property
    def gone(self) -> bool:
        """Whether the client has closed the connection."""
        return not self._connection.is_open

    def encoded(self) -> bytes:
        head = _HEADS[self.status, self._keep_alive]
        return b"%b%d\r\n\r\n%b" % (head, len(self._body), b"" if self.method == "HEAD" else self._body)

    @property
    def last(self) -> bool:
        """Whether the connection ends with this response."""
        return not self._keep_alive


class HttpConnection(asyncio.Protocol):
    """One client connection; every complete request goes to `handle`.

    Args:
        open_connections: holds this connection while it is open.
    """

    def __init__(self, handle: Callable[[Exchange], None], open_connections: set[HttpConnection]) -> None:
        self._handle, self._open = handle, open_connections
        self._exchanges: deque[Exchange] = deque()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._target = b""
        self._current: Exchange | None = None
        self._body_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._open.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._open.discard(self)
        for exchange in self._exchanges:
            if exchange.on_gone is not None:
                exchange.on_gone()
        self._exchanges.clear()

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def pause_writing(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            self.reset()  # an error here, not of the client
            raise
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._refuse(400, f"not a request: {error}")

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > _MAX_TARGET_BYTES:
            self.reset()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._current is None:
            self._current = Exchange(self, self._target)
        if len(name) == 18 and name.lower() == b"x-request-sequence":
            self._current.sequence = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        if self._current is not None and len(self._current.data) <= MAX_BODY_BYTES:
            self._current.data += body

    def on_message_complete(self) -> None:
        exchange = self._current or Exchange(self, self._target)
        self._current, self._target = None, b""
        if self._transport is None or self._transport.is_closing():
            return
        exchange.complete(self._parser.get_method().decode(), keep_alive=self._parser.should_keep_alive())
        self._exchanges.append(exchange)
        if len(exchange.data) > MAX_BODY_BYTES:
            exchange.fail(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
        elif len(self._exchanges) > _MAX_PIPELINED:
            self.reset()
        else:
            self._handle(exchange)

    def flush(self) -> None:
        """Sends the responses that are ready, in the order of the requests."""
        exchanges, parts, last = self._exchanges, [], False
        while exchanges and exchanges[0].sent and not last:
            exchange = exchanges.popleft()
            parts.append(exchange.encoded())
            last = exchange.last
        if self._transport is not None and parts:
            self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))
            if last:
                self._transport.close()

    def reset(self) -> None:
        """Ends the connection with a TCP reset, as a crashed process does."""
        if self._transport is None:
            return
        pseudo_socket: Any = self._transport.get_extra_info("socket")
        if pseudo_socket.family in (socket.AF_INET, socket.AF_INET6):
            with socket.socket(fileno=os.dup(pseudo_socket.fileno())) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self._transport.abort()

    def _refuse(self, status: int, error: str) -> None:
        """Responds to bytes that are not a request, and ends the connection."""
        exchange = self._current or Exchange(self, b"/")
        self._current = None
        if self._transport is not None and not self._transport.is_closing():
            exchange.complete("GET", keep_alive=False)
            self._exchanges.append(exchange)
            exchange.fail(status, error)


class Listener:
    """Accepts connections for `handle` between `open` and `close`.

    While it is closed, a bound socket that does not listen keeps the port, and the kernel refuses connections.
    The constructor binds the port; raises ServiceError when it is taken.
    """

    def __init__(self, handle: Callable[[Exchange], None], host: str, port: int) -> None:
        self._handle = handle
        self._connections: set[HttpConnection] = set()
        self._server: asyncio.Server | None = None
        if port:
            # Only the two sockets of this listener may share the port; the listener of another program is an error.
            _bind(host, port, shared=False).close()
        self._anchor = _bind(host, port)
        self._host, self.port = self._anchor.getsockname()[:2]

    @property
    def address(self) -> str:
        return f"[{self._host}]:{self.port}" if ":" in self._host else f"{self._host}:{self.port}"

    async def open(self) -> None:
        """Starts listening; no effect when it does already."""
        if self._server is None:
            loop, listener = asyncio.get_running_loop(), _bind(self._host, self.port)
            self._server = await loop.create_server(
                lambda: HttpConnection(self._handle, self._connections), sock=listener, backlog=_BACKLOG
            )

    def close(self) -> int:
        """Refuses new connections and resets the open ones; returns the number of these."""
        if self._server is not None:
            self._server.close()
            self._server = None
        open_connections = list(self._connections)
        for connection in open_connections:
            connection.reset()
        return len(open_connections)


def _bind(host: str, port: int, *, shared: bool = True) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise ServiceError(f"cannot listen: {error}", where=f"{host}:{port}", remedy="choose another port") from error
    return bound
