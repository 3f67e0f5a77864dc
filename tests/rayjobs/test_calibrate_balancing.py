"""What `deepsched calibrate` takes the recorded NGINX for: its method, its workers, and its servers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import Weights
from actuators.contract.topology import social_network
from actuators.errors import ConfigError
from actuators.statistics.recording import SnapshotWriter
from actuators.statistics.vts import Responses, ServerCounters, Snapshot
from envs.calibration.result import Calibration
from envs.scenarios.lookup import scenario
from rayjobs.calibrate import CalibrateVerbOptions, as_configured, assumptions
from rayjobs.cli.config import load_options
from rayjobs.cli.main import main
from rayjobs.runs.recordings import windows_of
from tests.support.recordings import record

TOPOLOGY = social_network()
UPSTREAMS = " ".join(f"upstream {group.name} {{ server 127.0.0.1:9; }}" for group in TOPOLOGY.groups)
FASTER = "calibrate.workers=2", "calibrate.bootstraps=2", "calibrate.replicas=1", "calibrate.rounds=1"


def conf(folder: Path, upstreams: str, workers: int = 8) -> Path:
    path = folder / "nginx.conf"
    path.write_text(f"worker_processes {workers};\nevents {{}}\nhttp {{ {upstreams} }}\n")
    return path


def given(*assignments: str, **flags: object) -> CalibrateVerbOptions:
    return load_options(CalibrateVerbOptions, assignments=assignments, flags={"snapshots": "none.json", **flags})


def calibrated(folder: Path, *words: str) -> Calibration:
    sets = [word for text in FASTER for word in ("--set", text)]
    assert main(["calibrate", str(folder / "own.jsonl"), *words, *sets, "--out", str(folder / "runs")]) == 0
    (file,) = (folder / "runs").glob("calibrate-1-*/calibration.json")
    return Calibration.load(file)


def test_method_and_workers_are_read_from_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    equal = Weights.from_shares(TOPOLOGY, np.ones(TOPOLOGY.shape))
    record(tmp_path / "own.jsonl", scenario("demo"), 5, lambda window: equal, 20)
    found = calibrated(tmp_path, "--nginx-conf", str(conf(tmp_path, UPSTREAMS)))
    assert (found.method, found.load_balancers) == ("round_robin", 8)
    out, err = capsys.readouterr()
    assert "balanced by round_robin, 8 workers that share no state\n" in out
    assert "assumed" not in err


def test_workers_share_their_state_in_a_zone(tmp_path: Path) -> None:
    zone = conf(tmp_path, "upstream app { least_conn; zone app 64k; server 127.0.0.1:9; }")
    found = as_configured(given(nginx_conf=zone), ["app"])
    assert (found.method, found.load_balancers) == ("least_conn", 1)
    machines = as_configured(given("calibrate.load_balancers=3", nginx_conf=zone), ["app"])
    assert machines.load_balancers == 3
    with pytest.raises(ConfigError, match="no upstream 'api'"):
        as_configured(given(nginx_conf=zone), ["app", "api"])


def test_the_method_is_given_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"option 'calibrate.method' has no effect with nginx_conf"):
        given("calibrate.method=random_two", nginx_conf=tmp_path / "nginx.conf")


def test_what_was_not_given_is_told() -> None:
    (both,) = assumptions(given())
    assert both.startswith("assumed of the balancing: least_conn and one shared state; give --nginx-conf, or --set ")
    (one,) = assumptions(given("calibrate.method=round_robin"))
    assert one.endswith(
        "assumed of the balancing: one shared state; give --nginx-conf, or --set calibrate.load_balancers"
    )
    assert assumptions(given("calibrate.method=round_robin", "calibrate.load_balancers=1")) == []
    assert assumptions(given(nginx_conf="nginx.conf")) == []


def test_servers_that_are_left_out_are_named(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    with SnapshotWriter(path) as writer:
        for second in range(3):
            answered = ServerCounters("a:1", 10 * second, responses=Responses(successful=10 * second))
            spare = ServerCounters("b:1", 0, backup=True)
            off = ServerCounters("c:1", 0, down=True)
            group = {counters.server: counters for counters in (answered, spare, off)}
            writer.write(Snapshot(1_000_000 + 1000 * second, 1, {"app": group}))
    _, topology, notes = windows_of(path, in_rotation=True)
    assert topology.servers == ("a:1",)
    assert notes == ["servers of group app are left out: b:1 (backup), c:1 (down)"]
    assert windows_of(path)[1].servers == ("a:1", "b:1", "c:1")
