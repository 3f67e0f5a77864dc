"""The weights of an HAProxy, read and set through its runtime API; nothing of its configuration is changed.

https://docs.haproxy.org/2.8/management.html#9.3 (`show servers state`, `set server`). A backend is a group. Weights
that are set so last until HAProxy reads its configuration again.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actuators.contract.control import Control, MemoryMethod, Weights
from actuators.contract.testbed import Applied, Restored
from actuators.errors import ActuationError, ConfigError
from actuators.external.choice import Member, chosen, unusable
from actuators.external.large_weights import LargeWeights
from actuators.external.restoring import names_of, restoration
from actuators.haproxy_api import RuntimeApi

_STATE_FORMAT = "1"
_MAINTENANCE, _DRAIN = 0x01 | 0x02 | 0x20, 0x08 | 0x10
"""Bits of srv_admin_state; 0x04 stays when a server that the configuration disables has been enabled."""


@dataclass(frozen=True)
class ServerState:
    """One line of `show servers state`.

    Attributes:
        backend, name: as the configuration calls them.
        address: HOST:PORT, or what HAProxy shows in its place.
        weight: as configured or set, 0…256; with 0 it takes no new requests.
        out: takes no new requests, by a command or the configuration.
        drained: it is out because its operator drains it: sessions that stick to it go on.
    """

    backend: str
    name: str
    address: str
    weight: int
    out: bool
    drained: bool = False

    @property
    def takes_nothing(self) -> bool:
        """Whether it is out, or has the weight 0."""
        return self.out or self.weight == 0

    def shows(self, weight: int, down: bool) -> bool:
        """Whether this is in force already; a server with the weight 0 is down, and stays as its operator made it."""
        return (down and self.weight == 0) or (self.weight, self.out) == (weight, down)


def read_states(text: str) -> list[ServerState]:
    """The servers in the answer to `show servers state`. Raises ActuationError for another format."""
    lines = text.splitlines()
    if len(lines) < 2 or lines[0].strip() != _STATE_FORMAT or not lines[1].startswith("# "):
        raise ActuationError(
            "the answer to 'show servers state' is of another format", evidence=" ".join(text[:100].split())
        )
    columns = lines[1][2:].split()
    states = []
    for line in filter(None, lines[2:]):
        row = dict(zip(columns, line.split(), strict=False))
        try:
            states.append(_state(row))
        except (KeyError, ValueError) as error:
            raise ActuationError(f"a line of 'show servers state' cannot be read: {error!r}", evidence=line) from error
    return states


class HaproxyActuator:
    """The weights of an HAProxy (`actuators.external.actuator.Actuator`).

    Args:
        groups: backends that are read and set, all whose weights can be set when empty.

    Attributes:
        left_out: backends whose weights cannot be set, and why; only without `groups`, which name what must be usable.

    Raises:
        ConfigError: no backend has servers that can be set, or a named one is unknown or cannot be set.
        ActuationError: the runtime API does not answer.
    """

    in_memory = True

    def __init__(self, path: Path, groups: Sequence[str] = ()) -> None:
        self._api, self._large = RuntimeApi(path), LargeWeights()
        backends = _backends(self._states())
        if not backends:
            raise ConfigError(
                "HAProxy has no backend with servers", where=str(path), remedy="give the socket of another"
            )
        self.topology, self.left_out = chosen(backends, groups, str(path))
        self._groups = tuple(group.name for group in self.topology.groups)

    def control(self) -> Weights:
        """The weights in force, 1…100: larger ones are scaled; a weight of 0 counts as down.

        Raises ActuationError, and ConfigError when all servers of a backend are out of rotation.
        """
        values, down = np.zeros(self.topology.shape), np.zeros(self.topology.shape, bool)
        for g, s, state in self._cells(self._states()):
            values[g, s], down[g, s] = max(state.weight, 1), state.takes_nothing
        return self._large.scaled(self.topology, values, down)

    @property
    def balance(self) -> str:
        """The `balance` algorithm of all groups in HAProxy's words, several of them with commas.

        Raises ActuationError.
        """
        return ", ".join(sorted(set(self.methods().values())))

    def methods(self) -> dict[str, str]:
        """Group → its `balance` algorithm in HAProxy's words. Raises ActuationError."""
        lines = self._api.ask("show stat").removeprefix("# ").splitlines()
        rows = [row for row in csv.DictReader(lines) if row.get("svname") == "BACKEND"]
        found = {row.get("pxname"): row.get("algo") for row in rows}
        return {name: found.get(name) or "unknown" for name in self._groups}

    def apply(self, control: Control) -> Applied:
        """As `Actuator.apply`; service times are refused, because HAProxy has no such method."""
        began_s = time.monotonic()
        if not isinstance(control, Weights):
            raise ActuationError("HAProxy takes weights, not service times", where=str(self._api.path))
        if control.topology != self.topology:
            raise ActuationError("the control is of another topology", where=str(self._api.path))
        states = self._states()
        values = self._large.unscaled(control)
        wanted = [(state, int(values[g, s]), bool(control.down[g, s])) for g, s, state in self._cells(states)]
        changes = [(state, weight, down) for state, weight, down in wanted if not state.shows(weight, down)]
        if not changes:
            return Applied(False, time.monotonic() - began_s)
        try:
            for state, weight, down in changes:
                self._api.order(*_orders(state, (state.weight, state.out), (weight, down)))
            self._confirm(wanted)
        except ActuationError as error:
            self._put_back(changes, error)
            raise
        return Applied(True, time.monotonic() - began_s)

    def restore(self, first: Control, method: MemoryMethod | None = None) -> Restored:
        """As `Actuator.restore`, also when servers or backends came or went meanwhile; those of a backend that cannot
        be set now (`left_out`) are `missing`. The method is that of HAProxy's configuration.
        """
        began_s, backends = time.monotonic(), _backends(self._states())
        reasons, groups = unusable(backends, str(self._api.path)), {group.name for group in first.topology.groups}
        names = [name for name in backends if name in groups and name not in reasons]
        if not names:
            return Restored(False, time.monotonic() - began_s, missing=tuple(names_of(first.topology)))
        present = HaproxyActuator(self._api.path, names)
        present._large = self._large
        found = restoration(first, present.control())
        changed = present.apply(found.control).changed
        return Restored(changed, time.monotonic() - began_s, found.restored, found.missing, found.added)

    def _put_back(self, changes: Sequence[tuple[ServerState, int, bool]], cause: ActuationError) -> None:
        """Orders what was in force of every server, since nothing tells which of the changes were made."""
        failed = None
        for state, weight, down in changes:
            for order in _orders(
                state, (weight, down), (state.weight, state.out), "drain" if state.drained else "maint"
            ):
                try:
                    self._api.order(order)
                except ActuationError as error:
                    failed = error
        if failed is not None:
            what = f"not applied ({cause.what}), and what was in force is not back: {failed.what}"
            raise ActuationError(what, where=failed.where, remedy="set the weights anew") from cause

    def _confirm(self, wanted: Sequence[tuple[ServerState, int, bool]]) -> None:
        now = {(state.backend, state.name): state for state in self._states()}
        for state, weight, down in wanted:
            shown = now.get((state.backend, state.name))
            if shown is None or not shown.shows(weight, down):
                what = f"HAProxy shows another weight of {state.backend}/{state.name} than was set"
                raise ActuationError(what, where=str(self._api.path))

    def _states(self) -> list[ServerState]:
        return read_states(self._api.ask("show servers state"))

    def _cells(self, states: Sequence[ServerState]) -> list[tuple[int, int, ServerState]]:
        """Group and server index of every state of the topology. Raises ActuationError when servers came or went."""
        own = [state for state in states if state.backend in self._groups]
        if [(each.backend, each.address) for each in own] != [
            (group.name, server) for group in self.topology.groups for server in group.servers
        ]:
            raise ActuationError("the servers of HAProxy have changed", where=str(self._api.path), remedy="start again")
        return [(self.topology.group_index(s.backend), self.topology.server_index(s.address), s) for s in own]


def _orders(server: ServerState, old: tuple[int, bool], new: tuple[int, bool], out_by: str = "maint") -> Iterator[str]:
    """The commands from one weight and state (out or not) of a server to another; `out_by` is the state for out."""
    name, (weight, out) = f"{server.backend}/{server.name}", new
    if weight != old[0]:
        yield f"set server {name} weight {weight}"
    if out != old[1]:
        yield f"set server {name} state {out_by if out else 'ready'}"


def _backends(states: Sequence[ServerState]) -> dict[str, list[Member]]:
    backends: dict[str, list[Member]] = {}
    for state in states:
        backends.setdefault(state.backend, []).append(Member(state.address, state.takes_nothing))
    return backends


def _state(row: dict[str, str]) -> ServerState:
    host = f"[{row['srv_addr']}]" if ":" in row["srv_addr"] else row["srv_addr"]
    address = row["srv_name"] if host in ("-", "") else f"{host}:{row['srv_port']}"
    admin = int(row["srv_admin_state"])
    maintained, drained = bool(admin & _MAINTENANCE), bool(admin & _DRAIN)
    return ServerState(
        row["be_name"], row["srv_name"], address, int(row["srv_uweight"]), maintained or drained,
        drained and not maintained,
    )  # fmt: skip
