"""What a controller steers: an NGINX of somebody's, or an embedded testbed with traffic of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actuators.collect import CollectOptions, Collector
from actuators.control import ServiceTimes, Weights
from actuators.errors import ActuationError, ConfigError, closest
from actuators.load import LoadEngine
from actuators.parts import LiveOptions, make_collector, make_load, make_nginx, make_server
from actuators.script import Scenario
from actuators.social_server import SocialNetworkServer
from actuators.testbed import Applied
from actuators.topology import Group, Topology, social_network
from actuators.weights import Actuator, ActuatorOptions, open_actuator


@dataclass
class Site:
    """An NGINX as the controller sees it: windows of the bundle's groups, and weights in its words.

    `address` is where its traffic arrives, when known; `load` sends it and `servers` answer, when ours.
    """

    topology: Topology
    collector: Collector
    actuator: Actuator
    address: str = ""
    load: LoadEngine | None = None
    servers: Sequence[SocialNetworkServer] = ()

    def weights(self) -> Weights:
        """Weights in force. Raises ActuationError, ConfigError or StatusError."""
        control = self.actuator.control()
        if isinstance(control, ServiceTimes):
            raise ActuationError(
                "this NGINX balances by service times", where="controller", remedy="choose a method with weights"
            )
        theirs = self.actuator.topology
        values, down = np.ones(self.topology.shape, np.int64), np.zeros(self.topology.shape, bool)
        for g, group in enumerate(self.topology.groups):
            row = theirs.group_index(group.name)
            for server in group.servers:
                s, column = self.topology.server_index(server), theirs.server_index(server)
                values[g, s], down[g, s] = control.values[row, column], control.down[row, column]
        return Weights(self.topology, values, down)

    def apply(self, weights: Weights) -> Applied:
        """Returns when they are in force; groups that are not the bundle's keep theirs. Raises ActuationError."""
        theirs = self.actuator.topology
        if theirs == self.topology:
            return self.actuator.apply(weights)
        present = self.actuator.control()
        if isinstance(present, ServiceTimes):
            raise ActuationError("this NGINX balances by service times", where="controller")
        values, down = present.values.copy(), present.down.copy()
        for g, group in enumerate(self.topology.groups):
            row = theirs.group_index(group.name)
            for server in group.servers:
                s, column = self.topology.server_index(server), theirs.server_index(server)
                values[row, column], down[row, column] = weights.values[g, s], weights.down[g, s]
        return self.actuator.apply(Weights(theirs, values, down))


def matched(model: Topology, theirs: Topology) -> Topology:
    """The bundle's groups, found by name in an NGINX, over the servers they have there.

    Raises ConfigError with the closest match when a group is missing.
    """
    servers = {group.name: group.servers for group in theirs.groups}
    for group in model.groups:
        if group.name not in servers:
            raise ConfigError(
                f"NGINX has no upstream '{group.name}', which the bundle was trained for",
                where="bundle",
                remedy=closest(group.name, servers),
            )
    return Topology(
        tuple(Group(g.name, g.request_type, g.method, g.path, g.priority, servers[g.name]) for g in model.groups)
    )


@contextlib.contextmanager
def foreign_site(model: Topology, options: ActuatorOptions, status_url: str, reading: CollectOptions) -> Iterator[Site]:
    """Somebody's NGINX. Raises ConfigError, MissingToolError or ActuationError."""
    actuator = open_actuator(options)
    topology = matched(model, actuator.topology)
    with Collector(status_url, topology, reading) as collector:
        yield Site(topology, collector, actuator)


@contextlib.contextmanager
def embedded_site(
    live: LiveOptions, scenario: str | Scenario, work_dir: Path, seed: int, duration_s: float
) -> Iterator[Site]:
    """Servers, an NGINX and a load engine of our own, under a scenario of the study."""
    from envs.scenarios import scenario as find_scenario

    placeholders = social_network()
    with contextlib.ExitStack() as stack:
        servers = []
        for index in range(len(placeholders.servers)):
            servers.append(make_server(live, work_dir, index, seed))
            stack.callback(servers[-1].close)
        topology = placeholders.with_servers(tuple(server.address for server in servers))
        nginx = make_nginx(live, topology, work_dir)
        stack.callback(nginx.close)
        collector = stack.enter_context(make_collector(live, topology, nginx.status_url))
        load = make_load(live, work_dir)
        stack.callback(load.close)
        chosen = find_scenario(scenario, duration_s=duration_s) if isinstance(scenario, str) else scenario
        script = chosen.script(topology, seed)
        for server in servers:
            server.play(script, topology)
        load.start(nginx.address, topology, script.streams, seed=seed, duration_s=duration_s)
        yield Site(topology, collector, nginx, nginx.address, load, servers)
