"""What a controller steers: an external NGINX, or an embedded testbed with its own traffic; opened from its options."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actuators.contract.arrays import BoolArray
from actuators.contract.control import BY_TIMES, Canary, Control, MemoryMethod, ServiceTimes, Weights
from actuators.contract.late_binding import LateBinding
from actuators.contract.script import Scenario
from actuators.contract.testbed import Applied
from actuators.contract.topology import Group, Topology, social_network
from actuators.errors import ActuationError, ConfigError, DeepSchedError, closest
from actuators.external.actuator import Actuator, ActuatorOptions, MemoryActuator, open_actuator
from actuators.external.envoy import EnvoyActuator
from actuators.external.haproxy import HaproxyActuator
from actuators.external.nginx import ExternalNginx
from actuators.files import read_token
from actuators.load.engine import LoadEngine
from actuators.nginx.control_endpoint import beside
from actuators.nginx.instance import Nginx
from actuators.other_proxies import names_another
from actuators.social_network.server import SocialNetworkServer
from actuators.statistics.names import server_names
from actuators.statistics.reader import CollectOptions, Collector
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import make_collector, make_load, make_nginx, make_server
from rayjobs.steer.advisers import ServeAdviser, handle_post, http_post
from tuning.policy.adviser import Adviser, Advises
from tuning.policy.bundle import check_bundle, load_bundle

if TYPE_CHECKING:
    from rayjobs.steer.options import SiteOptions, SteerOptions


_SWITCHING = Nginx | MemoryActuator
"""Actuators that can change the balancing method in memory."""


@dataclass
class Site:
    """An NGINX as the controller sees it: windows and controls of the bundle's groups.

    Attributes:
        address: where its traffic arrives; empty when unknown.
        load: sends the traffic of an embedded testbed.
        servers: the servers of an embedded testbed.
        first_method: the balancing method before any controller; restored together with weights.
        present: reads the bundle's groups over the servers that NGINX has now; None where they cannot change.
        notes: what an operator should know before it starts.
    """

    topology: Topology
    collector: Collector
    actuator: Actuator
    address: str = ""
    load: LoadEngine | None = None
    servers: Sequence[SocialNetworkServer] = ()
    first_method: MemoryMethod | None = None
    present: Callable[[], Topology] | None = None
    notes: tuple[str, ...] = ()
    _kind: str | None = None
    _down: BoolArray | None = None

    def control(self) -> Control:
        """The control in force for the bundle's groups, of a canary the new one.

        Raises ActuationError, ConfigError or StatusError.
        """
        control = self.actuator.control()
        self._kind = _kind(control)
        own = self._own(control)
        self._down = own.down
        return own

    def out_of_rotation(self) -> BoolArray:
        """Bool ``[groups, servers]``, of the bundle's groups. Raises as `control`."""
        self._down = self._own(self.actuator.control()).down
        return self._down

    def canary(self) -> Canary | None:
        """For which part of the requests that control is; None for all. Raises as `control`."""
        split = self.actuator.split_in_force() if isinstance(self.actuator, _SWITCHING) else None
        return None if split is None else Canary(split.percent, self._own(split.base_control))

    @property
    def splits(self) -> bool:
        """Whether a part of the requests can go by another control than the rest: not beside requests that are held, as
        the others would take every slot before them.
        """
        in_memory = isinstance(self.actuator, _SWITCHING) and self.actuator.in_memory
        return in_memory and self.first_method != "late_binding"

    def _own(self, control: Control) -> Control:
        """The bundle's groups of a control."""
        theirs = self.actuator.topology
        down = _between(theirs, self.topology, control.down, np.zeros(self.topology.shape, bool))
        if isinstance(control, ServiceTimes):
            columns = [theirs.server_index(server) for server in self.topology.servers]
            tau_s = _between(theirs, self.topology, control.tau_s, np.ones(self.topology.shape))
            holding = None if control.holding is None else control.holding.onto(self.topology)
            return ServiceTimes(self.topology, tau_s, control.workers[columns], holding, down)
        values = _between(theirs, self.topology, control.values, np.ones(self.topology.shape, np.int64))
        return Weights(self.topology, values, down)

    def changed(self) -> str:
        """How the servers of NGINX differ from those of this site; empty when they are the same.

        Raises ConfigError when one of the bundle's groups is gone, ActuationError when NGINX cannot be read.
        """
        if self.present is None:
            return ""
        now = self.present()
        before, there = _names(self.topology), _names(now)
        words = [f"+{name}" for name in there if name not in before] + [f"-{n}" for n in before if n not in there]
        if words or now != self.topology.plain:
            return " ".join(words) or "another order"
        same = self.topology == now.with_entries(self.collector.names().counts)
        return "" if same else "other addresses behind a name"

    def method(self) -> MemoryMethod | None:
        """The balancing method; None where only a reload could change it. Raises ActuationError."""
        return self.actuator.method if isinstance(self.actuator, _SWITCHING) else None

    @property
    def changes_silently(self) -> bool:
        """Whether somebody can change the control so that no fault in the statistics tells it."""
        return isinstance(self.actuator, MemoryActuator | HaproxyActuator | EnvoyActuator)

    def apply(self, control: Control, canary: Canary | None = None, *, restoring: bool = False) -> Applied:
        """Returns when the control is in force, or a canary of it; other groups keep theirs. Raises ActuationError.

        Args:
            restoring: nothing is waited for, and nothing believed of what is in force.
        """
        control, canary = self._rotated(control, canary, restoring=restoring)
        if canary is not None:
            return self._split(control, canary)
        kind = _kind(control)
        if self._kind is None:
            self.control()
        wanted = self._whole(control)
        if kind == self._kind and restoring and not isinstance(self.actuator, _SWITCHING):
            restored = self.actuator.restore(wanted)
            return Applied(restored.changed, restored.duration_s)
        if kind == self._kind:
            return self.actuator.apply(wanted)
        if not isinstance(self.actuator, _SWITCHING):
            raise ActuationError("service times need an NGINX that balances in memory", where="controller")
        began_s, self._kind = time.monotonic(), None
        self.actuator.balance(self._method_for(control), wanted)
        self._kind = kind
        return Applied(True, time.monotonic() - began_s)

    def watch(self, holding: LateBinding | None) -> None:
        """NGINX counts which requests this would hold, beside every control that does not hold itself; None ends it.

        Raises ActuationError.
        """
        if not isinstance(self.actuator, _SWITCHING):
            raise ActuationError("only an NGINX that balances in memory can hold requests", where="controller")
        self.actuator.watch(None if holding is None else holding.onto(self.actuator.topology))

    def _rotated(self, control: Control, canary: Canary | None, *, restoring: bool) -> tuple[Control, Canary | None]:
        """Both; where other servers are out of rotation than when that was read last, with those that are so now: an
        operator may have taken one out after the control was decided, or marked it `down` in a file that the change
        will load, which no controller undoes.
        """
        if not (self.changes_silently or isinstance(self.actuator, ExternalNginx)) or self._down is None:
            return control, canary
        try:
            down = self._own(self.actuator.control()).down
        except DeepSchedError:
            if not restoring:
                raise
            return control, canary
        if np.array_equal(down, self._down):
            self._down = control.down
            return control, canary
        base = None if canary is None else replace(canary, base=replace(canary.base, down=down))
        return replace(control, down=down), base

    def _split(self, control: Control, canary: Canary) -> Applied:
        if not isinstance(self.actuator, _SWITCHING):
            raise ActuationError("a part of the requests can have its own control in memory only", where="controller")
        began_s, self._kind = time.monotonic(), None
        new, base = self._whole(control), self._whole(canary.base)
        self.actuator.split(canary.percent, self._method_for(control), new, self._method_for(canary.base), base)
        return Applied(True, time.monotonic() - began_s)

    def _method_for(self, control: Control) -> MemoryMethod:
        """The method that takes this control: the first one, where it does."""
        if isinstance(control, ServiceTimes):
            return "expected_delay" if control.holding is None else "late_binding"
        return "least_conn" if self.first_method is None or self.first_method in BY_TIMES else self.first_method

    def _whole(self, control: Control) -> Control:
        """The control of all groups of the NGINX."""
        theirs = self.actuator.topology
        if theirs == self.topology:
            return control
        if isinstance(control, ServiceTimes):
            if len(theirs.groups) != len(self.topology.groups) or set(theirs.servers) != set(self.topology.servers):
                raise ActuationError("this NGINX has groups that the bundle does not know", where="controller")
            columns = [self.topology.server_index(server) for server in theirs.servers]
            tau_s = _between(self.topology, theirs, control.tau_s, np.ones(theirs.shape))
            holding = None if control.holding is None else control.holding.onto(theirs)
            down = _between(self.topology, theirs, control.down, np.zeros(theirs.shape, bool))
            return ServiceTimes(theirs, tau_s, control.workers[columns], holding, down)
        base = Weights.equal(theirs)
        if not {group.name for group in theirs.groups} <= {group.name for group in self.topology.groups}:
            present = self.actuator.control()
            base = present if isinstance(present, Weights) else base
        values = _between(self.topology, theirs, control.values, base.values)
        return Weights(theirs, values, _between(self.topology, theirs, control.down, base.down))


def _kind(control: Control) -> str:
    """Controls of one kind go by one method."""
    if isinstance(control, ServiceTimes):
        return "times" if control.holding is None else "held"
    return "weights"


def _between(of: Topology, to: Topology, table: np.ndarray, base: np.ndarray) -> np.ndarray:
    """`base`, a table of `to`, with the values of `table` for the groups and servers that both have."""
    result = base.copy()
    names = {group.name: g for g, group in enumerate(of.groups)}
    for g, group in enumerate(to.groups):
        for server in group.servers if group.name in names else ():
            if server in of.servers and of.mask[names[group.name], of.server_index(server)]:
                result[g, to.server_index(server)] = table[names[group.name], of.server_index(server)]
    return result


def _names(topology: Topology) -> list[str]:
    return [f"{group.name}/{server}" for group in topology.groups for server in group.servers]


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
def external_site(
    model: Topology, options: ActuatorOptions, status_url: str, reading: CollectOptions
) -> Iterator[Site]:
    """An external NGINX. Raises ConfigError, also for servers whose names are not one to one with the statistics',
    MissingToolError, StatusError or ActuationError.
    """
    # Other groups of an NGINX in memory belong to its control; those of an HAProxy or Envoy are left alone.
    groups = tuple(group.name for group in model.groups) if names_another(options.control_url) else ()
    actuator = open_actuator(options, groups)
    topology = matched(model, actuator.topology)
    with Collector(status_url, topology, reading, for_decisions=True) as collector:
        names = server_names(topology, collector.snapshot())
        names.check()
        counted = topology.with_entries(names.counts)
        notes = tuple(f"{alias}: write one name for it in every upstream" for alias in names.aliases)
        yield Site(
            counted, collector, actuator, notes=notes,
            present=lambda: matched(model, open_actuator(options, groups).topology),
        )  # fmt: skip


@contextlib.contextmanager
def embedded_site(
    live: LiveOptions, scenario: str | Scenario, work_dir: Path, seed: int, duration_s: float
) -> Iterator[Site]:
    """Servers, an NGINX and a load engine started here, under a scenario (docs/studies.md#scenarios)."""
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


DRAIN_S = 2.0
"""A controller's wait while workers of two earlier configurations are busy, unless the options say another: its
heartbeat must go on. What it would have changed is changed in a later interval."""
DEADLINE_SHARE = 0.1
"""Share of the control interval within which Serve must answer."""


@contextlib.contextmanager
def open_site(options: SteerOptions, topology: Topology) -> Iterator[Site]:
    """The NGINX that the options name, or an embedded testbed. Raises ConfigError for options that do not fit."""
    if options.nginx_conf is not None or options.control_url:
        with open_external_site(options, topology) as site:
            yield site
        return
    if options.status_url:
        raise ConfigError("--status-url without a way to set weights", where="steer", remedy=_WAYS)
    duration_s = 60 + (options.duration_s or 24 * 3600)
    work_dir = options.folder.absolute() / "testbed"
    with embedded_site(options.live, options.scenario, work_dir, options.seed, duration_s) as site:
        yield site


@contextlib.contextmanager
def open_external_site(options: SiteOptions, topology: Topology) -> Iterator[Site]:
    """The NGINX that the options name. Raises ConfigError for options that do not fit."""
    actuator = actuator_options(options, tuple(group.name for group in topology.groups))
    status_url = options.status_url or beside(options.control_url, "status")
    with external_site(topology, actuator, status_url, options.reading) as site:
        yield site


def actuator_options(options: SiteOptions, groups: tuple[str, ...] = ()) -> ActuatorOptions:
    """How to reach the NGINX that the options name, by default all its groups. Raises ConfigError for none."""
    if options.nginx_conf is not None:
        if not options.status_url:
            raise ConfigError("no statistics", where="steer", remedy="give --status-url")
        given = {"config": options.nginx_conf.absolute(), "status_url": options.status_url, "groups": groups}
        if not options.reload.given("drain_timeout_s"):
            given["drain_timeout_s"] = DRAIN_S
        return ActuatorOptions(reload=options.reload.model_copy(update=given))
    if not options.control_url:
        raise ConfigError("no NGINX is given", where="steer", remedy=_WAYS)
    token_file = options.token_file.absolute() if options.token_file is not None else None
    return ActuatorOptions(control_url=options.control_url, token_file=token_file)


def access(options: SteerOptions) -> dict[str, Any] | None:
    """`actuator_options` as JSON, for a later revert; None for an embedded testbed, which ends with its controller."""
    if options.nginx_conf is None and not options.control_url:
        return None
    return actuator_options(options).model_dump(mode="json", exclude_defaults=True)


_WAYS = "give --nginx-conf to change weights by reload, or --control-url to change them in memory"


def serve_first(options: SteerOptions, site: Site, local: Adviser, stack: contextlib.ExitStack) -> Advises:
    """The adviser that the options name: a Serve application before the local bundle, or the local bundle alone.

    Raises ConfigError.
    """
    deadline_s = DEADLINE_SHARE * options.interval_s
    if options.serve_app:
        post = handle_post(options.serve_app, 10 * deadline_s)
    elif options.serve_url:
        token = read_token(options.serve_token_file)
        post = http_post(options.serve_url, token, 10 * deadline_s)
    else:
        return local
    adviser = ServeAdviser(post, local, site.topology.plain, deadline_s)
    stack.callback(adviser.close)
    return adviser


def load_adviser(folder: Path, site: Site | None = None, workers: float = 1.0) -> Adviser:
    """The adviser of a bundle that passes all checks, for the site's servers.

    Raises BundleError, or ConfigError when the bundle does not fit the site.
    """
    check_bundle(folder)
    adviser = Adviser(load_bundle(folder, site.topology.plain if site else None), workers)
    if site is not None and adviser.bundle.problem.options.action.estimator:
        _check_takes_times(site, folder)
    return adviser


def _check_takes_times(site: Site, folder: Path) -> None:
    if site.method() is None:
        raise ConfigError(
            "the bundle sets service times, which NGINX can use only when it balances in memory", where=str(folder),
            remedy="include a snippet (deepsched weights snippet) in NGINX and give its --control-url; HAProxy and"
            " Envoy take weights only",
        )  # fmt: skip
    own = {group.name for group in site.topology.groups}
    unknown = [group.name for group in site.actuator.topology.groups if group.name not in own]
    if unknown:
        raise ConfigError(
            f"the bundle has no service times of {', '.join(unknown)[:200]}, which NGINX balances in memory too",
            where=str(folder),
            remedy=f"write the snippet for its groups only: deepsched weights snippet --groups {','.join(sorted(own))}",
        )
