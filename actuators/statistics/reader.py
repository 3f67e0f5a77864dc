"""Read NGINX's statistics over HTTP: snapshots, windows between them, and what went wrong meanwhile."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import time
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import StatusError
from actuators.options import Options
from actuators.statistics.vts import Snapshot, parse, parse_json
from actuators.statistics.windows import difference, gap

_AS_WRITTEN = "%/?:@!$&'()*+,;=~-._[]"


class CollectOptions(Options):
    """How statistics are read."""

    connect_timeout_s: float = 1.0
    """Seconds to wait for a connection to the status endpoint."""
    read_timeout_s: float = 2.0
    """Seconds for the whole document."""
    max_bytes: int = 64 * 2**20
    """Longest document that is read; 300 servers take about 1 MB."""


class StatusReader:
    """Reads one status endpoint over a kept connection; a context manager.

    No proxy of the environment stands between it and the NGINX, and no redirect is followed.

    Args:
        status_url: vts JSON, for example ``http://127.0.0.1:8081/status/format/json``.
    """

    def __init__(self, status_url: str, options: CollectOptions | None = None) -> None:
        self.status_url, self._options = status_url, options or CollectOptions()
        self._parts = urlsplit(status_url)
        self._connection: http.client.HTTPConnection | None = None

    def snapshot(self) -> Snapshot:
        """The counters now. Raises StatusError when they cannot be read or are not vts-shaped."""
        status, body = self._get()
        if status == 200:
            with contextlib.suppress(StatusError):
                return parse_json(body)
        # The long way knows more kinds of wrong.
        return parse(self._document(status, body))

    def document(self) -> dict[str, Any]:
        """The JSON object as it is served. Raises StatusError."""
        return self._document(*self._get())

    def _document(self, status: int, body: bytes) -> dict[str, Any]:
        if status != 200:
            remedy = "point it at vts' JSON, for example /status/format/json"
            raise StatusError(f"HTTP status {status}", where=self.status_url, remedy=remedy)
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as error:
            excerpt = body[:80].decode(errors="replace")
            remedy = "vts serves JSON at /status/format/json"
            raise StatusError("not JSON", where=self.status_url, remedy=remedy, evidence=excerpt) from error
        if not isinstance(document, dict):
            raise StatusError("not a JSON object", where=self.status_url, remedy="expected a vts document")
        return document

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _get(self) -> tuple[int, bytes]:
        """Status and body; a kept connection that a reload closed at this very moment is opened anew."""
        try:
            return self._once()
        except TimeoutError as error:
            raise self._no_answer(error) from error
        except (http.client.HTTPException, OSError):
            pass
        try:
            return self._once()
        except (http.client.HTTPException, OSError) as error:
            raise self._no_answer(error) from error

    def _once(self) -> tuple[int, bytes]:
        try:
            connection = self._connected()
            connection.request("GET", self._target(), headers=self._headers())
            with connection.getresponse() as response:
                return response.status, self._body(response)
        except BaseException:
            # What is left of an answer must not be read as the next one.
            self.close()
            raise

    def _connected(self) -> http.client.HTTPConnection:
        """The kept connection, or a new one; an answer may have said that it closes."""
        if self._connection is None or self._connection.sock is None:
            self._connection = self._open()
        return self._connection

    def _open(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._host, self._parts.port, timeout=self._options.connect_timeout_s)
        connection.connect()
        connection.sock.settimeout(self._options.read_timeout_s)
        return connection

    @property
    def _host(self) -> str:
        """Raises StatusError when the URL is none that can be asked."""
        try:
            if self._parts.scheme in ("http", "https") and self._parts.hostname and self._parts.port != 0:
                return self._parts.hostname
        except ValueError:
            pass
        raise StatusError("not an HTTP address", where=self.status_url, remedy="write http://HOST:PORT/PATH")

    def _target(self) -> str:
        path = quote(self._parts.path or "/", safe=_AS_WRITTEN)
        return f"{path}?{quote(self._parts.query, safe=_AS_WRITTEN)}" if self._parts.query else path

    def _headers(self) -> dict[str, str]:
        if self._parts.username is None:
            return {}
        secret = f"{unquote(self._parts.username)}:{unquote(self._parts.password or '')}"
        return {"Authorization": "Basic " + base64.b64encode(secret.encode()).decode()}

    def _no_answer(self, error: Exception) -> StatusError:
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
        return StatusError(f"no answer: {reason[:120]}", where=self.status_url, remedy="is NGINX running?")

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        """The body, bounded in size and in total time: a server may drip for ever."""
        deadline = time.monotonic() + self._options.read_timeout_s
        body = bytearray()
        while chunk := response.read1(65536):
            body += chunk
            if len(body) > self._options.max_bytes:
                remedy = "raise max_bytes if this is right"
                raise StatusError(f"more than {self._options.max_bytes} bytes", where=self.status_url, remedy=remedy)
            if time.monotonic() > deadline:
                raise StatusError(f"took more than {self._options.read_timeout_s:g} s", where=self.status_url)
        if response.length:
            raise http.client.IncompleteRead(bytes(body), response.length)
        return bytes(body)


class Collector(StatusReader):
    """Snapshots of one NGINX as windows about a topology's groups and servers."""

    def __init__(self, status_url: str, topology: Topology, options: CollectOptions | None = None) -> None:
        super().__init__(status_url, options)
        self.topology = topology
        self._last: Snapshot | None = None
        self._last_end_s = 0.0

    def begin(self) -> Snapshot:
        """Starts the first window now. Raises StatusError."""
        self._last = self.snapshot()
        self._last_end_s = self._last.now_ms / 1e3
        return self._last

    def latest(self) -> Snapshot | None:
        """The last reading that succeeded; None before `begin`."""
        return self._last

    def window(self) -> Window:
        """What happened since the last window that could be read, or since `begin`.

        Unreachable statistics give a window with the fault ``gap``; the window after it covers the
        whole time since the last reading, so no request is lost or counted twice.
        Raises StatusError when `begin` was never called.
        """
        if self._last is None:
            raise StatusError("no first reading", where=self.status_url, remedy="call begin() before window()")
        try:
            now = self.snapshot()
        except StatusError as error:
            start_s, self._last_end_s = self._last_end_s, time.time()
            return gap(self.topology, start_s, self._last_end_s, str(error))
        window = difference(self._last, now, self.topology)
        self._last, self._last_end_s = now, window.end_s
        return window
