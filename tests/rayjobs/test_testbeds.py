"""`deepsched testbeds` lists what runs: testbeds of several runs, controllers, and what does not answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from ray.exceptions import RpcError

from actuators.files import write_private
from actuators.processes.system import boot_id
from actuators.testbed.placement import NAMESPACE
from rayjobs.bench.parts.waiting_testbed import make_waiting
from rayjobs.testbeds import VERB, controllers
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


def test_a_head_that_ends_while_it_is_asked_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """And the others are asked."""
    heads = [tmp_path / name for name in ("ending", "silent", "running")]
    answers: list[Exception | list[dict[str, object]]] = [RpcError("no connection\nTraceback"), RuntimeError(), []]

    def asked() -> list[dict[str, object]]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("rayjobs.runs.joining.named_ray", lambda address: None)
    monkeypatch.setattr("rayjobs.runs.local_ray.running_heads", lambda: heads)
    monkeypatch.setattr("rayjobs.runs.local_ray.joined", nullcontext)
    monkeypatch.setattr("tuning.live.testbeds.running_testbeds", asked)
    monkeypatch.setattr("rayjobs.testbeds.controllers", lambda: [])
    assert VERB.run(VERB.options()) == 0
    printed = capsys.readouterr()
    assert "no testbed is running" in printed.out
    assert [line.partition("could not be asked: ")[2] for line in printed.err.splitlines()] == [
        "no connection", "RuntimeError",
    ]  # fmt: skip
    assert answers == []


HOLDS = """
import sys
from pathlib import Path
from actuators.files import exclusive
with exclusive(Path(sys.argv[1]) / "lock", 0.0):
    print(flush=True)
    input()
"""


@contextmanager
def looks_like(*words: str, holds: Path | None = None) -> Iterator[int]:
    """A process of this user with these words in its command line, which holds a folder's lock when one is given."""
    code = ["input()"] if holds is None else [HOLDS, str(holds)]
    process = subprocess.Popen([sys.executable, "-c", *code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        if holds is not None:
            assert process.stdout is not None
            process.stdout.readline()
        yield process.pid
    finally:
        process.communicate(b"\n")


@pytest.mark.parametrize("options", [["--folder", "steer"], ["--config", "/etc/deepsched/deepsched-steer.yaml"]])
def test_a_controller_without_ray_is_a_row_while_it_holds_its_folder(options: list[str], tmp_path: Path) -> None:
    """However it got its options: a service has them in a file."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o700)
    write_private(folder / "status.json", json.dumps({"mode": "shadow", "boot": boot_id()}))
    with (
        looks_like("rayjobs.steer", "run", *options, holds=folder) as pid,
        looks_like("rayjobs.steer", "run", "--folder", str(folder)),
        looks_like("steer", "run", "--actor", "--folder", str(folder)),
    ):
        (row,) = [row for row in controllers() if str(tmp_path) in row["name"]]
        assert (row["doing"], row["places"]) == ("shadow", {"controller": f"process {pid}"})
    assert [row for row in controllers() if str(tmp_path) in row["name"]] == []


@pytest.mark.usefixtures("root_only")
def test_a_controller_of_another_user_is_a_row_without_its_folder() -> None:
    words = ["-c", "read line", "rayjobs.steer", "run", "--config", "/etc/deepsched/deepsched-steer.yaml"]
    process = subprocess.Popen(["python", *words], executable="/bin/sh", stdin=subprocess.PIPE, user="daemon")
    try:
        (row,) = [row for row in controllers() if row["places"] == {"controller": f"process {process.pid}"}]
    finally:
        process.communicate(b"\n")
    assert (row["name"], row["doing"]) == ("controller of daemon", "shown to daemon only")
