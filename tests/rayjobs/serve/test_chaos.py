"""Drills before live traffic: Serve's replica, Ray's head and the controller's actor are killed. `make drills`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from actuators.contract.control import MAX_WEIGHT
from actuators.files import write_private
from actuators.http_client import responds
from actuators.nginx.instance import Nginx
from actuators.processes.process import ManagedProcess
from actuators.processes.system import free_port
from rayjobs.serve.options import ServeOptions, make_settings
from rayjobs.steer.advisers import ServeAdviser, http_post
from rayjobs.steer.folder import SteerFolder
from tests.support.steer_site import Drill, failures, options, running_site
from tests.support.steering_cases import trained_bundle
from tests.support.waiting import wait_until
from tuning.steering.audit import read_lines

pytestmark = [pytest.mark.ray, pytest.mark.nginx, pytest.mark.slow]

UNHURT = {"art_margin": 1e9}
"""Guards of a drill that is not about harm: a machine that starts Ray again is late for a while, policy or not."""
PATIENCE_S = 300.0
"""For Ray and its workers to start on a machine that has other work."""


@contextmanager
def served(folder: Path) -> Iterator[tuple[ManagedProcess, str]]:
    """`deepsched serve` on Ray, a process of its own."""
    trained_bundle().save(folder / "bundles" / "first")
    port = free_port("127.0.0.1")
    command = [
        sys.executable, "-m", "rayjobs.serve", str(folder / "bundles" / "first"), "--port", str(port),
        "--folder", str(folder / "state"), "--steer-folder", str(folder / "steer"),
    ]  # fmt: skip
    with ManagedProcess(command, name="serve", log_path=folder / "serve.log", grace_s=40.0) as process:
        process.wait_ready(lambda: responds(f"http://127.0.0.1:{port}/healthz"), PATIENCE_S)
        yield process, f"http://127.0.0.1:{port}"


def test_killing_the_replica_and_the_head_costs_no_request(short_dir: Path) -> None:
    """The local bundle answers as soon as Serve does not, and Serve again when it is back."""
    record: dict[str, object] = {}
    # Ray first: while it starts it takes the whole machine, and that is not what is drilled.
    with served(short_dir / "serve") as (process, url), running_site(short_dir / "site") as site:
        drill = Drill(
            site, trained_bundle(), short_dir / "steer", options(**UNHURT),
            asked=lambda own: ServeAdviser(http_post(url, "", 2.0), own, site.topology, 0.3),
        )  # fmt: skip
        drill.until(lambda step: step.applied and step.line["by"] == "serve", 100)
        os.kill(_pid(process, "ServeReplica:"), signal.SIGKILL)
        record["steps until the local bundle"] = drill.until(
            lambda step: step.line["by"].startswith("local bundle"), 20
        )
        record["steps until serve is back"] = drill.until(lambda step: step.line["by"] == "serve", 200)
        # Both are found before one of them is killed: `serve` then ends, and says why.
        for pid in [_pid(process, name) for name in ("gcs_server", "raylet")]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        record["steps until the local bundle, without a head"] = drill.until(
            lambda step: step.line["by"].startswith("local bundle"), 200
        )
        for _ in range(20):
            step = drill.step()
            assert step.decision.source == "policy", (record, failures(site), _alarms(drill))
            values = site.control().as_weights().values
            assert ((values >= 1) & (values <= MAX_WEIGHT)).all()
        record["failed requests"] = failures(site)
        log = short_dir / "serve" / "serve.log"
        wait_until(lambda: "ended, by a signal or for lack of memory" in log.read_text(), log.read_text)
        assert isinstance(drill.asked, ServeAdviser)
        drill.asked.close()
    print(json.dumps(record))
    assert record["failed requests"] == {}, _alarms(drill)


def test_the_controller_is_an_actor_on_the_proxy_node_and_asks_by_handle(short_dir: Path) -> None:
    """Killed without warning it is started again, finds what it left in force, and goes on; no request fails."""
    import ray
    from ray import serve

    from rayjobs.runs.local_ray import local_ray
    from rayjobs.serve.ray_app import NAME, deployed, settings_args, start
    from rayjobs.steer.actor import start_actor
    from rayjobs.steer.options import SteerOptions

    trained_bundle().save(short_dir / "bundles" / "first")
    folder = SteerFolder(short_dir / "steer")
    settings = make_settings(
        ServeOptions(bundle=short_dir / "bundles" / "first", folder=short_dir / "state", steer_folder=folder.path)
    )
    with local_ray(cpus=3), contextlib.ExitStack() as stack:
        start("127.0.0.1", free_port("127.0.0.1"))
        serve.run(deployed(settings_args(settings), {}), name=NAME, route_prefix="/")
        site = stack.enter_context(running_site(short_dir / "site"))
        nginx = site.actuator
        assert isinstance(nginx, Nginx)
        write_private(short_dir / "token", nginx.token)
        given = SteerOptions.model_validate(
            {"bundle": short_dir / "bundles" / "first", "control_url": nginx.control_url,
             "token_file": short_dir / "token", "folder": folder.path, "interval_s": 2.0, "mode": "active",
             "serve_app": NAME, "actor": True,
             "guards": {"novel_above": 1e9, "reference_windows": 2, "min_between_changes_s": 0.1, **UNHURT}}
        )  # fmt: skip
        actor = start_actor(given)
        running = actor.run.remote()
        _wait_for_line(folder, lambda line: line["by"] == "serve" and line["applied"])
        first = ray.get(actor.ping.remote())
        left = site.control()
        os.kill(first, signal.SIGKILL)
        killed_s = time.time()
        assert site.control() == left
        wait_until(lambda: ray.get(actor.ping.remote()) != first, "not started again")
        _wait_for_line(folder, lambda line: line["time"] > killed_s and line["source"] == "policy")
        ray.get(actor.stop.remote())
        ray.get(running, timeout=PATIENCE_S)
        assert folder.status()["ended"]
        assert failures(site) == {}


def _alarms(drill: Drill) -> list[str]:
    """What the controller would have told a person, and when, in seconds since it began."""
    began_s = drill.lines[0]["now_s"]
    return [f"{line['now_s'] - began_s:.0f} s: {alarm}" for line in drill.lines for alarm in line["alarms"]][-20:]


def _wait_for_line(folder: SteerFolder, met: Callable[[dict[str, object]], bool]) -> None:
    def seen() -> bool:
        lines = read_lines(folder.audit) if folder.audit.exists() else ()
        return any(line.get("kind") == "decision" and met(line) for line in lines)

    wait_until(seen, f"no such decision in {folder.audit}")


def _pid(process: ManagedProcess, name: str) -> int:
    """A process of that name below ours."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in " ".join(child.cmdline()):
                return child.pid
    raise AssertionError(f"no {name} below {process.pid}")
