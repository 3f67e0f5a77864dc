"""Balancers that a user would otherwise put in front of the same servers: their configs, and running one of them.

A peer keeps no statistics for us: what it did is judged by the load engine alone.

Configs of the balancers that `actuators.testbed.peers` runs: as their users write them, before a testbed's servers.
"""

from __future__ import annotations

import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from actuators.contract.control import BalancingMethod, Control, Weights
from actuators.contract.testbed import Applied
from actuators.contract.topology import Topology
from actuators.contract.window import DEFAULT_BOUNDS_MS, Window
from actuators.errors import ConfigError, MissingToolError, ProcessError
from actuators.nginx.detect import detect
from actuators.nginx.reload import Reloader
from actuators.processes.process import ManagedProcess
from actuators.processes.system import family_cpu_s, free_port
from actuators.statistics.vts import Snapshot


def render_haproxy(topology: Topology, address: str, balance: str) -> str:
    """HAProxy before all servers: one backend, as its users write it; idle connections are reused."""
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
    """An NGINX as shipped: least_conn or `fair`; one upstream per request type, or one `shared` by all."""
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
    """A user's config with its placeholders filled. Raises ConfigError when it is unreadable or lacks one."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot read the NGINX config", where=str(path), remedy="give nginx:PATH") from error
    missing = [name for name in ("{listen}", "{servers}") if name not in text]
    if missing:
        raise ConfigError(
            f"the config has no {' and no '.join(missing)}",
            where=str(path),
            remedy="write `listen {listen};` and `{servers}` where they belong; `{prefix}` is a private folder",
        )
    servers = _server_lines(topology.servers) if topology else ""
    return text.replace("{listen}", address).replace("{servers}", servers).replace("{prefix}", str(prefix))


def _server_lines(servers: tuple[str, ...]) -> str:
    return "".join(f"    server {server} max_fails=1 fail_timeout=10s;\n" for server in servers)


def _temp_paths(prefix: Path) -> str:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "".join(f"  {kind}_temp_path {prefix}/temp_{kind};\n" for kind in kinds)


EXTERNAL = "nginx:"
"""Prefix of a user's own NGINX config: ``nginx:/path/to/file.conf``."""

PEERS: dict[str, str] = {
    "shared_least_conn": "one NGINX upstream for all request types, least_conn",
    "nginx_fair": "Debian's fair module (libnginx-mod-http-upstream-fair)",
    "haproxy_leastconn": "HAProxy, balance leastconn",
    "haproxy_random": "HAProxy, balance random(2)",
}
"""Peers by name and what they are."""

_FAIR_MODULES = ("/usr/lib/nginx/modules", "/usr/share/nginx/modules")
_START_TIMEOUT_S = 10.0
_ATTEMPTS = 5


@dataclass(frozen=True)
class PeerPrograms:
    """Where the programs are; found on the PATH and where Debian puts them when not given."""

    nginx: str = "nginx"
    haproxy: str = "haproxy"
    fair_module: str = ""


class Peer:
    """One running peer; a context manager. It takes the place of an NGINX of ours before the same servers.

    Args:
        name: of `PEERS`, or ``nginx:PATH`` of a config with ``{listen}`` where HOST:PORT belongs, ``{servers}``
            where the `server` lines belong, and ``{prefix}`` for a private folder.

    Raises:
        MissingToolError: the program or module is not installed.
        ConfigError: unknown name, or a config without the placeholders.
        ProcessError: it did not start; its log is in the error.
    """

    def __init__(self, name: str, topology: Topology, work_dir: Path, programs: PeerPrograms | None = None) -> None:
        self.name, self.topology = name, topology
        self._programs = programs or PeerPrograms()
        self._prefix = (work_dir / "".join(c if c.isalnum() else "-" for c in name)).absolute()
        self._prefix.mkdir(parents=True, exist_ok=True)
        self.address = ""
        self._process = self._start()

    def set_method(self, method: BalancingMethod) -> None:
        """A peer balances as it does."""

    def apply(self, control: Control) -> Applied:
        """A peer takes no control."""
        return Applied(False, 0.0)

    def forget_failures(self) -> None:
        """An NGINX forgets by a reload which servers failed; HAProxy, as it is configured here, remembers none."""
        if not self.name.startswith("haproxy"):
            reloader = Reloader(self._process.pid, load_ms=None)
            reloader.wait_for_few_generations()
            reloader.reload()

    def cpu_s(self) -> dict[int, float]:
        """Process id → CPU seconds so far of it and its workers."""
        return family_cpu_s(self._process.pid)

    def close(self) -> None:
        """Ends it; may be called twice."""
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> ManagedProcess:
        for attempt in range(_ATTEMPTS):
            self.address = f"127.0.0.1:{free_port()}"
            process = ManagedProcess(self._command(), name=self.name, log_path=self._prefix / "error.log")
            try:
                process.wait_ready(self._answers, _START_TIMEOUT_S)
            except ProcessError:
                process.close()
                # Another program may have taken the port between our look and the bind.
                if attempt + 1 == _ATTEMPTS or not _is_taken(self.address):
                    raise
            else:
                return process
        raise AssertionError("unreachable")

    def _command(self) -> list[str]:
        config = self._prefix / "peer.conf"
        if self.name.startswith("haproxy"):
            program = _find(self._programs.haproxy, "haproxy")
            balance = "leastconn" if self.name == "haproxy_leastconn" else "random(2)"
            config.write_text(render_haproxy(self.topology, self.address, balance))
            return [program, "-W", "-db", "-f", str(config)]
        program = str(detect(self._programs.nginx).binary)
        config.write_text(self._nginx_config())
        return [program, "-p", str(self._prefix), "-e", str(self._prefix / "error.log"), "-c", str(config)]

    def _nginx_config(self) -> str:
        if self.name.startswith(EXTERNAL):
            return fill_in(Path(self.name.removeprefix(EXTERNAL)), self.topology, self.address, self._prefix)
        module = _fair_module(self._programs) if self.name == "nginx_fair" else ""
        return render_nginx(self.topology, self.address, self._prefix, shared=self.name == "shared_least_conn",
                            fair_module=module)  # fmt: skip

    def _answers(self) -> bool:
        return _is_taken(self.address)


class NoStatistics:
    """In the collector's place: windows with a clock and without counts."""

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
    """Why a peer cannot run here, in a line; empty when it can. Raises ConfigError for a bad external config."""
    programs = programs or PeerPrograms()
    try:
        if name.startswith("haproxy"):
            _find(programs.haproxy, "haproxy")
        elif name == "nginx_fair":
            _fair_module(programs)
        elif name.startswith(EXTERNAL):
            fill_in(Path(name.removeprefix(EXTERNAL)), None, "", Path())
    except MissingToolError as error:
        return str(error)
    return ""


def _find(program: str, package: str) -> str:
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise MissingToolError(f"'{program}' is not installed", remedy=f"apt-get install {package}")
    return found


def _fair_module(programs: PeerPrograms) -> str:
    places = [Path(folder, "ngx_http_upstream_fair_module.so") for folder in _FAIR_MODULES]
    found = [Path(programs.fair_module)] if programs.fair_module else [path for path in places if path.exists()]
    if not found:
        raise MissingToolError(
            "NGINX's fair module is not installed", remedy="apt-get install libnginx-mod-http-upstream-fair"
        )
    return str(found[0])


def _is_taken(address: str) -> bool:
    """Whether something accepts connections there."""
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, int(port))) == 0
