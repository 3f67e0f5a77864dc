"""Ray actors around the parts of a live testbed, placed by custom resources.

A testbed claims `client: 1` (load generator and collector), `proxy: 1` (NGINX and its actuator) and
`server: N` in one placement group; addresses come from where the actors landed. NGINX serves its
statistics on its own node only, so on a cluster of several machines the collector is placed beside it.
An actor on the proxy node may hold NGINX and the collector itself: each call saved is 3 ms of every interval.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actuators.errors import CapacityError, LoadError, TestbedError
from actuators.live import CollectorPart, LiveTestbed, LoadPart, ProxyPart, Reading, ServerPart
from actuators.parts import LiveOptions, dead_process, make_collector, make_load, make_nginx, make_server
from actuators.priority import go_first
from actuators.topology import Topology

START_TIMEOUT_S = 90.0
CALL_TIMEOUT_S = 60.0
HEALTH_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 4.0
PROXY_BUNDLE = 1
"""Place of NGINX in `testbed_bundles`."""


class _Host:
    """Holds one part in its actor; every actor class below is this one under a telling name."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._part = make()
        go_first()

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the part."""
        return getattr(self._part, method)(*args, **kwargs)

    def get(self, attribute: str) -> Any:
        """Reads an attribute of the part."""
        return getattr(self._part, attribute)

    def health(self) -> str:
        """Which process of the part has died; empty when all is well."""
        return dead_process(self._part)

    def where(self) -> str:
        """Address of the node it runs on."""
        return str(ray.util.get_node_ip_address())

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

        return lambda *args, **kwargs: self.begin_call(method, *args, **kwargs)()

    def begin_call(self, method: str, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        """Calls a method of the part; what waits for its answer."""
        reference = self._actor.call.remote(method, *args, **kwargs)
        return lambda: self._wait(reference, method, CALL_TIMEOUT_S)

    def read(self, attribute: str) -> Any:
        """An attribute of the part; waits for the actor's start."""
        return self._wait(self._actor.get.remote(attribute), attribute, START_TIMEOUT_S)

    @property
    def name(self) -> str:
        return self._name

    def ask(self, method: str) -> Any:
        """Calls a method of the actor itself (`health`, `where`); a reference to wait on."""
        return getattr(self._actor, method).remote()

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


class RemoteTestbed(LiveTestbed):
    """A live testbed that can say which of its actors and processes have died, and where they run.

    Attributes:
        parts: actors of its own.
        held: name → part that the calling process holds.
    """

    parts: Sequence[RemotePart] = ()
    held: Mapping[str, Any] = MappingProxyType({})

    def _read(self) -> Reading:
        # All are asked at once: a call takes about 2 ms, and at an interval's end every one counts.
        client, window, cpu_s = (
            _begin_call(part, method)
            for part, method in ((self._load, "window"), (self._collector, "window"), (self._proxy, "cpu_s"))
        )
        read = window()
        try:
            return read, client(), cpu_s()
        except LoadError as error:
            return read, error, cpu_s()

    def begin_checks(self) -> list[Any]:
        """Asks every part whether it lives; the answers are for `dead_parts`, and come while an interval passes."""
        return [part.ask("health") for part in self.parts]

    def answered(self, checks: list[Any], within_s: float) -> bool:
        """Whether all of them are answered within that time."""
        ready, _ = ray.wait(checks, num_returns=len(checks), timeout=within_s)
        return len(ready) == len(checks)

    def dead_parts(self, checks: list[Any] | None = None) -> list[str]:
        """What had died when `checks` were made (now, when None), in words; empty when all was well."""
        here = [f"{name}: {found}" for name, part in self.held.items() if (found := dead_process(part))]
        answers = checks or self.begin_checks()
        with contextlib.suppress(ray.exceptions.RayError):
            # All at once is several times quicker than one by one, and nearly always all is well.
            if not any(ray.get(answers, timeout=HEALTH_TIMEOUT_S)):
                return here
        actors = zip(self.parts, answers, strict=True)
        return here + [found for part, answer in actors if (found := _dead(part, answer))]

    def places(self) -> dict[str, str]:
        """Part → address of its node; a part that does not answer is left out."""
        references = {part.ask("where"): part.name for part in self.parts}
        ready, _ = ray.wait(list(references), num_returns=len(references), timeout=HEALTH_TIMEOUT_S)
        found = {name: str(ray.util.get_node_ip_address()) for name in self.held}
        for number, reference in enumerate(ready):
            with contextlib.suppress(ray.exceptions.RayError):
                found[f"{references[reference]} {number}"] = ray.get(reference)
        return found


def testbed_bundles(servers: int) -> list[dict[str, float]]:
    """The bundles of a placement group that holds one testbed: client, proxy, then the servers."""
    return [{"client": 1.0}, {"proxy": 1.0}, *({"server": 1.0} for _ in range(servers))]


def check_capacity(testbeds: int, servers: int) -> None:
    """Raises CapacityError, in words, when the cluster cannot hold that many testbeds at once."""
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
    """Places and starts a live testbed on the running Ray; its close frees the resources.

    Args:
        topology: groups over placeholder servers; the real addresses replace them.
        work_dir: logs and the database; made on the nodes when missing. Servers on different machines have
            a database each (of equal content at the start), unless this is a folder that they share.
        group: of somebody else, with `testbed_bundles` from `first_bundle` on; it is left alone on close.
        hold_proxy: NGINX and its collector are begun in this process, which must be in the group's proxy bundle.

    Raises:
        CapacityError: the cluster lacks the resources.
        MissingToolError, ProcessError: a part did not start; everything started is ended again.
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
    """Starts actors in the bundles of one placement group and remembers them."""

    def __init__(self, group: PlacementGroup, first_bundle: int, *, spread: bool) -> None:
        self.group, self.first_bundle, self.spread = group, first_bundle, spread
        self.started: list[RemotePart] = []
        self.held: dict[str, Any] = {}

    def start(self, kind: Any, bundle: int, resources: dict[str, float], make: Callable[..., Any]) -> RemotePart:
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.first_bundle + bundle)
        actor = kind.options(num_cpus=0, resources=resources, scheduling_strategy=strategy).remote(make)
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
    proxy, collector, address = (_hold if hold_proxy else _place)(placer, make, partial(make_collector, options, live))
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
    return testbed


def _place(placer: _Placer, make: Callable[[], Any], make_reader: Callable[[str], Any]) -> tuple[Any, Any, str]:
    """NGINX, its collector and its address, in actors of their own."""
    proxy = placer.start(NginxActuator, PROXY_BUNDLE, {"proxy": 0.5 if placer.spread else 1}, make)
    status_url, address = proxy.read("status_url"), proxy.read("address")
    beside = (PROXY_BUNDLE, {"proxy": 0.5}) if placer.spread else (0, {"client": 0.5})
    return proxy, placer.start(StatisticsCollector, *beside, partial(make_reader, status_url)), address


def _hold(placer: _Placer, make: Callable[[], Any], make_reader: Callable[[str], Any]) -> tuple[Any, Any, str]:
    """The same in this process."""
    proxy = placer.held["NginxActuator"] = make()
    collector = placer.held["StatisticsCollector"] = make_reader(proxy.status_url)
    return proxy, collector, proxy.address


def _begin_call(part: Any, method: str) -> Callable[[], Any]:
    """Asks an actor at once, a part that is held when its answer is wanted."""
    if isinstance(part, RemotePart):
        return part.begin_call(method)
    answer: Callable[[], Any] = getattr(part, method)
    return answer


def _on_loopback(make: Callable[..., Any]) -> Any:
    return make(host="127.0.0.1")


def _on_node(make: Callable[..., Any]) -> Any:
    return make(host=ray.util.get_node_ip_address())


def _machines() -> int:
    return len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]})


def _dead(part: RemotePart, answer: Any) -> str:
    try:
        found = ray.get(answer, timeout=HEALTH_TIMEOUT_S)
    except ray.exceptions.RayActorError:
        return f"the actor of {part.name} died"
    except ray.exceptions.GetTimeoutError:
        return f"{part.name} has not answered for {HEALTH_TIMEOUT_S:g} s"
    return f"{part.name}: {found}" if found else ""


def _close_all(placer: _Placer, group: PlacementGroup | None) -> None:
    """Closes all parts at once, then ends their actors, whatever became of the closing."""
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
