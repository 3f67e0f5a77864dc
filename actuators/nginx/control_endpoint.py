"""Sets and reads the control of an NGINX that balances in memory, over HTTP (lua/control.lua)."""

from __future__ import annotations

import contextlib
import time

import numpy as np

from actuators.contract.control import BalancingMethod, Control, ServiceTimes, Weights
from actuators.contract.testbed import Applied
from actuators.contract.topology import Group, Topology
from actuators.errors import ActuationError
from actuators.http_client import KeptConnection, NoResponseError

_METHODS: tuple[BalancingMethod, ...] = ("round_robin", "least_conn", "expected_delay")

_TIMEOUT_S = 2.0
_UNKNOWN = Group("unknown", "unknown", "GET", "/", 2.0, ("unknown:1",))


class MemoryControl:
    """One control endpoint over a kept connection.

    Args:
        url: ``http://HOST:PORT/PATH``.
        token: that changes need; it is in the rendered configuration.

    Raises:
        ConfigError: `url` is not an HTTP address.
    """

    def __init__(self, url: str, token: str, topology: Topology) -> None:
        self._connection = KeptConnection(
            url, connect_timeout_s=_TIMEOUT_S, read_timeout_s=_TIMEOUT_S, where="control_url"
        )
        self.url, self._token, self.topology = url, token, topology
        self._shown = ""

    @classmethod
    def read(cls, url: str) -> str:
        """The text in force at an endpoint whose topology is not known yet. Raises ConfigError or ActuationError."""
        with contextlib.closing(cls(url, "", Topology((_UNKNOWN,)))) as endpoint:
            return endpoint._request("GET")

    def put(self, method: BalancingMethod, control: Control) -> None:
        """Returns when every worker uses the control: no later request is balanced by the old one.

        Raises ActuationError when it is refused or reads back differently; then the old one is in force.
        """
        before = self._shown or self._request("GET")
        text = to_text(method, control)
        # A refused text changes nothing; the response to an accepted one is what the worker's tables now hold.
        shown = self._request("POST", text)
        if not _shows(shown, text):
            self._shown = self._request("POST", before)
            raise ActuationError("NGINX reports a control that differs from the one applied", where=self.url)
        self._shown = shown

    def apply(self, control: Control) -> Applied:
        """As `put`, under the method in force; does nothing when the control is in force. Raises ActuationError."""
        began_s = time.monotonic()
        method, old = self.get()
        if isinstance(control, ServiceTimes) != (method == "expected_delay"):
            wanted = "service times" if method == "expected_delay" else "weights"
            raise ActuationError(f"{method} takes {wanted}", where=self.url)
        changed = isinstance(control, ServiceTimes) or control != old
        if changed:
            self.put(method, control)
        return Applied(changed, time.monotonic() - began_s)

    def get(self) -> tuple[BalancingMethod, Control]:
        """The method and control in force, from the tables of a worker. Raises ActuationError."""
        self._shown = self._request("GET")
        return from_text(self._shown, self.topology)

    def forget_failures(self) -> None:
        """Puts all servers back in rotation and clears their error scores. Raises ActuationError."""
        self._request("DELETE")

    def close(self) -> None:
        self._connection.close()

    def _request(self, method: str, body: str = "") -> str:
        # A text is put in force whole, so that a repeated call has the same effect as one.
        try:
            status, answer = self._connection.request(method, body.encode(), {"X-Deepsched-Token": self._token})
        except NoResponseError as error:
            raise ActuationError(f"no answer: {error}", where=self.url, remedy="is NGINX running?") from error
        text = answer.decode(errors="replace")
        if status != 200:
            remedy = "give the token of that NGINX" if status == 403 else ""
            raise ActuationError(text.strip()[:200] or f"HTTP status {status}", where=self.url, remedy=remedy)
        return text


def to_text(method: BalancingMethod, control: Control) -> str:
    """The control as lua/control.lua reads it; a text is complete, nothing of an earlier one remains."""
    lines = [f"method {method}"]
    topology = control.topology
    for g, group in enumerate(topology.groups):
        for server in group.servers:
            s = topology.server_index(server)
            if isinstance(control, ServiceTimes):
                lines.append(f"tau {group.name} {server} {float(control.tau_s[g, s])!r}")
                continue
            lines.append(f"weight {group.name} {server} {control.values[g, s]}")
            if control.down[g, s]:
                lines.append(f"down {group.name} {server}")
    if isinstance(control, ServiceTimes):
        workers = zip(topology.servers, control.workers, strict=True)
        lines.extend(f"workers {server} {float(number)!r}" for server, number in workers)
    return "\n".join(lines) + "\n"


def from_text(text: str, topology: Topology) -> tuple[BalancingMethod, Control]:
    """The method and control of a text. Raises ActuationError for a text without a method."""
    lines = _lines(text)
    method = next((name for name in _METHODS if ("method", name) in lines), None)
    if method is None:
        raise ActuationError("the control has no known method", where="control in memory", evidence=text[:80])
    tau_s, workers = np.zeros(topology.shape), np.ones(topology.shape[1])
    values, down = np.ones(topology.shape, np.int64), np.zeros(topology.shape, bool)
    for g, group in enumerate(topology.groups):
        for server in group.servers:
            s = topology.server_index(server)
            values[g, s] = int(lines.get(("weight", group.name, server), "1"))
            down[g, s] = ("down", group.name, server) in lines
            tau_s[g, s] = float(lines.get(("tau", group.name, server), "0"))
            workers[s] = float(lines.get(("workers", server), "1"))
    if method == "expected_delay" and (tau_s[topology.mask] > 0).all():
        return method, ServiceTimes(topology, tau_s, workers)
    return method, Weights(topology, values, down)


def topology_from_text(text: str) -> Topology:
    """Groups and servers of a control text, in its order. Raises ActuationError when it has none."""
    groups: dict[str, list[str]] = {}
    for words in _lines(text):
        if words[0] == "weight" and len(words) == 3:
            groups.setdefault(words[1], []).append(words[2])
    if not groups:
        raise ActuationError("not a control text", where="control in memory", evidence=text[:80])
    return Topology(tuple(Group(name, name, "GET", "/", 2.0, tuple(servers)) for name, servers in groups.items()))


def _lines(text: str) -> dict[tuple[str, ...], str]:
    """(word, names…) → value; '' for a flag such as `down`."""
    table = {}
    for line in text.splitlines():
        words = tuple(line.split())
        flag = words[:1] in (("down",), ("method",))
        table[words if flag else words[:-1]] = "" if flag else words[-1]
    return table


def _shows(shown: str, wanted: str) -> bool:
    """Whether all of the wanted text is in force, and no server is down that should be up."""
    present, expected = _lines(shown), _lines(wanted)
    extra = {words for words in present if words[:1] == ("down",)} - set(expected)
    same = all(words in present and _equal(present[words], value) for words, value in expected.items())
    return same and not extra


def _equal(shown: str, wanted: str) -> bool:
    return shown == wanted or (shown != "" and wanted != "" and float(shown) == float(wanted))
