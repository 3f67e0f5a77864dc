"""What a controller steers: an NGINX of somebody's, or an embedded testbed with traffic of its own.

What a controller needs, opened from its options: the NGINX, the bundle, and whom to ask.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from actuators.contract.control import BalancingMethod, Control, ServiceTimes, Weights
from actuators.contract.script import Scenario
from actuators.contract.testbed import Applied
from actuators.contract.topology import Group, Topology, social_network
from actuators.errors import ActuationError, ConfigError, closest
from actuators.external.actuator import Actuator, ActuatorOptions, MemoryActuator, open_actuator
from actuators.load.engine import LoadEngine
from actuators.nginx.instance import Nginx
from actuators.social_network.server import SocialNetworkServer
from actuators.statistics.reader import CollectOptions, Collector
from actuators.testbed.parts import LiveOptions, make_collector, make_load, make_nginx, make_server
from rayjobs.steer.advisers import ServeAdviser, http_post
from tuning.policy.adviser import Adviser, Advises
from tuning.policy.bundle import check_bundle, load_bundle
from tuning.steering.limits import down_in

if TYPE_CHECKING:
    from rayjobs.steer.options import SteerOptions


_SWITCHING = Nginx | MemoryActuator
"""Actuators that can change in memory how NGINX balances."""


@dataclass
class Site:
    """An NGINX as the controller sees it: windows of the bundle's groups, and controls in its words.

    Attributes:
        address: where its traffic arrives, when known; `load` sends it and `servers` answer, when ours.
        first_method: how it balanced before any controller; what weights are put back under after service times.
    """

    topology: Topology
    collector: Collector
    actuator: Actuator
    address: str = ""
    load: LoadEngine | None = None
    servers: Sequence[SocialNetworkServer] = ()
    first_method: BalancingMethod | None = None
    _times: bool | None = None

    def control(self) -> Control:
        """The bundle's part of what is in force. Raises ActuationError, ConfigError or StatusError."""
        control, theirs = self.actuator.control(), self.actuator.topology
        self._times = isinstance(control, ServiceTimes)
        if isinstance(control, ServiceTimes):
            columns = [theirs.server_index(server) for server in self.topology.servers]
            tau_s = _between(theirs, self.topology, control.tau_s, np.ones(self.topology.shape))
            return ServiceTimes(self.topology, tau_s, control.workers[columns])
        values = _between(theirs, self.topology, control.values, np.ones(self.topology.shape, np.int64))
        down = _between(theirs, self.topology, control.down, np.zeros(self.topology.shape, bool))
        return Weights(self.topology, values, down)

    def method(self) -> BalancingMethod | None:
        """How NGINX uses the control; None where only a reload could change it. Raises ActuationError."""
        return self.actuator.method if isinstance(self.actuator, _SWITCHING) else None

    def apply(self, control: Control) -> Applied:
        """Returns when it is in force; groups that are not the bundle's keep theirs. Raises ActuationError."""
        times = isinstance(control, ServiceTimes)
        if self._times is None:
            self.control()
        wanted = self._whole(control)
        if times == self._times:
            return self.actuator.apply(wanted)
        if not isinstance(self.actuator, _SWITCHING):
            raise ActuationError("service times need an NGINX that balances in memory", where="controller")
        began_s, self._times = time.monotonic(), None
        self.actuator.balance("expected_delay" if times else self.first_method or "least_conn", wanted)
        self._times = times
        return Applied(True, time.monotonic() - began_s)

    def _whole(self, control: Control) -> Control:
        """The control about all groups that the NGINX has."""
        theirs = self.actuator.topology
        if theirs == self.topology:
            return control
        if isinstance(control, ServiceTimes):
            if len(theirs.groups) != len(self.topology.groups) or set(theirs.servers) != set(self.topology.servers):
                raise ActuationError("this NGINX balances groups that the bundle does not know", where="controller")
            columns = [self.topology.server_index(server) for server in theirs.servers]
            tau_s = _between(self.topology, theirs, control.tau_s, np.ones(theirs.shape))
            return ServiceTimes(theirs, tau_s, control.workers[columns])
        present = self.actuator.control()
        base = present if isinstance(present, Weights) else Weights.equal(theirs)
        values = _between(self.topology, theirs, control.values, base.values)
        return Weights(theirs, values, _between(self.topology, theirs, control.down, base.down))


def _between(of: Topology, to: Topology, table: np.ndarray, base: np.ndarray) -> np.ndarray:
    """`base`, a table about `to`, with what `table` says of the groups and servers that both know."""
    result = base.copy()
    names = {group.name: g for g, group in enumerate(of.groups)}
    for g, group in enumerate(to.groups):
        for server in group.servers if group.name in names else ():
            if server in of.servers and of.mask[names[group.name], of.server_index(server)]:
                result[g, to.server_index(server)] = table[names[group.name], of.server_index(server)]
    return result


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
    from envs.scenarios.lookup import scenario as find_scenario

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


DEADLINE_SHARE = 0.1
"""Part of the control interval in which Serve must have answered."""


@contextlib.contextmanager
def open_site(options: SteerOptions, model: Adviser) -> Iterator[Site]:
    """The NGINX that the options name, or an embedded testbed. Raises ConfigError for options that do not fit."""
    topology = model.topology
    if options.nginx_conf is None and not options.control_url:
        if options.status_url:
            remedy = "give --nginx-conf, or --control-url for weights in memory"
            raise ConfigError("--status-url without a way to set weights", where="steer", remedy=remedy)
        duration_s = 60 + (options.duration_s or 24 * 3600)
        work_dir = options.folder.absolute() / "testbed"
        with embedded_site(options.live, options.scenario, work_dir, options.seed, duration_s) as site:
            yield site
        return
    status_url = options.status_url or options.control_url.replace("/control", "/status")
    if not status_url:
        raise ConfigError("no statistics", where="steer", remedy="say where vts is served: --status-url")
    actuator = options.reload
    if options.nginx_conf is not None:
        names = tuple(group.name for group in topology.groups)
        foreign = actuator.reload.model_copy(
            update={"config": options.nginx_conf, "status_url": status_url, "groups": names}
        )
        actuator = actuator.model_copy(update={"reload": foreign, "control_url": ""})
    else:
        actuator = actuator.model_copy(update={"control_url": options.control_url, "token_file": options.token_file})
    with foreign_site(topology, actuator, status_url, options.reading) as site:
        yield site


def ask_serve(options: SteerOptions, site: Site, own: Adviser, stack: contextlib.ExitStack) -> Advises:
    """Serve when there is one to ask, in front of the own copy of the bundle. Raises ConfigError."""
    deadline_s = DEADLINE_SHARE * options.interval_s
    if options.serve_app:
        from rayjobs.steer.advisers import handle_post

        post = handle_post(options.serve_app, 10 * deadline_s)
    elif options.serve_url:
        token = options.serve_token_file.read_text().strip() if options.serve_token_file else ""
        post = http_post(options.serve_url, token, 10 * deadline_s)
    else:
        return own
    asked = ServeAdviser(post, own, site.topology, deadline_s)
    stack.callback(asked.close)
    return asked


def load_adviser(folder: Path, site: Site | None = None, workers: float = 1.0) -> Adviser:
    """A bundle after every check, for the site's servers. Raises BundleError, or ConfigError when it does not fit."""
    check_bundle(folder)
    adviser = Adviser(load_bundle(folder, site.topology if site else None), workers)
    if site is not None and adviser.bundle.problem.options.action.estimator:
        _check_takes_times(site, folder)
    return adviser


def _check_takes_times(site: Site, folder: Path) -> None:
    if site.method() is None:
        raise ConfigError(
            "the bundle sets service times, for which NGINX must balance in memory", where=str(folder),
            remedy="include our snippet (deepsched weights snippet) and give its --control-url",
        )  # fmt: skip
    if down_in(site.control()).any():
        raise ConfigError(
            "a server is out of rotation, which service times cannot say", where=str(folder),
            remedy="put it back, or take it out of the configuration",
        )  # fmt: skip
