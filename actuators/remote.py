"""Ray actors around the parts of a live testbed, placed by custom resources.

A testbed claims `client: 1` (load generator and collector), `proxy: 1` (NGINX and its actuator) and
`server: N` in one placement group; addresses come from where the actors landed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actuators.errors import CapacityError, TestbedError
from actuators.live import CollectorPart, LiveTestbed, LoadPart, ProxyPart, ServerPart
from actuators.parts import LiveOptions, make_collector, make_load, make_nginx, make_server
from actuators.topology import Topology

START_TIMEOUT_S = 90.0
CALL_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 4.0


class _Host:
    """Holds one part in its actor; every actor class below is this one under a telling name."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._part = make()

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the part."""
        return getattr(self._part, method)(*args, **kwargs)

    def get(self, attribute: str) -> Any:
        """Reads an attribute of the part."""
        return getattr(self._part, attribute)

    def __ray_shutdown__(self) -> None:
        self._part.close()


@ray.remote
class LoadGenerator(_Host):
    """The load engine, on a client node."""


@ray.remote
class StatisticsCollector(_Host):
    """The reader of NGINX's counters, on the load generator's client node."""


@ray.remote
class NginxActuator(_Host):
    """NGINX and what changes its weights, on a proxy node."""


@ray.remote
class SocialNetworkNode(_Host):
    """One server of the social network, on a server node."""


class RemotePart:
    """Calls a part in its actor as if it were here; errors of our family arrive as themselves."""

    def __init__(self, actor: Any, name: str) -> None:
        self._actor, self._name = actor, name

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._wait(self._actor.call.remote(method, *args, **kwargs), method, CALL_TIMEOUT_S)

        return call

    def read(self, attribute: str) -> Any:
        """An attribute of the part; waits for the actor's start."""
        return self._wait(self._actor.get.remote(attribute), attribute, START_TIMEOUT_S)

    def begin_close(self) -> Any:
        """Asks the part to close; a reference to wait on."""
        return self._actor.call.remote("close")

    def kill(self) -> None:
        """Ends the actor; the guardians of its processes cover a part that did not close."""
        ray.kill(self._actor)

    def _wait(self, reference: Any, what: str, timeout_s: float) -> Any:
        try:
            return ray.get(reference, timeout=timeout_s)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        except ray.exceptions.GetTimeoutError as error:
            raise TestbedError(f"{self._name} did not answer {what} within {timeout_s:g} s") from error
        except ray.exceptions.RayActorError as error:
            raise TestbedError(
                f"the actor of {self._name} died", remedy="close the testbed, build a new one"
            ) from error


def check_capacity(testbeds: int, servers: int) -> None:
    """Raises CapacityError, in words, when the cluster cannot hold that many testbeds at once."""
    total = ray.cluster_resources()
    needed = {"proxy": testbeds, "client": testbeds, "server": testbeds * servers}
    lacking = [f"{name} {total.get(name, 0):g}/{count}" for name, count in needed.items() if total.get(name, 0) < count]
    if lacking:
        raise CapacityError(
            f"{testbeds} testbed(s) do not fit: {', '.join(lacking)}",
            where="Ray cluster",
            remedy="add nodes with these custom resources (cluster.yaml) or ask for fewer testbeds",
        )


def start_remote_testbed(topology: Topology, options: LiveOptions, work_dir: Path, seed: int) -> LiveTestbed:
    """Places and starts a live testbed on the running Ray; its close frees the resources.

    Args:
        topology: groups over placeholder servers; the real addresses replace them.
        work_dir: logs and the database; made on the nodes when missing.

    Raises:
        CapacityError: the cluster lacks the resources.
        MissingToolError, ProcessError: a part did not start; everything started is ended again.
    """
    check_capacity(1, len(topology.servers))
    group = placement_group([{"client": 1}, {"proxy": 1}, *({"server": 1} for _ in topology.servers)])
    started: list[RemotePart] = []
    try:
        return _start(_Placer(group, started), topology, options, work_dir, seed)
    except BaseException:
        _close_all(started, group)
        raise


class _Placer:
    """Starts actors in the bundles of one placement group and remembers them."""

    def __init__(self, group: PlacementGroup, started: list[RemotePart]) -> None:
        self.group, self.started = group, started

    def start(self, kind: Any, bundle: int, resources: dict[str, float], make: Callable[[], Any]) -> RemotePart:
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle)
        actor = kind.options(num_cpus=0, resources=resources, scheduling_strategy=strategy).remote(make)
        part = RemotePart(actor, kind.__ray_metadata__.class_name)
        self.started.append(part)
        return part


def _start(placer: _Placer, topology: Topology, options: LiveOptions, work_dir: Path, seed: int) -> LiveTestbed:
    servers = [
        placer.start(SocialNetworkNode, 2 + index, {"server": 1}, partial(make_server, options, work_dir, index, seed))
        for index in range(len(topology.servers))
    ]
    load = placer.start(LoadGenerator, 0, {"client": 0.5}, partial(make_load, options, work_dir))
    live = topology.with_servers(tuple(server.read("address") for server in servers))
    proxy = placer.start(NginxActuator, 1, {"proxy": 1}, partial(make_nginx, options, live, work_dir))
    status_url, address = proxy.read("status_url"), proxy.read("address")
    make = partial(make_collector, options, live, status_url)
    collector = placer.start(StatisticsCollector, 0, {"client": 0.5}, make)
    return LiveTestbed(
        live,
        address,
        servers=[cast(ServerPart, server) for server in servers],
        proxy=cast(ProxyPart, proxy),
        collector=cast(CollectorPart, collector),
        load=cast(LoadPart, load),
        close=lambda: _close_all(placer.started, placer.group),
    )


def _close_all(parts: list[RemotePart], group: PlacementGroup) -> None:
    """Closes all parts at once, then ends their actors, whatever became of the closing."""
    ray.wait([part.begin_close() for part in parts], num_returns=len(parts), timeout=CLOSE_TIMEOUT_S)
    for part in parts:
        part.kill()
    remove_placement_group(group)
