"""Runs one NGINX: rendered configuration, private prefix, unprivileged workers; it ends with its owner."""

from __future__ import annotations

import secrets
import signal
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actuators.closing import Closing
from actuators.contract.admission import Admission
from actuators.contract.control import BY_TIMES, BalancingMethod, Control, MemoryMethod, ServiceTimes, Weights
from actuators.contract.late_binding import LateBinding
from actuators.contract.testbed import Applied, Restored
from actuators.contract.topology import Topology
from actuators.errors import ActuationError, ProcessError, StatusError
from actuators.files import private_folder, write_private
from actuators.nginx.admission_endpoint import AdmissionEndpoint
from actuators.nginx.config import (
    NginxOptions,
    NginxSite,
    check_topology,
    in_memory,
    render_main,
    render_upstreams,
    status_path,
    uses_vts,
)
from actuators.nginx.control_endpoint import MemoryControl, Split
from actuators.nginx.detect import detect
from actuators.nginx.reload import Change, Reloader, put_in_force, test_config, write_atomically
from actuators.processes.process import ManagedProcess
from actuators.processes.system import family_cpu_s, free_port
from actuators.statistics.reader import StatusReader
from actuators.statistics.vts import Snapshot

_BIND_ATTEMPTS = 8


class Nginx(Closing):
    """The NGINX of a testbed; a context manager. `start` starts it.

    Args:
        topology: with the real addresses of the servers.
        work_dir: gets a private prefix ``nginx``; nothing outside it is changed.
        host: numeric address of the public listener; statistics are on 127.0.0.1 only.

    Attributes:
        token: what a request to `control_url` must carry.

    Raises:
        ConfigError: the topology cannot be served by one NGINX.
        MissingToolError: there is no NGINX, or it lacks a module that the options need.
    """

    def __init__(self, options: NginxOptions, topology: Topology, *, work_dir: Path, host: str = "127.0.0.1") -> None:
        check_topology(topology)
        self.options, self.topology, self._host = options, topology, host
        self._build = detect(options.binary)
        self._vts = uses_vts(options, self._build)
        self._prefix = (work_dir / "nginx").absolute()
        self._method: BalancingMethod = options.method
        self._control: Control = Weights.equal(topology)
        self._is_split = False
        self._memory = in_memory(self._method, options, self._build)
        self.token = secrets.token_hex(16)
        self._endpoint: MemoryControl | None = None
        self._admission: AdmissionEndpoint | None = None
        self._site = NginxSite(self._prefix, host, 0, 0)
        self._process: ManagedProcess | None = None

    @property
    def address(self) -> str:
        """HOST:PORT of the public listener."""
        return self._site.address

    @property
    def status_url(self) -> str:
        """URL of the statistics, on a separate loopback port."""
        return f"http://127.0.0.1:{self._site.status_port}{status_path(vts=self._vts)}"

    @property
    def control_url(self) -> str:
        """Where another process can read and change the balancing in memory, with `token`."""
        return f"http://127.0.0.1:{self._site.status_port}/control"

    @property
    def admission_url(self) -> str:
        """Where another process can read and change the rule of admission, with `token`."""
        return f"http://127.0.0.1:{self._site.status_port}/admission"

    @property
    def config_path(self) -> Path:
        """The main configuration, which includes the upstreams."""
        return self._site.main

    @property
    def method(self) -> BalancingMethod:
        return self._method

    @property
    def in_memory(self) -> bool:
        """Whether the present method balances in memory, where controls change without a reload."""
        return self._memory

    def start(self) -> None:
        """Starts NGINX; returns when it responds.

        Raises ProcessError with the error log's tail, ActuationError when `nginx -t` refuses the config.
        """
        private_folder(self._prefix)
        for attempt in range(_BIND_ATTEMPTS):
            self._site = NginxSite(self._prefix, self._host, free_port(self._host), free_port("127.0.0.1"))
            self._write()
            write_private(self._prefix / "error.log", "")
            process = self._launch()
            try:
                process.wait_ready(self._ready, self.options.start_timeout_s)
            except ProcessError:
                process.close()
                # Another program may have taken the port before NGINX did: try another one.
                if attempt + 1 == _BIND_ATTEMPTS or not self._address_taken():
                    raise
            else:
                self._process = process
                self._endpoint = MemoryControl(self.control_url, self.token, self.topology)
                self._admission = AdmissionEndpoint(self.admission_url, self.token, self.topology)
                if self._memory:
                    self._endpoint.get()  # opens the connection, so that the first change is as fast as the next ones
                return

    def set_method(self, method: BalancingMethod) -> None:
        """Switches to `method` with equal weights; those by service times work as least_conn until they have them.

        Raises ActuationError; then the old method and control are in force.
        """
        control = Weights.equal(self.topology)
        if method != self._method or control != self._control or self._is_split:
            self._put(method, control)

    def balance(self, method: MemoryMethod, control: Control) -> None:
        """Sets a method together with its control. Raises ActuationError; then the old ones are in force."""
        self._put(_own(method), control)

    def split(
        self, percent: float, method: MemoryMethod, control: Control, base_method: MemoryMethod, base_control: Control
    ) -> None:
        """Sets a method and control for `percent` of the requests, and those of the others; in memory only.

        Raises ActuationError, then the old ones are in force; ConfigError for a percentage out of range.
        """
        split = Split(percent, method, control, base_method, base_control)
        if split.whole:
            self.balance(*split.whole)
            return
        if not all(in_memory(_own(each), self.options, self._build) for each in (method, base_method)):
            remedy = "choose round_robin, least_conn or expected_delay for both"
            raise ActuationError(f"{method} beside {base_method} is not possible in memory", remedy=remedy)
        if not self._memory:
            self.balance(base_method, base_control)
        self._memory_control().put_split(percent, method, control, base_method, base_control)
        self._method, self._control, self._is_split = _own(method), control, True

    def watch(self, holding: LateBinding | None) -> None:
        """Counts what this would hold, beside the control in force and later ones; None for nothing.

        Raises ActuationError, also where NGINX itself balances; then all is as before.
        """
        if not self._memory:
            raise ActuationError("only an NGINX that balances in memory can hold requests", where="late binding")
        self._memory_control().watch(holding)

    def split_in_force(self) -> Split | None:
        """None when one method and control balance all requests. Raises ActuationError."""
        return self._memory_control().get_split() if self._memory else None

    def apply(self, control: Control) -> Applied:
        """Puts a control in force and reads it back; does nothing when it is in force, unless it holds requests.

        ServiceTimes for the methods by service times, Weights for the others.
        Raises ActuationError; then the old control is in force.
        """
        began_s = time.monotonic()
        if isinstance(control, ServiceTimes) != (self._method in BY_TIMES):
            wanted = "service times" if self._method in BY_TIMES else "weights"
            raise ActuationError(f"{self._method} takes {wanted}", remedy="call set_method first")
        if control.topology != self.topology:
            raise ActuationError("the control is for a different topology", remedy="use the topology of this NGINX")
        # A control that holds requests is valid for a time from when it was set.
        renews = isinstance(control, ServiceTimes) and control.holding is not None
        changed = control != self._control or self._is_split or renews
        if changed:
            self._put(self._method, control)
        return Applied(changed, time.monotonic() - began_s)

    def restore(self, first: Control, method: MemoryMethod | None = None) -> Restored:
        """As `apply`, under a method: the servers of this NGINX never change."""
        began_s, names = time.monotonic(), []
        for group in self.topology.groups:
            names += [f"{group.name}/{server}" for server in group.servers]
        changed = first != self._control or self._is_split or method not in (None, self._method)
        if changed:
            self._put(_own(method or self._method), first)
        return Restored(changed, time.monotonic() - began_s, tuple(names))

    def admit(self, admission: Admission | None) -> None:
        """Puts a rule of admission in force; None lets every request enter.

        Raises ActuationError, also for an NGINX without admission control; then the old rule is in force.
        """
        if not self.options.admission:
            raise ActuationError("this NGINX has no admission control", remedy="start it with nginx.admission=true")
        if self._admission is None:
            raise ProcessError("NGINX is not running", remedy="call start() first")
        self._admission.put(admission)

    def forget_failures(self) -> None:
        """Forgets which servers failed, as a start does; by a reload where NGINX itself balances.

        Raises ActuationError.
        """
        if self._memory:
            self._memory_control().forget_failures()
        else:
            self._reload(self._method, self._control, memory=False)

    def control(self) -> Control:
        """The control that NGINX reports. Raises StatusError or ActuationError."""
        return self._memory_control().get()[1] if self._memory else Weights(self.topology, *self._shown())

    def log_tail(self, lines: int = 5) -> str:
        """Last lines of the error log."""
        return self._running().log_tail(lines)

    def check(self) -> None:
        """Raises ProcessError with the error log's tail when NGINX has ended."""
        process = self._running()
        if process.poll() is not None:
            where = str(process.log_path)
            raise ProcessError(f"nginx ended with code {process.poll()}", where=where, evidence=process.log_tail())

    @property
    def master_pid(self) -> int:
        """Process id of the master. Raises ProcessError before `start`."""
        return self._running().pid

    def cpu_s(self) -> dict[int, float]:
        """Process id → CPU seconds so far of the master and its workers."""
        return family_cpu_s(self.master_pid)

    def close(self) -> None:
        """Ends NGINX and its workers; idempotent."""
        for endpoint in (self._endpoint, self._admission):
            if endpoint is not None:
                endpoint.close()
        if self._process is not None:
            self._process.close()

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

    def _write(self) -> None:
        """Writes the initial files: the method of the options, equal weights."""
        text = self._blocks(Weights.equal(self.topology), self._method, memory=self._memory)
        write_atomically(self._site.upstreams, text)
        write_atomically(self._site.main, self._main(self._site.upstreams, self._method, memory=self._memory))

    def _blocks(self, weights: Weights, method: BalancingMethod, *, memory: bool) -> str:
        return render_upstreams(weights, method, self.options, memory=memory)

    def _main(self, upstreams: Path, method: BalancingMethod, *, memory: bool) -> str:
        return render_main(
            self._site, self.topology, self.options, self._build, upstreams=upstreams, token=self.token,
            memory=memory, method=method,
        )  # fmt: skip

    def _put(self, method: BalancingMethod, control: Control) -> None:
        memory = in_memory(method, self.options, self._build)
        # The locations of late_binding ask for slots, which costs the other methods nothing where they need not.
        same = self.options.late_binding or (method == "late_binding") == (self._method == "late_binding")
        if memory and self._memory and same:
            self._memory_control().put(method, control)
        else:
            self._reload(method, control, memory=memory)
        self._method, self._control, self._memory, self._is_split = method, control, memory, False

    def _reload(self, method: BalancingMethod, control: Control, *, memory: bool) -> None:
        """Applies a change through files: of a native method, or from files to memory and back."""
        weights = control if isinstance(control, Weights) else Weights.equal(self.topology)
        text = self._blocks(weights, method, memory=memory)
        candidate, main = self._prefix / "upstreams.candidate", self._prefix / "candidate.conf"
        write_atomically(candidate, text)
        write_atomically(main, self._main(candidate, method, memory=memory))
        test_config(self._command("-t", "-q", "-c", str(main)))
        new = {self._site.upstreams: text, self._site.main: self._main(self._site.upstreams, method, memory=memory)}
        changes = {path: Change(path.read_bytes(), content.encode()) for path, content in new.items()}
        reloader = Reloader(
            self.master_pid,
            load_ms=lambda: self._snapshot().load_ms,
            drain_timeout_s=self.options.shutdown_timeout_s + 1.0,
        )
        put_in_force(changes, reloader, confirm=lambda: self._confirm(method, control, memory=memory))

    def _confirm(self, method: BalancingMethod, control: Control, *, memory: bool) -> None:
        if memory:
            self._memory_control().put(method, control)
            return
        values, down = self._shown()
        # vts also shows servers as down that have failed recently.
        if isinstance(control, ServiceTimes) or (values != control.values).any() or (control.down & ~down).any():
            raise ActuationError("NGINX reports weights that differ from those applied", where=self.status_url)

    def _memory_control(self) -> MemoryControl:
        if self._endpoint is None:
            raise ProcessError("NGINX is not running", remedy="call start() first")
        return self._endpoint

    def _shown(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Weights and down flags in NGINX's statistics, ``[groups, servers]``."""
        values, down = np.zeros(self.topology.shape, np.int64), np.zeros(self.topology.shape, bool)
        groups = self._snapshot().groups
        for g, group in enumerate(self.topology.groups):
            for server in group.servers:
                counters = groups.get(group.name, {}).get(server)
                if counters is None:
                    raise StatusError(f"the statistics have no server {server}", where=f"group {group.name}")
                s = self.topology.server_index(server)
                values[g, s], down[g, s] = counters.weight, counters.down
        return values, down

    def _snapshot(self) -> Snapshot:
        """Over a new connection, so that a worker of the newest configuration answers. Raises StatusError."""
        with StatusReader(self.status_url) as reader:
            return reader.snapshot()

    def _ready(self) -> bool:
        try:
            self._snapshot()
        except StatusError:
            if self._address_taken():
                raise ProcessError("a port was taken by another program", where=self.address) from None
            return False
        return True

    def _address_taken(self) -> bool:
        log = self._prefix / "error.log"
        return log.exists() and b"Address already in use" in log.read_bytes()


def _own(method: MemoryMethod) -> BalancingMethod:
    """Raises ActuationError for `configured`, which an NGINX of ours does not have."""
    if method == "configured":
        raise ActuationError("'configured' is not possible here", remedy="choose one method for all groups")
    return method
