"""Envoy's statistics as snapshots and windows: read from recorded documents, and counted by a real Envoy."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import Weights
from actuators.contract.topology import social_network
from actuators.envoy_admin import Host, admin_of
from actuators.errors import StatusError
from actuators.external.actuator import ActuatorOptions
from actuators.external.envoy import EnvoyActuator
from actuators.statistics.envoy import InFlight
from actuators.statistics.lacks import lacks
from actuators.statistics.reader import CollectOptions, Collector, StatusReader
from actuators.statistics.recording import from_json, to_json
from actuators.testbed.peers import ENVOY, Peer, why_missing
from rayjobs.cli.main import main
from rayjobs.onboard.options import OnboardOptions
from rayjobs.onboard.system import way_of
from rayjobs.steer.site import external_site
from tests.support.json_endpoint import serving

SERVICE_S = 0.03


def clusters(*, good: int, bad: int = 0, **health: object) -> dict[str, object]:
    stats = [{"name": "rq_success", "value": str(good)}, {"name": "rq_error", "value": str(bad)}, {"name": "cx_total"}]
    host = {
        "address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}}, "stats": stats, "weight": 5,
        "health_status": {"eds_health_status": "HEALTHY", **health},
    }  # fmt: skip
    return {"cluster_statuses": [{"name": "app", "host_statuses": [host]}, {"name": "empty"}]}


def told(**counts: object) -> dict[str, object]:
    names = {"http.front.downstream_rq_total": 100, "http.admin.downstream_rq_total": 7,
             "http.other.downstream_rq_total": 20, "http.front.downstream_cx_total": 50,
             "http.front.downstream_cx_active": 3, "http.front.downstream_rq_5xx": 6}  # fmt: skip
    stats = [{"name": name, "value": value} for name, value in names.items()]
    return {
        "/server_info": {"uptime_current_epoch": "100s"}, "/stats": {"stats": [*stats, {"histograms": {}}]},
        "/clusters": clusters(**counts),  # type: ignore[arg-type]
    }  # fmt: skip


def test_counters_of_servers_and_of_all_listeners() -> None:
    with serving(told(good=94, bad=6)) as (url, _), StatusReader(f"envoy:{url}") as reader:
        found = reader.snapshot()
    server = found.groups["app"]["10.0.0.1:80"]
    assert (found.source, list(found.groups)) == ("envoy", ["app"])
    assert abs(found.load_ms - (time.time() - 100) * 1e3) < 5000
    assert (found.connections.requests, found.connections.accepted, found.client_errors) == (120, 50, 6)
    assert (server.request_counter, server.responses.counts()) == (100, (0, 94, 0, 0, 6))
    assert (server.weight, server.down, server.response_buckets.msecs) == (5, False, ())
    assert [lack.name for lack in lacks(found)] == ["source"]
    again = from_json(json.loads(to_json(found)))
    assert (again.source, again.groups["app"]["10.0.0.1:80"].totals()) == ("envoy", server.totals())


@pytest.mark.parametrize(
    ("health", "down"),
    [
        ({}, False), ({"failed_active_health_check": True}, True), ({"failed_outlier_check": True}, True),
        ({"eds_health_status": "UNHEALTHY"}, True), ({"eds_health_status": "DEGRADED"}, False),
    ],
)  # fmt: skip
def test_a_server_that_gets_nothing_is_down(health: dict[str, object], down: bool) -> None:
    with serving(told(good=1, **health)) as (url, _), StatusReader(f"envoy:{url}") as reader:
        assert reader.snapshot().groups["app"]["10.0.0.1:80"].down == down


@pytest.mark.parametrize(("name", "document"), [("/stats", {}), ("/server_info", {}), ("/clusters", [3])])
def test_another_document_is_refused_in_one_line(name: str, document: object) -> None:
    with serving({**told(good=1), name: document}) as (url, _), StatusReader(f"envoy:{url}") as reader:
        with pytest.raises(StatusError, match="of another format") as caught:
            reader.snapshot()
        assert "\n" not in str(caught.value)


def test_response_times_follow_from_the_requests_in_flight() -> None:
    integral = InFlight()
    for now_s, active in ((10.0, 2), (10.5, 4), (11.5, 0)):
        integral.see({"app": (Host("a", 1, "", False, {"rq_active": active}),)}, now_s)
    assert integral.msecs("app", "a") == 500 * 3 + 1000 * 2
    assert integral.msecs("app", "b") == 0


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        # A service time, not a wait for something.
        time.sleep(SERVICE_S)
        self.send_response(200 if "compose" in self.path else 500)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    if why_missing(ENVOY):
        pytest.skip(why_missing(ENVOY))
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Server) for _ in range(3)]
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    topology = social_network(tuple(f"127.0.0.1:{server.server_address[1]}" for server in servers))
    with Peer("envoy_least_request", topology, tmp_path_factory.mktemp("envoy")) as peer:
        yield peer
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(peer: Peer, good: int, bad: int = 0, at_once: int = 3) -> None:
    paths = [group.path for group in peer.topology.groups]
    good_path = next(path for path in paths if "compose" in path)
    bad_path = next(path for path in paths if "compose" not in path)
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda path: _get(peer, path), [good_path] * good + [bad_path] * bad))


def _get(peer: Peer, path: str) -> None:
    connection = http.client.HTTPConnection(peer.address, timeout=5)
    connection.request("GET", path)
    connection.getresponse().read()
    connection.close()


def test_a_site_of_envoy_has_windows_and_takes_weights(peer: Peer) -> None:
    model = EnvoyActuator(admin_of(peer.control_url) or "").topology
    options = ActuatorOptions(control_url=peer.control_url)
    with external_site(model, options, peer.control_url, CollectOptions()) as site:
        site.collector.begin()
        ask(peer, 60, 6)
        window = site.collector.window()
        assert window.usable
        assert (window.requests.sum(), window.server_errors.sum()) == (66, 6)
        assert (window.bounds_ms, window.latency_histogram.sum()) == ((), 66)
        # 20 and more readings of about three requests in flight.
        assert window.response_ms_sum.sum() / 66e3 > 0.5 * SERVICE_S
        wanted = Weights(site.topology, np.array([[5, 1, 1]]), np.array([[False, False, True]]))
        assert site.control() == Weights.equal(site.topology)
        assert site.apply(wanted).changed
        assert site.control() == wanted
        assert (site.method(), site.splits, site.changed()) == (None, False, "")
        ask(peer, 30)
        window = site.collector.window()
        assert window.requests[0, 2] == 0
        assert (window.weight.tolist(), window.down.tolist()) == ([[5, 1, 1]], [[False, False, True]])
        assert site.actuator.restore(Weights.equal(site.topology)).changed


def test_the_recording_and_the_onboarding_take_its_address(
    peer: Peer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = OnboardOptions(status_url=peer.control_url, control_url=peer.control_url)
    way = way_of(options, ["servers"])
    assert (way.method, way.in_memory, way.changeable) == ("random_two", False, True)
    out = tmp_path / "envoy.json"
    where = ["--status-url", peer.control_url, "--duration-s", "0.4", "--interval-s", "0.2"]
    assert main(["collect", str(out), *where]) == 0
    assert "no response times per server" in capsys.readouterr().err
    assert out.read_text().count('"source":"envoy"') >= 2


def test_the_thread_that_reads_ends_with_its_reader(peer: Peer) -> None:
    topology = EnvoyActuator(admin_of(peer.control_url) or "").topology
    with Collector(peer.control_url, topology) as collector:
        collector.begin()
        assert "envoy" in {thread.name for thread in threading.enumerate()}
    assert "envoy" not in {thread.name for thread in threading.enumerate()}
