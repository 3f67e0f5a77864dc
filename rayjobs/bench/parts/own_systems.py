"""Ten systems that are not the demo's, drawn by seed: groups, names, servers, speeds, load, and how they balance today.

Drawn before anything was tuned. A system is a scenario for a testbed with the same topology; its servers answer any
path below /emulated/.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.control import BalancingMethod, Weights
from actuators.contract.script import RateStep, Script, ServerProfile, Stream
from actuators.contract.topology import Group, Topology
from actuators.files import private_folder
from actuators.nginx.instance import Nginx
from actuators.testbed.live import LiveTestbed
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import make_collector, make_load, make_server

COUNT = 10
EQUAL = (1, 3, 6, 8)
"""Numbers of the systems whose servers are equal; they balance by least_conn, so that there is nothing to gain."""
NAMES = ("api.v2", "9-checkout", "img_static", "auth-svc", "search.eu-west", "2fa", "Orders", "feed.b")
MOST_RPS = 150.0
"""Requests per second of a system: what servers in Python answer on a small machine without being late themselves."""
BY_HOST_NAME = (2, 4, 6)
"""Numbers of the systems whose configuration names its servers by host name; the statistics show their addresses."""
STEP_S, STEP_RANGE = 15.0, (0.75, 1.25)
"""The rate of every group changes this often, by a factor out of this range."""


@dataclass(frozen=True, eq=False)
class OwnSystem:
    """One system.

    Attributes:
        number: 0 to 9.
        topology: with placeholders as addresses; a testbed replaces them.
        method: how NGINX balances today, under equal weights.
        in_memory: whether its NGINX balances in memory, so that service times can be set.
        speeds: ``[groups, servers]``; mean_service_s, rates_rps: ``[groups]``.
        workers: requests that a server serves at once.
    """

    number: int
    topology: Topology
    method: BalancingMethod
    in_memory: bool
    speeds: FloatArray
    mean_service_s: FloatArray
    rates_rps: FloatArray
    workers: int
    service_cv: float
    duration_s: float = 3600.0

    @property
    def name(self) -> str:
        return f"own-{self.number}"

    @property
    def equal(self) -> bool:
        """Whether all servers are equally fast."""
        return self.number in EQUAL

    @property
    def by_host_name(self) -> bool:
        """Whether the configuration has host names; only where weights are changed by reload."""
        return self.number in BY_HOST_NAME and not self.in_memory

    def __str__(self) -> str:
        groups, servers = self.topology.shape
        where, speeds = "in memory" if self.in_memory else "by weights", "equal" if self.equal else "unequal"
        names = ", host names" if self.by_host_name else ""
        return f"{self.name}: {groups} groups, {servers} {speeds} servers, {self.method}, {where}{names}"

    def script(self, topology: Topology, seed: int) -> Script:
        """The script of this seed: the servers stay as they are, the rates wander."""
        generator = np.random.default_rng([seed, self.number, 0x5E])
        starts = np.arange(0.0, self.duration_s, STEP_S)
        streams = tuple(
            Stream(
                name,
                tuple(
                    RateStep(float(at), float(rate * factor))
                    for at, factor in zip(starts, generator.uniform(*STEP_RANGE, len(starts)), strict=True)
                ),
            )
            for name, rate in zip(topology.request_types, self.rates_rps, strict=True)
        )
        return Script(
            self.name, seed, self.duration_s, streams,
            tuple(ServerProfile(tuple(map(float, column)), self.workers) for column in self.speeds.T),
            tuple(map(float, self.mean_service_s)), service_cv=self.service_cv,
        )  # fmt: skip


def own_systems(seed: int) -> tuple[OwnSystem, ...]:
    """The ten systems of this seed."""
    return tuple(own_system(number, seed) for number in range(COUNT))


def own_system(number: int, seed: int) -> OwnSystem:
    """One of the ten."""
    generator = np.random.default_rng([seed, number, 0x0B])
    groups, servers = int(generator.integers(1, 5)), int(generator.integers(2, 9))
    topology = _topology(generator, groups, servers)
    equal = number in EQUAL
    method: BalancingMethod = "least_conn" if equal or generator.random() < 0.5 else "round_robin"
    shape = (groups, servers)
    of_server = np.exp(generator.uniform(-0.8, 0.8, (1, servers)))
    # Half of the unequal systems have servers that are good at some groups only.
    own = np.exp(generator.uniform(-0.4, 0.4, shape)) if generator.random() < 0.5 else np.ones(shape)
    speeds = np.ones(shape) if equal else of_server * own
    workers = int(generator.integers(1, 5))
    mean_s = np.exp(generator.uniform(np.log(0.008), np.log(0.05), groups))
    mix = generator.dirichlet(np.full(groups, 4.0))
    load = float(generator.uniform(0.5, 0.75))
    rate_rps = load * workers / _busiest(topology, speeds, mean_s, mix, method)
    slower = max(rate_rps / MOST_RPS, 1.0)
    return OwnSystem(
        number=number,
        topology=topology,
        method=method,
        in_memory=bool(generator.random() < 0.5),
        speeds=speeds,
        mean_service_s=mean_s * slower,
        rates_rps=mix * rate_rps / slower,
        workers=workers,
        service_cv=float(generator.uniform(0.5, 1.2)),
    )


def _topology(generator: np.random.Generator, groups: int, servers: int) -> Topology:
    """Groups over all servers, or each over some of them; every server is used."""
    places = [f"server-{index}:80" for index in range(servers)]
    shared = generator.random() < 0.5
    names = generator.permutation(NAMES)[:groups]
    members = []
    for g in range(groups):
        chosen = np.ones(servers, bool) if shared or servers < 3 else generator.random(servers) < 0.6
        chosen[g % servers] = chosen[(g + 1) % servers] = True
        members.append(chosen)
    members[-1] |= ~np.any(members, axis=0)
    return Topology(
        tuple(
            Group(
                str(name), str(name), "GET", f"/emulated/{name}", 2.0,
                tuple(place for place, chosen in zip(places, row, strict=True) if chosen),
            )
            for name, row in zip(names, members, strict=True)
        )
    )  # fmt: skip


def _busiest(
    topology: Topology, speeds: FloatArray, mean_s: FloatArray, mix: FloatArray, method: BalancingMethod
) -> float:
    """Seconds of work per request at the busiest server, were all requests of rate 1 shared as the method does.

    round_robin gives every server of a group as much; least_conn about as much as the server can do.
    """
    shares = topology.mask / topology.mask.sum(axis=1, keepdims=True)
    if method == "least_conn":
        shares = np.where(topology.mask, speeds, 0.0)
        shares = shares / shares.sum(axis=1, keepdims=True)
    work = mix[:, None] * shares * mean_s[:, None] / speeds
    return float(work.sum(axis=0).max())


class _ByHostName(Nginx):
    """An NGINX whose upstream blocks call the servers localhost:PORT."""

    def _blocks(self, weights: Weights, method: BalancingMethod, *, memory: bool) -> str:
        return super()._blocks(weights, method, memory=memory).replace("server 127.0.0.1:", "server localhost:")


@contextlib.contextmanager
def running(system: OwnSystem, options: LiveOptions, work_dir: Path, seed: int) -> Iterator[tuple[LiveTestbed, Nginx]]:
    """A live testbed of the system's topology, and its NGINX."""
    with contextlib.ExitStack() as stack:
        servers = []
        for index in range(len(system.topology.servers)):
            servers.append(make_server(options, work_dir, index, seed))
            stack.callback(servers[-1].close)
        topology = system.topology.with_servers(tuple(server.address for server in servers))
        private_folder(work_dir)
        kind = _ByHostName if system.by_host_name else Nginx
        actuation: Literal["memory", "reload"] = "memory" if system.in_memory else "reload"
        of_nginx = options.nginx.model_copy(update={"method": system.method, "actuation": actuation})
        nginx = stack.enter_context(kind(of_nginx, topology, work_dir=work_dir))
        nginx.start()
        collector = stack.enter_context(make_collector(options, topology, nginx.status_url))
        load = make_load(options, work_dir)
        stack.callback(load.close)
        yield LiveTestbed(
            topology, nginx.address, servers=servers, proxy=nginx, collector=collector, load=load,
            close=lambda: None,
        ), nginx  # fmt: skip
