"""The control of an NGINX that balances in memory (lua/control.lua): put it in force and read it back, over HTTP."""

from __future__ import annotations

import http.client

import numpy as np

from actuators.control import BalancingMethod, Control, ServiceTimes, Weights
from actuators.errors import ActuationError
from actuators.topology import Topology

_METHODS: tuple[BalancingMethod, ...] = ("round_robin", "least_conn", "expected_delay")


class MemoryControl:
    """One control endpoint on a loopback port; keeps its connection.

    Args:
        token: what changes must carry; the config that we rendered holds it.
    """

    def __init__(self, port: int, token: str, topology: Topology, *, timeout_s: float = 2.0) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        self._token, self._topology = token, topology

    def put(self, method: BalancingMethod, control: Control) -> None:
        """Returns when every worker uses the control: no later request sees the old one.

        Raises ActuationError when it was refused or reads back differently; what was in force stays then.
        """
        before = self._request("GET")
        try:
            shown = self._request("POST", to_text(method, control))
            if not _shows(shown, to_text(method, control)):
                raise ActuationError("NGINX shows another control than was set", where=self._where)
        except ActuationError:
            if self._request("GET") != before:
                self._request("POST", before)
            raise

    def get(self) -> tuple[BalancingMethod, Control]:
        """The method and control in force, from NGINX's own tables. Raises ActuationError."""
        return from_text(self._request("GET"), self._topology)

    def close(self) -> None:
        self._connection.close()

    @property
    def _where(self) -> str:
        return f"127.0.0.1:{self._connection.port}/control"

    def _request(self, verb: str, body: str = "") -> str:
        try:
            return self._once(verb, body)
        except (http.client.HTTPException, OSError):
            # A reload closed the kept connection; a text is put in force whole, so that twice is once.
            self._connection.close()
        try:
            return self._once(verb, body)
        except (http.client.HTTPException, OSError) as error:
            self._connection.close()
            raise ActuationError(f"no answer: {error}", where=self._where, remedy="is NGINX running?") from error

    def _once(self, verb: str, body: str) -> str:
        self._connection.request(verb, "/control", body.encode(), {"X-Deepsched-Token": self._token})
        response = self._connection.getresponse()
        text = response.read().decode(errors="replace")
        if response.status != 200:
            raise ActuationError(text.strip()[:200], where=self._where)
        return text


def to_text(method: BalancingMethod, control: Control) -> str:
    """The control as lua/control.lua reads it; a control says everything, nothing older remains."""
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
    """The method and control that a text says. Raises ActuationError for a text that leaves something open."""
    lines = _lines(text)
    method = next((name for name in _METHODS if ("method", name) in lines), None)
    if method is None:
        raise ActuationError("no method of ours", where="control in memory", evidence=text[:80])
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


def _lines(text: str) -> dict[tuple[str, ...], str]:
    """(word, names…) → value; a flag such as `down` has the value ''."""
    table = {}
    for line in text.splitlines():
        words = tuple(line.split())
        flag = words[:1] in (("down",), ("method",))
        table[words if flag else words[:-1]] = "" if flag else words[-1]
    return table


def _shows(shown: str, wanted: str) -> bool:
    """Everything wanted is in force, and nothing that is down was wanted up."""
    theirs, ours = _lines(shown), _lines(wanted)
    extra = {words for words in theirs if words[:1] == ("down",)} - set(ours)
    same = all(words in theirs and _equal(theirs[words], value) for words, value in ours.items())
    return same and not extra


def _equal(shown: str, wanted: str) -> bool:
    return shown == wanted or (shown != "" and wanted != "" and float(shown) == float(wanted))
