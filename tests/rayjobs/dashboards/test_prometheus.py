"""A real Prometheus reads a real controller: every panel of the steering dashboard has data, and no alert is broken."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from actuators.processes.process import ManagedProcess
from actuators.processes.system import free_port
from rayjobs.dashboards.__main__ import DashboardsOptions, run
from tests.support.small_host import small_host
from tests.support.waiting import wait_until

SILENT = {"Operator's order", "Canary", "Changes and alarms"}
"""Panels that a controller in shadow without orders leaves empty, or at 0."""
CHOICES = {"$__rate_interval": "5s", "$instance": ".*", "$group": ".*", "$server": ".*"}


@pytest.mark.slow
@pytest.mark.nginx
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus: apt-get install prometheus")
def test_every_panel_has_data(tmp_path: Path) -> None:
    metrics, port = free_port("127.0.0.1"), free_port("127.0.0.1")
    out = tmp_path / "dashboards"
    options = DashboardsOptions(out=out, controllers=(f"127.0.0.1:{metrics}",), scrape_every_s=1)
    assert run(options) == 0
    url = f"http://127.0.0.1:{port}/api/v1"

    def result(path: str, **query: str) -> Any:
        answer = requests.get(f"{url}/{path}", params=query, timeout=5).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    with small_host(tmp_path) as host:
        words = [*host.commands()["steer"][1:-2], "--metrics-port", str(metrics)]
        steer = [sys.executable, "-m", "rayjobs.steer", *words]
        server = [
            "prometheus", f"--config.file={out}/prometheus.yml", f"--web.listen-address=127.0.0.1:{port}",
            f"--storage.tsdb.path={tmp_path}/tsdb",
        ]  # fmt: skip
        with (
            ManagedProcess(steer, name="steer", log_path=tmp_path / "steer.log"),
            ManagedProcess(server, name="prometheus", log_path=tmp_path / "prometheus.log"),
        ):
            wait_until(_answers(f"{url}/status/config"), (tmp_path / "prometheus.log").read_text)
            for needed in ("count(deepsched_steer_novelty)", "sum(rate(deepsched_steer_late_requests_total[5s]))"):
                wait_until(lambda asked=needed: bool(result("query", query=asked)["result"]), f"nothing for {needed}")
            empty = {
                panel["title"]
                for panel in json.loads((out / "grafana" / "dashboards" / "steering.json").read_text())["panels"]
                for target in panel.get("targets", ())
                if not result("query", query=_chosen(target["expr"]))["result"]
            }
            rules = result("rules")["groups"][0]["rules"]
    # τ and down are series of their own in a panel that has weights; nothing is down, and weights are in force.
    assert empty - SILENT <= {"Control", "Guards that acted", "Lateness against the baseline"}
    assert {rule["health"] for rule in rules} == {"ok"}


def _chosen(expression: str) -> str:
    for name, value in CHOICES.items():
        expression = expression.replace(name, value)
    return expression


def _answers(url: str) -> Callable[[], bool]:
    def answers() -> bool:
        try:
            return requests.get(url, timeout=5).ok
        except requests.ConnectionError:
            return False

    return answers
