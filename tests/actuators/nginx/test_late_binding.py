"""Late binding in NGINX: slots are never exceeded, what is held goes in order, and nothing leaks or hangs."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actuators.contract.admission import NEVER
from actuators.contract.control import ServiceTimes, Weights
from actuators.contract.late_binding import LateBinding, LateBindingNumbers
from actuators.contract.request_cost import GroupCost, SeenRequest
from actuators.errors import ActuationError, ConfigError
from actuators.http_client import http_session
from actuators.nginx import instance as nginx_module
from actuators.nginx.config import NginxOptions
from actuators.nginx.control_endpoint import MemoryControl, to_text
from actuators.processes.system import children
from actuators.statistics.reader import StatusReader
from actuators.statistics.vts import HoldEntry, HoldStatus
from tests.support.http_server import LATER
from tests.support.nginx_site import (
    COMPOSE,
    HOME,
    USER,
    Site,
    add_locations,
    answer,
    run_ahead,
    running_site,
    set_clock_back,
)
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.nginx

TAU_S = np.array([[0.04, 0.05, 0.06], [0.004, 0.005, 0.006], [0.004, 0.005, 0.006]])
"""compose takes ten times as long as the reads."""
EXTRA = """
    location = /big { proxy_pass http://home_read_backend; proxy_buffer_size 4k; proxy_buffers 4096 4k;
      proxy_busy_buffers_size 8k;
      access_by_lua_block { BALANCER.enter("home_read_backend") }
      body_filter_by_lua_block { BALANCER.answered() } log_by_lua_block { STATUS.log("home_read_backend") } }
    location = /break { content_by_lua_block {
      local rule = require "late_rule"
      rule.begin = function() error("broken on purpose") end ngx.say("broken") } }
"""

TWO = """
    location = /pid { content_by_lua_block { ngx.print(ngx.worker.pid()) } }
    location = /half { content_by_lua_block {
      local rows = require "rows"
      local heads = rows.add({}, "late heads", 5)   -- said at, arrival, group, -, cost
      for row = 1, rows.count() - 1 do
        local head = heads.base + row * 5
        if head[1] == 0 then head[0], head[1], head[2] = ngx.now() + 1000, 1, tonumber(ngx.var.arg_group) end
      end
      ngx.say("half") } }
"""

COSTS = """
    location ~ ^/(v[0-9]+/|x$) { content_by_lua_block {
      local cost = require "cost"
      for feature, weight in ngx.var.http_terms:gmatch("(%S+)=(%S+)") do
        local model = {}
        cost.add(model, "one", 1)
        cost.add(model, feature, tonumber(weight))
        ngx.say(string.format("%.12g", cost.of(model)))
      end } }
"""


def control(site: Site, slots: int = 1, deadlines_s: float = 10.0, **numbers: Any) -> ServiceTimes:
    """Service times of `TAU_S`, one worker per server."""
    values = LateBindingNumbers.model_validate(numbers)
    holding = LateBinding(site.topology, np.full(3, deadlines_s), np.full(3, slots), values)
    return ServiceTimes(site.topology, TAU_S, np.ones(3), holding)


@contextlib.contextmanager
def held_site(folder: Path, workers: int = 1) -> Iterator[Site]:
    options = NginxOptions(method="late_binding", actuation="memory", worker_processes=workers, shutdown_timeout_s=5.0)
    with running_site(folder, options) as site:
        site.collector.begin()
        answer_later(site)
        yield site
        waiting = [entry.in_line for entry in status(site).groups]
        assert min(waiting) >= 0, waiting


@pytest.fixture
def site(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    add_locations(monkeypatch, EXTRA)
    with held_site(short_dir) as site:
        site.nginx.apply(control(site))
        yield site


def answer_later(site: Site) -> None:
    for index in range(3):
        site.script[index] = lambda _: LATER


def status(site: Site) -> HoldStatus:
    """Over a new connection, so that any worker may answer."""
    with StatusReader(site.nginx.status_url) as reader:
        balancer = reader.snapshot().balancer
    assert balancer is not None
    assert balancer.holding is not None
    return balancer.holding


def counted(site: Site, group: int = 1) -> HoldEntry:
    return status(site).groups[group]


def in_line(site: Site) -> int:
    return sum(entry.in_line for entry in status(site).groups)


def begin(
    site: Site,
    path: str = HOME,
    method: str = "GET",
    body: bytes | None = None,
    connection: http.client.HTTPConnection | None = None,
) -> http.client.HTTPConnection:
    """A request that NGINX has: a server has it, or it is held."""
    before = reached(site) + in_line(site)
    connection = connection or http.client.HTTPConnection(site.nginx.address, timeout=PATIENCE_S)
    connection.request(method, path, body)
    wait_until(lambda: reached(site) + in_line(site) > before)
    return connection


def reached(site: Site) -> int:
    return sum(len(server.requests) for server in site.servers)


def fill(site: Site) -> list[http.client.HTTPConnection]:
    """A request for each slot of all servers, which are one each."""
    connections = [begin(site) for _ in range(3)]
    wait_until(lambda: [server.waiting for server in site.servers] == [1, 1, 1])
    return connections


def finish(connection: http.client.HTTPConnection) -> tuple[int, str]:
    response = connection.getresponse()
    return response.status, response.read().decode()


def end(site: Site, connections: list[http.client.HTTPConnection]) -> None:
    """All servers answer what they have and will get, until every client has its answer."""
    site.heal()
    for server in site.servers:
        for _ in range(server.waiting):
            server.answer_next(answer(200))
    for connection in connections:
        assert finish(connection)[0] == 200
        connection.close()
    wait_until(lambda: in_line(site) == 0 and site.in_flight() == 0)


def test_no_server_gets_more_than_its_slots_and_a_free_one_is_filled_at_once(site: Site) -> None:
    connections = fill(site)
    connections += [begin(site) for _ in range(6)]
    assert in_line(site) == 6
    for turn in range(6):
        server = site.servers[turn % 3]
        before = len(server.requests)
        server.answer_next(answer(200))
        wait_until(lambda server=server, before=before: len(server.requests) > before)
        assert [entry.in_flight for entry in site.balancer().servers if entry.group == "home_read_backend"] == [1] * 3
        assert in_line(site) == 5 - turn
    end(site, connections)
    entry = counted(site)
    assert (entry.held, entry.answered, entry.late, entry.refused, entry.gone, entry.passed) == (6, 9, 0, 0, 0, 0)
    assert entry.held_s > 0
    assert entry.held_buckets.counters[-1] == 6


def test_without_slots_it_is_expected_delay_and_without_times_least_conn(site: Site) -> None:
    site.nginx.apply(ServiceTimes(site.topology, TAU_S, np.full(3, 2.0)))
    assert status(site).state == "unset"
    connections = [begin(site) for _ in range(5)]
    assert (in_line(site), [server.waiting for server in site.servers]) == (0, [2, 2, 1])
    end(site, connections)
    site.nginx.set_method("late_binding")
    answer_later(site)
    connections = [begin(site) for _ in range(6)]
    assert (in_line(site), [server.waiting for server in site.servers]) == (0, [2, 2, 2])
    end(site, connections)


def test_the_control_reads_back_and_what_does_not_fit_is_refused(site: Site) -> None:
    wanted = control(site, 7, 0.25, order="earliest_deadline", theta=1.5, most_held=9)
    site.nginx.apply(wanted)
    shown = site.nginx.control()
    assert isinstance(shown, ServiceTimes)
    assert shown.holding is not None
    assert wanted.holding is not None
    assert shown.holding.numbers == wanted.holding.numbers
    for importance, factor in (([1.0, 2.5, NEVER], 1.5), ([NEVER] * 3, None)):
        more = with_importance(site, importance, [0.25] * 3, refuse_factor=factor)
        site.nginx.apply(more)
        found = site.nginx.control()
        assert isinstance(found, ServiceTimes)
        assert found.holding == more.holding
    site.nginx.apply(wanted)
    assert (shown.holding.slots == 7).all()
    assert (shown.holding.deadlines_s == 0.25).all()
    with pytest.raises(ActuationError, match="late_binding takes service times"):
        site.nginx.apply(Weights.equal(site.topology))
    with pytest.raises(ConfigError, match="late_binding cannot have a part"):
        site.nginx.split(50.0, "late_binding", wanted, "least_conn", Weights.equal(site.topology))


@pytest.mark.parametrize(
    ("numbers", "deadlines_s", "first"),
    [
        ({"order": "fifo"}, (10.0, 10.0), COMPOSE),
        ({"order": "response_ratio"}, (10.0, 10.0), HOME),
        ({"order": "earliest_deadline"}, (10.0, 20.0), COMPOSE),
        ({"order": "earliest_deadline"}, (20.0, 10.0), HOME),
        ({"order": "earliest_deadline"}, (0.001, 0.001), HOME),
        ({"order": "shortest"}, (10.0, 10.0), HOME),
        ({"order": "shortest"}, (0.001, 0.001), HOME),
        ({"order": "shortest", "waiting_weight": 0.0, "late_weight": 1000.0}, (10.0, 0.001), COMPOSE),
    ],
)
def test_held_requests_go_in_order(
    site: Site, numbers: dict[str, Any], deadlines_s: tuple[float, float], first: str
) -> None:
    """compose comes first; what will be late is last, the shortest first."""
    holding = LateBinding(
        site.topology, np.array([deadlines_s[0], *[deadlines_s[1]] * 2]), np.ones(3, np.int64),
        LateBindingNumbers.model_validate(numbers),
    )  # fmt: skip
    site.nginx.apply(ServiceTimes(site.topology, TAU_S, np.ones(3), holding))
    connections = fill(site)
    connections += [begin(site, COMPOSE), begin(site, HOME)]
    held_ms = site.collector.snapshot().now_ms
    # The read's age must be far more than a tenth of the other's.
    wait_until(lambda: site.collector.snapshot().now_ms > held_ms + 100)
    site.servers[0].answer_next(answer(200))
    wait_until(lambda: len(site.servers[0].requests) == 2)
    assert site.servers[0].requests[1].line.split()[1] == first
    end(site, connections)


def test_a_request_waits_for_the_fast_server_when_that_is_expected_to_be_faster(site: Site) -> None:
    tau_s = np.array([[0.004, 0.4, 0.4]] * 3)
    holding = control(site).holding
    site.nginx.apply(ServiceTimes(site.topology, tau_s, np.ones(3), holding))
    connections = [begin(site) for _ in range(4)]
    assert ([server.waiting for server in site.servers], in_line(site)) == ([1, 0, 0], 3)
    end(site, connections)


def test_a_client_that_goes_away_leaves_nothing(site: Site) -> None:
    connections = fill(site)
    begin(site).close()
    wait_until(lambda: in_line(site) == 0)
    assert counted(site).gone == 1
    last = begin(site)
    assert in_line(site) == 1
    # One that goes away while a server works frees the slot: the held one gets it.
    connections[0].close()
    wait_until(lambda: len(site.servers[0].requests) == 2)
    assert in_line(site) == 0
    end(site, [*connections[1:], last])


def test_a_client_that_goes_away_after_its_body_leaves_nothing(site: Site) -> None:
    """A body that NGINX finds whole in the socket, most of it beyond what it read with the head."""
    connections = fill(site)
    with socket.create_connection((site.nginx.address.split(":")[0], int(site.nginx.address.split(":")[1]))) as client:
        head = f"POST {COMPOSE} HTTP/1.1\r\nHost: x\r\nContent-Length: 8000\r\n\r\n"
        client.sendall(head.encode() + bytes(8000))
        wait_until(lambda: in_line(site) == 1)
    wait_until(lambda: in_line(site) == 0)
    assert (counted(site, 0).gone, counted(site, 0).held) == (1, 1)
    end(site, connections)


def test_beyond_the_bound_requests_are_refused_and_may_come_again(site: Site) -> None:
    site.nginx.apply(control(site, most_held=2))
    connections = [*fill(site), begin(site), begin(site)]
    site.collector.window()
    connection = http.client.HTTPConnection(site.nginx.address, timeout=PATIENCE_S)
    connection.request("GET", HOME)
    response = connection.getresponse()
    assert (response.status, response.getheader("X-Refused")) == (503, "queue full")
    assert response.getheader("Retry-After") in ("1", "2")
    response.read()
    wait_until(lambda: counted(site).full == 1)
    window = site.collector.window()
    assert (window.client_errors, window.server_errors.sum()) == (0, 0), "it is not an error of a server"
    end(site, connections)
    connection.request("GET", HOME)
    assert finish(connection) == (200, "0")


def test_the_longest_hold_ends_with_503(site: Site) -> None:
    site.nginx.apply(control(site, longest_hold_s=3))
    connections = fill(site)
    # Many, because the last sleep of some ends a rounding error before their time.
    held = [begin(site) for _ in range(30)]
    assert {finish(connection)[0] for connection in held} == {503}
    assert (counted(site).expired, counted(site).held, in_line(site)) == (30, 30, 0)
    assert counted(site).held_s == pytest.approx(3.0 * 30, rel=0.2)
    end(site, connections)


def test_a_clock_that_is_set_back_holds_no_request_for_longer(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_ahead(monkeypatch)
    with held_site(short_dir) as site:
        site.nginx.apply(control(site, longest_hold_s=3))
        connections, held = fill(site), begin(site)
        set_clock_back(site)
        assert finish(held)[0] == 503
        connections.append(begin(site))
        end(site, connections)
        entry = counted(site)
    assert (entry.expired, entry.held) == (1, 2)
    assert 0 <= entry.held_s < 7
    assert 0 <= entry.answered_s < 60


def refused_too_late(site: Site, path: str = HOME) -> bool:
    connection = http.client.HTTPConnection(site.nginx.address, timeout=PATIENCE_S)
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    connection.close()
    return (response.status, response.getheader("X-Refused")) == (503, "too late")


def with_importance(site: Site, importance: list[float], deadlines_s: list[float], **numbers: Any) -> ServiceTimes:
    values = LateBindingNumbers.model_validate(numbers)
    slots = np.ones(3, np.int64)
    binding = LateBinding(site.topology, np.array(deadlines_s), slots, values, np.array(importance))
    return ServiceTimes(site.topology, TAU_S, np.ones(3), binding)


def test_what_would_be_late_is_refused_at_once_but_never_of_a_group_that_is_spared(site: Site) -> None:
    """One request of 4 to 6 ms at each server: the next one waits for 4 ms, and takes 0.7 of that, at best."""
    deadlines_s = [10.0, 0.0066, 0.0066]
    site.nginx.apply(with_importance(site, [1.0, 1.0, NEVER], deadlines_s, refuse_factor=1.0))
    connections = fill(site)
    site.collector.window()
    assert refused_too_late(site)
    connections.append(begin(site, USER))
    assert in_line(site) == 1
    wait_until(lambda: counted(site).hopeless == 1)
    assert (counted(site).refused, counted(site).held, counted(site, 2).refused) == (1, 0, 0)
    window = site.collector.window()
    assert window.client_errors == 0, "it is not an error of a server"
    assert window.holding is not None
    assert (window.holding.hopeless[1], window.holding.refused[1]) == (1, 0)
    end(site, connections)
    site.nginx.apply(with_importance(site, [1.0] * 3, [10.0, 0.0070, 0.0070], refuse_factor=1.0, order="fifo"))
    answer_later(site)
    connections, held = fill(site), begin(site)
    # Behind one that is held there is less hope, and in the end that one is too late, too.
    assert refused_too_late(site)
    since_ms = site.collector.snapshot().now_ms
    wait_until(lambda: site.collector.snapshot().now_ms > since_ms + 20)
    end(site, connections)
    assert finish(held)[0] == 503


def test_what_has_become_hopeless_while_it_was_held_is_refused_when_it_would_be_sent(site: Site) -> None:
    site.nginx.apply(with_importance(site, [1.0] * 3, [10.0, 0.2, 0.2], refuse_factor=1.0))
    connections = fill(site)
    held = begin(site)
    since_ms = site.collector.snapshot().now_ms
    wait_until(lambda: site.collector.snapshot().now_ms > since_ms + 250)
    site.servers[0].answer_next(answer(200))
    response = held.getresponse()
    assert (response.status, response.getheader("X-Refused")) == (503, "too late")
    response.read()
    assert (in_line(site), counted(site).hopeless, counted(site).held) == (0, 1, 1)
    assert len(site.servers[0].requests) == 1, "the free slot was not taken"
    end(site, connections)


def test_an_important_group_goes_first(site: Site) -> None:
    for importance, first in (([100.0, 1.0, 1.0], COMPOSE), ([1.0, 1.0, 1.0], HOME)):
        site.nginx.apply(with_importance(site, importance, [10.0] * 3))
        answer_later(site)
        connections = fill(site)
        connections += [begin(site, COMPOSE), begin(site, HOME)]
        before, held_ms = len(site.servers[0].requests), site.collector.snapshot().now_ms
        wait_until(lambda since=held_ms: site.collector.snapshot().now_ms > since + 100)
        site.servers[0].answer_next(answer(200))
        wait_until(lambda count=before: len(site.servers[0].requests) > count)
        assert site.servers[0].requests[-1].line.split()[1] == first
        end(site, connections)


def test_lateness_counts_from_arrival(site: Site) -> None:
    site.nginx.apply(control(site, deadlines_s=0.2))
    connections = fill(site)
    for server in site.servers:
        server.answer_next(answer(200))
    wait_until(lambda: site.in_flight() == 0)
    in_time = counted(site)
    connections += [*fill(site), begin(site)]
    since_ms = site.collector.snapshot().now_ms
    wait_until(lambda: site.collector.snapshot().now_ms > since_ms + 300)
    site.servers[0].answer_next(answer(200))
    wait_until(lambda: in_line(site) == 0)
    end(site, connections)
    assert (in_time.answered, in_time.late) == (3, 0)
    assert (counted(site).answered, counted(site).late) == (7, 4)


def test_bodies_and_connections_stay_as_they_are(site: Site) -> None:
    connections = fill(site)
    body = os.urandom(300_000)
    held = begin(site, COMPOSE, "POST", body)
    assert in_line(site) == 1
    site.heal()
    site.servers[0].answer_next(answer(200))
    assert finish(held) == (200, "0")
    assert site.servers[0].requests[-1].body == body
    socket_before = held.sock
    for _ in range(3):
        held.request("GET", HOME)
        assert finish(held)[0] == 200
    assert held.sock is socket_before
    end(site, connections)


def test_a_chunked_body_is_read_before_the_request_takes_a_slot(site: Site) -> None:
    connection = http.client.HTTPConnection(site.nginx.address, timeout=PATIENCE_S)
    connection.putrequest("POST", COMPOSE)
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    connection.send(b"5\r\nhello\r\n")
    others = fill(site)
    connection.send(b"0\r\n\r\n")
    wait_until(lambda: in_line(site) == 1)
    end(site, [*others, connection])
    assert [request.body for server in site.servers for request in server.requests if request.body] == [b"hello"]


def test_a_slow_client_keeps_no_slot(site: Site) -> None:
    """The whole answer is in NGINX, of which the client has read nothing."""
    text = "x" * 12_000_000
    for index in range(3):
        site.script[index] = lambda _: answer(200, text)
    connection = http.client.HTTPConnection(site.nginx.address, timeout=PATIENCE_S)
    connection.connect = lambda: None  # type: ignore[method-assign]
    connection.sock = socket.socket()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = site.nginx.address.split(":")
    connection.sock.connect((host, int(port)))
    connection.request("GET", "/big")
    wait_until(lambda: counted(site).answered == 1)
    assert site.in_flight() == 0
    assert sum(entry.requests for entry in site.balancer().servers) == 0, "the answer has reached the client"
    assert finish(connection) == (200, text)
    wait_until(lambda: sum(entry.requests for entry in site.balancer().servers) == 1)
    assert (site.in_flight(), counted(site).answered) == (0, 1)


def test_a_retry_moves_the_slot(site: Site) -> None:
    site.refuse(0)
    connections = [begin(site) for _ in range(2)]
    assert [server.waiting for server in site.servers] == [0, 1, 1]
    wait_until(lambda: site.in_flight() == 2)
    connections.append(begin(site))
    assert in_line(site) == 1, "the dead server is out of rotation"
    end(site, connections)


def test_another_protocol_takes_no_slot(site: Site) -> None:
    connections = fill(site)
    connection = http.client.HTTPConnection(site.nginx.address, timeout=PATIENCE_S)
    connection.request("GET", HOME, headers={"Upgrade": "websocket", "Connection": "upgrade"})
    wait_until(lambda: reached(site) == 4)
    assert site.in_flight() == 3
    # Some clients ask for HTTP/2 with every request; NGINX never upgrades to it.
    plain = http.client.HTTPConnection(site.nginx.address, timeout=PATIENCE_S)
    plain.request("GET", HOME, headers={"Upgrade": "h2c", "Connection": "upgrade, http2-settings"})
    wait_until(lambda: in_line(site) == 1)
    end(site, [*connections, connection, plain])


def leave_at_once(site: Site) -> None:
    """New requests are not held, and those that are held go on by themselves."""
    before = reached(site)
    connections = [begin(site)]
    wait_until(lambda: in_line(site) == 0 and reached(site) > before)
    end(site, connections)


def test_a_control_that_nobody_renews_holds_nothing(site: Site) -> None:
    site.nginx.apply(control(site, valid_s=1))
    connections = [*fill(site), begin(site)]
    wait_until(lambda: status(site).state == "stale")
    leave_at_once(site)
    end(site, connections)
    assert counted(site).passed == 1
    site.nginx.apply(control(site))
    assert status(site).state == "holding"


def test_a_line_whose_control_is_stale_does_not_go_all_at_once(site: Site) -> None:
    """Each request looks for itself once a second, at a time that goes by its own arrival."""
    site.nginx.apply(control(site, valid_s=4))
    connections = [*fill(site), *(begin(site) for _ in range(30))]
    assert in_line(site) == 30
    seen = {30}

    def drained() -> bool:
        seen.add(in_line(site))
        return 0 in seen

    wait_until(drained)
    assert seen - {0, 30}, "all went between two looks"
    end(site, connections)


def test_when_our_code_fails_nothing_is_held(site: Site) -> None:
    connections = [*fill(site), begin(site)]
    assert site.get("/break")[0] == 200
    site.servers[0].answer_next(answer(200))
    wait_until(lambda: status(site).state == "failing")
    leave_at_once(site)
    end(site, connections)
    assert "broken on purpose" in site.nginx.log_tail()


def test_another_method_lets_go_what_is_held(site: Site) -> None:
    connections = [*fill(site), begin(site), begin(site)]
    site.nginx.set_method("least_conn")
    wait_until(lambda: reached(site) == 5)
    end(site, connections)
    assert status(site).state == "absent", "its locations ask for no slot any more"


def reload(site: Site) -> None:
    old = set(children(site.nginx.master_pid))
    os.kill(site.nginx.master_pid, signal.SIGHUP)
    wait_until(lambda: bool(set(children(site.nginx.master_pid)) - old))


def test_a_reload_loses_nothing_and_all_workers_count_the_same_slots(site: Site) -> None:
    connections = [*fill(site), begin(site)]
    reload(site)
    # The new worker knows of the slots in use; the held request of the old one goes first.
    wait_until(lambda: site.collector.begin().load_ms > 0)
    assert in_line(site) == 1
    connections.append(begin(site))
    assert in_line(site) == 2
    site.servers[2].answer_next(answer(200))
    wait_until(lambda: in_line(site) == 1)
    end(site, connections)


def test_a_killed_worker_leaves_nothing(site: Site) -> None:
    fill(site)
    begin(site), begin(site)
    site.kill_workers()
    wait_until(lambda: in_line(site) == 0 and site.in_flight() == 0)
    end(site, fill_again(site))


def fill_again(site: Site) -> list[http.client.HTTPConnection]:
    before = reached(site)
    connections = [begin(site) for _ in range(3)]
    assert reached(site) == before + 3
    return connections


@pytest.fixture
def two_workers(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The kernel gives a connection to either of two workers, and `of_worker` knows to which."""
    add_locations(monkeypatch, TWO)
    render = nginx_module.render_main
    monkeypatch.setattr(
        nginx_module, "render_main", lambda *a, **k: render(*a, **k).replace("backlog=4096", "backlog=4096 reuseport")
    )
    with held_site(short_dir, workers=2) as site:
        yield site


def of_worker(site: Site, index: int) -> http.client.HTTPConnection:
    """A connection to that worker."""
    wanted = sorted(children(site.nginx.master_pid))[index]
    for _ in range(100):
        connection = http.client.HTTPConnection(site.nginx.address, timeout=PATIENCE_S)
        connection.request("GET", "/pid")
        if finish(connection) == (200, str(wanted)):
            return connection
        connection.close()
    raise AssertionError("the kernel gives that worker no connection")


def test_two_workers_share_slots_and_neither_forgets_its_requests(two_workers: Site) -> None:
    site = two_workers
    site.nginx.apply(control(site))
    connections = [begin(site, connection=of_worker(site, turn % 2)) for turn in range(24)]
    assert ([server.waiting for server in site.servers], in_line(site)) == ([1, 1, 1], 21)
    for turn in range(21):
        server = site.servers[turn % 3]
        before = len(server.requests)
        server.answer_next(answer(200))
        wait_until(lambda server=server, before=before: len(server.requests) > before)
        assert [server.waiting for server in site.servers] == [1, 1, 1]
    assert in_line(site) == 0
    end(site, connections)
    assert (counted(site).held, counted(site).answered) == (21, 24)


@pytest.mark.parametrize("down", [False, True])
def test_the_order_is_that_of_both_workers_requests(two_workers: Site, down: bool) -> None:
    """The slot of one worker's request goes to the other's older one, unless that worker has no time for some ms. A
    server that nothing goes to has free slots, and changes nothing.
    """
    site, older, turns = two_workers, 0, 0
    text = to_text("late_binding", control(site, order="fifo"))
    groups, last = [group.name for group in site.topology.groups], site.servers[2].address
    text += "".join(f"down {group} {last}\n" for group in groups if down)
    with http_session(10.0) as session:
        assert session.post(site.nginx.control_url, data=text, headers={"X-Deepsched-Token": site.nginx.token}).ok
    busy = [1, 1, int(not down)]
    # Without the courtesy of the worker whose slot it is, none would ever go to the other; on a busy machine some do.
    while older < 3 and turns < 60:
        turns += 1
        connections = [begin(site, connection=of_worker(site, 1)) for _ in range(sum(busy))]
        connections.append(begin(site, COMPOSE, connection=of_worker(site, 0)))
        connections.append(begin(site, USER, connection=of_worker(site, 1)))
        assert ([server.waiting for server in site.servers], in_line(site)) == (busy, 2)
        before = len(site.servers[0].requests)
        site.servers[0].answer_next(answer(200))
        wait_until(lambda before=before: len(site.servers[0].requests) > before)
        older += site.servers[0].requests[-1].line.split()[1] == COMPOSE
        end(site, connections)
        answer_later(site)
    assert older == 3


@pytest.mark.parametrize("group", [0, 99])
def test_what_another_worker_has_half_written_is_no_failure(two_workers: Site, group: int) -> None:
    """Or what one of an older configuration says, which knows more groups."""
    site = two_workers
    site.nginx.apply(control(site))
    connections = [begin(site, connection=of_worker(site, 1)) for _ in range(4)]
    assert in_line(site) == 1
    other = of_worker(site, 0)
    other.request("GET", f"/half?group={group}")
    assert finish(other) == (200, "half\n")
    site.servers[0].answer_next(answer(200))
    wait_until(lambda: len(site.servers[0].requests) == 2)
    assert status(site).state == "holding"
    end(site, connections)


WRONG: tuple[Callable[[str], str], ...] = (
    lambda text: text.replace("order ", "order un"),
    lambda text: text + "cost nobody one 1\n",
    lambda text: text + "cost home_read_backend\n",
    lambda text: text + "cost home_read_backend two 1\n",
    lambda text: text + "cost home_read_backend arg:a/b 1\n",
    lambda text: text + "cost home_read_backend one nan\n",
    lambda text: text + "".join(f"cost home_read_backend arg:a{number} 1\n" for number in range(33)),
    lambda text: text + "samples 0\n",
    lambda text: re.sub("order .*\n", "", text),
    lambda text: text.replace("number theta 1.4", "number theta 0.5"),
    lambda text: text.replace("number theta 1.4", "number theta 0x2"),
    lambda text: text.replace("number theta 1.4", "number beta 1"),
    lambda text: text.replace("slots ", "slots nobody "),
    lambda text: text.replace("deadline user_read_backend 10.0\n", ""),
    lambda text: text.replace("method late_binding", "method expected_delay"),
)


def test_a_text_that_is_not_complete_is_refused_whole(site: Site) -> None:
    text = to_text("late_binding", control(site))
    headers = {"X-Deepsched-Token": site.nginx.token}
    with http_session(10.0) as session:
        before = session.get(site.nginx.control_url).text
        for change in WRONG:
            wrong = change(text)
            assert wrong != text
            refused = session.post(site.nginx.control_url, data=wrong, headers=headers)
            assert (refused.status_code, refused.text[:9]) == (400, "refused: "), wrong
        assert session.get(site.nginx.control_url).text == before


@pytest.mark.parametrize(
    ("uri", "seen"),
    [
        ("/v1/x:batch?start=1764500000&stop=1764500600", SeenRequest(
            "/v1/x:batch", {"start": 1764500000, "stop": 1764500600})),
        ("/v12/x%C3%A9?n=0x10", SeenRequest("/v12/xé")), ("/x?n=1e5&start=-1", SeenRequest("/x")),
        ("/v1/x?n=1700000000.123", SeenRequest("/v1/x")),
        ("/v3/x?n=2.5&start=9&stop=3", SeenRequest("/v3/x", {"n": 2.5, "start": 9, "stop": 3})),
    ],
)  # fmt: skip
def test_nginx_sees_what_a_request_costs_as_it_was_learned(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, uri: str, seen: SeenRequest
) -> None:
    terms = {
        "path:/v*/x?batch": 1.0, "path:/v*/x??": 2.0, "arg:start": 1e-9, "span:start:stop": 1e-2, "log_arg:n": 0.5,
        "method:GET": 3.0,
    }  # fmt: skip
    add_locations(monkeypatch, COSTS)
    with running_site(short_dir, NginxOptions(method="late_binding", actuation="memory")) as site:
        headers = {"Terms": " ".join(f"{feature}={weight}" for feature, weight in terms.items())}
        with http_session(10.0) as session:
            lines = session.get(f"http://{site.nginx.address}{uri}", headers=headers).text.split()
    for (feature, weight), line in zip(terms.items(), lines, strict=True):
        assert float(line) == pytest.approx(GroupCost(terms={"one": 1.0, feature: weight}, r2=1.0).of(seen)), feature


def test_an_nginx_whose_locations_ask_for_no_slot_refuses_the_method(short_dir: Path) -> None:
    with running_site(short_dir, NginxOptions(method="expected_delay", actuation="memory")) as site:
        endpoint = MemoryControl(site.nginx.control_url, site.nginx.token, site.topology)
        with pytest.raises(ActuationError, match="method late_binding"):
            endpoint.put("late_binding", control(site))
        endpoint.close()


@pytest.fixture
def asking(short_dir: Path) -> Iterator[Site]:
    """Another method; the locations ask for a slot all the same."""
    options = NginxOptions(method="least_conn", actuation="memory", late_binding=True)
    with running_site(short_dir, options) as site:
        site.collector.begin()
        answer_later(site)
        yield site


def test_beside_another_method_it_is_counted_what_would_be_held(asking: Site) -> None:
    site, holding = asking, control(asking, deadlines_s=0.2).holding
    assert status(site).state == "off"
    site.nginx.watch(holding)
    assert status(site).state == "watching"
    connections = [*fill(site), *(begin(site) for _ in range(4))]
    assert (in_line(site), [server.waiting for server in site.servers]) == (0, [3, 2, 2])
    entry = counted(site)
    assert (entry.asked, entry.would, entry.held, entry.answered) == (7, 4, 0, 0)
    since_ms = site.collector.snapshot().now_ms
    wait_until(lambda: site.collector.snapshot().now_ms > since_ms + 300)
    end(site, connections)
    entry = counted(site)
    assert (entry.answered, entry.late, entry.would) == (7, 7, 4)
    assert entry.answer_buckets.counters[-1] == 7
    seen = site.collector.window().holding
    assert seen is not None
    assert (seen.state, seen.asked[1], seen.would[1], seen.late[1]) == ("watching", 7, 4, 7)
    assert (seen.answer_histogram[1].sum(), seen.held_histogram.sum()) == (7, 0)
    assert seen.answered_s[1] > 7 * 0.2


def test_what_is_counted_stays_beside_every_control_until_it_is_taken_away(asking: Site) -> None:
    site, holding = asking, control(asking).holding
    site.nginx.watch(holding)
    site.heal()
    for change in (
        lambda: site.nginx.balance("round_robin", Weights.equal(site.topology, 3)),
        lambda: site.nginx.split(
            30.0, "expected_delay", ServiceTimes(site.topology, TAU_S, np.ones(3)), "least_conn",
            Weights.equal(site.topology),
        ),
        lambda: reload(site),
    ):  # fmt: skip
        change()
        assert site.get()[0] == 200
        assert status(site).state == "watching"
    split = site.nginx.split_in_force()
    assert split is not None
    assert split.percent == 30
    # No reload: its locations ask in any case.
    workers = children(site.nginx.master_pid)
    site.nginx.balance("late_binding", control(site))
    assert status(site).state == "holding"
    site.nginx.balance("least_conn", Weights.equal(site.topology))
    assert status(site).state == "watching"
    site.nginx.watch(None)
    assert status(site).state == "off"
    assert set(children(site.nginx.master_pid)) <= set(workers)


def test_what_cannot_be_counted_is_refused_and_changes_nothing(asking: Site, short_dir: Path) -> None:
    site, headers = asking, {"X-Deepsched-Token": asking.nginx.token}
    with http_session(10.0) as session:
        before = session.get(site.nginx.control_url).text
        for more in ("watch\nslots 127.0.0.1:1 3\n", "watch\n", "watch\norder fifo\n"):
            refused = session.post(site.nginx.control_url, data=before + more, headers=headers)
            assert (refused.status_code, refused.text[:14]) == (400, "refused: watch")
        assert session.get(site.nginx.control_url).text == before
    folder = short_dir / "other"
    folder.mkdir()
    with running_site(folder, NginxOptions(method="least_conn", actuation="memory")) as other:
        assert status(other).state == "absent"
        other.collector.begin()
        assert other.collector.window().holding is None
        with pytest.raises(ActuationError, match="no location asks for a slot"):
            other.nginx.watch(control(other).holding)


def curl(site: Site, path: str = HOME, *options: str) -> subprocess.Popen[bytes]:
    before = reached(site) + in_line(site)
    command = ["curl", "-sS", "--http2-prior-knowledge", *options, f"http://{site.nginx.address}{path}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: reached(site) + in_line(site) > before)
    return process


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is missing")
def test_requests_over_http2_are_held_too(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render = nginx_module.render_main
    monkeypatch.setattr(
        nginx_module, "render_main", lambda *a, **k: render(*a, **k).replace("backlog=4096", "backlog=4096 http2")
    )
    body = short_dir / "body"
    body.write_bytes(b"x" * 300_000)
    with held_site(short_dir) as site, contextlib.ExitStack() as stack:
        site.nginx.apply(control(site))
        clients = [curl(site) for _ in range(3)]
        gone = curl(site)
        assert in_line(site) == 1
        gone.kill()
        gone.communicate()
        wait_until(lambda: in_line(site) == 0)
        assert counted(site).gone == 1
        slow = subprocess.Popen(
            ["curl", "-sS", "--http2-prior-knowledge", "-X", "POST", "-T", "-", f"http://{site.nginx.address}{COMPOSE}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        stack.callback(slow.kill)
        assert slow.stdin is not None
        slow.stdin.write(b"y" * 1000)
        slow.stdin.flush()
        clients.append(curl(site, COMPOSE, "--data-binary", f"@{body}"))
        assert in_line(site) == 1, "a body of unknown length takes no place before it has come"
        slow.stdin.close()
        slow.stdin = None
        wait_until(lambda: in_line(site) == 2)
        clients.append(slow)
        site.heal()
        for server in site.servers:
            server.answer_next(answer(200, "late"))
        for client in clients:
            out, error = client.communicate()
            assert (client.returncode, error) == (0, b"")
            assert out in (b"late", b"0", b"1", b"2")
        bodies = [len(each.body) for server in site.servers for each in server.requests if each.body]
        assert sorted(bodies) == [1000, 300_000]
        wait_until(lambda: site.in_flight() == 0)
