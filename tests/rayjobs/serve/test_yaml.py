"""`serve run` with the YAML of `deepsched serve --print-config`: what it says reaches Ray Serve, and it answers."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from actuators.http_client import responds
from actuators.processes.process import ManagedProcess
from actuators.processes.system import free_port
from rayjobs.cli.main import main
from rayjobs.runs.local_ray import LocalRay, local_ray
from rayjobs.serve.answers import advise, read_body
from rayjobs.serve.bundles import LoadedBundle
from rayjobs.serve.ray_app import NAME
from tests.support.prometheus_text import series, total
from tests.support.serve_requests import GUARDS, bodies, same
from tests.support.served import Served
from tests.support.steering_cases import of_other_groups, trained_bundle
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PATIENCE_S = 240.0


def test_serve_run_takes_the_printed_yaml(short_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One Ray for all of it: replicas, autoscaling, batches, token, logs."""
    trained_bundle().save(short_dir / "bundles" / "first")
    trained_bundle(seed=1).save(short_dir / "bundles" / "second")
    port = free_port("127.0.0.1")
    words = ["serve", str(short_dir / "bundles" / "first"), "--port", str(port), "--folder", str(short_dir / "state"),
             "--steer-folder", str(short_dir / "steer"), "--max-replicas", "2", "--batch-size", "16",
             "--batch-wait-ms", "20", "--cpus", "0.2"]  # fmt: skip
    assert main([*words, "--print-config"]) == 0
    (short_dir / "serve.yaml").write_text(capsys.readouterr().out)
    with local_ray(cpus=3) as ray_, _serve_run(short_dir, ray_) as process:
        served = Served(f"http://127.0.0.1:{port}", (short_dir / "state" / "token").read_text(), short_dir)
        process.wait_ready(lambda: responds(f"{served.url}/healthz"), PATIENCE_S)
        said = _deployment()
        assert said["autoscaling_config"]["max_replicas"] == 2
        assert said["autoscaling_config"]["target_ongoing_requests"] == 16.0
        assert said["max_ongoing_requests"] == 64
        _answers_in_batches(served)
        _logs_what_was_changed(served, ray_)
        _takes_back_what_fails(served)


def _answers_in_batches(served: Served) -> None:
    """Sixteen clients at once get what each would get alone; refusals, too."""
    bundle, asked = LoadedBundle(served.folder / "bundles" / "first"), [*bodies(), b"{"] * 4
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda body: served.post("/v1/weights", body), asked))
    for answer, body in zip(answers, asked, strict=True):
        if body == b"{":
            assert answer.status_code == 422
        else:
            assert answer.status_code == 200, answer.text
            assert same(answer.json(), json.loads(json.dumps(advise(bundle, read_body(body), GUARDS))))
    # Ray's agent adds up middles of buckets: only the number of batches is exact (docs/ray-facts.md#metrics).
    decided = len(asked) - 4
    wait_until(lambda: _counted(served, "deepsched_answers_total") == decided, "not all were counted")
    assert _counted(served, "deepsched_batch_requests_count") < len(asked), "several were decided together"


def _counted(served: Served, name: str) -> float:
    return total(series(served.get("/metrics").text), name)


def _logs_what_was_changed(served: Served, ray_: LocalRay) -> None:
    assert served.post("/v1/bundles", {"path": "second"}).status_code == 401
    assert served.post("/v1/bundles", {"path": "second"}, served.token).status_code == 200
    lines = []
    for path in ray_.folder.glob("ray/session_*/logs/serve/replica_*.log"):
        lines += [json.loads(line) for line in path.read_text().splitlines()]
    events = {line["event"]: line for line in lines if "event" in line}
    assert events["refused"]["status"] == 401
    assert events["refused"]["levelname"] == "WARNING"
    assert events["bundle"]["folder"].endswith("second")
    assert events["bundle"]["replica"]


def _takes_back_what_fails(served: Served) -> None:
    """With the real times: failures count for half a minute, and nobody notices."""
    of_other_groups().save(served.folder / "bundles" / "other")
    before = served.get("/healthz").json()["bundle"]
    assert served.post("/v1/bundles", {"path": "other"}, served.token).status_code == 200

    def taken_back() -> bool:
        answer = served.post("/v1/weights", bodies()[0])
        assert (answer.status_code, answer.json()["bundle"]) == (200, before)
        said = served.get("/healthz").json()
        return said["taken_back"] is not None and said["bundle"] == before

    wait_until(taken_back, "not taken back")


def _serve_run(folder: Path, ray_: LocalRay) -> ManagedProcess:
    import ray

    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(folder / "serve.yaml"), "--address", address]
    environment = {**os.environ, **ray_.environment}
    return ManagedProcess(command, name="serve run", log_path=folder / "run.log", env=environment, grace_s=40.0)


def _deployment() -> dict[str, Any]:
    """What Serve's controller believes of our deployment."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    # Not by Serve's client: there is one per process, which may be that of an earlier test's Ray.
    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    application: dict[str, Any] = ray.get(controller.get_serve_instance_details.remote())["applications"][NAME]
    said: dict[str, Any] = application["deployments"]["Policy"]["deployment_config"]
    return said
