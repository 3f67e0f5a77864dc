"""`ray job submit` of a training run against a local head, as a user types it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import yaml

from actuators.processes.system import free_port
from rayjobs.runs.local_ray import LocalRay
from tests.support.orphans import processes_with, wait_gone
from tests.support.paths import ROOT

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """Dashboard URL of a fresh head, and the environment that its clients need."""
    port = free_port("127.0.0.1")
    ray = LocalRay(dashboard_port=port)
    url = f"http://127.0.0.1:{port}"
    token = (ray.folder / "token").read_text()

    def answers() -> bool:
        try:
            headers = {"Authorization": f"Bearer {token}"}
            return requests.get(f"{url}/api/jobs/", headers=headers, timeout=2).status_code == 200
        except requests.RequestException:
            return False

    try:
        ray.wait_ready(answers, 90)
        yield url, {**os.environ, **ray.environment}
    finally:
        ray.close()


def submit(head: tuple[str, dict[str, str]], *command: str) -> subprocess.CompletedProcess[str]:
    url, environment = head
    ray = str(Path(sys.executable).with_name("ray"))
    return subprocess.run(
        [ray, "job", "submit", "--address", url, "--working-dir", ".", "--", *command],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_submitted_training_run_leaves_its_results_in_the_storage(
    head: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    config = tmp_path / "train.yaml"
    options = yaml.safe_load((ROOT / "rayjobs" / "configs" / "train-quick.yaml").read_text())
    options |= {"storage": f"file://{tmp_path}/store", "training": {"steps": 600}}
    config.write_text(yaml.safe_dump(options))
    done = submit(head, "python", "-m", "rayjobs.train", "--config", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(that of this job)" in done.stdout + done.stderr
    (folder,) = (tmp_path / "store").iterdir()
    assert f"results: {folder}" in done.stdout
    assert (folder / "bundle" / "bundle.json").exists()


@pytest.mark.slow
def test_results_that_stayed_on_the_cluster_are_fetched(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    options = yaml.safe_load((ROOT / "rayjobs" / "configs" / "train-quick.yaml").read_text())
    config.write_text(yaml.safe_dump(options | {"training": {"steps": 600}}))
    done = submit(head, "python", "-m", "rayjobs.train", "--config", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"deepsched fetch (raysubmit_\w+)", done.stdout + done.stderr)
    assert found, done.stdout + done.stderr
    url, environment = head
    # The address that is given counts, and not the one that Ray's own client would take from the environment.
    fetched = subprocess.run(
        [sys.executable, "-m", "rayjobs.fetch", found[1], "--address", url, "--out", str(tmp_path / "here")],
        cwd=ROOT, env={**environment, "RAY_ADDRESS": "127.0.0.1:9"}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    (folder,) = (tmp_path / "here").iterdir()
    assert f"results: {folder}" in fetched.stdout
    assert (folder / "bundle" / "bundle.json").exists()


@pytest.mark.slow
def test_a_bad_option_fails_the_job_with_one_clear_line(head: tuple[str, dict[str, str]]) -> None:
    done = submit(head, "python", "-m", "rayjobs.train", "--set", "training.stepz=3")
    assert done.returncode == 1
    assert "did you mean" in done.stdout
    assert "exit code 2" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout


@pytest.mark.slow
@pytest.mark.nginx
def test_a_stopped_job_leaves_nothing(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    settings = ("parallel.testbeds=1", "observe.duration_s=60", f"out={tmp_path}")
    url, environment = head
    ray = str(Path(sys.executable).with_name("ray"))
    job, name = [ray, "job"], "stopped"
    command = ["python", "-m", "rayjobs.train", "--testbed", "live", *(f"--set={setting}" for setting in settings)]
    address = ["--address", url]
    submit = [*job, "submit", *address, "--no-wait", "--submission-id", name, "--working-dir", ".", "--", *command]
    subprocess.run(submit, cwd=ROOT, env=environment, capture_output=True, check=True, timeout=120)
    deadline_s = time.monotonic() + 150
    while not any("nginx: worker" in line or "gen_load" in line for line in processes_with(f"{tmp_path}/").values()):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    subprocess.run([*job, "stop", *address, name], env=environment, capture_output=True, check=True, timeout=60)
    assert wait_gone(f"{tmp_path}/", 15.0) == {}
    status = subprocess.run(
        [*job, "status", *address, name], env=environment, capture_output=True, text=True, check=True
    )
    assert "was stopped" in status.stdout
