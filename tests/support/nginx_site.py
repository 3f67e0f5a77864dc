"""Three scripted servers behind an NGINX of ours, for the tests of statistics and actuation."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from actuators.contract.topology import Topology, social_network
from actuators.http_client import http_session
from actuators.nginx import instance as nginx_module
from actuators.nginx.config import NginxOptions
from actuators.nginx.instance import Nginx
from actuators.processes.system import children
from actuators.statistics.reader import Collector
from actuators.statistics.vts import Balancer
from tests.support.http_server import HANG, Received, ScriptedServer
from tests.support.waiting import PATIENCE_S, wait_until

COMPOSE, HOME, USER = "/wrk2-api/post/compose", "/wrk2-api/home-timeline/read", "/wrk2-api/user-timeline/read"


def answer(status: int, body: str = "ok") -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@dataclass
class Site:
    """What a test has in its hands; `upstreams_file` is what NGINX reads at its next start or reload."""

    nginx: Nginx
    upstreams_file: Path
    topology: Topology
    servers: list[ScriptedServer]
    script: dict[int, Callable[[Received], bytes]]
    collector: Collector
    answers: Counter[int] = field(default_factory=Counter)

    def get(self, path: str = HOME, method: str = "GET", body: bytes | None = None) -> tuple[int, str]:
        with http_session(10.0) as session:
            url = f"http://{self.nginx.address}{path}"
            response = session.request(method, url, data=body, allow_redirects=False)
            self.answers[response.status_code] += 1
            return response.status_code, response.text

    def who(self, count: int, path: str = HOME) -> str:
        """Which server answered each of `count` requests, as a string of indices."""
        return "".join(self.get(path)[1] for _ in range(count))

    def pending(self, path: str = HOME) -> http.client.HTTPConnection:
        """A request that a server has and will not answer (call `hang` before)."""
        before = sum(len(server.requests) for server in self.servers)
        connection = http.client.HTTPConnection(self.nginx.address, timeout=PATIENCE_S)
        connection.request("GET", path)
        wait_until(lambda: sum(len(server.requests) for server in self.servers) > before)
        return connection

    def abort(self, path: str = HOME) -> None:
        """A request whose client goes away once a server has it."""
        self.pending(path).close()

    def balancer(self) -> Balancer:
        """What the balancer in memory tells of itself."""
        balancer = self.collector.snapshot().balancer
        assert balancer is not None
        return balancer

    def in_flight(self) -> int:
        """All requests in flight that the balancer knows of; fails when a count is negative."""
        balancer = self.balancer()
        assert all(entry.in_flight >= 0 for entry in balancer.servers), balancer
        return sum(entry.in_flight for entry in balancer.servers)

    def hang(self) -> None:
        for index in range(3):
            self.script[index] = lambda _: HANG

    def heal(self) -> None:
        for index in range(3):
            self.script[index] = lambda _, i=index: answer(200, str(i))

    def refuse(self, index: int) -> None:
        """The server takes no more connections."""
        self.servers[index].refuse()
        host, port = self.servers[index].address.split(":")
        wait_until(lambda: socket.socket().connect_ex((host, int(port))) != 0)

    def kill_workers(self) -> None:
        old = children(self.nginx.master_pid)
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(set(children(self.nginx.master_pid)) - set(old)) == len(old))


@contextlib.contextmanager
def running_site(folder: Path, options: NginxOptions) -> Iterator[Site]:
    script: dict[int, Callable[[Received], bytes]] = {}
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(ScriptedServer(lambda request, i=index: script[i](request))) for index in range(3)
        ]
        topology = social_network(tuple(server.address for server in servers))
        nginx = stack.enter_context(Nginx(options, topology, work_dir=folder))
        nginx.start()
        collector = stack.enter_context(Collector(nginx.status_url, topology))
        site = Site(nginx, folder / "nginx" / "upstreams.conf", topology, servers, script, collector)
        site.heal()
        yield site


def fake_nginx(folder: Path, arguments: str, *modules: str) -> str:
    """A program that answers `nginx -V` with these arguments of `configure`, and module files beside it."""
    binary = folder / "nginx"
    binary.write_text(
        f"#!/bin/sh\necho 'nginx version: nginx/1.29.1' >&2\necho 'configure arguments: {arguments}' >&2\n"
    )
    binary.chmod(0o755)
    (folder / "modules").mkdir()
    for name in modules:
        (folder / "modules" / name).touch()
    return str(binary)


AHEAD_S = 7200
_CLOCK = f"""init_by_lua_block {{
    local true_now, clock = ngx.now, {{ ahead_s = {AHEAD_S} }}
    package.loaded["tests.clock"], ngx.now = clock, function() return true_now() + clock.ahead_s end
"""


def run_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of our Lua code is `AHEAD_S` ahead in every NGINX of this test, until `set_clock_back`."""
    back = '    location = /set-clock-back { content_by_lua_block { require("tests.clock").ahead_s = 0 } }\n'
    add_locations(monkeypatch, back)
    render = nginx_module.render_main

    def with_clock(*args: object, **kwargs: object) -> str:
        return render(*args, **kwargs).replace("init_by_lua_block {\n", _CLOCK)

    monkeypatch.setattr(nginx_module, "render_main", with_clock)


def set_clock_back(site: Site) -> None:
    """Of the only worker of an NGINX that began by `run_ahead`."""
    assert site.get("/set-clock-back")[0] == 200


def add_locations(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Every NGINX of this test gets more locations in its public server."""
    render = nginx_module.render_main

    def with_locations(*args: object, **kwargs: object) -> str:
        return render(*args, **kwargs).replace(
            "    location / { return 404; }", text + "    location / { return 404; }"
        )

    monkeypatch.setattr(nginx_module, "render_main", with_locations)
