"""`deepsched testbeds` lists whatever runs: testbeds of several runs, controllers, and what does not answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actuators.files import exclusive, write_private
from actuators.processes.system import boot_id
from actuators.testbed.placement import NAMESPACE
from rayjobs.bench.parts.waiting_testbed import make_waiting
from rayjobs.testbeds import controllers
from tests.support.waiting import PATIENCE_S, wait_until
from tuning.live.testbeds import Testbeds, running_testbeds


class Controller:
    """What an actor of `deepsched steer run --actor` answers."""

    def describe(self) -> dict[str, object]:
        return {"name": "controller /srv/steer", "doing": "canary", "method": "weights", "places": {}}


class Stranger:
    """An actor of an earlier version: it does not describe itself."""


class Stuck:
    """An actor that fails when it is asked."""

    def describe(self) -> dict[str, object]:
        raise ValueError("no state")


def doing(name: str) -> str:
    return next((str(row["doing"]) for row in running_testbeds() if row["name"] == name), "not listed")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray")
def test_every_named_actor_is_a_row() -> None:
    import ray

    others = {
        name: ray.remote(kind).options(num_cpus=0, name=name, namespace=NAMESPACE).remote()
        for name, kind in (("steer /srv/steer", Controller), ("stranger", Stranger), ("stuck", Stuck))
    }
    with Testbeds({"testbed-1": make_waiting}, "least_conn"):
        # Actors that are still starting do not answer in time.
        wait_until(lambda: doing("testbed-1") == "idle" and doing("controller /srv/steer") == "canary")
        wait_until(lambda: doing("stuck") == doing("stranger") == "does not answer")
        address = ray.get_runtime_context().gcs_address
        # A process of its own: this one is a driver of that Ray already.
        command = [sys.executable, "-m", "rayjobs.testbeds", "--address", address]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("testbed-1", "canary", "stranger"))
    for actor in others.values():
        ray.kill(actor)
    wait_until(lambda: running_testbeds() == [])


@contextmanager
def looks_like(*words: str) -> Iterator[int]:
    """A process of this user with these words in its command line."""
    process = subprocess.Popen([sys.executable, "-c", "input()", *words], stdin=subprocess.PIPE)
    try:
        yield process.pid
    finally:
        process.communicate(b"\n")


def test_a_controller_without_ray_is_a_row_while_it_holds_its_folder(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o700)
    write_private(tmp_path / "locked" / "status.json", json.dumps({"mode": "shadow", "boot": boot_id()}))
    with (
        looks_like("rayjobs.steer", "run", "--folder", str(tmp_path / "locked")) as pid,
        looks_like("rayjobs.steer", "run", f"--folder={tmp_path / 'free'}"),
        looks_like("steer", "run", "--actor", "--folder", str(tmp_path / "locked")),
    ):
        with exclusive(tmp_path / "locked" / "lock", 0.0):
            (row,) = [row for row in controllers() if str(tmp_path) in row["name"]]
        assert (row["doing"], row["places"]) == ("shadow", {"controller": f"process {pid}"})
        assert [row for row in controllers() if str(tmp_path) in row["name"]] == []
