"""Places a live testbed on the nodes of a Ray cluster, by custom resources.

A testbed takes `client: 1` (load engine, collector), `proxy: 1` (NGINX) and `server: N` in one placement group; servers
get the addresses of their nodes. NGINX serves its statistics only on its own node, so on several machines the collector
runs beside it. A process on the proxy node may hold NGINX and the collector itself, which saves 3 ms per call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actuators.contract.topology import Topology
from actuators.errors import CapacityError
from actuators.testbed.live import CollectorPart, LoadPart, ProxyPart, ServerPart
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import make_collector, make_load, make_nginx, make_server
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
CLOSE_TIMEOUT_S = 4.0
PROXY_BUNDLE = 1
"""Index of NGINX in `testbed_bundles`."""


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
) -> RemoteTestbed:
    """Places and starts a live testbed on the running Ray; its `close` releases the resources.

    Args:
        topology: groups and servers; the real addresses replace those of the servers.
        work_dir: for logs and the database; created on the nodes. Servers on different machines each have a database,
            equal at the start, unless they share this folder.
        group: of the caller, with `testbed_bundles` from `first_bundle` on; `close` does not remove it.
        hold_proxy: starts NGINX and its collector in this process, which must be in the proxy bundle of the group.

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
        return _start(placer, topology, options, work_dir, seed, close, hold_proxy=hold_proxy)
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
        part = RemotePart(actor, kind.__ray_metadata__.class_name)
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
    # A conductor that holds the proxy describes the testbed itself.
    name = free_names([f"single {work_dir.absolute().parent.name}"])[0]
    proxy, collector, address = (
        _hold(placer, make, make_reader) if hold_proxy else _place(placer, make, make_reader, name)
    )
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


def free_names(names: Sequence[str]) -> list[str]:
    """Each name, with a number appended if an actor of this cluster has it."""
    taken = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    free = []
    for name in names:
        number, candidate = 1, name
        while candidate in taken:
            number += 1
            candidate = f"{name}.{number}"
        free.append(candidate)
    return free


def _place(
    placer: _Placer, make: Callable[[], Any], make_reader: Callable[[str], Any], name: str
) -> tuple[Any, Any, str]:
    """NGINX, under this name, and its collector in separate actors, and the address of NGINX."""
    proxy = placer.start(NginxActuator, PROXY_BUNDLE, {"proxy": 0.5 if placer.spread else 1}, make, name)
    status_url, address = proxy.read("status_url"), proxy.read("address")
    beside = (PROXY_BUNDLE, {"proxy": 0.5}) if placer.spread else (0, {"client": 0.5})
    return proxy, placer.start(StatisticsCollector, *beside, partial(make_reader, status_url)), address


def _hold(placer: _Placer, make: Callable[[], Any], make_reader: Callable[[str], Any]) -> tuple[Any, Any, str]:
    """The same in this process."""
    proxy = placer.held["NginxActuator"] = make()
    collector = placer.held["StatisticsCollector"] = make_reader(proxy.status_url)
    return proxy, collector, proxy.address


def _on_loopback(make: Callable[..., Any]) -> Any:
    return make(host="127.0.0.1")


def _on_node(make: Callable[..., Any]) -> Any:
    return make(host=ray.util.get_node_ip_address())


def _machines() -> int:
    return len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]})


def _close_all(placer: _Placer, group: PlacementGroup | None) -> None:
    """Closes all parts at once, then ends their actors, also those that did not close in time."""
    closing = [part.begin_close() for part in placer.started]
    with contextlib.ExitStack() as held:
        for part in placer.held.values():
            held.callback(part.close)
    if closing:
        ray.wait(closing, num_returns=len(closing), timeout=CLOSE_TIMEOUT_S)
    for started in placer.started:
        started.kill()
    if group is not None:
        remove_placement_group(group)
