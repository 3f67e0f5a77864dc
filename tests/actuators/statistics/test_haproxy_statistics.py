"""HAProxy's statistics as snapshots and windows: read from recorded answers, and counted by a real HAProxy."""

from __future__ import annotations

import http.client
import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import Weights
from actuators.contract.topology import Topology, social_network
from actuators.errors import StatusError
from actuators.external.actuator import ActuatorOptions
from actuators.external.haproxy import HaproxyActuator
from actuators.external.preflight import PreflightOptions, preflight
from actuators.haproxy_api import SCHEME
from actuators.statistics.haproxy import HaproxyStatistics
from actuators.statistics.lacks import lacks
from actuators.statistics.reader import CollectOptions, Collector
from actuators.statistics.recording import from_json, to_json
from actuators.testbed.peers import Peer, why_missing
from rayjobs.cli.main import main
from rayjobs.onboard.options import OnboardOptions
from rayjobs.onboard.system import way_of
from rayjobs.steer.site import external_site

COLUMNS = (
    "pxname,svname,type,bin,bout,econ,eresp,wretr,wredis,status,weight,uweight,act,bck,hrsp_1xx,hrsp_2xx,hrsp_3xx,"
    "hrsp_4xx,hrsp_5xx,rtime,addr,"
)
FRONT = "front,FRONTEND,0,1,1,,,,,OPEN,,,,,0,90,0,4,6,,,"
SERVER = "app,s1,2,10,20,{econ},0,1,0,{status},5,5,1,0,0,{good},0,4,2,{rtime},10.0.0.1:80,"
INFO = "Pid: {pid}\nnode: web\nCurrConns: 3\nCumConns: 50\nCumReq: 100\nStart_time_sec: 1700000000"


class Answers(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A socket that answers each command of a line with a fixed text, as the runtime API does."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Handler)
        self.texts: dict[str, str] = {}
        self.connections = 0


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Answers)
        self.server.connections += 1
        for command in self.rfile.readline().decode().strip().split(";"):
            self.wfile.write(self.server.texts[command].encode() + b"\n\n")


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[Answers]:
    with Answers(tmp_path / "s") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def tell(
    answers: Answers, *, good: int, rtime: int, pid: int = 7, status: str = "UP", econ: int = 0
) -> HaproxyStatistics:
    row = SERVER.format(good=good, rtime=rtime, status=status, econ=econ)
    answers.texts = {"show info": INFO.format(pid=pid), "show stat": f"# {COLUMNS}\n{FRONT}\n{row}\n"}
    return HaproxyStatistics(Path(str(answers.server_address)))


def test_counters_of_servers_and_failed_attempts(answers: Answers) -> None:
    found = tell(answers, good=94, rtime=12, econ=3).snapshot()
    server = found.groups["app"]["10.0.0.1:80"]
    assert (found.source, found.host_name, found.load_ms) == ("haproxy", "web process 7", 1_700_000_000_000)
    assert (found.connections.requests, found.connections.accepted, found.client_errors) == (100, 50, 6)
    assert server.request_counter == 94 + 4 + 2 + 3 + 1
    assert server.responses.counts() == (0, 94, 0, 4, 2 + 3 + 1)
    assert (server.weight, server.down, server.in_bytes, server.out_bytes) == (5, False, 10, 20)
    assert server.response_buckets.msecs == ()
    assert [lack.name for lack in lacks(found)] == ["source"]
    again = from_json(json.loads(to_json(found)))
    recorded = again.groups["app"]["10.0.0.1:80"]
    assert (again.source, recorded.totals(), recorded.weight) == ("haproxy", server.totals(), 5)


@pytest.mark.parametrize("shown", ["unix", ""])
def test_a_server_on_a_unix_socket_has_its_name_as_its_weight_has(answers: Answers, shown: str) -> None:
    statistics = tell(answers, good=94, rtime=12)
    rows = [SERVER.format(good=94, rtime=12, status="UP", econ=0).replace("10.0.0.1:80", shown)]
    rows.append(rows[0].replace("s1", "s2"))
    answers.texts["show stat"] = "\n".join([f"# {COLUMNS}", *rows]) + "\n"
    found = statistics.snapshot()
    assert (list(found.groups["app"]), found.duplicates) == (["s1", "s2"], frozenset())


def test_response_times_are_summed_from_reading_to_reading(answers: Answers) -> None:
    statistics = tell(answers, good=94, rtime=12)
    assert statistics.snapshot().groups["app"]["10.0.0.1:80"].response_msec_counter == 0, "not those of its whole life"
    tell(answers, good=144, rtime=20)
    assert statistics.snapshot().groups["app"]["10.0.0.1:80"].response_msec_counter == 50 * 20
    tell(answers, good=4, rtime=30, pid=8)
    assert statistics.snapshot().groups["app"]["10.0.0.1:80"].response_msec_counter == 10 * 30


def test_one_process_answers_a_whole_snapshot(answers: Answers) -> None:
    """During a reload the old and the new process take connections in turn."""
    tell(answers, good=94, rtime=12).snapshot()
    assert answers.connections == 1


@pytest.mark.parametrize(
    ("status", "down"), [("UP", False), ("no check", False), ("UP 1/3", False), ("MAINT", True), ("DOWN 1/2", True)]
)
def test_a_server_that_gets_nothing_is_down(answers: Answers, status: str, down: bool) -> None:
    assert tell(answers, good=1, rtime=1, status=status).snapshot().groups["app"]["10.0.0.1:80"].down == down


@pytest.mark.parametrize("text", ["", "Unknown command", "# pxname,svname,\na,b,\n", f"# {COLUMNS}\napp,s1,2,x,"])
def test_another_answer_is_refused_in_one_line(answers: Answers, text: str) -> None:
    statistics = tell(answers, good=1, rtime=1)
    answers.texts["show stat"] = text
    if text:
        with pytest.raises(StatusError, match="cannot be read") as caught:
            statistics.snapshot()
        assert "\n" not in str(caught.value)
    answers.texts["show info"] = "Pid: 1"
    with pytest.raises(StatusError):
        statistics.snapshot()


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/good" else 500)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    if why_missing("haproxy_leastconn"):
        pytest.skip(why_missing("haproxy_leastconn"))
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Server) for _ in range(3)]
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    topology = social_network(tuple(f"127.0.0.1:{server.server_address[1]}" for server in servers))
    with Peer("haproxy_leastconn", topology, tmp_path_factory.mktemp("haproxy")) as peer:
        yield peer
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(peer: Peer, path: str, times: int) -> None:
    for _ in range(times):
        connection = http.client.HTTPConnection(peer.address, timeout=5)
        connection.request("GET", path)
        connection.getresponse().read()
        connection.close()


def topology_of(peer: Peer) -> Topology:
    """The groups of this HAProxy as a bundle would know them."""
    return HaproxyActuator(peer.control_socket).topology


def url_of(peer: Peer) -> str:
    return f"{SCHEME}{peer.control_socket}"


def test_a_site_of_haproxy_has_windows_and_takes_weights(peer: Peer) -> None:
    model = topology_of(peer)
    options = ActuatorOptions(control_url=url_of(peer))
    with external_site(model, options, url_of(peer), CollectOptions()) as site:
        site.collector.begin()
        ask(peer, "/good", 20)
        ask(peer, "/bad", 4)
        window = site.collector.window()
        assert window.usable
        assert (window.requests.sum(), window.server_errors.sum()) == (24, 4)
        assert (window.bounds_ms, window.latency_histogram.sum()) == ((), 24)
        assert not window.down.any()
        wanted = Weights(site.topology, np.array([[5, 1, 1]]), np.array([[False, True, True]]))
        assert site.control() == Weights.equal(site.topology)
        assert site.apply(wanted).changed
        assert site.control() == wanted
        assert (site.method(), site.splits, site.changed()) == (None, False, "")
        ask(peer, "/good", 30)
        window = site.collector.window()
        assert window.requests.tolist() == [[30, 0, 0]]
        assert (window.weight.tolist(), window.down.tolist()) == ([[5, 1, 1]], [[False, True, True]])
        assert site.actuator.restore(Weights.equal(site.topology)).changed


def test_a_reload_is_a_restart_of_its_counters(peer: Peer) -> None:
    with Collector(url_of(peer), topology_of(peer)) as collector:
        ask(peer, "/good", 6)
        collector.begin()
        peer.reload()
        assert "restart" in {fault.kind for fault in collector.window().faults}
        ask(peer, "/good", 6)
        window = collector.window()
        assert window.usable
        assert window.requests.sum() == 6


def test_the_checks_and_the_recording_take_its_socket(
    peer: Peer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = {each.name: each for each in preflight(PreflightOptions(control_url=url_of(peer)).resolved())}
    assert (checks["statistics"].level, checks["control"].level, checks["level"].level) == ("ok", "ok", "ok")
    assert "no histogram" in checks["source"].what
    assert "histogram" not in checks
    options = OnboardOptions(status_url=url_of(peer), control_url=url_of(peer))
    way = way_of(options, ["servers"])
    assert (way.method, way.in_memory, way.changeable) == ("least_conn", False, True)
    out = tmp_path / "haproxy.json"
    assert main(["collect", str(out), "--status-url", url_of(peer), "--duration-s", "0.4", "--interval-s", "0.2"]) == 0
    assert "no histogram" in capsys.readouterr().err
    assert out.read_text().count('"source":"haproxy"') >= 2


def test_no_haproxy_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["collect", str(tmp_path / "x.json"), "--status-url", f"{SCHEME}{tmp_path}/none", "--duration-s", "0.1"]
    assert main(arguments) == 1
    assert "runtime API does not answer" in capsys.readouterr().err
