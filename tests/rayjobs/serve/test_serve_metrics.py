"""Metrics of the served policy on Ray Serve: right with several replicas, and the autoscaler acts by them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest
import requests
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from actuators.errors import ConfigError
from rayjobs.serve import ray_app
from rayjobs.serve.metric_names import HISTOGRAMS
from rayjobs.serve.ray_metrics import families
from tests.support.prometheus_text import Series, series, total
from tests.support.serve_requests import bodies
from tests.support.served import Served, served_bundles
from tests.support.steering_cases import trained_bundle
from tests.support.waiting import PATIENCE_S, wait_until

LABELS = 'application="deepsched",deployment="Policy",Component="core_worker"'


def page(replica: str, answers: int, le_005: int) -> str:
    own = f'{LABELS},replica="{replica}",WorkerId="w{replica}"'
    return "\n".join([
        "# TYPE ray_deepsched_answers_total counter",
        f'ray_deepsched_answers_total{{{own},decision="policy"}} {answers}.0',
        f'ray_deepsched_answers_total{{{own.replace("deepsched", "other")},decision="policy"}} 1000.0',
        f'ray_deepsched_answer_seconds_bucket{{{own},le="0.005"}} {le_005}.0',
        f'ray_deepsched_answer_seconds_bucket{{{own},le="+Inf"}} {answers}.0',
        f"ray_deepsched_answer_seconds_sum{{{own}}} 0.25",
        f"ray_deepsched_answer_seconds_count{{{own}}} {answers}.0",
        f"ray_deepsched_novelty{{{own}}} 0.{answers}",
        f"ray_serve_num_router_requests_total{{{own}}} 7.0",
    ])  # fmt: skip


def text(pages: dict[str, str]) -> str:
    class Once(Collector):
        def collect(self) -> Iterator[object]:  # type: ignore[override]
            return families(pages, "deepsched")

    registry = CollectorRegistry()
    registry.register(Once())
    return generate_latest(registry).decode()


def test_replicas_of_a_node_are_one_series_and_nodes_are_apart() -> None:
    both = page("a", 3, 2) + "\n" + page("b", 4, 1)
    found = text({"10.0.0.1": both, "10.0.0.2": page("c", 5, 5)})
    assert 'deepsched_answers_total{decision="policy",node="10.0.0.1"} 7.0' in found
    assert 'deepsched_answers_total{decision="policy",node="10.0.0.2"} 5.0' in found
    assert 'deepsched_answer_seconds_bucket{le="0.005",node="10.0.0.1"} 3.0' in found
    assert 'deepsched_answer_seconds_count{node="10.0.0.1"} 7.0' in found
    assert "deepsched_novelty 0.5" in found
    assert "1000" not in found
    # A node that is gone takes its own series along and lowers none.
    less = series(text({"10.0.0.1": both}))
    assert all(series(found)[key] == value for key, value in less.items())


def test_before_the_first_request_there_is_nothing_to_count() -> None:
    assert series(text({"10.0.0.1": "ray_tasks 3\n"})) == {}


def test_the_application_wants_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ray_app.VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=r"DEEPSCHED_SERVE.*bundle: FOLDER"):
        _ = ray_app.app
    with pytest.raises(AttributeError):
        _ = ray_app.something


@pytest.mark.slow
def test_serve_build_takes_the_application(tmp_path: Path) -> None:
    trained_bundle().save(tmp_path / "bundle")
    options = {"bundle": str(tmp_path / "bundle"), "folder": str(tmp_path / "state"), "replicas": 2, "cpus": 0.25}
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(options))
    command = [sys.executable, "-m", "ray.serve.scripts", "build", "rayjobs.serve.ray_app:app", "-o", "serve.yaml"]
    environment = {**os.environ, ray_app.VARIABLE: str(tmp_path / "options.yaml"), "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (application,) = yaml.safe_load((tmp_path / "serve.yaml").read_text())["applications"]
    assert application["import_path"] == "rayjobs.serve.ray_app:app"
    (said,) = application["deployments"]
    assert (said["name"], said["num_replicas"], said["ray_actor_options"]["num_cpus"]) == ("Policy", 2, 0.25)


@pytest.mark.ray
@pytest.mark.slow
def test_with_two_replicas_no_counter_goes_down(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    for served in served_bundles(short_dir, "ray", replicas=2, cpus=0.2):
        counts_of_two_replicas(served)


def counts_of_two_replicas(served: Served) -> None:
    sent = 0
    before: Series = {}
    for _ in range(20):
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda body: served.post("/v1/weights", body), [*bodies()[:4], b"{"] * 2))
        sent += sum(answer.status_code == 200 for answer in answers)
        now = scraped(served)
        assert [key for key, value in before.items() if now.get(key, -1.0) < value] == []
        before = now
    wait_until(lambda: total(scraped(served), "deepsched_answers_total") == sent, "not all were counted")
    now = scraped(served)
    assert total(now, "deepsched_refused_total") == 40
    assert total(now, "deepsched_answer_seconds_count") == sent
    bounds = HISTOGRAMS["answer_seconds"][1]
    assert len([key for key in now if key[0] == "deepsched_answer_seconds_bucket"]) == len(bounds) + 1
    replica = re.compile(r'ray_deepsched_answers_total{.*replica="(\w+)"')
    assert len(set(replica.findall(agent_page()))) == 2


@pytest.mark.ray
@pytest.mark.slow
def test_the_autoscaler_adds_a_replica_and_takes_it_away(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen in the metrics that Grafana's panel draws, and in Serve's status."""
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    more = {"max_replicas": 2, "target_ongoing_requests": 1.0, "upscale_delay_s": 1.0, "downscale_delay_s": 5.0,
            "batch_size": 16, "batch_wait_ms": 300.0}  # fmt: skip
    # Requests wait for others to come: twelve clients keep about as many in progress, however quick a decision is.
    for served in served_bundles(short_dir, "ray", cpus=0.2, **more):
        wait_until(lambda: running() == 1)
        with busy(served, clients=12):
            wait_until(lambda: wanted() >= 2.0, "no second replica wanted")
            wait_until(lambda: running() == 2, "no second replica")
            wait_until(lambda: drawn() == 2, "no second replica in the panel")
        wait_until(lambda: wanted() <= 1.0, "two replicas wanted still")
        wait_until(lambda: running() == 1, "two replicas still")
        wait_until(lambda: drawn() == 1, "two replicas in the panel still")


def running() -> int:
    """Replicas of the policy that serve."""
    from ray import serve

    (application,) = serve.status().applications.values()
    return int(application.deployments["Policy"].replica_states.get("RUNNING", 0))


@contextmanager
def busy(served: Served, clients: int) -> Iterator[None]:
    stop = Event()

    def ask() -> None:
        while not stop.is_set():
            served.post("/v1/weights", bodies()[0])

    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(ask) for _ in range(clients)]
        try:
            yield
        finally:
            stop.set()
    for one in asking:
        one.result()


def scraped(served: Served) -> Series:
    return series(served.get("/metrics").text)


def drawn() -> int:
    """Replicas of the policy that run, as Grafana's panel draws them."""
    return sum(
        line.startswith("ray_serve_replica_utilization_percent{") and "Policy" in line
        for line in agent_page().splitlines()
    )


def wanted() -> float:
    """Replicas that the autoscaler wants, as Grafana's panel draws them."""
    name = "ray_serve_autoscaling_desired_replicas{"
    lines = [line for line in agent_page().splitlines() if line.startswith(name) and "Policy" in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def agent_page() -> str:
    import ray

    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return requests.get(url, timeout=PATIENCE_S).text
