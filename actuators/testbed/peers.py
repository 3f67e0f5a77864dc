"""Other load balancers before the same servers, as their users configure them: what there is, and one running peer.

A peer has no statistics for us; it is judged by the load engine alone. Its weights can be changed where its program and
method take any, as its users change them.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil

from actuators import envoy_admin, haproxy_api
from actuators.closing import Closing
from actuators.contract.admission import Admission
from actuators.contract.control import BalancingMethod, Control, Weights
from actuators.contract.stock import STOCK, StockPlan
from actuators.contract.testbed import Applied
from actuators.contract.topology import Topology
from actuators.contract.window import DEFAULT_BOUNDS_MS, Window
from actuators.errors import ActuationError, MissingToolError, ProcessError
from actuators.files import private_folder, socket_place, write_atomic
from actuators.haproxy_api import RuntimeApi
from actuators.nginx.reload import Reloader, run_checked
from actuators.processes.process import ManagedProcess
from actuators.processes.system import children, family_cpu_s, free_port, is_listening
from actuators.statistics.vts import Snapshot
from actuators.testbed.envoy import render_endpoints, render_envoy
from actuators.testbed.peer_configs import (
    READY_PATH,
    fill_in,
    render_caddy,
    render_haproxy,
    render_nginx,
    render_traefik,
)
from actuators.testbed.programs import PeerPrograms, fair_module, program_of

EXTERNAL = "nginx:"
"""Prefix of the path of a user's NGINX configuration: ``nginx:/path/to/file.conf``."""

PEERS: dict[str, str] = {
    "shared_least_conn": "one NGINX upstream for all request types, least_conn",
    "nginx_fair": "Debian's fair module (libnginx-mod-http-upstream-fair)",
    "nginx131_least_time": "NGINX 1.31, least_time last_byte inflight, an upstream per request type",
    "nginx131_least_time_shared": "NGINX 1.31, least_time last_byte inflight, one upstream for all request types",
    "haproxy_leastconn": "HAProxy, balance leastconn",
    "haproxy_random": "HAProxy, balance random(2)",
    "envoy_least_request": "Envoy, LEAST_REQUEST with its two choices",
    "traefik_leasttime": "Traefik, leasttime",
    "traefik_p2c": "Traefik, p2c",
    "caddy_least_conn": "Caddy, least_conn",
    "caddy_random_choose": "Caddy, random_choose of two",
}
"""Name → description. Those that are not of NGINX have one pool of servers for all request types."""
ENVOY = "envoy_concurrency"
"""Envoy with its filter adaptive_concurrency. It refuses requests, also when it has just started (it measures idle
latency with three at a time), so that it stands beside admission, and not among the balancers."""

HAPROXY_STEERED, ENVOY_STEERED = "haproxy_steered", "envoy_steered"
"""By weights alone, which we set: `actuators.testbed.steered`."""

_HAPROXY_BALANCE = {
    "haproxy_leastconn": "leastconn", "haproxy_random": "random(2)", HAPROXY_STEERED: "roundrobin",
}  # fmt: skip
_START_TIMEOUT_S = 10.0
_ATTEMPTS = 5
_SIGNALS_S = 1.0
"""Between two signals to HAProxy's master, until it has a new worker."""
_SOCKET_BYTES = 48
"""Below the folder for temporary files, with what HAProxy appends while it binds."""
_NO_WEIGHTS = {
    "traefik_p2c": "Traefik's p2c takes no weights",
    "caddy_least_conn": "Caddy's least_conn takes no weights",
    "caddy_random_choose": "Caddy's random_choose takes no weights",
}
_TRAEFIK_NOTICES_S = 0.1
"""Traefik takes up a change of its file within this time; its default of 2 s holds back a second change."""


class Peer(Closing):
    """One running peer; a context manager. It replaces our NGINX before the same servers.

    Args:
        name: of `PEERS`, `ENVOY`, ``stock:PATH`` of a plan of weights, or ``nginx:PATH`` of a configuration
            with the placeholders ``{listen}`` for HOST:PORT, ``{servers}`` for the `server` lines, and ``{prefix}`` for
            its private folder, which its workers can enter.

    Raises:
        MissingToolError: the program or module is not installed.
        ConfigError: an unknown name, or a configuration without the placeholders.
        ProcessError: it did not start; the error has the end of its log.
    """

    def __init__(self, name: str, topology: Topology, work_dir: Path, programs: PeerPrograms | None = None) -> None:
        self.name, self.topology = name, topology
        self._programs = programs or PeerPrograms()
        plain = "".join(c if c.isalnum() else "-" for c in name)[:100]
        # One may run twice, as in an A/A comparison.
        self._folder = Path(tempfile.mkdtemp(prefix=f"{plain}-", dir=private_folder(work_dir.absolute())))
        self.address = ""
        self._plan = StockPlan.load(Path(name.removeprefix(STOCK))) if name.startswith(STOCK) else None
        if self._plan is not None:
            self._plan.check(topology)
        self._weights: tuple[int, ...] = ()
        self._generation = 0
        self._socket, self._admin = Path(), ""
        with contextlib.ExitStack() as stack:
            self._prefix = stack.enter_context(_prefix()) if name.startswith(EXTERNAL) else self._folder
            self._process = self._start()
            stack.callback(self._process.close)
            self._close = stack.pop_all().close

    def set_method(self, method: BalancingMethod) -> None:
        """No effect: the method of a peer is fixed."""

    def apply(self, control: Control) -> Applied:
        """No effect: a peer has no control."""
        return Applied(False, 0.0)

    def admit(self, admission: Admission | None) -> None:
        """Raises ActuationError for any rule: admission control needs our Lua code in NGINX."""
        if admission is not None:
            raise ActuationError(f"{self.name} does not support admission control", remedy="judge it without")

    def forget_failures(self) -> None:
        """Reloads an NGINX, which forgets failures and response times then; the others forget after some seconds
        (docs/peers.md#programs)."""
        if self._program_name() == "nginx":
            reloader = Reloader(self._process.pid, load_ms=None)
            reloader.wait_for_few_generations()
            reloader.reload()

    @property
    def control_url(self) -> str:
        """How options name its statistics and weights (``haproxy:…``, ``envoy:…``); empty for the other programs."""
        return {
            "haproxy": f"{haproxy_api.SCHEME}{self._socket}", "envoy": f"{envoy_admin.SCHEME}http://{self._admin}",
        }.get(self._program_name(), "")  # fmt: skip

    @property
    def control_socket(self) -> Path:
        """Unix socket of HAProxy's runtime API, or of Caddy's admin endpoint; the other programs have none."""
        return self._socket

    @property
    def without_weights(self) -> str:
        """Why `set_weights` is not possible; empty when it is."""
        if self._plan is not None:
            return "its weights are those of the plan"
        if self.name.startswith(EXTERNAL):
            return "a configuration of the user's has no place for weights of ours"
        return _NO_WEIGHTS.get(self.name, "")

    def set_weights(self, weights: Sequence[int]) -> None:
        """Puts weights in force the way that users of the program do, without a pause of its service.

        NGINX by a reload, HAProxy by its runtime API, Envoy by its file of endpoints, Traefik by its watched file. The
        last two take a change up by themselves, within about 0.1 s.

        Args:
            weights: of the topology's servers, 1…100.

        Raises:
            ActuationError: not possible (`without_weights`), or refused.
        """
        if reason := self.without_weights:
            raise ActuationError(reason, where=self.name, remedy="leave its weights alone")
        self._weights = tuple(weights)
        program = self._program_name()
        if program == "haproxy":
            commands = [f"set server servers/s{n} weight {weight}" for n, weight in enumerate(self._weights, 1)]
            RuntimeApi(self._socket).order(*commands)
        elif program == "envoy":
            write_atomic(self._folder / "endpoints.json", render_endpoints(self.topology, self._weights))
        else:
            self.reload()

    @property
    def without_reload(self) -> str:
        """Why `reload` is not possible; empty when it is."""
        return "Envoy takes changes by xDS and has no reload" if self._program_name() == "envoy" else ""

    def reload(self) -> None:
        """Makes the running program read its configuration again; returns when it does or has been told to.

        Raises ActuationError when it is not possible (`without_reload`) or refused, ProcessError when HAProxy has no
        new worker after 10 s.
        """
        if reason := self.without_reload:
            raise ActuationError(reason, where=self.name, remedy="change its weights")
        program = self._program_name()
        self._generation += 1
        arguments = self._command()
        if program == "nginx":
            self.forget_failures()
        elif program == "haproxy":
            self._replace_worker()
        elif program == "caddy":
            command = (arguments[0], "reload", "--force", "--config", arguments[-1])
            run_checked([*command, "--address", f"unix/{self._socket}"], "Caddy refused the configuration")

    def _replace_worker(self) -> None:
        """Reloads HAProxy; its master loses a signal that comes just after its start, which is therefore repeated."""
        workers, due_s = set(children(self._process.pid)), 0.0

        def replaced() -> bool:
            nonlocal due_s
            new = set(children(self._process.pid)) - workers
            if not new and time.monotonic() > due_s:
                due_s = time.monotonic() + _SIGNALS_S
                self._process.send_signal(signal.SIGUSR2)
            # For a moment both take connections, and either may answer.
            return bool(new) and not any(map(_listens, workers)) and _answering_process(self._socket) in new

        self._process.wait_ready(replaced, _START_TIMEOUT_S)

    def cpu_s(self) -> dict[int, float]:
        """Process id → CPU seconds so far of the peer and its workers."""
        return family_cpu_s(self._process.pid)

    def close(self) -> None:
        """Ends the peer; idempotent."""
        self._close()

    def _start(self) -> ManagedProcess:
        for attempt in range(_ATTEMPTS):
            self.address, self._admin = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
            # The run's folder may be too long for the path of a socket.
            sockets = Path(tempfile.mkdtemp(prefix="deepsched-peer-", dir=socket_place(_SOCKET_BYTES)))
            self._socket = sockets / "control"
            # Caddy wants a home for certificates that it will not make.
            env = {**os.environ, "XDG_DATA_HOME": str(self._folder), "XDG_CONFIG_HOME": str(self._folder)}
            process = ManagedProcess(
                self._command(), name=self.name, log_path=self._folder / "error.log", env=env, remove=sockets
            )
            try:
                process.wait_ready(self._answers, _START_TIMEOUT_S)
            except ProcessError:
                process.close()
                # Another program may have taken the port before the peer did.
                if attempt + 1 == _ATTEMPTS or not (is_listening(self.address) or is_listening(self._admin)):
                    raise
            else:
                return process
        raise AssertionError("unreachable")

    def _program_name(self) -> str:
        word = self.name.partition("_")[0]
        return word if word in ("haproxy", "envoy", "traefik", "caddy") else "nginx"

    def _command(self) -> list[str]:
        """Writes the configuration; the argument vector."""
        program = program_of(self.name, self._programs)
        arguments = {
            "haproxy": self._haproxy, "envoy": self._envoy, "traefik": self._traefik, "caddy": self._caddy,
            "nginx": self._nginx,
        }  # fmt: skip
        return [program, *arguments[self._program_name()]()]

    def _written(self, text: str, suffix: str) -> str:
        config = self._folder / f"peer{suffix}"
        write_atomic(config, text)
        return str(config)

    def _haproxy(self) -> list[str]:
        balance = _HAPROXY_BALANCE[self.name]
        config = render_haproxy(self.topology, self.address, balance, self._socket)
        return ["-W", "-db", "-f", self._written(config, ".conf")]

    def _envoy(self) -> list[str]:
        shared = self.name != ENVOY
        endpoints = self._folder / "endpoints.json" if shared else None
        if endpoints is not None:
            write_atomic(endpoints, render_endpoints(self.topology, self._weights))
        config = render_envoy(
            self.topology, self.address, limits=not shared, shared=shared, endpoints=endpoints, admin=self._admin,
            policy="ROUND_ROBIN" if self.name == ENVOY_STEERED else "LEAST_REQUEST",
        )  # fmt: skip
        written = self._written(config, ".json")
        return ["--disable-hot-restart", "--concurrency", "1", "-l", "error", "-c", written]

    def _traefik(self) -> list[str]:
        strategy = self.name.removeprefix("traefik_")
        config = self._written(render_traefik(self.topology, strategy, self._weights, self._generation), ".yaml")
        return [
            f"--entryPoints.front.address={self.address}", f"--providers.file.filename={config}",
            "--providers.file.watch=true", f"--providers.providersThrottleDuration={_TRAEFIK_NOTICES_S}s",
            "--global.checkNewVersion=false", "--global.sendAnonymousUsage=false",
            "--log.level=ERROR",
        ]  # fmt: skip

    def _caddy(self) -> list[str]:
        config = render_caddy(self.topology, self.address, self.name.removeprefix("caddy_"), self._socket)
        return ["run", "--config", self._written(config, ".json")]

    def _nginx(self) -> list[str]:
        config = self._written(self._nginx_config(), ".conf")
        return ["-p", str(self._prefix), "-e", str(self._folder / "error.log"), "-c", config]

    def _nginx_config(self) -> str:
        if self.name.startswith(EXTERNAL):
            return fill_in(Path(self.name.removeprefix(EXTERNAL)), self.topology, self.address, self._prefix)
        if self._plan is not None:
            return render_nginx(self.topology, self.address, self._prefix, shared=self._plan.shared, plan=self._plan)
        return render_nginx(
            self.topology, self.address, self._prefix, shared="shared" in self.name,
            method="least_time last_byte inflight" if "least_time" in self.name else "least_conn",
            fair_module=fair_module(self._programs) if self.name == "nginx_fair" else "", weights=self._weights,
        )  # fmt: skip

    def _answers(self) -> bool:
        if not is_listening(self.address):
            return False
        program = self._program_name()
        if program in ("haproxy", "caddy"):
            # They listen for requests first, and for orders a moment later.
            return is_listening(self._socket)
        if program == "envoy" and not is_listening(self._admin):
            return False
        return program != "traefik" or _status(self.address, READY_PATH) == http.client.IM_A_TEAPOT


def _listens(pid: int) -> bool:
    try:
        return any(each.status == psutil.CONN_LISTEN for each in psutil.Process(pid).net_connections("tcp"))
    except psutil.Error:
        return False  # it has ended


def _answering_process(path: Path) -> int:
    """The id of the HAProxy that answers at this socket; 0 while none does."""
    try:
        lines = RuntimeApi(path).ask("show info").splitlines()
    except ActuationError:
        return 0
    return next((int(value) for name, _, value in (line.partition(":") for line in lines) if name == "Pid"), 0)


class NoStatistics:
    """Replaces the collector of a peer: windows with times and without counts."""

    def __init__(self, topology: Topology) -> None:
        self._topology, self._last_s = topology, time.time()

    def begin(self) -> None:
        self._last_s = time.time()

    def latest(self) -> Snapshot | None:
        return None

    def window(self) -> Window:
        start_s, self._last_s = self._last_s, time.time()
        shape = self._topology.shape
        zeros = np.zeros(shape, np.int64)
        equal = Weights.equal(self._topology)
        return Window(
            self._topology, start_s, self._last_s, zeros, zeros, zeros, np.zeros((*shape, 5), np.int64), zeros,
            DEFAULT_BOUNDS_MS, np.zeros((*shape, len(DEFAULT_BOUNDS_MS) + 1), np.int64), equal.values, equal.down,
        )  # fmt: skip


def why_missing(name: str, programs: PeerPrograms | None = None) -> str:
    """Why a peer cannot run here, in one line; empty when it can. Raises ConfigError for an invalid configuration."""
    programs = programs or PeerPrograms()
    try:
        if name.startswith(EXTERNAL):
            fill_in(Path(name.removeprefix(EXTERNAL)), None, "", Path())
        program_of(name, programs)
        if name.startswith(STOCK):
            StockPlan.load(Path(name.removeprefix(STOCK)))
        if name == "nginx_fair":
            fair_module(programs)
    except MissingToolError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def _prefix() -> Iterator[Path]:
    """A folder in which a configuration of somebody else may buffer and serve files.

    Workers of another user than the master's can enter it, and only its owner can list it.
    """
    with tempfile.TemporaryDirectory(prefix="deepsched-peer-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def _status(address: str, path: str) -> int:
    """Status of a GET request; 0 when there is no answer."""
    connection = http.client.HTTPConnection(address, timeout=1.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
