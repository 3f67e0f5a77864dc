"""Two controls at once in memory: a share of the requests goes by the new one, the others by its base."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from actuators.contract.control import ServiceTimes, Weights
from actuators.errors import ActuationError, ConfigError
from actuators.http_client import http_session
from actuators.nginx.config import NginxOptions
from actuators.nginx.control_endpoint import MemoryControl
from tests.support.http_server import CLOSE
from tests.support.nginx_site import HOME, Site, answer, running_site
from tests.support.waiting import wait_until

pytestmark = pytest.mark.nginx

REQUESTS = 900
NEW, BASE = (7, 2, 1), (1, 1, 1)


@pytest.fixture(params=[1, 2])
def site(short_dir: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    options = NginxOptions(method="round_robin", actuation="memory", worker_processes=request.param)
    with running_site(short_dir, options) as site:
        yield site


def weights(site: Site, values: tuple[int, ...]) -> Weights:
    return Weights(site.topology, np.tile(values, (3, 1)))


def shares(site: Site) -> NDArray[np.float64]:
    """Of the servers among REQUESTS requests over six connections, as the servers counted them."""
    before = np.array([len(server.requests) for server in site.servers])
    for _ in range(6):
        with http_session(10.0) as session:
            for _ in range(REQUESTS // 6):
                assert session.get(f"http://{site.nginx.address}{HOME}").status_code == 200
    after = np.array([len(server.requests) for server in site.servers])
    return (after - before) / REQUESTS


@pytest.mark.parametrize("percent", [0, 10, 50, 100])
def test_that_percentage_of_the_requests_goes_by_the_new_control(site: Site, percent: float) -> None:
    new, base = np.array(NEW) / sum(NEW), np.array(BASE) / sum(BASE)
    site.nginx.split(percent, "round_robin", weights(site, NEW), "round_robin", weights(site, BASE))
    expected = base + percent / 100 * (new - base)
    # Which requests are new is drawn: the counts of both controls vary as a binomial number does. With what is added
    # for whole requests, the limit is five deviations and more: beyond it less than once in 10^5 runs.
    errors = np.sqrt(percent / 100 * (1 - percent / 100) / REQUESTS) * np.abs(new - base) + 2 / REQUESTS
    assert (np.abs(shares(site) - expected) <= 4 * errors).all()


def test_it_is_shown_and_ends_with_the_next_control(site: Site) -> None:
    new, base = weights(site, NEW), weights(site, BASE)
    times = ServiceTimes(site.topology, np.full((3, 3), 0.01), np.full(3, 2.0))
    assert site.nginx.split_in_force() is None
    site.nginx.split(12.5, "expected_delay", times, "round_robin", base)
    shown = site.nginx.split_in_force()
    assert shown is not None
    assert (shown.percent, shown.method, shown.base_method) == (12.5, "expected_delay", "round_robin")
    assert isinstance(shown.control, ServiceTimes)
    assert shown.base_control == base
    assert isinstance(site.nginx.control(), ServiceTimes), "the control in force is the new one"
    site.nginx.split(40, "round_robin", new, "least_conn", base)
    assert site.nginx.apply(new).changed, "the same control, now for all requests"
    assert site.nginx.split_in_force() is None
    assert site.nginx.control() == new
    assert site.who(10).count("0") == 7
    site.nginx.split(40, "round_robin", new, "least_conn", base)
    with pytest.raises(ConfigError, match="give 0 to 100"):
        site.nginx.split(101, "round_robin", new, "round_robin", base)
    with pytest.raises(ActuationError, match="not possible"):
        site.nginx.split(50, "random_two", new, "round_robin", base)
    assert site.nginx.split_in_force() is not None
    site.nginx.balance("round_robin", base)
    assert site.nginx.split_in_force() is None
    assert sorted(site.who(9)) == sorted(3 * "012")


def test_a_server_leaves_the_rotation_of_both_and_comes_back(site: Site) -> None:
    times = ServiceTimes(site.topology, np.full((3, 3), 0.01), np.full(3, 2.0))
    endpoint = MemoryControl(site.nginx.control_url, site.nginx.token, site.topology)
    with contextlib.closing(endpoint):
        site.nginx.split(50, "expected_delay", times, "round_robin", weights(site, NEW))
        down = np.tile([False, True, False], (3, 1))
        endpoint.rotate(down)
        shown = site.nginx.split_in_force()
        assert shown is not None
        assert shown.percent == 50
        assert shown.control.down.tolist() == shown.base_control.down.tolist() == down.tolist()
        assert isinstance(shown.control, ServiceTimes)
        assert shown.control.tau_s.tolist() == times.tau_s.tolist()
        assert shown.base_control == replace(weights(site, NEW), down=down)
        assert "1" not in site.who(30)
        with pytest.raises(ActuationError, match="usable server"):
            endpoint.rotate(np.ones((3, 3), bool))
        endpoint.rotate(np.zeros((3, 3), bool))
        shown = site.nginx.split_in_force()
        assert shown is not None
        assert not shown.control.down.any()
        assert not shown.base_control.down.any()
        assert {*site.who(30)} == {*"012"}


def test_both_controls_count_the_same_requests_in_flight(short_dir: Path) -> None:
    """least_conn beside least_conn: held requests of one control keep the other away from their servers."""
    options = NginxOptions(method="least_conn", actuation="memory")
    with running_site(short_dir, options) as site:
        site.nginx.split(50, "least_conn", weights(site, (1, 1, 1)), "least_conn", weights(site, (1, 1, 1)))
        site.hang()
        pending = [site.pending() for _ in range(9)]
        assert [len(server.requests) for server in site.servers] == [3, 3, 3]
        for connection in pending:
            connection.close()
        wait_until(lambda: site.in_flight() == 0)


def test_retries_leave_no_count_behind_and_a_wrong_text_changes_nothing(site: Site) -> None:
    new, base = weights(site, NEW), weights(site, BASE)
    site.nginx.split(50, "round_robin", new, "round_robin", base)
    site.script[0] = lambda _: CLOSE
    assert {site.get(HOME)[0] for _ in range(30)} == {200}
    site.script[1] = lambda _: answer(503)
    for _ in range(10):
        site.get(HOME)
    # The other worker counts a request back after its answer has left.
    wait_until(lambda: site.in_flight() == 0)
    shown = site.nginx.split_in_force()
    assert shown is not None
    assert (shown.percent, shown.control, shown.base_control) == (50, new, base)
