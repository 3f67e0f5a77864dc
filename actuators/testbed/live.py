"""The live testbed: real servers, a real NGINX and a real load engine behind the Testbed protocol.

Its parts are local objects or proxies of Ray actors (`actuators.testbed.remote`) with the same methods.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from actuators.closing import Closing
from actuators.contract.admission import Admission
from actuators.contract.control import BY_TIMES, BalancingMethod, Control, ServiceTimes, Weights
from actuators.contract.script import Clients, Scenario, Script, Stream
from actuators.contract.script_check import check_live, check_script
from actuators.contract.testbed import Applied
from actuators.contract.topology import Topology
from actuators.contract.window import Fault, LoadWindow, Window, merge_windows
from actuators.errors import ConfigError, LoadError, TestbedError
from actuators.processes.system import BUSY, busiest_share, realtime_priority, spent_s
from actuators.statistics.vts import Snapshot

LOAD_WINDOW_S = 0.25
SETTLE_TIMEOUT_S = 2.0
SETTLE_INTERVAL_S = 0.02


class ServerPart(Protocol):
    """A stand-in server, see `actuators.social_network.server.SocialNetworkServer`."""

    def play(self, script: Script, topology: Topology, stages: str = "") -> None: ...


class StagesPart(Protocol):
    """What the servers share, see `actuators.social_network.server.SharedStages`."""

    def play(self, script: Script, topology: Topology) -> str: ...


class ProxyPart(Protocol):
    """An NGINX whose balancing can be changed, see `actuators.nginx.instance.Nginx`."""

    def set_method(self, method: BalancingMethod) -> None: ...

    def apply(self, control: Control) -> Applied: ...

    def admit(self, admission: Admission | None) -> None: ...

    def forget_failures(self) -> None: ...

    def cpu_s(self) -> dict[int, float]: ...


class CollectorPart(Protocol):
    """A reader of NGINX's counters, see `actuators.statistics.reader.Collector`."""

    def begin(self) -> Any: ...

    def window(self) -> Window: ...

    def latest(self) -> Snapshot | None: ...


class LoadPart(Protocol):
    """A load engine, see `actuators.load.engine.LoadEngine`."""

    def start(
        self,
        address: str,
        topology: Topology,
        streams: Sequence[Stream],
        *,
        seed: int,
        duration_s: float,
        window_s: float = 1.0,
        clients: Sequence[Clients] = (),
        deadlines_s: Sequence[float] = (),
        varied: bool = False,
    ) -> None: ...

    def window(self) -> LoadWindow: ...

    def stop(self) -> None: ...

    def finish(self, timeout_s: float | None = None) -> Any: ...


Reading = tuple[Window, LoadWindow | LoadError, dict[int, float]]
"""The window of NGINX, that of the load engine or its error, and CPU seconds by process of NGINX."""


class LiveTestbed(Closing):
    """A testbed of parts that already run.

    Args:
        topology: with the real addresses of the servers.
        address: HOST:PORT to which the load engine sends.
        close: ends every part; called once.
        stages: None where scripts with stages are refused.
    """

    def __init__(
        self,
        topology: Topology,
        address: str,
        *,
        servers: Sequence[ServerPart],
        proxy: ProxyPart,
        collector: CollectorPart,
        load: LoadPart,
        close: Callable[[], None],
        stages: StagesPart | None = None,
    ) -> None:
        self._stages = stages
        self._topology, self._address = topology, address
        self._servers, self._proxy, self._collector, self._load = servers, proxy, collector, load
        self._close = close
        self._method: BalancingMethod | None = None
        self._running = False
        self._closed = False
        self._failed = True
        """Whether servers may have failed in the last script."""
        self._tick_s = 0.0
        self._end_s = 0.0
        self._proxy_cpu: tuple[float, dict[int, float]] = (0.0, {})

    @property
    def topology(self) -> Topology:
        return self._topology

    @property
    def due_s(self) -> float:
        """`time.monotonic()` at which the last window was due to end; any later time is work of the control path."""
        return self._tick_s

    def behind(self, address: str, proxy: ProxyPart, collector: CollectorPart) -> LiveTestbed:
        """The same servers and load engine behind another load balancer; its `close` does not end them."""
        return LiveTestbed(
            self._topology, address, servers=self._servers, proxy=proxy, collector=collector, load=self._load,
            close=lambda: None, stages=self._stages,
        )  # fmt: skip

    def latest_snapshot(self) -> Snapshot | None:
        """The reading at the end of the last window; None before the first one."""
        return self._collector.latest()

    def set_method(self, method: BalancingMethod) -> None:
        self._proxy.set_method(method)
        self._method = method

    def reset(self, scenario: Scenario, seed: int) -> None:
        self._require_open()
        self._end_load()
        if self._method is None:
            self._proxy.apply(Weights.equal(self._topology))
        else:  # those by service times take no weights, and must forget them
            self._proxy.set_method(self._method)
        script = scenario.script(self._topology, seed)
        check_script(script, self._topology)
        check_live(script)
        if self._failed:
            # A server that failed in the last script would be avoided in this one for seconds. Only then: an NGINX that
            # is reloaded also forgets the response times of `least_time`, which others keep.
            self._proxy.forget_failures()
        self._failed = any(each.refused or each.hang or each.error_ratio > 0 for each in script.behaviours)
        stages = ""
        if script.stages:
            if self._stages is None:
                remedy = "use a testbed on this machine (without Ray)"
                raise ConfigError("this testbed has no stages behind its servers", where=script.name, remedy=remedy)
            stages = self._stages.play(script, self._topology)
        for server in self._servers:
            server.play(script, self._topology, stages)
        self._collector.begin()
        self._load.start(
            self._address,
            self._topology,
            script.streams,
            seed=seed,
            duration_s=script.duration_s,
            window_s=LOAD_WINDOW_S,
            clients=script.clients,
            deadlines_s=script.deadlines_s,
            varied=bool(script.kinds),
        )
        self._running = True
        self._proxy_share(self._proxy.cpu_s())
        self._tick_s = time.monotonic()
        self._end_s = self._tick_s + script.duration_s

    def apply(self, control: Control) -> Applied:
        """Puts a control in force; where the method takes weights, service times become weights 1/τ."""
        self._require_open()
        if isinstance(control, ServiceTimes) and self._method not in BY_TIMES:
            control = control.as_weights()
        return self._proxy.apply(control)

    def admit(self, admission: Admission | None) -> None:
        """Puts a rule of admission in force at NGINX; None lets every request enter. Raises ActuationError."""
        self._require_open()
        self._proxy.admit(admission)

    def advance(self, interval_s: float) -> Window:
        self._require_running()
        self._tick_s += interval_s
        now_s = time.monotonic()
        if now_s > self._tick_s + interval_s:
            # After a pause of more than an interval there must be no burst of short windows.
            self._tick_s = now_s
        with realtime_priority():
            time.sleep(max(self._tick_s - now_s, 0.0))
            window = self._collect()
        if time.monotonic() > self._end_s + LOAD_WINDOW_S:
            ended = Fault("load_ended", "the script is over; call reset")
            window = replace(window, faults=(*window.faults, ended))
        return window

    def drain(self, timeout_s: float | None = None) -> Window:
        """As `Testbed.drain`; None waits as long as requests in flight may take by the load engine's time-outs.

        Raises LoadError when the load engine died, or has not ended by then.
        """
        self._require_running()
        self._load.stop()
        self._load.finish(timeout_s)
        window = self._collect()
        self._running = False
        return self._settle(window)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._running = False
        self._close()

    def _collect(self) -> Window:
        window, client, cpu_s = self._read()
        self._failed |= bool(window.server_errors.sum())
        window = replace(window, proxy_cpu_s=spent_s(self._proxy_cpu[1], cpu_s))
        if isinstance(client, LoadError):
            return replace(window, faults=(*window.faults, Fault("load_ended", str(client))))
        if client.saturated:
            busy = f"engine at {client.cpu_share:.0%} CPU, send delay p99 {client.send_delay_p99_ms:.1f} ms"
            window = replace(window, faults=(*window.faults, Fault("saturated_client", busy)))
        if (share := self._proxy_share(cpu_s)) >= BUSY:
            busy = f"a worker at {share:.0%} of a core"
            window = replace(window, faults=(*window.faults, Fault("saturated_nginx", busy)))
        return replace(window, client=client)

    def _read(self) -> Reading:
        """Reads all parts; a LoadError in place of the window of a load engine that died."""
        window = self._collector.window()
        try:
            client: LoadWindow | LoadError = self._load.window()
        except LoadError as error:
            client = error
        return window, client, self._proxy.cpu_s()

    def _proxy_share(self, cpu_s: dict[int, float]) -> float:
        """CPU share of the busiest worker since the last call."""
        before_s, before = self._proxy_cpu
        self._proxy_cpu = time.monotonic(), cpu_s
        return busiest_share(before, cpu_s, self._proxy_cpu[0] - before_s)

    def _settle(self, window: Window) -> Window:
        """Reads until no more requests are counted: NGINX counts a request after it has responded."""
        deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
        while time.monotonic() < deadline_s:
            time.sleep(SETTLE_INTERVAL_S)
            late = self._collector.window()
            window = merge_windows(window, late)
            if late.requests.sum() == 0:
                break
        return window

    def _end_load(self) -> None:
        if self._running:
            self._running = False
            self._load.stop()
            # An engine that died has ended, and the next start replaces one that hangs.
            with contextlib.suppress(LoadError):
                self._load.finish()

    def _require_open(self) -> None:
        if self._closed:
            raise TestbedError("the testbed is closed", remedy="build a new one")

    def _require_running(self) -> None:
        self._require_open()
        if not self._running:
            raise TestbedError("nothing is running", where="testbed", remedy="call reset first")
