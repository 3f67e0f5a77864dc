"""Balancing in memory: exact shares, retries, health, and in-flight counts that never drift."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import ServiceTimes, Weights
from actuators.errors import ActuationError
from actuators.http_client import http_session
from actuators.nginx.config import NginxOptions
from tests.support.nginx_site import COMPOSE, HOME, USER, Site, add_locations, answer, running_site
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.nginx

EXTRA = """
    location = /redirected {
      proxy_pass http://compose_backend; proxy_intercept_errors on; error_page 500 /again; error_page 501 = @named;
    }
    location = /again { proxy_pass http://home_read_backend; }
    location @named { proxy_pass http://user_read_backend; }
    location = /guarded { auth_request /wrk2-api/user-timeline/read; proxy_pass http://home_read_backend; }
"""


@pytest.fixture
def site(short_dir: Path) -> Iterator[Site]:
    with running_site(short_dir, NginxOptions(method="round_robin", actuation="memory")) as site:
        yield site


def service_times(site: Site, *tau_s: float, workers: float = 4) -> ServiceTimes:
    return ServiceTimes(site.topology, np.tile(np.array(tau_s), (3, 1)), np.full(3, workers))


def test_round_robin_shares_are_exact_and_a_change_needs_no_reload(site: Site) -> None:
    loaded = site.collector.begin().load_ms
    applied = site.nginx.apply(Weights(site.topology, np.tile([5, 3, 2], (3, 1))))
    assert applied.changed
    for _ in range(3):
        assert Counter(site.who(10)) == {"0": 5, "1": 3, "2": 2}
    assert site.nginx.control() == Weights(site.topology, np.tile([5, 3, 2], (3, 1)))
    assert not site.nginx.apply(Weights(site.topology, np.tile([5, 3, 2], (3, 1)))).changed
    down = np.zeros((3, 3), bool)
    down[1, 0] = True
    site.nginx.apply(Weights(site.topology, np.tile([5, 3, 2], (3, 1)), down))
    assert Counter(site.who(10)) == {"1": 6, "2": 4}
    window = site.collector.window()
    assert window.faults == ()
    assert window.requests[1].tolist() == [15, 15, 10]
    assert window.weight.tolist() == [[5, 3, 2]] * 3
    assert window.down.tolist() == down.tolist()
    assert site.collector.snapshot().load_ms == loaded


def test_round_robin_shares_are_exact_over_two_workers(short_dir: Path) -> None:
    options = NginxOptions(method="round_robin", actuation="memory", worker_processes=2)
    with running_site(short_dir, options) as site:
        site.nginx.apply(Weights(site.topology, np.tile([5, 3, 2], (3, 1))))
        for _ in range(5):
            assert Counter(site.who(10)) == {"0": 5, "1": 3, "2": 2}


def test_least_conn_goes_where_connections_per_weight_are_fewest(site: Site) -> None:
    site.nginx.set_method("least_conn")
    site.nginx.apply(Weights(site.topology, np.tile([4, 1, 1], (3, 1))))
    site.hang()
    pending = [site.pending() for _ in range(6)]
    assert [len(server.requests) for server in site.servers] == [4, 1, 1]
    for connection in pending:
        connection.close()
    wait_until(lambda: site.in_flight() == 0)


def test_expected_delay_begins_as_least_conn_then_weighs_waits_over_all_groups(site: Site) -> None:
    site.nginx.set_method("expected_delay")
    assert set(site.who(6)) == {"0", "1", "2"}
    control = service_times(site, 0.010, 0.004, 0.012, workers=1)
    assert site.nginx.apply(control).changed
    shown = site.nginx.control()
    assert isinstance(shown, ServiceTimes)
    assert (shown.tau_s == control.tau_s).all()
    assert (shown.workers == 1).all()
    site.collector.begin()
    assert set(site.who(5)) == {"1"}
    # One request of another group occupies the fast server's only worker: waiting 4 ms + 2.8 ms is still the best.
    site.hang()
    pending = [site.pending(USER)]
    site.heal()
    assert site.who(1) == "1"
    site.hang()
    pending.append(site.pending(COMPOSE))
    site.heal()
    # Now the wait there is 8 ms: the second fastest server is the better one.
    assert site.who(1) == "0"
    window = site.collector.window()
    assert window.delay is not None
    assert window.active is not None
    assert window.active.sum() == 2
    assert window.delay.requests[1].tolist() == [1, 6, 0]
    assert window.delay.idle_requests[1].tolist() == [1, 5, 0]
    assert window.delay.predicted_wait_s[1].tolist() == pytest.approx([0.0, 0.004, 0.0])
    assert window.delay.predicted_service_s[1].tolist() == pytest.approx([0.010, 0.024, 0.0])
    assert window.delay.tau_s.tolist() == control.tau_s.tolist()
    for connection in pending:
        connection.close()
    wait_until(lambda: site.in_flight() == 0)


def test_several_load_balancers_multiply_what_each_sees(short_dir: Path) -> None:
    options = NginxOptions(method="expected_delay", actuation="memory", load_balancers=4)
    with running_site(short_dir, options) as site:
        site.nginx.apply(service_times(site, 0.010, 0.004, 0.012, workers=4))
        assert set(site.who(3)) == {"1"}
        site.hang()
        pending = site.pending()
        site.heal()
        # One of ours in flight means four: 4 ms of waiting for one of 4 workers is 1 ms, 3.8 < 7.
        assert site.who(1) == "1"
        site.hang()
        more = site.pending(USER)
        site.heal()
        # Eight: 5 ms of waiting + 2.8 against 7.
        assert site.who(1) == "0"
        pending.close()
        more.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_in_flight_counts_never_drift(short_dir: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    add_locations(monkeypatch, EXTRA)
    options = NginxOptions(method="least_conn", actuation="memory", worker_processes=workers, max_fails=0)
    with running_site(short_dir, options) as site:
        for path in (HOME, USER, COMPOSE, "/nope", "/guarded"):
            site.get(path)
        # With two workers the other one counts a request back after its answer has left.
        wait_until(lambda: site.in_flight() == 0)
        for status, path in ((500, "/redirected"), (501, "/redirected"), (503, HOME)):
            site.script[0] = lambda _, s=status: answer(s)
            site.script[1] = site.script[2] = site.script[0]
            site.get(path)
            wait_until(lambda: site.in_flight() == 0)
        site.script[1] = lambda _: b""
        for _ in range(6):
            site.get(HOME)
            site.get(COMPOSE, "POST", b"text")
        wait_until(lambda: site.in_flight() == 0)
        site.hang()
        for path in (HOME, "/guarded", "/redirected"):
            site.abort(path)
        wait_until(lambda: site.in_flight() == 0)


def test_a_reload_and_a_killed_worker_leave_no_count_behind(short_dir: Path) -> None:
    options = NginxOptions(method="least_conn", worker_processes=2)
    with running_site(short_dir, options) as site:
        site.hang()
        pending = [http.client.HTTPConnection(site.nginx.address, timeout=PATIENCE_S) for _ in range(6)]
        for connection in pending:
            connection.request("GET", HOME)
        wait_until(lambda: site.in_flight() == 6)
        site.kill_workers()
        wait_until(lambda: site.in_flight() == 0)
        for connection in pending:
            connection.close()
        connection = http.client.HTTPConnection(site.nginx.address, timeout=PATIENCE_S)
        connection.request("GET", HOME)
        wait_until(lambda: site.in_flight() == 1)
        site.nginx.set_method("random_two")
        site.nginx.set_method("least_conn")
        assert site.in_flight() == 1
        connection.close()
        wait_until(lambda: site.in_flight() == 0)


def test_the_control_is_whole_or_refused(site: Site) -> None:
    weights = Weights(site.topology, np.tile([5, 3, 2], (3, 1)))
    site.nginx.apply(weights)
    port = int(site.nginx.status_url.split(":")[2].split("/")[0])

    def post(text: str, token: str, verb: str = "POST") -> int:
        with http_session(5.0) as session:
            return session.request(
                verb, f"http://127.0.0.1:{port}/control", data=text, headers={"X-Deepsched-Token": token}
            ).status_code

    server, group = site.servers[0].address, "home_read_backend"
    assert post("method round_robin\n", "wrong") == 403
    assert post("", "wrong", "DELETE") == 403
    for text in (
        "", "method none\n", f"method round_robin\nweight {group} {server} 0\n",
        f"method round_robin\nweight {group} x 1\n", f"method round_robin\nweight {group} {server} nan\n",
        "method round_robin\nnonsense 1\n", "method round_robin\nparse x\n",
        "method round_robin\n" + "".join(f"down {group} {s.address}\n" for s in site.servers),
        "method round_robin\ncanary 10\n", "method round_robin\nbase\nmethod round_robin\n",
        "method round_robin\ncanary 101\nbase\nmethod round_robin\n",
        "method round_robin\ncanary 5\nbase\nmethod none\n",
        f"method expected_delay\ntau {group} {server} -1\n", f"method expected_delay\nworkers {server} 0\n",
    ):  # fmt: skip
        assert post(text, site.nginx.token) == 400, text
    assert site.nginx.control() == weights
    with pytest.raises(ActuationError, match="takes weights"):
        site.nginx.apply(service_times(site, 1, 1, 1))
    public = site.nginx.address
    with http_session(5.0) as session:
        for path in ("/control", "/status", "/stub_status"):
            assert session.get(f"http://{public}{path}").status_code == 404


def test_no_request_after_the_acknowledgement_uses_the_old_control(site: Site) -> None:
    """Under load: other clients never fail, and a request sent after `apply` returned goes by the new control."""
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            site.get()

    def only(server: int) -> Weights:
        down = np.ones((3, 3), bool)
        down[:, server] = False
        return Weights(site.topology, np.ones((3, 3), int), down)

    clients = [threading.Thread(target=client) for _ in range(3)]
    for thread in clients:
        thread.start()
    for step in range(60):
        site.nginx.apply(only(step % 3))
        assert site.who(1) == str(step % 3)
    stop.set()
    for thread in clients:
        thread.join()
    assert set(site.answers) == {200}
