"""Places a live testbed on the nodes of a Ray cluster, by custom resources.

A testbed takes `client: 1` (load engine, collector), `proxy: 1` (NGINX) and `server: N` in one placement group; servers
get the addresses of their nodes. NGINX serves its statistics only on its own node, so on several machines the collector
runs beside it. A process on the proxy node may hold NGINX and the collector itself, which saves 3 ms per call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Set
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import ActorAlreadyExistsError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actuators.contract.topology import Topology
from actuators.errors import CapacityError, ConflictError
from actuators.testbed.live import CollectorPart, LoadPart, ProxyPart, ServerPart
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import LOOPBACK, make_collector, make_load, make_nginx, make_server
from actuators.testbed.remote import (
    LoadGenerator,
    NginxActuator,
    RemotePart,
    RemoteTestbed,
    SocialNetworkNode,
    StatisticsCollector,
)

NAMESPACE = "deepsched"
"""Of the actors that `deepsched testbeds` asks for their state: each has a name and a method `describe`."""
CLOSE_TIMEOUT_S, REMOVE_TIMEOUT_S = 4.0, 1.0
MOST_NAMES = 10_000
"""Of actors that begin alike, at one time."""
PROXY_BUNDLE = 1
"""Index of NGINX in `testbed_bundles`."""
Created = TypeVar("Created")


def testbed_bundles(servers: int) -> list[dict[str, float]]:
    """The bundles of a placement group that holds one testbed: client, proxy, then the servers."""
    return [{"client": 1.0}, {"proxy": 1.0}, *({"server": 1.0} for _ in range(servers))]


def check_capacity(testbeds: int, servers: int) -> None:
    """Raises CapacityError when the cluster lacks the resources for that many testbeds at once."""
    total = ray.cluster_resources()
    needed = {"proxy": testbeds, "client": testbeds, "server": testbeds * servers}
    lacking = [f"{name} {total.get(name, 0):g}/{count}" for name, count in needed.items() if total.get(name, 0) < count]
    if lacking:
        room = int(min(total.get("proxy", 0), total.get("client", 0), total.get("server", 0) // max(servers, 1)))
        raise CapacityError(
            f"{testbeds} testbed(s) at once do not fit, there is room for {room}: {', '.join(lacking)}",
            where="Ray cluster",
            remedy="add nodes with these custom resources (cluster.yaml) or ask for fewer testbeds",
        )


def start_remote_testbed(
    topology: Topology,
    options: LiveOptions,
    work_dir: Path,
    seed: int,
    group: PlacementGroup | None = None,
    first_bundle: int = 0,
    hold_proxy: bool = False,
    label: str = "",
) -> RemoteTestbed:
    """Places and starts a live testbed on the running Ray; its `close` releases the resources.

    Args:
        topology: groups and servers; the real addresses replace those of the servers.
        work_dir: for logs and, until `close`, databases; created on the nodes. Servers on different machines each have
            a database, equal at the start, even if they share this folder.
        group: of the caller, with `testbed_bundles` from `first_bundle` on; `close` does not remove it.
        hold_proxy: starts NGINX and its collector in this process, which must be in the proxy bundle of the group.
        label: what `deepsched testbeds` calls it; the name of the folder above `work_dir` when empty.

    Raises:
        CapacityError: the cluster lacks the resources.
        MissingToolError, ProcessError: a part did not start; the others are ended.
    """
    own = group is None
    if group is None:
        check_capacity(1, len(topology.servers))
        group = placement_group(testbed_bundles(len(topology.servers)))
    placer = _Placer(group, first_bundle, spread=_machines() > 1)
    close = partial(_close_all, placer, group if own else None)
    try:
        return _start(placer, topology, options, work_dir, seed, close, hold_proxy=hold_proxy, label=label)
    except BaseException:
        close()
        raise


class _Placer:
    """Starts actors in the bundles of one placement group and keeps track of them."""

    def __init__(self, group: PlacementGroup, first_bundle: int, *, spread: bool) -> None:
        self.group, self.first_bundle, self.spread = group, first_bundle, spread
        self.started: list[RemotePart] = []
        self.held: dict[str, Any] = {}

    def start(
        self, kind: Any, bundle: int, resources: dict[str, float], make: Callable[..., Any], name: str | None = None
    ) -> RemotePart:
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.first_bundle + bundle)
        named = {} if name is None else {"name": name, "namespace": NAMESPACE}
        options = kind.options(num_cpus=0, resources=resources, scheduling_strategy=strategy, **named)
        actor = options.remote(make)
        part = RemotePart(actor, _name_of(kind))
        self.started.append(part)
        return part


def _start(
    placer: _Placer,
    topology: Topology,
    options: LiveOptions,
    work_dir: Path,
    seed: int,
    close: Callable[[], None],
    *,
    hold_proxy: bool,
    label: str,
) -> RemoteTestbed:
    at = _on_node if placer.spread else _on_loopback
    servers = [
        placer.start(
            SocialNetworkNode, 2 + i, {"server": 1}, partial(at, partial(make_server, options, work_dir, i, seed))
        )
        for i in range(len(topology.servers))
    ]
    load = placer.start(LoadGenerator, 0, {"client": 0.5}, partial(make_load, options, work_dir))
    live = topology.with_servers(tuple(server.read("address") for server in servers))
    make = partial(at, partial(make_nginx, options, live, work_dir))
    make_reader = partial(make_collector, options, live)
    name = ""
    if hold_proxy:
        # The conductor that holds the proxy describes the testbed itself.
        proxy, collector, address = _hold(placer, make, make_reader)
    else:
        base = f"single {label or work_dir.absolute().parent.name}"
        name, proxy, collector, address = _place(placer, make, make_reader, base)
    testbed = RemoteTestbed(
        live,
        address,
        servers=[cast(ServerPart, server) for server in servers],
        proxy=cast(ProxyPart, proxy),
        collector=cast(CollectorPart, collector),
        load=cast(LoadPart, load),
        close=close,
    )
    testbed.parts, testbed.held = tuple(placer.started), placer.held
    if not hold_proxy:
        proxy.introduce({"name": name, "method": options.nginx.method, "places": testbed.places()})
    return testbed


def taken_names() -> set[str]:
    """Of all actors of this cluster, in every namespace."""
    return {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}


def create_named(base: str, create: Callable[[str], Created], taken: Set[str]) -> tuple[str, Created]:
    """A name that no actor of this cluster has, and what `create` made under it in `NAMESPACE`.

    Args:
        base: the name, or its beginning; a number follows if an actor has it.
        create: starts an actor of this name.
        taken: from `taken_names`; others may have been taken since.

    Raises:
        ConflictError: `MOST_NAMES` names that begin like this are taken.
    """
    for number in range(1, MOST_NAMES + 1):
        name = base if number == 1 else f"{base}.{number}"
        if name not in taken:
            # Another process may take the name after it was seen free: Ray does not do both in one step.
            with contextlib.suppress(ActorAlreadyExistsError):
                return name, create(name)
    raise ConflictError(f"{MOST_NAMES} names like this are taken", where=base, remedy="end other runs of this cluster")


def _place(
    placer: _Placer, make: Callable[[], Any], make_reader: Callable[[str], Any], base: str
) -> tuple[str, Any, Any, str]:
    """NGINX in an actor whose name begins with `base`, its collector in another: the name, both, NGINX's address."""
    share = {"proxy": 0.5 if placer.spread else 1}
    start = partial(placer.start, NginxActuator, PROXY_BUNDLE, share, make)
    name, proxy = create_named(base, start, taken_names())
    status_url, address = proxy.read("status_url"), proxy.read("address")
    beside = (PROXY_BUNDLE, {"proxy": 0.5}) if placer.spread else (0, {"client": 0.5})
    return name, proxy, placer.start(StatisticsCollector, *beside, partial(make_reader, status_url)), address


def _hold(placer: _Placer, make: Callable[[], Any], make_reader: Callable[[str], Any]) -> tuple[Any, Any, str]:
    """The same in this process."""
    proxy = placer.held["NginxActuator"] = make()
    collector = placer.held["StatisticsCollector"] = make_reader(proxy.status_url)
    return proxy, collector, proxy.address


def _on_loopback(make: Callable[..., Any]) -> Any:
    return make(host=LOOPBACK)


def _on_node(make: Callable[..., Any]) -> Any:
    return make(host=ray.util.get_node_ip_address())


def _name_of(kind: Any) -> str:
    name: str = kind.__ray_metadata__.class_name
    return name


def _machines() -> int:
    return len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]})


def _close_all(placer: _Placer, group: PlacementGroup | None) -> None:
    """Closes all parts at once, then removes databases and ends all actors, even those that did not close in time."""
    closing = [part.begin_close() for part in placer.started]
    with contextlib.ExitStack() as held:
        for part in placer.held.values():
            held.callback(part.close)
    if closing:
        ray.wait(closing, num_returns=len(closing), timeout=CLOSE_TIMEOUT_S)
    # Not earlier: another server of the machine may have its database open until then.
    removing = [part.begin_remove_database() for part in placer.started if part.name == _name_of(SocialNetworkNode)]
    if removing:
        ray.wait(removing, num_returns=len(removing), timeout=REMOVE_TIMEOUT_S)
    for started in placer.started:
        started.kill()
    if group is not None:
        remove_placement_group(group)
