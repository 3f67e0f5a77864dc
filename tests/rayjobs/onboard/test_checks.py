"""Statistics to which no simulator can be fitted are refused before the watch, with a remedy."""

from __future__ import annotations

import copy
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actuators.statistics.lacks import unfit
from actuators.statistics.vts import parse
from rayjobs.cli.main import main
from rayjobs.cli.progress import Progress
from rayjobs.onboard.kept import Kept
from rayjobs.onboard.options import OnboardOptions
from rayjobs.onboard.steps import Onboarding, stages, step_options
from tests.support.http_server import Received, ScriptedServer
from tests.support.json_endpoint import serving
from tests.support.metrics import as_text
from tests.support.vts_documents import A, document, entry

DEAD, OTHER = "compose_backend", "user_read_backend"
INFO = "Pid: 7\nnode: web\nCurrConns: 3\nCumConns: 50\nCumReq: 100\nStart_time_sec: 1700000000"
STAT = (
    "# pxname,svname,type,bin,bout,econ,eresp,wretr,wredis,status,weight,uweight,act,bck,hrsp_1xx,hrsp_2xx,hrsp_3xx,"
    "hrsp_4xx,hrsp_5xx,rtime,addr,\napp,s1,2,10,20,0,0,0,0,UP,5,5,1,0,0,94,0,4,2,12,10.0.0.1:80,"
)
NONE: dict[str, list[int]] = {"msecs": [], "counters": []}


def all_entries(doc: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for group in doc["upstreamZones"].values() for each in group]


def without_buckets(doc: dict[str, Any]) -> None:
    for each in all_entries(doc):
        each["responseBuckets"] = NONE


def one_without_buckets(doc: dict[str, Any]) -> None:
    entry(doc, DEAD, A)["responseBuckets"] = NONE


def changed(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    doc = copy.deepcopy(document("after_load"))
    change(doc)
    return doc


@contextmanager
def nginx(body: str, path: str = "json") -> Iterator[str]:
    """URL of statistics that are this text."""

    def answer(request: Received) -> bytes:
        if "/control" in request.line:
            return b"HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n"
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body.encode()), body.encode())

    with ScriptedServer(answer) as server:
        yield f"http://{server.address}/status/format/{path}"


def forbidding(url: str, folder: Path, **more: Any) -> list[dict[str, Any]]:
    """The checks that end an onboarding."""
    options = OnboardOptions(status_url=url, folder=folder, **more)
    with Progress(stages(options), drawn=False) as progress:
        return Onboarding(options, Kept(folder, step_options(options)), progress).preflight()


def test_vts_with_a_histogram_of_every_server_goes_on(tmp_path: Path) -> None:
    with nginx(json.dumps(document("after_load"))) as url:
        assert forbidding(url, tmp_path / "onboard") == []


def test_vts_without_histograms(tmp_path: Path) -> None:
    with nginx(json.dumps(changed(without_buckets))) as url:
        (found,) = forbidding(url, tmp_path / "onboard")
    assert (found["name"], found["level"]) == ("histogram", "fail")
    assert "no server has one" in found["what"]
    assert "vhost_traffic_status_histogram_buckets" in found["remedy"]
    assert not list((tmp_path / "onboard" / "onboard").glob("*.json"))


def test_one_server_whose_histogram_stayed_empty_after_a_reload(tmp_path: Path) -> None:
    with nginx(json.dumps(changed(one_without_buckets))) as url:
        (found,) = forbidding(url, tmp_path / "onboard")
        assert (found["name"], f"{DEAD}/{A}" in found["what"]) == ("histogram", True)
        assert "cmd=delete" in found["remedy"]
        assert "--groups" in found["remedy"]
        assert forbidding(url, tmp_path / "other", groups=(OTHER,)) == []


def test_histograms_without_a_common_bound() -> None:
    def other_bounds(doc: dict[str, Any]) -> None:
        buckets = entry(doc, DEAD, A)["responseBuckets"]
        buckets["msecs"] = [bound + 1 for bound in buckets["msecs"]]

    def one_more_bound(doc: dict[str, Any]) -> None:
        buckets = entry(doc, DEAD, A)["responseBuckets"]
        buckets["msecs"] = [*buckets["msecs"], 9999]
        buckets["counters"] = [*buckets["counters"], buckets["counters"][-1]]

    lack = unfit(parse(changed(other_bounds)))
    assert lack is not None
    assert (lack.name, "no bound in common" in lack.what) == ("histogram", True)
    assert unfit(parse(changed(one_more_bound))) is None


def test_what_has_had_no_request_can_still_turn_out_well() -> None:
    def unused(doc: dict[str, Any]) -> None:
        for each in all_entries(doc):
            each["requestCounter"], each["responseBuckets"] = 0, NONE

    assert unfit(parse(changed(unused))) is None


def test_metrics_are_refused_as_the_watch_does_not_read_them(tmp_path: Path) -> None:
    with nginx(as_text(document("after_load")), "prometheus") as url:
        (found,) = forbidding(url, tmp_path / "onboard")
    assert (found["name"], "Prometheus text" in found["what"]) == ("source", True)
    assert "/status/format/json" in found["remedy"]


def test_envoy(tmp_path: Path) -> None:
    host = {
        "address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}}, "weight": 5,
        "stats": [{"name": "rq_success", "value": "94"}], "health_status": {"eds_health_status": "HEALTHY"},
    }  # fmt: skip
    documents = {
        "/server_info": {"uptime_current_epoch": "100s"}, "/stats": {"stats": []},
        "/clusters": {"cluster_statuses": [{"name": "app", "host_statuses": [host]}]},
    }  # fmt: skip
    with serving(documents) as (url, _):
        (found,) = forbidding(f"envoy:{url}", tmp_path / "onboard")
    assert (found["name"], found["what"].startswith("a simulator is fitted to histograms")) == ("source", True)


class RuntimeAnswers(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for command in self.rfile.readline().decode().strip().split(";"):
            self.wfile.write({"show info": INFO, "show stat": STAT}[command].encode() + b"\n\n")


def test_haproxy_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socketserver.UnixStreamServer(str(tmp_path / "s"), RuntimeAnswers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        folder = tmp_path / "onboard"
        assert main(["onboard", "--status-url", f"haproxy:{tmp_path}/s", "--folder", str(folder)]) == 1
        server.shutdown()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("deepsched onboard:")]
    assert len(lines) == 1
    assert "a simulator is fitted to histograms" in lines[0]
    assert "onboard an NGINX" in lines[0]
    assert not list(folder.glob("**/snapshots.jsonl"))


def test_recordings_of_metrics_may_be_fitted() -> None:
    """`calibrate` reads them: only steering, and so an onboarding, needs the JSON."""
    assert unfit(replace(parse(document("after_load")), source="prometheus")) is None


@pytest.mark.nginx
def test_groups_of_different_methods_end_it_before_the_watch(tmp_path: Path) -> None:
    found = document("after_load")
    blocks = [
        f"upstream {name} {{ {'least_conn;' if name == OTHER else ''}"
        + "".join(f" server {each['server']};" for each in servers if each["server"] != name) + " }"
        for name, servers in found["upstreamZones"].items() if not name.startswith("::")
    ]  # fmt: skip
    conf = tmp_path / "nginx.conf"
    conf.write_text(f"events {{}} http {{ {' '.join(blocks)} }}")
    with nginx(json.dumps(found)) as url:
        (check,) = forbidding(url, tmp_path / "all", nginx_conf=conf)
        assert (check["name"], f"{OTHER}: least_conn" in check["what"]) == ("balancing", True)
        assert "--groups" in check["remedy"]
        assert forbidding(url, tmp_path / "one", nginx_conf=conf, groups=(OTHER,)) == []
