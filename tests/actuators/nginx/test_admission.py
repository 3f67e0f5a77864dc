"""Admission control in NGINX: who is refused, what is counted, that nothing leaks; limits equal to the simulator's."""

from __future__ import annotations

import http.client
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from actuators.contract.admission import NEVER, Admission, AdmissionNumbers, AdmissionRule
from actuators.contract.topology import Topology, social_network
from actuators.contract.window import AdmissionWindow
from actuators.errors import ActuationError
from actuators.http_client import http_session
from actuators.nginx.admission_endpoint import AdmissionEndpoint, from_text, to_text
from actuators.nginx.config import NginxOptions
from actuators.processes.system import children
from actuators.statistics.vts import AdmissionEntry
from envs.admission.rule import Limits, TickCounts
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

EXTRA = r"""
    location = /guarded {
      auth_request /wrk2-api/user-timeline/read; proxy_pass http://home_read_backend;
      access_by_lua_block { ADMISSION.enter("home_read_backend") } log_by_lua_block { STATUS.log("home_read_backend") }
    }
    location = /with-page {
      proxy_pass http://home_read_backend; error_page 503 =200 /page;
      access_by_lua_block { ADMISSION.enter("home_read_backend") } log_by_lua_block { STATUS.log("home_read_backend") }
    }
    location = /page { proxy_pass http://user_read_backend; }
    location = /with-plain-page {
      proxy_pass http://home_read_backend; error_page 503 /counted-page;
      access_by_lua_block { ADMISSION.enter("home_read_backend") } log_by_lua_block { STATUS.log("home_read_backend") }
    }
    location = /counted-page {
      proxy_pass http://user_read_backend; log_by_lua_block { STATUS.log("user_read_backend") }
    }
    location = /steps {
      content_by_lua_block {
        local rule, plans = require "admission_rule", require "admission_plan"
        ngx.req.read_body()
        local plan, rest = ngx.req.get_body_data():match("^(.-)steps\n(.*)$")
        plan = assert(plans.parse(plan))
        local state = rule.begin(plan)
        for line in rest:gmatch("[^\n]+") do
          local words, ticks = {}, {}
          for word in line:gmatch("%S+") do words[#words + 1] = tonumber(word) end
          for g = 1, #plan.entries do
            local at = 2 + 5 * (g - 1)
            ticks[g] = { finished = words[at + 1], late = words[at + 2], seconds = words[at + 3], over = words[at + 4],
              silent_s = words[at + 5] }
          end
          state = rule.step(plan, state, ticks, words[1], words[2])
          for g = 1, #plan.entries do ngx.print(string.format("%.12g ", rule.limit(plan, plan.entries[g], state))) end
          ngx.print("\n")
        end
      }
    }
    location = /keys {
      content_by_lua_block { ngx.print(table.concat(ngx.shared.deepsched_balancer:get_keys(0), "\n")) }
    }
    location = /without-version {
      content_by_lua_block { ngx.shared.deepsched_balancer:delete("admission version") }
    }
    location = /in-a-file { client_body_in_file_only clean; content_by_lua_block { ADMISSION.serve() } }
    location = /break-a-tick {
      content_by_lua_block {
        local tick = ADMISSION.tick
        ADMISSION.tick = function() ADMISSION.tick = tick error("broken on purpose") end
      }
    }
    location = /no-more-ticks { content_by_lua_block { ADMISSION.on_timer = function() end } }
"""


def rule(topology: Topology, limit: float = 2.0, **more: object) -> Admission:
    """All groups alike: at most `limit` requests in flight, by the rule `fixed`, without a cap on refusals."""
    ones = np.ones(3)
    numbers = AdmissionNumbers(multiple=limit, tick_s=0.1, most_refused=1.0, least_answers=1)
    return replace(Admission(topology, "fixed", ones, ones, ones, ones / 3, numbers), **more)  # type: ignore[arg-type]


@pytest.fixture(params=["least_conn", "reload"])
def options(request: pytest.FixtureRequest) -> NginxOptions:
    """Requests are balanced in memory, or by NGINX itself."""
    return NginxOptions(admission=True, actuation="reload" if request.param == "reload" else "memory")


@pytest.fixture
def site(short_dir: Path, options: NginxOptions, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    add_locations(monkeypatch, EXTRA)
    with running_site(short_dir, options) as site:
        site.collector.begin()
        yield site


def admit(site: Site, admission: Admission) -> None:
    """Returns when the first limits are in force."""
    site.nginx.admit(admission)
    wait_until(lambda: any(entry.limit is not None for entry in status(site)))


def status(site: Site) -> tuple[AdmissionEntry, ...]:
    found = site.balancer().admission
    assert found is not None
    return found.groups


def multiple(site: Site) -> float:
    found = site.balancer().admission
    assert found is not None
    return found.multiple


def counts(site: Site) -> AdmissionWindow:
    found = site.collector.window().admission
    assert found is not None
    return found


def ask(site: Site, path: str = HOME) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(site.nginx.address, timeout=PATIENCE_S)
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    return response


def test_without_a_rule_nothing_is_refused_and_nothing_counted(site: Site) -> None:
    assert {site.get()[0] for _ in range(5)} == {200}
    assert site.collector.window().admission is None
    assert all(entry.offered == 0 for entry in status(site))


def test_a_request_beyond_the_limit_is_refused_with_503_and_may_come_again(site: Site) -> None:
    admit(site, rule(site.topology, 2))
    site.hang()
    pending = [site.pending(), site.pending(USER)]
    refused = ask(site, COMPOSE)
    assert refused.status == 503
    assert refused.getheader("Retry-After") in ("1", "2")
    assert refused.getheader("X-Refused") == "overload"
    for connection in pending:
        connection.close()
    wait_until(lambda: all(entry.in_flight == 0 for entry in status(site)))
    site.heal()
    assert ask(site, COMPOSE).status == 200
    window = site.collector.window()
    assert window.admission is not None
    assert window.admission.offered.tolist() == [2, 1, 1]
    assert window.admission.refused.tolist() == [1, 0, 0]
    assert window.admission.spared.tolist() == [0, 0, 0]
    assert window.admission.in_flight.tolist() == [0, 0, 0]
    assert window.admission.limits.tolist() == [2, 2, 2]


def test_a_refusal_is_no_error_of_a_server(site: Site) -> None:
    admit(site, rule(site.topology, 1))
    site.hang()
    pending = site.pending()
    before = site.collector.window()
    assert before.client_errors == 0
    assert [ask(site).status for _ in range(3)] == [503] * 3
    window = site.collector.window()
    assert window.client_errors == 0
    assert window.requests.sum() == window.server_errors.sum() == 0
    assert not window.down.any()
    pending.close()


def test_a_plan_is_shown_as_it_was_set_and_can_be_taken_back(site: Site) -> None:
    admission = replace(
        rule(site.topology), rule="aimd_thresh", importance=np.array([1.0, NEVER, 0.1]), percent=12.5, machines=3,
        factors=np.array([1.0, 2.0, 0.5]),
    )  # fmt: skip
    site.nginx.admit(admission)
    endpoint = AdmissionEndpoint(site.nginx.admission_url, site.nginx.token, site.topology)
    found = endpoint.get()
    assert found is not None
    assert to_text(found) == to_text(admission)
    site.nginx.admit(None)
    assert endpoint.get() is None
    endpoint.close()


WRONG = (
    "rule fastest\n", "percent 101\n", "percent x\n", "machines 0\n", "number tick_s 9\n", "number speed 1\n",
    "group nobody 1 1 1 1 1\n", "group home_read_backend 1 1 1 1\n", "group home_read_backend 1 -1 1 1 1\n",
    "group home_read_backend nan 1 1 1 1\n", "weight home_read_backend 1\n", "rule fixed\n", "number\n",
)  # fmt: skip


def test_a_wrong_text_is_refused_whole(short_dir: Path) -> None:
    with running_site(short_dir, NginxOptions(admission=True)) as site, http_session(10.0) as session:
        before = to_text(rule(site.topology))
        url, headers = site.nginx.admission_url, {"X-Deepsched-Token": site.nginx.token}
        assert session.post(url, data=before, headers={"X-Deepsched-Token": "x"}).status_code == 403
        assert session.post(url, data=before, headers=headers).text == before
        for text in WRONG:
            refused = session.post(url, data=text, headers=headers)
            assert refused.status_code == 400, text
            assert refused.text.startswith("refused: "), text
            assert session.get(url).text == before


def test_a_text_of_other_groups_is_one_error() -> None:
    topology = social_network()
    other = Topology((replace(topology.groups[0], name="other"),))
    with pytest.raises(ActuationError, match="not a rule of admission"):
        from_text(to_text(rule(topology)), other)


def test_in_shadow_refusals_are_only_counted(site: Site) -> None:
    admit(site, rule(site.topology, 1, percent=0.0))
    site.hang()
    pending = [site.pending() for _ in range(3)]
    window = counts(site)
    assert (window.offered[1], window.refused[1], window.spared[1]) == (3, 0, 2)
    assert window.in_flight.tolist() == [0, 3, 0]
    for connection in pending:
        connection.close()


def test_a_group_that_is_never_refused_fills_the_room_of_the_others(site: Site) -> None:
    admit(site, rule(site.topology, 2, importance=np.array([1.0, NEVER, 1.0])))
    site.hang()
    pending = [site.pending(HOME) for _ in range(4)]
    assert ask(site, USER).status == 503
    assert counts(site).refused.tolist() == [0, 0, 1]
    for connection in pending:
        connection.close()


def test_a_group_outside_the_plan_is_left_alone(site: Site) -> None:
    text = "".join(line for line in to_text(rule(site.topology, 1)).splitlines(True) if "user_read" not in line)
    with http_session(10.0) as session:
        headers = {"X-Deepsched-Token": site.nginx.token}
        assert session.post(site.nginx.admission_url, data=text, headers=headers).status_code == 200
    wait_until(lambda: status(site)[0].limit is not None)
    site.hang()
    pending = [site.pending(USER) for _ in range(3)]
    site.heal()
    assert ask(site, HOME).status == 200
    assert status(site)[2].limit is None
    for connection in pending:
        connection.close()


def test_of_one_group_never_more_than_the_cap_is_refused(site: Site) -> None:
    numbers = AdmissionNumbers(multiple=1, tick_s=5, most_refused=0.5, least_answers=1)
    admit(site, rule(site.topology, 1, numbers=numbers))
    site.hang()
    pending = [site.pending(USER)]
    site.heal()
    statuses = [ask(site, HOME).status for _ in range(20)]
    assert statuses.count(503) == 10
    window = counts(site)
    assert (window.refused[1], window.spared[1]) == (10, 10)
    for connection in pending:
        connection.close()


def test_late_answers_and_quick_errors_are_told_apart(site: Site) -> None:
    slow = rule(site.topology, 50, deadlines_s=np.full(3, 1.0), idle_s=np.full(3, 0.9))
    admit(site, slow)
    assert ask(site).status == 200
    for index in range(3):
        site.script[index] = lambda _: answer(500)
    assert ask(site).status == 500
    site.hang()
    site.abort()
    gone_late = site.pending()
    wait_until(lambda: status(site)[1].in_flight == 1)
    inside_ms = site.collector.snapshot().now_ms
    wait_until(lambda: site.collector.snapshot().now_ms > inside_ms + 1050)
    gone_late.close()
    wait_until(lambda: status(site)[1].in_flight == 0)
    window = counts(site)
    assert (window.finished[1], window.late[1], window.quick[1]) == (2, 1, 2)


def test_counts_go_back_to_0_after_aborts_reloads_and_killed_workers(site: Site) -> None:
    admit(site, rule(site.topology, 100))
    site.hang()
    site.abort()
    pending = site.pending()
    wait_until(lambda: status(site)[1].in_flight == 1)
    site.kill_workers()
    wait_until(lambda: status(site)[1].in_flight == 0)
    pending.close()
    pending = site.pending()
    site.nginx.forget_failures()
    site.nginx.set_method("round_robin")
    assert status(site)[1].in_flight == 1
    pending.close()
    wait_until(lambda: status(site)[1].in_flight == 0)
    site.heal()
    assert ask(site).status == 200
    wait_until(lambda: status(site)[1].limit == 100)


def test_a_worker_that_is_killed_while_it_ends_leaves_nothing_inside(site: Site) -> None:
    admit(site, rule(site.topology, 100))
    site.hang()
    pending = site.pending()
    (old,) = children(site.nginx.master_pid)
    os.kill(site.nginx.master_pid, signal.SIGHUP)
    wait_until(lambda: len(children(site.nginx.master_pid)) == 2)
    assert sum(entry.in_flight for entry in status(site)) == 1
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: sum(entry.in_flight for entry in status(site)) == 0)
    pending.close()


def test_an_auth_request_counts_where_requests_are_balanced_in_memory(site: Site) -> None:
    admit(site, rule(site.topology, 100))
    assert ask(site, "/guarded").status == 200
    window = counts(site)
    assert window.offered[1] == 1
    assert window.offered[2] == (1 if site.nginx.in_memory else 0)
    assert window.in_flight.tolist() == [0, 0, 0]


def test_the_page_for_refused_requests_is_not_refused(site: Site) -> None:
    admit(site, rule(site.topology, 1))
    site.hang()
    pending = site.pending(USER)
    site.heal()
    assert ask(site, "/with-page").status == 200
    window = counts(site)
    assert window.refused.tolist() == [0, 1, 0]
    pending.close()
    wait_until(lambda: sum(entry.in_flight for entry in status(site)) == 0)


def filled(site: Site) -> http.client.HTTPConnection:
    """The one request that may be in flight; the servers answer all later ones."""
    admit(site, rule(site.topology, 1))
    site.hang()
    pending = site.pending(HOME)
    site.heal()
    site.collector.window()
    return pending


def test_a_server_that_sends_the_page_for_refused_requests_has_not_failed(site: Site) -> None:
    pending = filled(site)
    refused = [ask(site, "/with-plain-page") for _ in range(5)]
    assert {(each.status, each.getheader("X-Refused")) for each in refused} == {(503, "overload")}
    window = site.collector.window()
    assert window.requests[2].sum() == 5
    assert window.server_errors.sum() == 0
    assert window.client_errors == 0
    assert window.admission is not None
    assert window.admission.offered.tolist() == [0, 5, 0]
    assert window.admission.refused.tolist() == [0, 5, 0]
    assert window.admission.late.sum() == window.admission.finished.sum() == 0
    pending.close()


def test_errors_are_counted_beside_refusals_that_clients_see_as_something_else(site: Site) -> None:
    pending = filled(site)
    assert [ask(site, "/with-page").status for _ in range(5)] == [200] * 5
    pending.close()
    wait_until(lambda: sum(entry.in_flight for entry in status(site)) == 0)
    before = site.collector.window()
    for index in range(3):
        site.script[index] = lambda _: answer(500)
    assert ask(site).status == 500
    after = site.collector.window()
    assert (before.client_errors, after.client_errors) == (0, 1)


def test_a_connection_that_changes_its_protocol_is_not_in_flight(site: Site) -> None:
    admit(site, rule(site.topology, 2))
    site.hang()
    before = sum(len(server.requests) for server in site.servers)
    sockets = [http.client.HTTPConnection(site.nginx.address, timeout=PATIENCE_S) for _ in range(4)]
    for connection in sockets:
        connection.request("GET", HOME, headers={"Upgrade": "websocket", "Connection": "Upgrade"})
    wait_until(lambda: sum(len(server.requests) for server in site.servers) == before + 4)
    assert [entry.in_flight for entry in status(site)] == [0, 0, 0]
    site.heal()
    assert ask(site).status == 200
    for connection in sockets:
        connection.close()
    counted = counts(site)
    assert (counted.offered[1], counted.refused[1], counted.late[1]) == (5, 0, 0)


@pytest.fixture
def ahead(short_dir: Path, options: NginxOptions, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """As `site`, with a clock that a test sets back; limits move by every tick in which a request was answered."""
    add_locations(monkeypatch, EXTRA)
    run_ahead(monkeypatch)
    with running_site(short_dir, options) as site:
        admit(site, rule(site.topology, 50, rule="aimd_thresh"))
        wait_until(lambda: moves(site, 2))
        yield site


def moves(site: Site, count: int) -> bool:
    """Whether the limits move so many times while requests are answered."""
    for _ in range(count):
        before = multiple(site)
        wait_until(lambda before=before: ask(site).status == 200 and multiple(site) > before)
    return True


def test_limits_go_on_moving_after_the_clock_was_set_back(ahead: Site) -> None:
    set_clock_back(ahead)
    assert moves(ahead, 3)
    assert all(entry.limit is not None for entry in status(ahead))


def test_limits_of_a_time_before_the_clock_was_set_back_are_not_in_force(ahead: Site) -> None:
    ahead.nginx.admit(rule(ahead.topology, 1))
    wait_until(lambda: status(ahead)[1].limit == 1)
    ahead.hang()
    pending = ahead.pending()
    assert ask(ahead).status == 503
    assert ask(ahead, "/no-more-ticks").status == 200
    set_clock_back(ahead)
    assert status(ahead)[1].limit is None
    ahead.heal()
    assert [ask(ahead).status for _ in range(3)] == [200] * 3
    pending.close()


def test_an_error_in_a_tick_does_not_end_the_ticks(site: Site) -> None:
    admit(site, rule(site.topology, 50, rule="aimd_thresh"))
    assert ask(site, "/break-a-tick").status == 200
    wait_until(lambda: "broken on purpose" in site.nginx.log_tail())
    assert moves(site, 2)


def test_ticks_leave_no_keys_behind(site: Site) -> None:
    """Behind a key that never expires, those that have expired would fill the dict, and push out the control."""
    numbers = AdmissionNumbers(tick_s=0.1, least_answers=1, most=1000)
    admit(site, rule(site.topology, rule="aimd_thresh", numbers=numbers))
    assert moves(site, 20)
    keys = site.get("/keys")[1].splitlines()
    assert len([key for key in keys if "tick" in key]) <= 1
    assert {"admission", "admission version"} <= set(keys)
    assert not site.nginx.in_memory or {"control", "version"} <= set(keys)


def test_a_rule_can_be_taken_back_although_its_version_was_lost(site: Site) -> None:
    admit(site, rule(site.topology, 1))
    assert ask(site, "/without-version").status == 200
    site.nginx.admit(None)
    site.hang()
    pending = [site.pending() for _ in range(2)]
    site.heal()
    assert ask(site).status == 200
    for connection in pending:
        connection.close()


@pytest.mark.parametrize("body", [b"", b"\n"])
def test_a_request_without_a_rule_in_its_body_changes_nothing(site: Site, body: bytes) -> None:
    admit(site, rule(site.topology, 50))
    headers = {"X-Deepsched-Token": site.nginx.token}
    with http_session(PATIENCE_S) as session:
        refused = session.post(site.nginx.admission_url, data=body, headers=headers)
    assert (refused.status_code, refused.text) == (
        400, "refused: no rule in the body; DELETE lets every request enter\n",
    )  # fmt: skip
    assert all(entry.limit is not None for entry in status(site))


def test_a_rule_in_a_file_is_refused_and_changes_nothing(site: Site) -> None:
    before = rule(site.topology, 50)
    admit(site, before)
    for folder in (site.upstreams_file.parent, site.upstreams_file.parent.parent):
        folder.chmod(0o711)  # else workers cannot write the file
    headers = {"X-Deepsched-Token": site.nginx.token}
    with http_session(PATIENCE_S) as session:
        url = f"http://{site.nginx.address}/in-a-file"
        refused = session.post(url, data=to_text(rule(site.topology, 1)), headers=headers)
        assert (refused.status_code, refused.text.count("\n")) == (400, 1)
        assert "client_body_in_file_only" in refused.text
        assert session.get(url).text == to_text(before)


def test_limits_that_nobody_moves_are_not_in_force(site: Site) -> None:
    admit(site, rule(site.topology, 1))
    site.hang()
    pending = [site.pending()]
    assert ask(site).status == 503
    assert ask(site, "/no-more-ticks").status == 200
    wait_until(lambda: status(site)[1].limit is None)
    pending.append(site.pending())
    for connection in pending:
        connection.close()


def test_two_workers_have_one_limit(short_dir: Path) -> None:
    with running_site(short_dir, NginxOptions(admission=True, worker_processes=2)) as site:
        site.collector.begin()
        admit(site, rule(site.topology, 3))
        site.hang()
        pending = [site.pending() for _ in range(3)]
        assert {ask(site).status for _ in range(6)} == {503}
        for connection in pending:
            connection.close()
        wait_until(lambda: status(site)[1].in_flight == 0)


def test_an_nginx_without_admission_control_says_so(short_dir: Path) -> None:
    with running_site(short_dir, NginxOptions()) as site, pytest.raises(ActuationError, match="no admission control"):
        site.nginx.admit(rule(site.topology))


def test_limits_are_those_of_the_simulator(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_locations(monkeypatch, EXTRA)
    with running_site(short_dir, NginxOptions(admission=True)) as site:
        for name in get_args(AdmissionRule):
            if name != "none":
                compare_limits(site, name)


def compare_limits(site: Site, name: AdmissionRule) -> None:
    generator = np.random.default_rng(7)
    numbers = AdmissionNumbers(least_answers=1)
    admission = Admission(
        site.topology, name, np.array([0.1, 0.4, 1.2]), np.array([3.0, 1.0, NEVER]), np.array([0.05, 0.1, 0.3]),
        np.array([100.0, 40.0, 10.0]), numbers, machines=2, factors=np.array([1.0, 0.5, 2.0]),
    )  # fmt: skip
    limits = Limits([admission])
    state, wanted, lines = limits.start(), [], []
    for step in range(200):
        # Calm and bad times in turn, and now and then a group in which nothing ends.
        finished = generator.poisson(20, (1, 3)) * (generator.random((1, 3)) > 0.2)
        finished[0, 0] += 1  # without any answer the limits stay, which is decided elsewhere
        late = generator.binomial(finished, 0.4 if step // 20 % 2 else 0.02)
        over = generator.poisson(2, (1, 3)) * (generator.random() < 0.4)
        seconds = finished * admission.idle_s * generator.uniform(0.8, 4, (1, 3))
        in_flight, peak = generator.poisson(5, (1, 3)), generator.poisson(20, 1)
        none = np.zeros((1, 3), np.int64)
        state = limits.after(state, TickCounts(over, over, over, finished, late, none, seconds, in_flight, peak))
        wanted.append(limits.of(state)[0])
        columns = zip(finished[0], late[0], seconds[0], over[0], state.silent_s[0], strict=True)
        words = [float(value) for column in columns for value in column]
        lines.append(" ".join(map(repr, [float(peak[0]), numbers.tick_s, *words])))
    with http_session(10.0) as session:
        body = to_text(admission) + "steps\n" + "\n".join(lines)
        shown = session.post(f"http://{site.nginx.address}/steps", data=body).text.splitlines()
    np.testing.assert_allclose([[float(word) for word in line.split()] for line in shown], wanted, rtol=1e-9)
