"""`deepsched serve --address`: the policy is served by a Ray that runs already, which goes on without it afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from actuators.http_client import responds
from actuators.processes.process import ManagedProcess
from actuators.processes.system import free_port
from rayjobs.runs.local_ray import LocalRay, joined, running_heads
from tests.support.paths import ROOT
from tests.support.steering_cases import trained_bundle

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PATIENCE_S = 240.0


def test_a_joined_ray_serves_and_goes_on(short_dir: Path) -> None:
    trained_bundle().save(short_dir / "bundle")
    head, port = LocalRay(cpus=2), free_port("127.0.0.1")
    try:
        head.wait_ready(lambda: head.folder in running_heads())
        address = (head.folder / "ray" / "ray_current_cluster").read_text().strip()
        command = [
            sys.executable, "-m", "rayjobs.serve", str(short_dir / "bundle"), "--port", str(port), "--address", address,
            "--folder", str(short_dir / "state"), "--steer-folder", str(short_dir / "steer"), "--cpus", "0.2",
        ]  # fmt: skip
        environment = {**os.environ, **head.environment, "PYTHONPATH": str(ROOT)}
        log = short_dir / "serve.log"
        with ManagedProcess(command, name="serve", log_path=log, env=environment, grace_s=30.0) as process:
            process.wait_ready(lambda: responds(f"http://127.0.0.1:{port}/healthz"), PATIENCE_S)
            assert f"joined Ray at {address} (--address)" in log.read_text()
            assert "[1/1] start: started" in log.read_text()
        with joined(head.folder):
            from ray import serve

            from rayjobs.serve.ray_app import runs

            assert not runs(), "it has started Serve there, and nothing else used it"
            # A Serve of somebody else's keeps what it listens on.
            serve.start(http_options={"host": "127.0.0.1", "port": free_port("127.0.0.1")})
            refused = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
            )
            assert runs()
            serve.shutdown()
        assert refused.returncode == 2, refused.stderr
        assert "Serve runs there on 127.0.0.1:" in refused.stderr
        assert "Traceback" not in refused.stderr
    finally:
        head.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("default", 'Prefix / is being used by application "default"'),
        ("deepsched", "this Ray serves 'deepsched' already"),
    ],
)
def test_what_another_serves_there_is_neither_replaced_nor_deleted(name: str, words: str, short_dir: Path) -> None:
    trained_bundle().save(short_dir / "bundle")
    head, port = LocalRay(cpus=2), free_port("127.0.0.1")
    try:
        head.wait_ready(lambda: head.folder in running_heads())
        address = (head.folder / "ray" / "ray_current_cluster").read_text().strip()
        with joined(head.folder):
            from ray import serve

            class Other:
                def __call__(self) -> str:
                    return "other"

            serve.start(http_options={"host": "127.0.0.1", "port": port})
            other = serve.deployment(Other).options(ray_actor_options={"num_cpus": 0.1})
            serve.run(other.bind(), name=name, route_prefix="/")
            before = serve.status().applications[name]
            command = [
                sys.executable, "-m", "rayjobs.serve", str(short_dir / "bundle"), "--port", str(port),
                "--address", address, "--folder", str(short_dir / "state"), "--steer-folder", str(short_dir / "steer"),
            ]  # fmt: skip
            refused = subprocess.run(
                command, env={**os.environ, **head.environment, "PYTHONPATH": str(ROOT)},
                capture_output=True, text=True, timeout=PATIENCE_S, check=False,
            )  # fmt: skip
            after = serve.status().applications
            serve.shutdown()
        assert refused.returncode == 2, refused.stderr
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr
        assert list(after) == [name]
        assert after[name].status == "RUNNING"
        assert after[name].last_deployed_time_s == before.last_deployed_time_s
    finally:
        head.close()
