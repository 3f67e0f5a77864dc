"""Which Ray a verb joins: the option before RAY_ADDRESS, a line for what is no head, a word of what was joined."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from actuators.errors import ConfigError
from actuators.options import Options
from rayjobs.cli.main import load_verb
from rayjobs.cli.verbs import verb_names
from rayjobs.runs.joining import Named, named_ray
from rayjobs.runs.local_ray import LocalRay, connected
from tests.support.paths import ROOT

ON_RAY = (
    "demo", "encoder recalibrate", "evaluate", "observe", "onboard", "serve", "steer run", "steer units", "sweep",
    "testbeds", "train",
)  # fmt: skip
"""The verbs that start Ray, and the one that writes a command of one of them."""


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)


def test_every_verb_that_starts_ray_takes_an_address_and_no_other_does() -> None:
    # The address of `fetch` is where `ray job submit` sends jobs: it starts no Ray.
    taking = [n for n in verb_names() if n != "fetch" and "address" in load_verb(n).options.model_fields]
    assert sorted(taking) == sorted(ON_RAY)
    assert all(issubclass(load_verb(name).options, Options) for name in taking)


def test_the_option_wins_over_the_environment_and_that_over_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert named_ray(None) is None
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        first, second = (f"127.0.0.1:{each.getsockname()[1]}" for each in (one, other))
        monkeypatch.setenv("RAY_ADDRESS", first)
        assert named_ray(None) == Named(first, "RAY_ADDRESS")
        assert named_ray(second) == Named(second, "--address")
        assert named_ray("local") is None
        # Ray sets both in the entrypoint of a job, and finds the way itself.
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
        assert named_ray(None) == Named("auto", "that of this job")
        assert named_ray(second) == Named(second, "--address")
        assert named_ray("local") is None
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert named_ray(None) is None


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8265", "takes submitted jobs only"),
        ("ray://127.0.0.1:10001", "invalid Ray address"),
        ("head", "invalid Ray address"),
        ("head:port", "invalid Ray address"),
        ("127.0.0.1:1", "no Ray at 127.0.0.1:1"),
        ("127.0.0.1:99999", "no Ray at"),
    ],
)
def test_what_is_no_head_is_one_clear_line(address: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=words) as given:
        named_ray(address)
    assert "--address" in str(given.value)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=words) as found:
        named_ray(None)
    assert "RAY_ADDRESS" in str(found.value)


def test_auto_is_the_head_of_this_machine_and_ignores_ray_address(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str | None]] = []
    monkeypatch.setattr("ray.init", lambda **given: seen.append((given["address"], os.environ.get("RAY_ADDRESS"))))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with socket.create_server(("127.0.0.1", 0)) as head:
        left = f"127.0.0.1:{head.getsockname()[1]}"
        monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address_or_die", lambda address: left)
        with connected("auto"):
            assert os.environ["RAY_ADDRESS"] == "127.0.0.1:1"
    assert seen == [("auto", None)]
    # A head that was killed leaves its address behind.
    with pytest.raises(ConfigError, match=r"cannot join Ray at auto: .*refused"), connected("auto"):
        pass
    assert os.environ["RAY_ADDRESS"] == "127.0.0.1:1"
    # Ray finds the cluster of a job by RAY_ADDRESS.
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with connected("auto", "that of this job"):
        pass
    assert seen == [("auto", None), ("auto", "127.0.0.1:1")]


TRAIN = (
    "training.steps=48", "training.environments=4", "training.episode_steps=5", "training.algorithm.batch_steps=24",
    "training.algorithm.minibatch_steps=24", "training.held_out.every_steps=0", "observe.duration_s=20",
    "observe.explore_s=4", "judge.rounds=1", "judge.warm_up_s=1", "judge.measure_s=4",
)  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
def test_a_verb_joins_the_ray_of_ray_address_says_so_and_leaves_it_running(ray_head: LocalRay, tmp_path: Path) -> None:
    address = (ray_head.folder / "ray" / "ray_current_cluster").read_text().strip()
    environment = {**os.environ, **ray_head.environment, "RAY_ADDRESS": address}
    command = [sys.executable, "-m", "rayjobs.train", "--out", str(tmp_path), "--storage", f"file://{tmp_path}/store"]
    done = subprocess.run(
        [*command, *(word for each in TRAIN for word in ("--set", each))],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"joined Ray at {address} (RAY_ADDRESS): 1 nodes, 3 CPUs" in done.stderr
    (run,) = (tmp_path / "store").iterdir()
    assert f"results: {run}" in done.stdout
    assert (run / "bundle" / "bundle.json").exists()
    ray_head.wait_ready(lambda: True)


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_that_does_not_let_us_in_is_one_line(ray_head: LocalRay, tmp_path: Path) -> None:
    address = (ray_head.folder / "ray" / "ray_current_cluster").read_text().strip()
    environment = {**os.environ, **ray_head.environment, "RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "rayjobs.testbeds", "--address", address],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "RAY_AUTH_MODE=token" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
