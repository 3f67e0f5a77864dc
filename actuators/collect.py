"""Read NGINX's statistics over HTTP: snapshots, windows between them, and what went wrong meanwhile."""

from __future__ import annotations

import json
import time
from types import TracebackType
from typing import Any, Self

import requests

from actuators.difference import difference, gap
from actuators.errors import StatusError
from actuators.options import Options
from actuators.topology import Topology
from actuators.vts import Snapshot, parse
from actuators.window import Window


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

    Args:
        status_url: vts JSON, for example ``http://127.0.0.1:8081/status/format/json``.
    """

    def __init__(self, status_url: str, options: CollectOptions | None = None) -> None:
        self.status_url, self._options = status_url, options or CollectOptions()
        self._session = requests.Session()
        # A proxy of the environment must not stand between us and the NGINX beside us.
        self._session.trust_env = False

    def snapshot(self) -> Snapshot:
        """The counters now. Raises StatusError when they cannot be read or are not vts-shaped."""
        return parse(self.document())

    def document(self) -> dict[str, Any]:
        """The JSON object as it is served. Raises StatusError."""
        try:
            status, body = self._get()
        except requests.ConnectionError:
            # A kept connection that a reload closed at this very moment; a fresh one tells.
            status, body = self._get_again()
        except requests.RequestException as error:
            raise self._no_answer(error) from error
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
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _get(self) -> tuple[int, bytes]:
        timeout = (self._options.connect_timeout_s, self._options.read_timeout_s)
        with self._session.get(self.status_url, timeout=timeout, stream=True, allow_redirects=False) as response:
            return response.status_code, self._body(response)

    def _get_again(self) -> tuple[int, bytes]:
        try:
            return self._get()
        except requests.RequestException as error:
            raise self._no_answer(error) from error

    def _no_answer(self, error: requests.RequestException) -> StatusError:
        return StatusError(f"no answer: {_reason(error)}", where=self.status_url, remedy="is NGINX running?")

    def _body(self, response: requests.Response) -> bytes:
        """The body, bounded in size and in total time: a server may drip for ever."""
        deadline = time.monotonic() + self._options.read_timeout_s
        body = bytearray()
        for chunk in response.iter_content(65536):
            body += chunk
            if len(body) > self._options.max_bytes:
                remedy = "raise max_bytes if this is right"
                raise StatusError(f"more than {self._options.max_bytes} bytes", where=self.status_url, remedy=remedy)
            if time.monotonic() > deadline:
                raise StatusError(f"took more than {self._options.read_timeout_s:g} s", where=self.status_url)
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


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words; requests wraps it three times."""
    while True:
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException):
            return str(inner or error).rsplit(": ", 1)[-1][:120]
        error = inner
