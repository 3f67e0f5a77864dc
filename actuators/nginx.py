"""Run one NGINX of our own: rendered config, private prefix, unprivileged workers, ends with its owner."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from actuators.control import BalancingMethod, Control, ServiceTimes, Weights
from actuators.errors import ActuationError, ProcessError, StatusError
from actuators.nginx_config import (
    NginxOptions,
    Site,
    check_topology,
    render_main,
    render_upstreams,
    status_path,
    uses_vts,
)
from actuators.nginx_detect import detect
from actuators.process import ManagedProcess
from actuators.reload import Reload, test_config, write_atomically
from actuators.testbed import Applied
from actuators.topology import Topology
from actuators.vts import Snapshot, parse

_BIND_ATTEMPTS = 8
# No proxy of the environment stands between us and the NGINX beside us.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Nginx:
    """The NGINX of a testbed; a context manager. Not started by the constructor.

    Args:
        topology: its servers are real addresses.
        work_dir: directory that gets a private prefix ``nginx``; nothing outside it is touched.
        host: numeric address of the public listener; statistics are on 127.0.0.1 only.

    Raises:
        ConfigError: the topology cannot be served by one NGINX.
        MissingToolError: no NGINX, or none of the modules that the options need.
    """

    def __init__(self, options: NginxOptions, topology: Topology, *, work_dir: Path, host: str = "127.0.0.1") -> None:
        check_topology(topology)
        self.options, self.topology, self._host = options, topology, host
        self._build = detect(options.binary)
        self._vts = uses_vts(options, self._build)
        self._prefix = (work_dir / "nginx").absolute()
        self._method: BalancingMethod = options.method
        self._weights = Weights.equal(topology)
        self._site = Site(self._prefix, host, 0, 0)
        self._process: ManagedProcess | None = None

    @property
    def address(self) -> str:
        """HOST:PORT of the public listener."""
        return self._site.address

    @property
    def status_url(self) -> str:
        """Where the vts JSON is served, on a loopback port of its own."""
        return f"http://127.0.0.1:{self._site.status_port}{status_path(vts=self._vts)}"

    @property
    def method(self) -> BalancingMethod:
        return self._method

    def start(self) -> None:
        """Starts NGINX and returns when it answers.

        Raises ProcessError with the error log's tail, ActuationError when `nginx -t` refuses the config.
        """
        self._prefix.mkdir(parents=True, exist_ok=True)
        for attempt in range(_BIND_ATTEMPTS):
            self._site = Site(self._prefix, self._host, _free_port(self._host), _free_port("127.0.0.1"))
            self._write(self._weights, self._method)
            (self._prefix / "error.log").unlink(missing_ok=True)
            process = self._launch()
            try:
                process.wait_ready(self._ready, self.options.start_timeout_s)
            except ProcessError:
                process.close()
                # Another program took the port between our look and NGINX's bind: take another one.
                if attempt + 1 == _BIND_ATTEMPTS or not self._address_taken():
                    raise
            else:
                self._process = process
                return

    def set_method(self, method: BalancingMethod) -> None:
        """Balances by `method` from now on, with equal weights. Raises ActuationError; the old one stays then."""
        weights = Weights.equal(self.topology)
        if (method, weights) != (self._method, self._weights):
            self._put(weights, method)

    def apply(self, control: Control) -> Applied:
        """Puts a control in force and reads it back; the same control again does nothing.

        Raises ActuationError; the old control is then in force.
        """
        began_s = time.monotonic()
        if isinstance(control, ServiceTimes):
            raise ActuationError("service times need expected_delay", remedy="set_method('expected_delay') first")
        if control.topology != self.topology:
            raise ActuationError("the weights are for another topology", remedy="use the topology of this NGINX")
        changed = control != self._weights
        if changed:
            self._put(control, self._method)
        return Applied(changed, time.monotonic() - began_s)

    def control(self) -> Weights:
        """The weights that NGINX itself says it uses. Raises StatusError."""
        values, down = np.ones(self.topology.shape, np.int64), np.zeros(self.topology.shape, bool)
        groups = self._snapshot().groups
        for g, group in enumerate(self.topology.groups):
            for server in group.servers:
                counters = groups.get(group.name, {}).get(server)
                if counters is None:
                    raise StatusError(f"NGINX does not know {server}", where=f"group {group.name}")
                s = self.topology.server_index(server)
                values[g, s], down[g, s] = counters.weight, counters.down
        return Weights(self.topology, values, down)

    def log_tail(self, lines: int = 5) -> str:
        """Last lines of the error log."""
        return self._running().log_tail(lines)

    @property
    def master_pid(self) -> int:
        """Process id of the master. Raises ProcessError before `start`."""
        return self._running().pid

    def close(self) -> None:
        """Ends NGINX and its workers; may be called twice."""
        if self._process is not None:
            self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _running(self) -> ManagedProcess:
        if self._process is None:
            raise ProcessError("NGINX is not running", remedy="call start() first")
        return self._process

    def _launch(self) -> ManagedProcess:
        test_config(self._command("-t", "-c", str(self._site.main)))
        return ManagedProcess(
            self._command("-c", str(self._site.main)),
            name="nginx",
            log_path=self._prefix / "error.log",
            stop_signal=signal.SIGTERM,
            death_signal=signal.SIGTERM,
        )

    def _command(self, *arguments: str) -> list[str]:
        prefix = self._prefix
        return [str(self._build.binary), "-p", str(prefix), "-e", str(prefix / "error.log"), *arguments]

    def _write(self, weights: Weights, method: BalancingMethod) -> None:
        site = self._site
        candidate = self._prefix / "upstreams.candidate"
        write_atomically(site.upstreams, render_upstreams(weights, method, self.options))
        for file, upstreams in ((site.main, site.upstreams), (self._prefix / "candidate.conf", candidate)):
            write_atomically(file, render_main(site, self.topology, self.options, self._build, upstreams=upstreams))

    def _put(self, weights: Weights, method: BalancingMethod) -> None:
        reload = Reload(
            file=self._site.upstreams,
            test=self._command("-t", "-q", "-c", str(self._prefix / "candidate.conf")),
            candidate=self._prefix / "upstreams.candidate",
            master_pid=self.master_pid,
            load_ms=lambda: self._snapshot().load_ms,
            drain_timeout_s=self.options.shutdown_timeout_s + 1.0,
        )
        reload.replace(render_upstreams(weights, method, self.options), confirm=lambda: self._confirm(weights))
        self._weights, self._method = weights, method

    def _confirm(self, wanted: Weights) -> None:
        if self.control() != wanted:
            raise ActuationError("NGINX shows other weights than were set", where=self.status_url)

    def _snapshot(self) -> Snapshot:
        return parse(fetch(self.status_url))

    def _ready(self) -> bool:
        try:
            self._snapshot()
        except StatusError:
            return False
        return True

    def _address_taken(self) -> bool:
        log = self._prefix / "error.log"
        return log.exists() and b"Address already in use" in log.read_bytes()


def fetch(url: str, *, timeout_s: float = 2.0) -> dict[str, Any]:
    """A small JSON object over a connection of its own, so that a new worker answers. Raises StatusError."""
    try:
        with _OPENER.open(url, timeout=timeout_s) as response:
            document = json.loads(response.read(64 * 2**20))
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise StatusError(f"no statistics: {error}", where=url) from error
    if not isinstance(document, dict):
        raise StatusError("not a JSON object", where=url)
    return document


def _free_port(host: str) -> int:
    """A port that was free a moment ago."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.bind((host, 0))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ProcessError(
            f"cannot listen on {host}: {error.strerror}", remedy="use an address of this machine"
        ) from error
