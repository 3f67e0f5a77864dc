"""A real NGINX: life cycle, vts-shaped statistics that equal what the servers counted, weights by reload."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import BalancingMethod, Weights
from actuators.contract.topology import Group, Topology, social_network
from actuators.contract.window import Window
from actuators.errors import ActuationError, ConfigError, MissingToolError, ProcessError, StatusError
from actuators.nginx import detect as nginx_detect
from actuators.nginx import instance as nginx_module
from actuators.nginx.config import NginxOptions
from actuators.nginx.instance import Nginx
from actuators.processes.system import children
from actuators.statistics.reader import Collector
from actuators.statistics.windows import difference
from tests.support.http_server import CLOSE
from tests.support.nginx_site import COMPOSE, HOME, USER, Site, answer, fake_nginx, running_site
from tests.support.paths import VTS
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.nginx

RECORDED = json.loads((VTS / "after_load.json").read_text())


def shape(value: object) -> object:
    """Keys and types of a document, whatever its numbers; lists by their first element."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items() if key != "overCounts"}
    if isinstance(value, list):
        return [shape(inner) for inner in value[:1]]
    return type(value).__name__


@pytest.fixture
def site(short_dir: Path) -> Iterator[Site]:
    with running_site(short_dir, NginxOptions(method="round_robin", actuation="reload")) as site:
        yield site


@pytest.mark.parametrize("method", ["least_conn", "late_binding"])
def test_the_folder_may_have_blanks_and_quotes_in_its_name(short_dir: Path, method: BalancingMethod) -> None:
    actuation = "reload" if method == "least_conn" else "memory"
    with running_site(short_dir / 'of "my" own;', NginxOptions(method=method, actuation=actuation)) as site:
        assert site.get(HOME)[0] == 200


@pytest.mark.parametrize("actuation", ["memory", "reload"])
def test_every_counter_equals_what_clients_and_servers_counted(short_dir: Path, actuation: str) -> None:
    options = NginxOptions(method="round_robin", actuation=actuation, max_fails=0)
    with running_site(short_dir, options) as site:
        first = site.collector.begin()
        site.script[1] = lambda request: CLOSE if "fail" in request.line else answer(200, "1")
        site.script[2] = lambda request: answer(503 if "fail" in request.line else 200, "2")
        for index in range(300):
            path = (HOME, USER)[index % 2] + ("?fail" if index % 7 == 0 else "")
            site.get(path)
            if index % 3 == 0:
                site.get(COMPOSE, "POST", b"x" * index)
        for path in ("/", "/nope", "/wrk2-api"):
            site.get(path)
        site.hang()
        for _ in range(9):
            site.abort()

        def counted() -> int:
            return int(window().requests.sum())

        def window() -> Window:
            with Collector(site.nginx.status_url, site.topology) as collector:
                return difference(first, collector.snapshot(), site.topology)

        received = [len(server.requests) for server in site.servers]
        wait_until(lambda: counted() == sum(received))
        seen = window()
        assert seen.faults == ()
        assert seen.requests.sum(axis=0).tolist() == received
        by_path = [Counter(r.line.split()[1].split("?")[0] for r in server.requests) for server in site.servers]
        assert seen.requests.tolist() == [[c[path] for c in by_path] for path in (COMPOSE, HOME, USER)]
        retried = sum("fail" in r.line for r in site.servers[1].requests)
        assert retried > 0
        assert seen.responses[:, 1, 4].sum() == retried
        assert seen.responses[:, 2, 4].sum() == site.answers[503]
        assert seen.responses[:, :, 3].sum() == 9
        assert seen.responses[:, :, 1].sum() == site.answers[200]
        assert (seen.latency_histogram.sum(axis=2) == seen.requests).all()
        # Client side: retries do not count, requests that no group took do.
        zones = site.collector.snapshot().client_requests
        assert zones["*"] == sum(site.answers.values()) + 9
        assert site.answers[404] == 3


@pytest.mark.parametrize("actuation", ["memory", "reload"])
def test_as_in_releases_of_vts_a_retried_request_counts_for_its_last_server(short_dir: Path, actuation: str) -> None:
    options = NginxOptions(method="round_robin", actuation=actuation, attempts="final", max_fails=0)
    with running_site(short_dir, options) as site:
        site.collector.begin()
        site.script[0] = lambda _: CLOSE
        answers = Counter(site.who(12))
        window = site.collector.window()
        assert len(site.servers[0].requests) > 0
        assert window.requests[1].tolist() == [0, answers["1"], answers["2"]]
        assert window.responses[1, :, 1].tolist() == [0, answers["1"], answers["2"]]
        assert window.responses[1].sum() == 12
        assert site.collector.snapshot().client_requests["*"] == 12
        site.script[1] = site.script[2] = site.script[0]
        assert site.get()[0] == 502
        failed = site.collector.window().responses[1, :, 4].sum()
        # A kept connection that was closed allows one attempt more, for which no server is left.
        assert failed + site.collector.snapshot().unserved["home_read_backend"] == 1, "several attempts, one answer"
        assert site.collector.snapshot().client_requests["*"] == 13


def test_no_counter_is_lost_with_a_killed_worker_nor_by_a_reload(short_dir: Path) -> None:
    with running_site(short_dir, NginxOptions(method="least_conn", worker_processes=2)) as site:
        before = site.collector.begin()
        changes = (site.kill_workers, lambda: site.nginx.set_method("random_two"), site.kill_workers,
                   lambda: site.nginx.set_method("round_robin"))  # fmt: skip
        for number, change in enumerate((*changes, lambda: None), 1):
            site.who(30)
            # NGINX counts a request after its answer has left: a worker killed in between takes that one along.
            wait_until(lambda n=number: site.collector.snapshot().client_requests["*"] == 30 * n)
            change()
        received = [len(server.requests) for server in site.servers]
        after = site.collector.snapshot()
        counted = [after.groups["home_read_backend"][server.address].request_counter for server in site.servers]
        assert counted == received
        assert before.balancer is not None
        assert after.balancer is not None
        assert after.balancer.start_msec == before.balancer.start_msec
        wait_until(lambda: site.in_flight() == 0)


def test_a_client_that_goes_away_costs_no_response_time(site: Site) -> None:
    site.collector.begin()
    site.hang()
    connection = http.client.HTTPConnection(site.nginx.address, timeout=PATIENCE_S)
    connection.request("GET", HOME)
    wait_until(lambda: sum(len(server.requests) for server in site.servers) == 1)
    socket.create_connection(site.nginx.address.split(":")).close()
    connection.close()
    site.heal()
    wait_until(lambda: site.collector.snapshot().client_requests["*"] >= 1)
    window = site.collector.window()
    assert window.responses[1, :, 3].sum() == 1
    assert window.response_ms_sum.sum() == 0


def test_the_document_has_the_keys_and_types_of_vts(site: Site) -> None:
    for _ in range(3):
        site.get()
    document = site.collector.document()
    ours, theirs = document["upstreamZones"]["home_read_backend"][0], RECORDED["upstreamZones"]["compose_backend"][0]
    for ring in ("requestMsecs", "responseMsecs"):
        theirs[ring] = {"times": [], "msecs": []}  # ours has no ring of single requests
    assert shape(ours) == shape(theirs)
    for key in ("connections", "sharedZones", "hostName", "nginxVersion", "loadMsec", "nowMsec", "moduleVersion"):
        assert shape(document[key]) == shape(RECORDED[key]), key
    zone = RECORDED["serverZones"]["localhost"]
    assert set(document["serverZones"]) == {"localhost", "*"}
    assert {
        key: shape(zone[key]) for key in ("requestCounter", "inBytes", "outBytes", "requestMsecCounter")
    }.items() <= {key: shape(value) for key, value in document["serverZones"]["localhost"].items()}.items()


def test_weights_by_reload_are_read_back_and_statistics_survive(site: Site) -> None:
    site.collector.begin()
    site.who(9)
    old = children(site.nginx.master_pid)
    weights = Weights(site.topology, np.tile([5, 3, 2], (3, 1)))
    assert site.nginx.apply(weights).changed
    assert not site.nginx.apply(weights).changed
    assert site.nginx.control() == weights
    assert Counter(site.who(20)) == {"0": 10, "1": 6, "2": 4}
    window = site.collector.window()
    assert [fault.kind for fault in window.faults] == ["reload"]
    assert window.requests[1].tolist() == [13, 9, 7]
    assert window.weight.tolist() == [[5, 3, 2]] * 3
    wait_until(lambda: not set(old) & set(children(site.nginx.master_pid)))
    for method in ("random_two", "least_conn", "round_robin"):
        site.nginx.set_method(method)
        assert site.nginx.method == method
        assert (site.nginx.control().values == 1).all()
        assert site.get()[0] == 200
    with pytest.raises(ActuationError, match="not possible with actuation=reload"):
        site.nginx.set_method("expected_delay")


def test_failures_are_forgotten_by_a_reload_where_nginx_itself_balances(site: Site) -> None:
    site.script[0] = lambda _: CLOSE
    site.who(6)
    site.heal()
    assert "0" not in site.who(6), "out for 10 s"
    site.nginx.forget_failures()
    assert Counter(site.who(9)) == {"0": 3, "1": 3, "2": 3}


def test_a_refused_configuration_leaves_the_old_one_in_force(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Weights(site.topology, np.tile([5, 3, 2], (3, 1)))
    site.nginx.apply(weights)
    before = site.upstreams_file.read_text()
    loaded = site.collector.begin().load_ms
    with monkeypatch.context() as patch:
        patch.setattr(nginx_module, "render_upstreams", lambda *_, **__: before + "nonsense;\n")
        with pytest.raises(ActuationError, match='unknown directive "nonsense"'):
            site.nginx.apply(Weights.equal(site.topology, 7))
    assert site.upstreams_file.read_text() == before
    assert site.nginx.control() == weights
    assert site.collector.snapshot().load_ms == loaded


def test_a_configuration_that_shows_other_weights_is_rolled_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Weights(site.topology, np.tile([5, 3, 2], (3, 1)))
    site.nginx.apply(weights)
    before = site.upstreams_file.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(nginx_module, "render_upstreams", lambda *_, **__: before.replace("weight=5", "weight=9"))
        with pytest.raises(ActuationError, match="weights that differ"):
            site.nginx.apply(Weights.equal(site.topology, 7))
    assert site.upstreams_file.read_text() == before
    assert site.nginx.control() == weights


def test_a_port_that_is_taken_in_between_is_replaced(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, taken = nginx_module.free_port, socket.create_server(("127.0.0.1", 0))
    ports = [taken.getsockname()[1]]
    monkeypatch.setattr(nginx_module, "free_port", lambda host: ports.pop() if ports else real(host))
    with taken, Nginx(NginxOptions(), social_network(("127.0.0.1:1",)), work_dir=short_dir) as nginx:
        nginx.start()
        assert nginx.address.split(":")[1] != str(taken.getsockname()[1])


@pytest.mark.parametrize("actuation", ["memory", "reload"])
def test_unprivileged_workers_need_nothing_of_a_private_folder(short_dir: Path, actuation: str) -> None:
    """The largest bodies, long answers to a slow client and a reload, in a folder that they cannot enter."""
    folder = short_dir / "run"
    with running_site(folder, NginxOptions(method="round_robin", actuation=actuation)) as site:
        (worker,) = children(site.nginx.master_pid)
        assert os.stat(f"/proc/{worker}").st_uid != 0
        assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "nginx")] == [0o700, 0o700]
        for index in range(3):
            site.script[index] = lambda _: answer(200, "x" * 300_000)
        body = b"y" * site.nginx.options.max_body_bytes
        assert [site.get(COMPOSE, "POST", body)[0] for _ in range(3)] == [200, 200, 200]
        site.nginx.apply(Weights(site.topology, np.full(site.topology.shape, 3), np.zeros(site.topology.shape, bool)))
        with socket.create_connection(site.nginx.address.rsplit(":", 1), PATIENCE_S) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.sendall(f"GET {HOME} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            wait_until(lambda: len(slow.recv(2**24, socket.MSG_PEEK)) > 0)
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
            assert sum(map(len, iter(lambda: slow.recv(2**16), b""))) > 300_000
        assert "denied" not in (folder / "nginx" / "error.log").read_text()


def test_what_is_missing_is_named(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topology = social_network(("127.0.0.1:1",))
    with pytest.raises(MissingToolError, match="apt-get install -y nginx libnginx-mod-http-lua"):
        Nginx(NginxOptions(binary="no-such-nginx"), topology, work_dir=short_dir)
    monkeypatch.setattr(nginx_detect, "MODULE_DIRS", ())
    without_modules = fake_nginx(short_dir, "--modules-path=/nowhere")
    with pytest.raises(MissingToolError, match="no Lua module"):
        Nginx(NginxOptions(binary=without_modules), topology, work_dir=short_dir)


@pytest.mark.parametrize("path", ["/a b", "/a;", "/{", "nope", '/"', "/a\n"])
def test_no_value_can_inject_configuration(short_dir: Path, path: str) -> None:
    topology = Topology((Group("g", "t", "GET", path, 2.0, ("127.0.0.1:1",)),))
    with pytest.raises(ConfigError, match="not a URL path"):
        Nginx(NginxOptions(), topology, work_dir=short_dir)


def test_host_names_and_shared_paths_are_refused(short_dir: Path) -> None:
    with pytest.raises(ConfigError, match="host name"):
        Nginx(NginxOptions(), social_network(("localhost:80",)), work_dir=short_dir)
    twice = (Group("g", "t", "GET", "/", 2.0, ("127.0.0.1:1",)), Group("h", "u", "POST", "/", 2.0, ("127.0.0.1:1",)))
    with pytest.raises(ConfigError, match="two groups"):
        Nginx(NginxOptions(), Topology(twice), work_dir=short_dir)


def ended(nginx: Nginx) -> bool:
    try:
        nginx.check()
    except ProcessError:
        return True
    return False


def test_a_dead_nginx_is_a_gap_and_an_actuation_error(site: Site) -> None:
    site.collector.begin()
    os.kill(site.nginx.master_pid, signal.SIGKILL)
    wait_until(lambda: ended(site.nginx))
    window = site.collector.window()
    assert [fault.kind for fault in window.faults] == ["gap"]
    with pytest.raises(StatusError, match="is NGINX running"):
        site.collector.snapshot()
    with pytest.raises(ActuationError):
        site.nginx.apply(Weights.equal(site.topology, 3))


def test_nginx_ends_with_its_killed_owner(short_dir: Path) -> None:
    code = (
        "import time\nfrom pathlib import Path\nfrom actuators.nginx.instance import Nginx\n"
        "from actuators.nginx.config import NginxOptions\nfrom actuators.contract.topology import social_network\n"
        f"n = Nginx(NginxOptions(), social_network(('127.0.0.1:1',)), work_dir=Path({str(short_dir)!r}))\n"
        "n.start()\nprint(n.master_pid, flush=True)\ntime.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    master = int(owner.stdout.readline())
    pids = [master, *children(master)]
    owner.kill()
    owner.wait()
    owner.stdout.close()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_start_errors_carry_the_log(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render = nginx_module.render_main
    monkeypatch.setattr(
        nginx_module, "render_main", lambda *a, **k: render(*a, **k).replace("COLD = ", "error('broken lua') COLD = ")
    )
    with pytest.raises(ProcessError, match="broken lua"):
        Nginx(NginxOptions(start_timeout_s=2), social_network(("127.0.0.1:1",)), work_dir=short_dir).start()
