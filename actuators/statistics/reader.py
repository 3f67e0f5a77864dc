"""Reads NGINX's statistics over HTTP: snapshots, and the windows between them."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any, TypedDict

from pydantic import Field

from actuators.closing import Closing
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.credentials import without_credentials
from actuators.envoy_admin import admin_of
from actuators.errors import StatusError
from actuators.haproxy_api import socket_of
from actuators.http_client import MAX_BODY_BYTES, KeptConnection, NoResponseError
from actuators.options import Options
from actuators.statistics.envoy import EnvoyStatistics
from actuators.statistics.haproxy import HaproxyStatistics
from actuators.statistics.names import NameKeeper, ServerNames
from actuators.statistics.prometheus import LACKS, parse_text
from actuators.statistics.vts import Snapshot, parse, parse_json
from actuators.statistics.windows import difference, gap

_REMEDIES = {
    401: "put the right user and password before the host of the URL; they are sent and never recorded",
    403: "allow this machine to read the status location",
}


class _Limits(TypedDict):
    connect_timeout_s: float
    read_timeout_s: float
    max_bytes: int


class CollectOptions(Options):
    """How the statistics are read."""

    connect_timeout_s: float = Field(1.0, gt=0)
    """Longest wait for a connection to the status endpoint, in seconds."""
    read_timeout_s: float = Field(2.0, gt=0)
    """Longest time for the whole document, in seconds, also when it comes byte by byte."""
    max_bytes: int = Field(MAX_BODY_BYTES, ge=1024)
    """Longest document that is read, in bytes, after decoding; 300 servers take about 1 MB."""


class StatusReader(Closing):
    """Reads one status endpoint over a kept connection; a context manager.

    Args:
        status_url: vts JSON, for example ``http://127.0.0.1:8081/status/format/json``; or an HAProxy or Envoy, as
            ``haproxy:/run/haproxy/admin.sock`` or ``envoy:http://127.0.0.1:9901``.
        takes_text: whether vts' Prometheus text is read, too; it lacks weights and flags.
        for_decisions: leaves out the counters that only a recording holds.

    Attributes:
        status_url: without credentials.

    Raises:
        ConfigError: `status_url` is not an HTTP address.
    """

    def __init__(
        self,
        status_url: str,
        options: CollectOptions | None = None,
        *,
        takes_text: bool = False,
        for_decisions: bool = False,
    ) -> None:
        self.status_url, options = without_credentials(status_url), options or CollectOptions()
        self._takes_text, self._for_decisions = takes_text, for_decisions
        limits: _Limits = {
            "connect_timeout_s": options.connect_timeout_s,
            "read_timeout_s": options.read_timeout_s,
            "max_bytes": options.max_bytes,
        }
        path, admin = socket_of(status_url), admin_of(status_url)
        self._other: HaproxyStatistics | EnvoyStatistics | None = None
        if path is not None:
            self._other = HaproxyStatistics(path)
        elif admin is not None:
            self._other = EnvoyStatistics(admin, **limits)
        self._connection = KeptConnection(status_url, where="status_url", **limits) if self._other is None else None

    def snapshot(self) -> Snapshot:
        """The counters now. Raises StatusError when they cannot be read or are not vts-shaped."""
        if self._other is not None:
            return self._other.snapshot()
        status, body = self._get()
        if status == 200 and body.lstrip()[:1] == b"#":
            return self._text(body)
        if status == 200:
            with contextlib.suppress(StatusError):
                return parse_json(body, for_decisions=self._for_decisions)
        # The slower way names the error.
        return parse(self._document(status, body))

    def _text(self, body: bytes) -> Snapshot:
        if not self._takes_text:
            raise StatusError(
                f"Prometheus text: {LACKS}", where=self.status_url, remedy="give vts' JSON, /status/format/json"
            )
        return parse_text(body, round(time.time() * 1000))

    def document(self) -> dict[str, Any]:
        """The statistics as a JSON object. Raises StatusError."""
        return self._document(*self._get())

    def _document(self, status: int, body: bytes) -> dict[str, Any]:
        if status != 200:
            remedy = _REMEDIES.get(status, "point it at vts' JSON, for example /status/format/json")
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
        if self._connection is not None:
            self._connection.close()
        if isinstance(self._other, EnvoyStatistics):
            self._other.close()

    def _get(self) -> tuple[int, bytes]:
        if self._connection is None:
            raise StatusError(
                "another load balancer has no JSON of vts", where=self.status_url, remedy="give the URL of an NGINX"
            )
        try:
            return self._connection.request("GET")
        except NoResponseError as error:
            raise StatusError(f"no answer: {error}", where=self.status_url, remedy="is NGINX running?") from error


class Collector(StatusReader):
    """Windows of one NGINX, for the groups and servers of a topology."""

    def __init__(
        self,
        status_url: str,
        topology: Topology,
        options: CollectOptions | None = None,
        *,
        for_decisions: bool = False,
    ) -> None:
        super().__init__(status_url, options, for_decisions=for_decisions)
        self.topology = topology
        self._last: Snapshot | None = None
        self._names = NameKeeper(topology)
        self._last_end_s = 0.0

    def begin(self) -> Snapshot:
        """Starts the first window now. Raises StatusError."""
        self._last = self.snapshot()
        self._last_end_s = self._last.now_ms / 1e3
        return self._last

    def names(self) -> ServerNames:
        """Which entries of the last reading belong to which server. Raises StatusError when `begin` was not called."""
        if self._last is None:
            raise StatusError("no first reading", where=self.status_url, remedy="call begin() before names()")
        return self._names.of(self._last)

    def latest(self) -> Snapshot | None:
        """The last successful reading; None before `begin`."""
        return self._last

    def window(self) -> Window:
        """The window since the last successful reading.

        Unreachable statistics give a window with the fault ``gap``. The window after it covers the whole time since the
        last successful reading, so that no request is lost or counted twice.
        Raises StatusError when `begin` was not called.
        """
        if self._last is None:
            raise StatusError("no first reading", where=self.status_url, remedy="call begin() before window()")
        try:
            now = self.snapshot()
        except StatusError as error:
            start_s, self._last_end_s = self._last_end_s, time.time()
            return gap(self.topology, start_s, self._last_end_s, str(error))
        window = difference(self._last, now, self.topology, self._names.of(now))
        self._last, self._last_end_s = now, window.end_s
        return window
