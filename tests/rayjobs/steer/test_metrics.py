"""The controller's metrics over HTTP: what Prometheus reads is what the record says."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from actuators.errors import ConfigError
from actuators.processes.process import ManagedProcess
from actuators.processes.system import free_port
from envs.observation.deadlines import late_requests
from rayjobs.steer.metrics import MOST_HISTOGRAMS, PREFIX, Publication, SteerMetrics, publishing
from tests.support.small_host import small_host
from tests.support.steering_cases import DEADLINES_S, recorded
from tests.support.waiting import wait_until
from tuning.steering.audit import read_lines
from tuning.steering.window_json import histogram_of


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Name and label values, in the order of the labels' names → value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def lines_of(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    recorded(folder / "audit.jsonl")
    header, *lines = read_lines(folder / "audit.jsonl")
    more = {"applied": False, "latency_ms": {"total": 3.0, "collect": 2.0}}
    return header, [{**line, **more, "in_force": line["weights"]} for line in lines]


def test_what_is_served_adds_up_to_the_record(tmp_path: Path) -> None:
    header, lines = lines_of(tmp_path)
    port, written = free_port("127.0.0.1"), []
    with publishing("127.0.0.1", port) as published:
        record = published.recording(header, written.append)
        for line in lines:
            record(line)
        answer = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5)
    assert written == lines
    found = samples(answer.text)
    windows = [line["window"] for line in lines]
    group, server = header["topology"][0]["name"], header["topology"][0]["servers"][1]
    place = (group, server)
    assert found[f"{PREFIX}requests_total", *place] == sum(window["requests"][0][1] for window in windows)
    late = [late_requests(histogram_of(w), w["bounds_ms"], np.array(DEADLINES_S))[0, 1] for w in windows]
    assert found[f"{PREFIX}late_requests_total", *place] == pytest.approx(sum(late))
    counted = sum(histogram_of(window)[0, 1].sum() for window in windows)
    assert found[f"{PREFIX}response_seconds_count", *place] == counted
    assert found[f"{PREFIX}response_seconds_bucket", group, "+Inf", server] == counted
    shares = [
        value
        for (name, *labels), value in found.items()
        if name == f"{PREFIX}share" and labels[:2] == [group, "policy"]
    ]
    assert sum(shares) == pytest.approx(1.0)
    assert sum(found[f"{PREFIX}decisions_total", source] for source in ("policy", "baseline", "hold")) == len(lines)
    assert found[f"{PREFIX}guard_decisions_total", "operator"] == sum("operator" in line["guards"] for line in lines)
    assert found[f"{PREFIX}mode", "active"] == 1
    assert found[f"{PREFIX}last_decision_timestamp_seconds",] == pytest.approx(lines[-1]["time"])
    assert found[f"{PREFIX}decision_seconds_sum", "collect"] == pytest.approx(2e-3 * len(lines))
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5)


def test_late_binding_adds_up_and_its_times_are_apart_from_those_of_the_servers(tmp_path: Path) -> None:
    header, lines = lines_of(tmp_path)
    metrics = SteerMetrics()
    metrics.begin(header)
    for line in lines:
        metrics.see({**line, "holding": {"state": "holding", "slots": [4, 5, 6]}})
    (first, second, _), count = (group["name"] for group in header["topology"]), len(lines)
    servers = header["topology"][0]["servers"]
    found = {
        (sample.name.removeprefix(PREFIX), *sample.labels.values()): sample.value
        for metric in metrics.collect()
        for sample in metric.samples
    }
    for name, each in (("asked", 80), ("held", 7), ("refused", 2), ("late", 5), ("answered", 78), ("would", 0)):
        assert found[f"holding_{name}_total", first] == each * count
        assert found[f"holding_{name}_total", second] == 0
    assert found["holding_seconds_count", first] == 7 * count
    assert found["answer_seconds_count", first] == found["answer_seconds_bucket", first, "0.03"] == 78 * count
    assert found["answer_seconds_bucket", first, "0.025"] == 0
    assert found["answer_seconds_sum", first] == pytest.approx(78 * count * 0.03)
    assert (found["holding_in_line", first], found["holding_active",]) == (0, 1)
    assert [found["holding_slots", server] for server in servers] == [4, 5, 6]


def test_other_servers_and_other_buckets_begin_anew(tmp_path: Path) -> None:
    header, lines = lines_of(tmp_path)
    metrics = SteerMetrics()
    metrics.begin(header)
    metrics.see(lines[0])
    fewer = {**lines[1], "window": {**lines[1]["window"], "bounds_ms": [10], "histogram": [[[5]] * 3] * 3}}
    metrics.see(fewer)
    found = {sample.name: sample.value for metric in metrics.collect() for sample in metric.samples}
    assert found[f"{PREFIX}response_seconds_count"] == 5
    metrics.see({**fewer, "window": {**fewer["window"], "bounds_ms": [], "histogram": []}})
    groups = [{**group, "servers": group["servers"][:2]} for group in header["topology"]]
    metrics.begin({**header, "topology": groups})
    servers = {
        sample.labels["server"]
        for metric in metrics.collect()
        for sample in metric.samples
        if "server" in sample.labels
    }
    assert servers == set(groups[0]["servers"])


def test_very_many_servers_have_a_histogram_per_group() -> None:
    servers = [f"10.0.{index // 250}.{index % 250}:80" for index in range(MOST_HISTOGRAMS + 1)]
    metrics = SteerMetrics()
    metrics.begin({"topology": [{"name": "g", "servers": servers}], "deadlines_s": [0.05]})
    window = {
        "groups": ["g"], "servers": servers, "bounds_ms": [10, 100], "requests": [[2] * len(servers)],
        "errors": [[0] * len(servers)], "response_ms_sum": [[20] * len(servers)],
        "histogram": [[[1, 1]] * len(servers)], "down": [[False] * len(servers)],
    }  # fmt: skip
    weights = [[1] * len(servers)]
    metrics.see({
        "source": "hold", "guards": [], "alarms": [], "art": 0.1, "errors": 0.0, "time": 1.0, "window": window,
        "novelty": None,
        "in_force": weights, "policy": None, "baseline": weights, "mode": "shadow", "override": "",
        "canary_percent": 10.0, "reference": {"art": 0.0, "windows": 0},
    })  # fmt: skip
    labels = [s.labels for m in metrics.collect() for s in m.samples if s.name == f"{PREFIX}response_seconds_count"]
    assert labels == [{"group": "g"}]


def test_a_taken_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"), publishing("127.0.0.1", port):
            pass


def test_without_a_port_nothing_is_published() -> None:
    def write(line: dict[str, Any]) -> None:
        raise AssertionError

    assert Publication(None).recording({}, write) is write


@pytest.mark.nginx
def test_a_running_controller_is_read_by_prometheus(tmp_path: Path) -> None:
    port = free_port("127.0.0.1")
    with small_host(tmp_path) as host:
        words = [*host.commands()["steer"][:-2], "--metrics-port", str(port)]
        command = [sys.executable, "-m", "rayjobs.steer", *words[1:]]

        def text() -> str:
            try:
                return requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text
            except requests.ConnectionError:
                return ""

        with ManagedProcess(command, name="steer", log_path=tmp_path / "steer.log"):
            wait_until(
                lambda: re.search(rf'^{PREFIX}decisions_total{{source="\w+"}} [3-9]', text(), re.M) is not None,
                (tmp_path / "steer.log").read_text,
            )
            shown = text()
    assert samples(shown)[f"{PREFIX}mode", "shadow"] == 1
    assert f'{PREFIX}share{{group="compose_backend",of="policy",server="127.0.0.1:18101"}}' in shown
    if (promtool := shutil.which("promtool")) is not None:
        done = subprocess.run([promtool, "check", "metrics"], input=shown, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "steer" / "status.json").read_text())["pid"] > 0
