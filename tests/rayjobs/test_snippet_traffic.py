"""`deepsched weights snippet`: a real NGINX whose configuration is changed as it says treats the servers as before."""

from __future__ import annotations

import contextlib
import http.client
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.admission import Admission, AdmissionNumbers
from actuators.contract.control import ServiceTimes, Weights
from actuators.contract.late_binding import LateBinding
from actuators.contract.topology import Group, Topology
from actuators.http_client import http_session
from actuators.nginx.admission_endpoint import AdmissionEndpoint
from actuators.nginx.control_endpoint import MemoryControl
from actuators.nginx.reload import accepts
from actuators.processes.system import children
from actuators.statistics.reader import StatusReader
from actuators.statistics.vts import HoldStatus
from tests.support.http_server import CLOSE, HANG, LATER, Received, ScriptedServer
from tests.support.nginx_site import answer
from tests.support.stock_nginx import StockSite, deepsched
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.nginx

A, B, C, D = range(4)


@dataclass
class Servers:
    """Four servers behind a stock NGINX; `script` says what each answers."""

    site: StockSite
    servers: list[ScriptedServer]
    script: dict[int, Callable[[Received], bytes]]

    def heal(self) -> None:
        for index in range(len(self.servers)):
            self.script[index] = lambda _, i=index: answer(200, str(i))

    def received(self) -> list[int]:
        return [len(server.requests) for server in self.servers]

    def pending(self) -> http.client.HTTPConnection:
        """A request that some server has and does not answer."""
        before = sum(self.received())
        connection = http.client.HTTPConnection(f"127.0.0.1:{self.site.port}", timeout=PATIENCE_S)
        connection.request("GET", "/x")
        wait_until(lambda: sum(self.received()) > before)
        return connection

    def counted(self, count: int) -> tuple[Counter[str], list[int]]:
        """The answers to so many requests, and how many attempts each server saw."""
        before = self.received()
        answers = self.site.who(count)
        return answers, [after - first for first, after in zip(before, self.received(), strict=True)]


@pytest.fixture
def servers(short_dir: Path) -> Iterator[Servers]:
    script: dict[int, Callable[[Received], bytes]] = {}
    scripted = [ScriptedServer(lambda request, i=i: script[i](request)) for i in range(4)]
    for server in scripted:
        server.__enter__()
    found = Servers(StockSite(short_dir, [server.address for server in scripted]), scripted, script)
    found.heal()
    yield found
    for server in scripted:
        server.__exit__(None, None, None)


def write(servers: Servers, lines: str) -> None:
    names = dict(zip("ABCD", servers.site.servers, strict=True))
    servers.site.write(f"upstream app {{ {lines.format(**names)} }}")


def before_and_after(servers: Servers, lines: str, measure: Callable[[], object]) -> list[object]:
    """What `measure` returns under the stock NGINX, and with the snippet in place of its upstreams."""
    write(servers, lines)
    seen = []
    for _ in range(2):
        servers.heal()
        with servers.site.start():
            seen.append(measure())
        if len(seen) == 1:
            servers.site.include_snippet()
    return seen


@pytest.mark.parametrize("method", ["", "least_conn;"])
def test_unequal_weights_a_backup_and_a_down_server_get_what_they_got(servers: Servers, method: str) -> None:
    lines = (
        method + "server {A} weight=5; server {B} weight=3; server {C} weight=9 down; server {D} backup; keepalive 4;"
    )
    stock, memory = before_and_after(servers, lines, lambda: servers.counted(80))
    assert stock == memory == (Counter({"0": 50, "1": 30}), [50, 30, 0, 0])


@pytest.mark.parametrize(
    "method",
    [
        *(pytest.param(method, marks=pytest.mark.slow) for method in ("random;", "random two;")),
        "random two least_conn;",
    ],
)
def test_random_methods_have_the_same_shares(servers: Servers, method: str) -> None:
    lines = method + "server {A} weight=5; server {B} weight=2; server {C} down; server {D} weight=1;"
    count = 800
    stock, memory = before_and_after(servers, lines, lambda: np.array(servers.counted(count)[1]) / count)
    assert isinstance(stock, np.ndarray)
    assert isinstance(memory, np.ndarray)
    errors = np.sqrt((stock * (1 - stock) + memory * (1 - memory)) / count) + 1 / count
    # Of the nine shares of the three methods, one in 10^5 runs is five deviations off.
    assert (np.abs(stock - memory) <= 5 * errors).all(), (stock, memory)


def test_a_backup_serves_when_all_others_fail_and_each_is_tried_as_often_as_before(servers: Servers) -> None:
    def measure() -> object:
        for index in (A, B):
            servers.script[index] = lambda _: CLOSE
        return servers.counted(20)

    lines = "server {A} max_fails=3 fail_timeout=60s; server {B} fail_timeout=60s; server {C} down; server {D} backup;"
    stock, memory = before_and_after(servers, lines, measure)
    assert stock == memory == (Counter({"3": 20}), [3, 1, 0, 20])


def test_max_fails_zero_keeps_a_failing_server_in_rotation(servers: Servers) -> None:
    def measure() -> object:
        servers.script[A] = lambda _: CLOSE
        return servers.counted(12)

    stock, memory = before_and_after(servers, "server {A} max_fails=0; server {B};", measure)
    assert stock == memory == (Counter({"1": 12}), [6, 12, 0, 0])


def test_the_only_server_is_asked_again_when_it_has_closed_a_kept_connection(servers: Servers) -> None:
    def measure() -> object:
        answers = iter([answer(200, "first"), CLOSE, answer(200, "second")])
        servers.script[A] = lambda _: next(answers)
        return servers.site.who(2)

    keeping = 'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass'
    write(servers, "server {A}; keepalive 4;")
    config, seen = servers.site.folder / "nginx.conf", []
    config.write_text(config.read_text().replace("proxy_pass", keeping))
    for is_memory in (False, True):
        if is_memory:
            servers.site.include_snippet()
        with servers.site.start():
            seen.append(measure())
    assert seen == [Counter({"first": 1, "second": 1})] * 2


def test_a_reload_without_a_server_keeps_what_is_in_force_of_the_others(servers: Servers) -> None:
    write(servers, "server {A}; server {B}; server {C};")
    port = servers.site.include_snippet()
    memory = ["--control-url", f"http://127.0.0.1:{port}/control"]
    memory += ["--token-file", f"{servers.site.folder}/deepsched.conf.token"]
    snippet = servers.site.folder / "deepsched.conf"
    gone = servers.site.servers[C]
    with servers.site.start() as process:
        assert deepsched("set", f"{servers.site.servers[B]}=down", *memory).returncode == 0
        assert servers.counted(10)[1][B] == 0
        # The line of a server as the snippet writes it.
        lines = [line for line in snippet.read_text().splitlines() if gone not in line]
        assert len(lines) < len(snippet.read_text().splitlines())
        snippet.write_text("\n".join(lines) + "\n")
        workers = children(process.pid)
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: not any(map(accepts, workers)))
        answers, received = servers.counted(10)
        assert received == [10, 0, 0, 0], answers
    log = (servers.site.folder / "error.log").read_text()
    assert f"are gone: weight app {gone}" in log


def test_max_conns_limits_the_requests_of_a_server(servers: Servers) -> None:
    def measure() -> object:
        for index in range(4):
            servers.script[index] = lambda _: HANG
        before = servers.received()
        pending = [servers.pending() for _ in range(4)]
        full = servers.site.who(1)
        seen = [after - first for first, after in zip(before, servers.received(), strict=True)]
        for connection in pending:
            connection.close()
        servers.heal()
        # The places are free again as soon as NGINX has seen that the clients are gone.
        wait_until(lambda: "0" in servers.site.who(1))
        return seen, "502 Bad Gateway" in next(iter(full))

    lines = "server {A} weight=9 max_conns=2; server {B} max_conns=1; server {C} backup max_conns=1; server {D} down;"
    stock, memory = before_and_after(servers, lines, measure)
    assert stock == memory == ([2, 1, 1, 0], True)


def test_a_request_that_finds_no_room_counts_for_its_group(servers: Servers) -> None:
    write(servers, "server {A} max_conns=1; server {D} down;")
    port = servers.site.include_snippet()
    servers.script[A] = lambda _: HANG
    with servers.site.start():
        pending = servers.pending()
        assert "502 Bad Gateway" in next(iter(servers.site.who(1)))
        with StatusReader(f"http://127.0.0.1:{port}/status") as reader:
            wait_until(lambda: reader.snapshot().unserved.get("app") == 1)
        pending.close()


def test_a_host_name_is_each_of_its_addresses_and_a_group_keeps_its_method(servers: Servers) -> None:
    ports = [address.rpartition(":")[2] for address in servers.site.servers]
    servers.site.write(
        f"upstream app {{ server localhost:{ports[0]} weight=300; server 127.0.0.1:{ports[1]} weight=200; }}"
        f" upstream 2nd.one {{ least_conn; server 127.0.0.1:{ports[2]}; server 127.0.0.1:{ports[3]}; }}"
    )
    port = servers.site.include_snippet()
    memory = ["--control-url", f"http://127.0.0.1:{port}/control"]
    memory += ["--token-file", f"{servers.site.folder}/deepsched.conf.token"]
    with servers.site.start():
        answers = servers.site.who(50)
        assert answers["1"] == 20
        with StatusReader(f"http://127.0.0.1:{port}/status") as reader:
            snapshot = reader.snapshot()
        assert snapshot.groups["app"][f"127.0.0.1:{ports[1]}"].request_counter == 20
        assert f"127.0.0.1:{ports[0]}" in snapshot.groups["app"]
        assert snapshot.balancer is not None
        assert snapshot.balancer.method == "configured"
        shown = deepsched("get", *memory).stdout.splitlines()
        assert f"app/127.0.0.1:{ports[1]}=2" in shown, "in lowest terms"


def test_the_statistics_show_what_the_server_lines_say(servers: Servers) -> None:
    write(
        servers, "least_conn; server {A} weight=5 max_fails=3 fail_timeout=1m30s; server {B} down; server {C} backup;"
    )
    port = servers.site.include_snippet()
    with servers.site.start():
        assert servers.counted(20)[1] == [20, 0, 0, 0]
        with StatusReader(f"http://127.0.0.1:{port}/status") as reader:
            entries = reader.snapshot().groups["app"]
        first, second, third = (entries[server] for server in servers.site.servers[:3])
        assert (first.weight, first.max_fails, first.fail_timeout) == (5, 3, 90)
        assert (second.down, third.backup, first.backup) == (True, True, False)


def status(servers: Servers, path: str) -> int:
    with http_session(10.0) as session:
        return session.get(f"http://127.0.0.1:{servers.site.port}{path}").status_code


def test_with_admission_control_a_location_refuses_and_an_exempt_one_does_not(servers: Servers) -> None:
    write(servers, "server {A}; server {B}; server {C}; server {D};")
    main = servers.site.folder / "nginx.conf"
    main.write_text(
        main.read_text().replace("location / {", "location = /health { proxy_pass http://app; } location / {")
    )
    port = servers.site.include_snippet("--set", "memory.admission=true", "--set", "exempt=[= /health]")
    token = (servers.site.folder / "deepsched.conf.token").read_text().strip()
    topology = Topology((Group("app", "app", "GET", "/", 2.0, tuple(servers.site.servers)),))
    one = np.ones(1)
    with servers.site.start():
        endpoint = AdmissionEndpoint(f"http://127.0.0.1:{port}/admission", token, topology)
        endpoint.put(Admission(topology, "fixed", one, one, one, one, AdmissionNumbers(multiple=2, most_refused=1)))
        with StatusReader(f"http://127.0.0.1:{port}/status") as reader:

            def limits() -> list[float | None]:
                balancer = reader.snapshot().balancer
                assert balancer is not None
                assert balancer.admission is not None
                return [entry.limit for entry in balancer.admission.groups]

            wait_until(lambda: limits() == [2.0])
            for index in range(4):
                servers.script[index] = lambda _: HANG
            pending = [servers.pending() for _ in range(2)]
            servers.heal()
            assert (status(servers, "/x"), status(servers, "/health")) == (503, 200)
            for connection in pending:
                connection.close()
            wait_until(lambda: status(servers, "/x") == 200)
        endpoint.close()


def test_with_late_binding_a_location_holds_and_an_exempt_one_does_not(servers: Servers) -> None:
    write(servers, "server {A}; server {B};")
    main = servers.site.folder / "nginx.conf"
    main.write_text(
        main.read_text().replace("location / {", "location = /health { proxy_pass http://app; } location / {")
    )
    port = servers.site.include_snippet("--set", "memory.late_binding=true", "--set", "exempt=[= /health]")
    token = (servers.site.folder / "deepsched.conf.token").read_text().strip()
    topology = Topology((Group("app", "app", "GET", "/", 2.0, tuple(servers.site.servers[:2])),))
    holding = LateBinding(topology, np.ones(1), np.ones(2, np.int64))
    with servers.site.start(), StatusReader(f"http://127.0.0.1:{port}/status") as reader:
        endpoint = MemoryControl(f"http://127.0.0.1:{port}/control", token, topology)
        method = endpoint.get()[0]

        def counted() -> HoldStatus:
            balancer = reader.snapshot().balancer
            assert balancer is not None
            assert balancer.holding is not None
            return balancer.holding

        endpoint.watch(holding)
        assert status(servers, "/x") == 200
        assert (counted().state, counted().groups[0].asked) == ("watching", 1)
        endpoint.put("late_binding", ServiceTimes(topology, np.full((1, 2), 0.01), np.ones(2), holding))
        assert counted().state == "holding"
        for index in range(2):
            servers.script[index] = lambda _: LATER
        pending = [servers.pending() for _ in range(2)]
        held = http.client.HTTPConnection(f"127.0.0.1:{servers.site.port}", timeout=PATIENCE_S)
        held.request("GET", "/x")
        wait_until(lambda: counted().groups[0].in_line == 1)
        servers.heal()
        assert status(servers, "/health") == 200, "neither held nor refused"
        assert counted().groups[0].in_line == 1
        servers.servers[0].answer_next(answer(200))
        assert held.getresponse().status == 200
        servers.servers[1].answer_next(answer(200))
        for connection in pending:
            assert connection.getresponse().status == 200
            connection.close()
        endpoint.put(method, Weights.equal(topology))
        assert (counted().state, method) == ("watching", "round_robin")
        endpoint.close()


def test_max_conns_below_the_slots_holds_and_admission_counts_the_time_of_a_hold(servers: Servers) -> None:
    write(servers, "server {A} max_conns=1; server {B} max_conns=1;")
    port = servers.site.include_snippet("--set", "memory.late_binding=true", "--set", "memory.admission=true")
    token = (servers.site.folder / "deepsched.conf.token").read_text().strip()
    topology = Topology((Group("app", "app", "GET", "/", 2.0, tuple(servers.site.servers[:2])),))
    one, deadline_s = np.ones(1), 0.2
    holding = LateBinding(topology, one, np.full(2, 3))
    admission = Admission(topology, "fixed", deadline_s * one, one, 0.01 * one, one, AdmissionNumbers(multiple=100))
    with (
        servers.site.start(),
        StatusReader(f"http://127.0.0.1:{port}/status") as reader,
        contextlib.closing(MemoryControl(f"http://127.0.0.1:{port}/control", token, topology)) as control,
        contextlib.closing(AdmissionEndpoint(f"http://127.0.0.1:{port}/admission", token, topology)) as endpoint,
    ):

        def counted() -> tuple[int, int]:
            """Held now, and late for admission."""
            balancer = reader.snapshot().balancer
            assert balancer is not None
            assert balancer.holding is not None
            assert balancer.admission is not None
            return balancer.holding.groups[0].in_line, balancer.admission.groups[0].late

        control.put("late_binding", ServiceTimes(topology, np.full((1, 2), 0.01), np.ones(2), holding))
        endpoint.put(admission)
        for index in range(2):
            servers.script[index] = lambda _: LATER
        connections = [servers.pending() for _ in range(2)]
        connections.append(http.client.HTTPConnection(f"127.0.0.1:{servers.site.port}", timeout=PATIENCE_S))
        connections[-1].request("GET", "/x")
        wait_until(lambda: counted() == (1, 0))
        since_s = time.monotonic()
        wait_until(lambda: time.monotonic() > since_s + deadline_s)
        servers.heal()
        for server in servers.servers[:2]:
            server.answer_next(answer(200))
        assert [connection.getresponse().status for connection in connections] == [200, 200, 200]
        for connection in connections:
            connection.close()
        wait_until(lambda: counted() == (0, 3))


def test_a_request_that_waited_for_a_server_and_found_no_other_is_late(servers: Servers) -> None:
    write(servers, "server {A}; server {B};")
    main = servers.site.folder / "nginx.conf"
    main.write_text(main.read_text().replace("location / {", "location / { proxy_read_timeout 300ms;"))
    port = servers.site.include_snippet("--set", "memory.admission=true")
    token = (servers.site.folder / "deepsched.conf.token").read_text().strip()
    topology = Topology((Group("app", "app", "GET", "/", 2.0, tuple(servers.site.servers[:2])),))
    one = np.ones(1)
    admission = Admission(topology, "fixed", 0.2 * one, one, 0.01 * one, one, AdmissionNumbers(multiple=100))
    with (
        servers.site.start(),
        StatusReader(f"http://127.0.0.1:{port}/status") as reader,
        contextlib.closing(MemoryControl(f"http://127.0.0.1:{port}/control", token, topology)) as control,
        contextlib.closing(AdmissionEndpoint(f"http://127.0.0.1:{port}/admission", token, topology)) as endpoint,
    ):
        control.put("round_robin", Weights(topology, np.ones((1, 2), np.int64), np.array([[False, True]])))
        endpoint.put(admission)
        servers.script[A] = lambda _: HANG
        assert status(servers, "/x") == 502
        snapshot = reader.snapshot()
        assert snapshot.balancer is not None
        assert snapshot.balancer.admission is not None
        (entry,) = snapshot.balancer.admission.groups
        assert (entry.finished, entry.late, entry.quick) == (1, 1, 0)
        assert snapshot.groups["app"][servers.site.servers[A]].responses.server_errors == 1
        assert snapshot.client_errors == 1
