"""Any process of a verb is killed at some moment: it recovers or ends in one line, nothing is left or half-written."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actuators.http_client import http_session, responds
from actuators.processes.system import free_port
from tests.support.serve_requests import bodies
from tests.support.started import GONE_S, Started
from tests.support.steer_site import decisions
from tests.support.steering_cases import trained_bundle
from tests.support.waiting import PATIENCE_S, wait_until
from tuning.policy.bundle import load_bundle

pytestmark = [pytest.mark.ray, pytest.mark.nginx, pytest.mark.slow]

RAY = {
    "head": "ray.scripts.scripts", "gcs_server": "/gcs_server ", "raylet": "/raylet/raylet ",
    "client server": "ray.util.client.server", "dashboard": "dashboard/dashboard.py",
    "agent": "dashboard/agent.py", "runtime agent": "runtime_env/agent/main.py", "guardian": "guardian.py",
}  # fmt: skip
"""What belongs to every local Ray, and a word of its command line."""
SHORT = (
    "--config", "train-quick", "--set", "observe.duration_s=20", "--set", "training.steps=2400",
    "--set", "judge.measure_s=5",
)  # fmt: skip


def kill(verb: Started, word: str) -> int:
    """Kills one process of that kind, once there is one, after a moment that its kind decides; its pid."""
    verb.wait_for(lambda: bool(verb.children(word)), f"no '{word}'")
    generator = random.Random(word)
    time.sleep(generator.uniform(0.0, 2.0))
    victim = generator.choice(sorted(verb.children(word)))
    os.kill(victim, signal.SIGKILL)
    return victim


def check_files(folder: Path, *, cleaned_up: bool = False) -> None:
    """Every file is whole: no torn line but the last, and a bundle that is there can be read.

    Args:
        cleaned_up: nothing ended the verb at once, so that no hidden temporary file is left either.
    """
    assert not (cleaned_up and [path for path in folder.rglob("*") if ".tmp" in path.name])
    for path in folder.rglob("*.jsonl"):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                json.loads(line)
    for name in ("evaluation.json", "deadlines.json"):
        for path in folder.rglob(name):
            json.loads(path.read_text())
    if (folder / "bundle" / "bundle.json").exists():
        load_bundle(folder / "bundle")


def lines_of_errors(verb: Started) -> list[str]:
    """What it said when it ended, without its progress and its tables."""
    return [line for line in verb.log.read_text().splitlines() if line.startswith(("deepsched", "go on", "kept in"))]


@pytest.mark.parametrize("kind", RAY)
def test_ray_of_a_training(kind: str, tmp_path: Path) -> None:
    """Whatever of it is killed, the run ends with the part's name and how to go on; then it does."""
    train = Started(tmp_path / "runs", "train", *SHORT, "--out", str(tmp_path / "runs"))
    train.wait_until("start: done")
    kill(train, RAY[kind])
    assert train.process.wait(PATIENCE_S) == 1, train.log.read_text()
    assert train.left() == {}
    what, how = lines_of_errors(train)
    assert re.fullmatch(r"deepsched: Ray's .+ ended, by a signal or for lack of memory; all was stopped", what)
    assert how == f"go on with: deepsched train --resume {train.folder}"
    assert "Traceback" not in train.log.read_text()
    check_files(train.folder)
    if kind == "raylet":
        again = Started(tmp_path / "again", "train", "--resume", str(train.folder))
        assert again.process.wait(3 * PATIENCE_S) == 0, again.log.read_text()
        assert (train.folder / "bundle" / "bundle.json").exists()
        assert again.left() == {}


def test_a_worker_of_ray_is_not_needed_by_a_simulated_training(tmp_path: Path) -> None:
    train = Started(tmp_path / "runs", "train", *SHORT, "--out", str(tmp_path / "runs"))
    train.wait_until("start: done")
    kill(train, "ray::IDLE")
    assert train.process.wait(3 * PATIENCE_S) == 0, train.log.read_text()
    assert train.left() == {}
    check_files(train.folder)


def test_the_training_itself(tmp_path: Path) -> None:
    """Killed in the middle; nothing is left, and the run goes on in its folder."""
    train = Started(tmp_path / "runs", "train", *SHORT, "--out", str(tmp_path / "runs"))
    train.wait_until("train: started")
    time.sleep(random.Random(1).uniform(0.0, 3.0))
    train.process.kill()
    train.process.wait()
    assert train.left() == {}
    check_files(train.folder)
    again = Started(tmp_path / "again", "train", "--resume", str(train.folder))
    assert again.process.wait(3 * PATIENCE_S) == 0, again.log.read_text()


PARTS = {
    "nginx: master": 2,
    "nginx: worker": None,
    "gen_load": None,
    "actuators.social_network": None,
    "guardian.py": None,
}
"""Kinds of processes of a live demo → its exit status when one of them is killed; None when it may recover, too."""


@pytest.mark.parametrize("kind", PARTS)
def test_a_part_of_a_live_demo(kind: str, tmp_path: Path) -> None:
    demo = Started(
        tmp_path / "runs", "demo", "--quick", "--out", str(tmp_path / "runs"), "--set", "training.steps=2000"
    )
    demo.wait_until("observe: started")
    victim = kill(demo, kind)
    status = demo.process.wait(3 * PATIENCE_S)
    assert status == PARTS[kind] or (PARTS[kind] is None and status in (0, 1, 2)), demo.log.read_text()
    assert demo.left() == {}, victim
    assert "Traceback" not in demo.log.read_text()
    if status:
        assert sum(line.startswith("deepsched") for line in lines_of_errors(demo)) == 1, demo.log.read_text()
    check_files(demo.folder, cleaned_up=True)


@contextlib.contextmanager
def serving(folder: Path, *words: str) -> Iterator[tuple[Started, str]]:
    """`deepsched serve`, ready; it is ended at the end, and must leave nothing."""
    trained_bundle().save(folder / "bundles" / "first")
    port = free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    given = (str(folder / "bundles" / "first"), "--port", str(port), "--folder", str(folder / "state"))
    serve = Started(folder / "out", "serve", *given, "--steer-folder", str(folder / "steer"), *words)
    try:
        serve.wait_for(lambda: responds(f"{url}/healthz"), "not ready", 3 * PATIENCE_S)
        yield serve, url
        if serve.process.poll() is None:
            serve.process.terminate()
            assert serve.process.wait(60) == 143, serve.log.read_text()
    finally:
        serve.process.kill()
        serve.process.wait()
    assert serve.left() == {}


def answers(url: str) -> bool:
    with http_session(5.0) as session:
        try:
            return session.post(f"{url}/v1/weights", data=bodies()[0]).status_code == 200
        except OSError:
            return False


@pytest.mark.parametrize("kind", ["ray::ServeReplica", "ray::ServeController", "ray::HAProxyManager", "haproxy"])
def test_a_part_of_serve_comes_back(kind: str, tmp_path: Path) -> None:
    with serving(tmp_path) as (serve, url):
        victim = kill(serve, kind)
        wait_until(lambda: victim not in serve.children(kind), "not killed")
        wait_until(lambda: bool(serve.children(kind)), serve.log.read_text)
        wait_until(lambda: answers(url), serve.log.read_text)


@pytest.mark.parametrize("kind", ["gcs_server", "raylet"])
def test_serve_ends_with_its_ray(kind: str, tmp_path: Path) -> None:
    with serving(tmp_path) as (serve, _):
        kill(serve, RAY[kind])
        assert serve.process.wait(PATIENCE_S) == 1
        assert lines_of_errors(serve)[-1].startswith(f"deepsched: Ray's {kind} ended"), serve.log.read_text()
        assert "Traceback" not in serve.log.read_text()


@pytest.mark.parametrize("front", ["ray", "uvicorn"])
def test_serve_itself(front: str, tmp_path: Path) -> None:
    """Killed, it leaves nothing, and starts again in the same folder with the same token."""
    tokens = []
    for _ in range(2):
        with serving(tmp_path, "--front", front) as (serve, url):
            assert answers(url)
            tokens.append((tmp_path / "state" / "token").read_text())
            serve.process.kill()
            serve.process.wait()
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(
    "kind", ["nginx: master", "nginx: worker", "gen_load", "actuators.social_network", "guardian.py"]
)
def test_a_part_of_the_testbed_that_steer_started(kind: str, tmp_path: Path) -> None:
    """The controller goes on whatever of its testbed is gone, says so, and ends as asked."""
    trained_bundle().save(tmp_path / "bundle")
    folder = tmp_path / "steer"
    steer = Started(tmp_path / "out", "steer", "run", "--bundle", str(tmp_path / "bundle"), "--folder", str(folder))
    steer.wait_for(lambda: len(decisions(folder)) >= 2, "no decision")
    kill(steer, kind)
    known = len(decisions(folder))
    steer.wait_for(lambda: len(decisions(folder)) >= known + 5, "it does not go on")
    steer.process.terminate()
    assert steer.process.wait(GONE_S) == 0, steer.log.read_text()
    assert steer.left() == {}
    assert "Traceback" not in steer.log.read_text()
    check_files(folder, cleaned_up=True)


def test_steer_itself(tmp_path: Path) -> None:
    """Killed, it takes its testbed along, and the folder can be used again at once."""
    trained_bundle().save(tmp_path / "bundle")
    folder = tmp_path / "steer"
    for _ in range(2):
        known = len(decisions(folder))
        steer = Started(tmp_path / "out", "steer", "run", "--bundle", str(tmp_path / "bundle"), "--folder", str(folder))
        steer.wait_for(lambda known=known: len(decisions(folder)) >= known + 2, "no decision")
        steer.process.kill()
        steer.process.wait()
        assert steer.left() == {}
    check_files(folder)
