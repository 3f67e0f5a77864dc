"""Balancing in memory when servers fail: pauses, trials, the error score, and that all of it can be forgotten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import ServiceTimes, Weights
from actuators.contract.topology import social_network
from actuators.nginx.config import NginxOptions
from tests.support.http_server import CLOSE, LATER
from tests.support.nginx_site import USER, Site, add_locations, answer, run_ahead, running_site, set_clock_back
from tests.support.waiting import wait_until

pytestmark = pytest.mark.nginx


@pytest.fixture
def site(short_dir: Path) -> Iterator[Site]:
    with running_site(short_dir, NginxOptions(method="round_robin", actuation="memory")) as site:
        yield site


def service_times(site: Site, *tau_s: float) -> ServiceTimes:
    return ServiceTimes(site.topology, np.tile(np.array(tau_s), (3, 1)), np.full(3, 4.0))


def test_a_dead_server_is_passed_over_and_left_alone_for_a_while(site: Site) -> None:
    site.collector.begin()
    site.refuse(0)
    answers = site.who(30)
    assert set(answers) == {"1", "2"}
    window = site.collector.window()
    assert window.responses[1, :, 4].tolist() == [1, 0, 0]
    assert window.requests[1].sum() == 31
    assert {entry.server for entry in site.balancer().servers if entry.out} == {site.servers[0].address}
    assert Counter(site.who(10, USER)).keys() == {"1", "2"}
    assert site.collector.window().requests[2, 0] == 0
    assert site.in_flight() == 0


def test_after_its_pause_one_request_tries_the_server_again(short_dir: Path) -> None:
    options = NginxOptions(method="round_robin", actuation="memory", fail_timeout_s=1)
    with running_site(short_dir, options) as site:
        site.script[0] = lambda _: CLOSE
        site.who(9)
        site.collector.begin()
        site.heal()
        assert set(site.who(9)) == {"1", "2"}

        def back() -> bool:
            return "0" in site.who(3)

        wait_until(back)
        assert Counter(site.who(9)) == {"0": 3, "1": 3, "2": 3}


@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_that_was_under_way_does_not_end_a_pause(site: Site, status: int) -> None:
    for index in range(3):
        site.script[index] = lambda _: LATER
    connections = [site.pending() for _ in range(3)]
    site.heal()
    site.script[0] = lambda _: CLOSE
    assert set(site.who(6)) == {"1", "2"}
    for server in site.servers:
        server.answer_next(answer(status))
    assert [connection.getresponse().status for connection in connections] == [status] * 3
    wait_until(lambda: site.in_flight() == 0)
    assert {entry.server for entry in site.balancer().servers if entry.out} == {site.servers[0].address}
    assert set(site.who(6)) == {"1", "2"}


@pytest.mark.parametrize("status", [500, 404])
def test_whatever_it_answers_a_server_on_trial_is_back(short_dir: Path, status: int) -> None:
    """NGINX's own methods forgive it, too; kept out, a server that still fails some requests loses 10 s more."""
    options = NginxOptions(method="round_robin", actuation="memory", fail_timeout_s=1)
    with running_site(short_dir, options) as site:
        site.script[0] = lambda _: CLOSE
        site.who(9)
        site.script[0] = lambda _: answer(status, "0")
        wait_until(lambda: "0" in site.who(3))
        assert Counter(site.who(9)) == {"0": 3, "1": 3, "2": 3}


def test_a_server_that_gets_little_is_tried_as_soon_as_its_pause_ends(short_dir: Path) -> None:
    """Its share is 1 of 199, its service time the longest: by their methods alone few requests would find it again."""
    options = NginxOptions(method="round_robin", actuation="memory", fail_timeout_s=1)
    with running_site(short_dir, options) as site:
        controls = (
            ("round_robin", Weights(site.topology, np.tile([1, 99, 99], (3, 1)))),
            ("expected_delay", service_times(site, 0.9, 0.001, 0.001)),
        )
        for method, control in controls:
            site.nginx.forget_failures()
            site.script[0] = lambda _: CLOSE
            site.nginx.balance("round_robin", Weights.equal(site.topology))
            assert set(site.who(9)) == {"1", "2"}
            site.heal()
            site.nginx.balance(method, control)
            wait_until(lambda: "0" in site.who(1))
            assert {entry.out for entry in site.balancer().servers} == {False}
            assert "0" not in site.who(20), "one trial, then its own small share"
        assert set(site.answers) == {200}


def test_after_a_good_trial_a_server_has_its_whole_share(short_dir: Path) -> None:
    options = NginxOptions(method="expected_delay", actuation="memory", fail_timeout_s=1)
    with running_site(short_dir, options) as site:
        site.nginx.apply(service_times(site, 0.001, 0.010, 0.010))
        site.script[0] = lambda _: CLOSE
        assert "0" not in site.who(9)
        site.heal()
        wait_until(lambda: "0" in site.who(1))
        assert site.who(20) == 20 * "0"
        assert set(site.answers) == {200}


def test_failures_can_be_forgotten(site: Site) -> None:
    site.nginx.set_method("expected_delay")
    site.nginx.apply(service_times(site, 0.001, 0.010, 0.010))
    site.script[0] = lambda _: CLOSE
    assert "0" not in site.who(20)
    site.heal()
    assert "0" not in site.who(20), "out for 10 s"
    site.nginx.forget_failures()
    assert site.who(20) == 20 * "0", "neither out nor suspect"
    assert not any(entry.out for entry in site.balancer().servers)
    shown = site.nginx.control()
    assert isinstance(shown, ServiceTimes), "the control stays"
    site.script[0] = lambda _: answer(500)
    assert "0" not in site.who(9)[2:], "and it may fail again"


def test_a_server_that_fails_quickly_loses_its_attraction(site: Site) -> None:
    site.nginx.set_method("expected_delay")
    site.nginx.apply(service_times(site, 0.001, 0.010, 0.010))
    site.script[0] = lambda _: answer(500)
    codes = [site.get()[0] for _ in range(20)]
    assert codes.count(500) <= 2


@pytest.mark.parametrize("failure", [CLOSE, answer(500)])
def test_failures_of_a_time_before_the_clock_was_set_back_keep_no_server_out(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, failure: bytes
) -> None:
    run_ahead(monkeypatch)
    with running_site(short_dir, NginxOptions(method="expected_delay", actuation="memory")) as site:
        site.nginx.apply(service_times(site, 0.001, 0.010, 0.010))
        site.script[0] = lambda _: failure
        site.who(3)
        site.heal()
        assert "0" not in site.who(3)
        set_clock_back(site)
        assert site.who(5) == "00000"


SORRY = """    proxy_intercept_errors on; proxy_next_upstream off; error_page 500 502 504 {0};
    location = /sorry.html {{ return 200 sorry; }}
    location @home {{ proxy_pass http://{1}; proxy_intercept_errors off; }}
"""


@pytest.mark.parametrize("failure", [CLOSE, answer(500)])
@pytest.mark.parametrize("page", ["=200 /sorry.html", "= @home"])
def test_a_failure_behind_an_error_page_counts_for_its_server(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, page: str, failure: bytes
) -> None:
    """The page is of NGINX, or of a location that is balanced: then the failure counts before that is."""
    add_locations(monkeypatch, SORRY.format(page, social_network().groups[1].name))
    with running_site(short_dir, NginxOptions(method="expected_delay", actuation="memory")) as site:
        site.nginx.apply(service_times(site, 0.001, 0.010, 0.010))
        site.script[0] = lambda _: failure
        seen = site.who(20)
        assert set(site.answers) == {200}
        assert len(site.servers[0].requests) <= 2
        assert site.in_flight() == 0
        if page == "= @home":
            assert "0" not in seen
        else:
            assert any(entry.out for entry in site.balancer().servers) == (failure == CLOSE)


def test_an_answer_of_another_upstream_before_is_not_the_servers(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a cache in front that has failed: the server that answered instead is a good one."""
    before = """    location = /before { proxy_pass http://127.0.0.1:1; error_page 502 504 = @home; }
    location @home { proxy_pass http://GROUP; }
"""
    add_locations(monkeypatch, before.replace("GROUP", social_network().groups[1].name))
    with running_site(short_dir, NginxOptions(method="round_robin", actuation="memory")) as site:
        assert Counter(site.who(9, "/before")) == {"0": 3, "1": 3, "2": 3}
        assert not any(entry.out for entry in site.balancer().servers)
        assert sum(entry.requests for entry in site.balancer().servers) == 9


def test_when_all_servers_are_out_requests_are_still_tried(site: Site) -> None:
    for index in range(3):
        site.script[index] = lambda _: CLOSE
    assert [site.get()[0] for _ in range(3)] == [502, 502, 502]
    site.heal()
    assert site.get()[0] == 200
    assert site.in_flight() == 0
