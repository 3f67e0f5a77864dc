"""The weights of any NGINX, in memory or by reload: how to open it, parse weights, and visit all their ratios."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Annotated, ClassVar, Protocol

import numpy as np
from pydantic import Field

from actuators.contract.control import BY_TIMES, MAX_WEIGHT, Control, MemoryMethod, ServiceTimes, Weights
from actuators.contract.late_binding import LateBinding
from actuators.contract.testbed import Applied, Restored
from actuators.contract.topology import Topology
from actuators.envoy_admin import admin_of
from actuators.errors import ConfigError
from actuators.external.envoy import EnvoyActuator
from actuators.external.haproxy import HaproxyActuator
from actuators.external.nginx import ExternalNginx, ExternalNginxOptions
from actuators.external.restoring import restoration
from actuators.files import read_token
from actuators.haproxy_api import socket_of
from actuators.nginx.control_endpoint import (
    MemoryControl,
    Split,
    from_text,
    is_split,
    is_watching,
    topology_from_text,
)
from actuators.options import GIVEN, NOT_GIVEN, Only, Options

EXPLORED_VALUES = (1, 3, 5)
"""Weights whose ratios `exploration` visits by default (docs/studies.md#actions)."""


class ActuatorOptions(Options):
    """Which NGINX, and how to reach its weights."""

    control_url: str = ""
    """Control endpoint of an NGINX that includes our snippet, as http://127.0.0.1:8090/control, or an HAProxy or Envoy,
    as haproxy:/run/haproxy/admin.sock or envoy:http://127.0.0.1:9901; weights change in memory through it, and by
    reload when not given."""
    token_file: Annotated[Path | None, Only(control_url=GIVEN)] = None
    """File with the token of the control endpoint; changes are refused when not given."""
    reload: Annotated[ExternalNginxOptions, Only(control_url=NOT_GIVEN)] = Field(default_factory=ExternalNginxOptions)
    """An NGINX whose weights change by reload."""


class Actuator(Protocol):
    """An NGINX whose control can be read and set."""

    @property
    def topology(self) -> Topology: ...

    def control(self) -> Control:
        """The control in force. Raises ActuationError, ConfigError or StatusError."""
        ...

    def apply(self, control: Control) -> Applied:
        """Returns when the control is in force. Raises ActuationError; then the old one is in force."""
        ...

    def restore(self, first: Control, method: MemoryMethod | None = None) -> Restored:
        """Puts an earlier control in force on the servers that still exist, and names the others.

        Args:
            method: the balancing method to go back to with it, where that can change without a reload.

        Raises ActuationError; then the old one is in force.
        """
        ...


@dataclass
class MemoryActuator:
    """An NGINX that balances in memory, reached only through its control endpoint.

    Attributes:
        groups: those that are read and set, others keep their control; all when empty. Raises ConfigError for a name
            that NGINX does not have.
    """

    endpoint: MemoryControl
    groups: tuple[str, ...] = ()
    topology: Topology = field(init=False)
    in_memory: ClassVar = True

    def __post_init__(self) -> None:
        whole = self.endpoint.topology
        chosen = tuple(whole.groups[whole.group_index(name)] for name in self.groups)
        self.topology = Topology(chosen) if chosen else whole

    def control(self) -> Control:
        present = self.endpoint.get()[1]
        return restoration(present, Weights.equal(self.topology)).control if self.groups else present

    @property
    def method(self) -> MemoryMethod:
        """The method in force. Raises ActuationError."""
        return self.endpoint.get()[0]

    def apply(self, control: Control) -> Applied:
        return self.endpoint.apply(restoration(control, self.endpoint.get()[1]).control if self.groups else control)

    def rotate(self, texts: Sequence[str]) -> Applied:
        """Takes servers out of rotation or puts them back, by changes as ``[GROUP/]SERVER=down`` or ``=up``.

        Everything else in force stays: weights or service times, what is held, a canary.

        Raises ConfigError with the closest match, or when a group would be left without a server; ActuationError.
        """
        began_s, present = time.monotonic(), self.endpoint.weights()
        down = present.down.copy()
        for text in texts:
            name, _, value = text.rpartition("=")
            for g, s in _cells(name, self.topology):
                group, server = self.topology.groups[g].name, self.topology.servers[s]
                cell = present.topology.group_index(group), present.topology.server_index(server)
                down[cell] = value == "down"
        wanted = replace(present, down=down)
        changed = wanted != present
        if changed:
            self.endpoint.rotate(wanted.down)
        return Applied(changed, time.monotonic() - began_s)

    def restore(self, first: Control, method: MemoryMethod | None = None) -> Restored:
        """As `Actuator.restore`; without a method, the present one stays where it takes the control."""
        began_s = time.monotonic()
        text = MemoryControl.read(self.endpoint.url)
        now, present = from_text(text, topology_from_text(text))
        found = restoration(first, present)
        if isinstance(found.control, ServiceTimes):
            method = "expected_delay" if found.control.holding is None else "late_binding"
        elif method is None or method in BY_TIMES:
            method = "least_conn" if now in BY_TIMES else now
        changed = method != now or found.control != present or is_split(text) or is_watching(text)
        if changed:
            self.endpoint.put(method, found.control)
        return Restored(changed, time.monotonic() - began_s, found.restored, found.missing, found.added)

    def balance(self, method: MemoryMethod, control: Control) -> None:
        """Sets a method together with its control. Raises ActuationError; then the old ones are in force."""
        self.endpoint.put(method, control)

    def split(
        self, percent: float, method: MemoryMethod, control: Control, base_method: MemoryMethod, base_control: Control
    ) -> None:
        """Sets a method and control for `percent` of the requests, and those of the others. Errors as `balance`."""
        self.endpoint.put_split(percent, method, control, base_method, base_control)

    def watch(self, holding: LateBinding | None) -> None:
        """As `MemoryControl.watch`."""
        self.endpoint.watch(holding)

    def split_in_force(self) -> Split | None:
        """None when one method and control balance all requests. Raises ActuationError."""
        return self.endpoint.get_split()


def open_actuator(options: ActuatorOptions, groups: tuple[str, ...] = ()) -> Actuator:
    """Opens an NGINX in memory, an HAProxy or an Envoy when there is a control URL, else an NGINX by reload.

    Args:
        groups: those that are read and set; all when empty.

    Raises ConfigError, MissingToolError or ActuationError.
    """
    if (path := socket_of(options.control_url)) is not None:
        return HaproxyActuator(path, groups)
    if (admin := admin_of(options.control_url)) is not None:
        return EnvoyActuator(admin, groups)
    if not options.control_url:
        return ExternalNginx(options.reload.model_copy(update={"groups": groups}) if groups else options.reload)
    token = read_token(options.token_file)
    topology = topology_from_text(MemoryControl.read(options.control_url))
    return MemoryActuator(MemoryControl(options.control_url, token, topology), groups)


def parse_weights(texts: Sequence[str], base: Weights) -> Weights:
    """`base` with changes written as ``[GROUP/]SERVER=WEIGHT`` or ``[GROUP/]SERVER=down`` (``up``).

    Without a group the change applies to every group with the server. Where a weight exceeds 100, the weights of its
    group are scaled to 1…100. Raises ConfigError with the closest match.
    """
    topology, values, down = base.topology, base.values.astype(float), base.down.copy()
    for text in texts:
        name, separator, value = text.rpartition("=")
        if not separator:
            raise ConfigError(f"invalid change '{text}'", where="weights", remedy="write GROUP/SERVER=WEIGHT")
        for g, s in _cells(name, topology):
            if value in ("down", "up"):
                down[g, s] = value == "down"
            else:
                values[g, s], down[g, s] = _number(value, text), False
    largest = values.max(axis=1, keepdims=True)
    scaled = np.where(largest > MAX_WEIGHT, values * MAX_WEIGHT / largest, values)
    return Weights(topology, np.where(topology.mask, np.maximum(np.rint(scaled), 1), 0).astype(np.int64), down)


def sets_rotation(texts: Sequence[str]) -> bool:
    """Whether the changes only take servers out of rotation or put them back."""
    return all(text.rpartition("=")[2] in ("down", "up") for text in texts)


def ratio_vectors(servers: int, values: Sequence[int] = EXPLORED_VALUES) -> list[tuple[int, ...]]:
    """All weight vectors with distinct ratios, in lowest terms; 25 for three servers and {1, 3, 5}."""
    ratios = {
        tuple(weight // reduce(math.gcd, vector) for weight in vector)
        for vector in itertools.product(values, repeat=servers)
    }
    return sorted(ratios)


def exploration(topology: Topology, seed: int, values: Sequence[int] = EXPLORED_VALUES) -> Iterator[Weights]:
    """Weights that visit every ratio vector of every group, each group in its own random order; shorter ones repeat."""
    generator = np.random.default_rng(seed)
    walks = []
    for group in topology.groups:
        vectors = ratio_vectors(len(group.servers), values)
        walks.append([vectors[i] for i in generator.permutation(len(vectors))])
    for step in range(max(map(len, walks))):
        weights = np.zeros(topology.shape, np.int64)
        for g, (group, walk) in enumerate(zip(topology.groups, walks, strict=True)):
            for server, weight in zip(group.servers, walk[step % len(walk)], strict=True):
                weights[g, topology.server_index(server)] = weight
        yield Weights(topology, weights)


def _cells(name: str, topology: Topology) -> list[tuple[int, int]]:
    """Where the weight of GROUP/SERVER or SERVER is. Raises ConfigError with the closest match."""
    found = [
        (g, topology.server_index(server))
        for g, group in enumerate(topology.groups)
        for server in group.servers
        if name in (server, f"{group.name}/{server}")
    ]
    if found:
        return found
    group, slash, server = name.partition("/")
    # The address of a Unix socket contains slashes.
    if slash and not name.startswith("unix:"):
        topology.group_index(group)
        topology.server_index(server)
    else:
        topology.server_index(name)
    raise ConfigError(f"{server} is not in {group}", where="weights", remedy="list them with: deepsched weights get")


def _number(value: str, text: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) <= 9 and int(value) > 0):
        raise ConfigError(f"'{value}' is not a weight", where=text, remedy="write a whole number above 0, or down")
    return int(value)
