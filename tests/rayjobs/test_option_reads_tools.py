"""Every option that is in force is read by what runs: the verbs that need neither a testbed nor Ray."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actuators.contract.control import Weights
from actuators.errors import ConfigError
from envs.simulator.testbed import SimulatedTestbed, SimulationOptions
from rayjobs import calibrate, collect, doctor, encoder, load, park, service, weights
from rayjobs.cli.config import load_options
from rayjobs.cli.main import Verb
from rayjobs.dashboards.__main__ import VERB as DASHBOARDS
from rayjobs.serve.__main__ import serving
from rayjobs.serve.options import ServeOptions, make_settings
from tests.support.http_server import ScriptedServer
from tests.support.metrics import StandIn, scrapes
from tests.support.nginx_site import fake_nginx
from tests.support.option_reads import OptionReads
from tests.support.problems import TOPOLOGY, demo_scenario, problem
from tests.support.recordings import record
from tests.support.steering_cases import DEADLINES_S, advice
from tests.support.vts_documents import document
from tuning.options import ModelOptions
from tuning.policy.bundle import Bundle
from tuning.policy.model import net_for
from tuning.steering.decide import decide_alone

NOWHERE = "http://127.0.0.1:9"
"""Nothing listens there; the statistics cannot be read, which is recorded as gaps."""


def unread(verb: Verb, *assignments: str, code: int = 0, **flags: Any) -> list[str]:
    with OptionReads(load_options(verb.options, assignments=assignments, flags=flags)) as reads:
        assert verb.run(reads.options) == code
    return reads.unread()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    Bundle(net_for(problem(), ModelOptions()), problem(), ModelOptions(), {}).save(folder)
    return folder


@pytest.mark.parametrize(
    "plan",
    [
        ("plan=constant", "rate_rps=5"),
        ("plan=steps", "steps=0:5"),
        ("plan=diurnal", "low_rps=1", "high_rps=5", "period_s=1"),
        ("plan=random", "min_rate_rps=1", "max_rate_rps=5", "min_burst_s=1", "max_burst_s=2", "min_backoff_s=1"),
        ("plan=trace",),
    ],
    ids=lambda plan: plan[0],
)
def test_load(plan: tuple[str, ...], tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("time_s,home_read\n0,5\n")
    flags = {"trace": trace} if plan[0] == "plan=trace" else {}
    with ScriptedServer() as server:
        target = f"http://{server.address}"
        assert unread(load.VERB, *plan, target=target, duration_s=1, out=tmp_path, **flags) == []


def test_collect(tmp_path: Path) -> None:
    watched = {"status_url": f"{NOWHERE}/status", "duration_s": 0.3, "interval_s": 0.1, "out": tmp_path / "one.json"}
    assert unread(collect.VERB, "until_pid=1", code=1, **watched) == []
    with ScriptedServer(StandIn(scrapes())) as server:
        asked = {"prometheus": f"http://{server.address}", "match": '{instance="a:80"}', "out": tmp_path / "two.json"}
        assert unread(collect.VERB, start="1970-01-01", end="1970-01-01T00:02:30", step_s=9.0, **asked) == []


def test_doctor(tmp_path: Path) -> None:
    body = json.dumps(document("after_load")).encode()
    with ScriptedServer(lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body) as server:
        watched = {"status_url": f"http://{server.address}/status", "load_balancers": 2}
        (tmp_path / "nginx.conf").write_text("http { upstream g { server 127.0.0.1:1; } }")
        by_reload = {"nginx_conf": tmp_path / "nginx.conf", "nginx": fake_nginx(tmp_path, "")}
        assert unread(doctor.VERB, code=1, **by_reload, **watched) == []
        in_memory = {"control_url": f"{NOWHERE}/control", "token_file": tmp_path / "nginx.conf"}
        assert unread(doctor.VERB, code=1, **in_memory, **watched) == []


def test_park(tmp_path: Path) -> None:
    assert unread(park.VERB, generations=0, episodes=2, out=tmp_path) == []
    (scorer,) = tmp_path.glob("*/scorer.npy")
    assert unread(park.VERB, scorer=scorer, episodes=2, out=tmp_path / "again") == []


@pytest.mark.parametrize("chosen", [{}, {"scenario": "S3"}])
def test_service(chosen: dict[str, str], tmp_path: Path) -> None:
    small = ("network.users=20", "network.posts_per_user=1", "servers=1" if not chosen else "servers=3")
    assert unread(service.VERB, *small, duration_s=0.1, **chosen) == []


def test_weights_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actuators.external.nginx.detect", lambda binary: None)
    config = tmp_path / "nginx.conf"
    config.write_text("events {}\nhttp { upstream g { server 127.0.0.1:81; server 127.0.0.1:82; } }\n")
    assert unread(weights.GET, f"reload.config={config}") == []
    with pytest.raises(ConfigError, match=r"'reload\.drain_timeout_s' has no effect here .*nothing is changed here"):
        unread(weights.GET, f"reload.config={config}", "reload.drain_timeout_s=1")


GUARDS = "tests/rayjobs/test_option_reads_tools.py::test_a_single_answer_reads_its_guards"


def test_a_single_answer_reads_its_guards() -> None:
    with SimulatedTestbed(TOPOLOGY) as testbed:
        testbed.reset(demo_scenario(), 1)
        window = testbed.advance(2.0)
    options = load_options(ServeOptions, flags={"bundle": Path()})
    with OptionReads(options) as reads:
        decide_alone(window, advice(), DEADLINES_S, reads.options.guards)
    assert [path for path in reads.unread() if path.startswith("guards.")] == []


def test_dashboards(tmp_path: Path) -> None:
    assert unread(DASHBOARDS, out=tmp_path / "dashboards") == []


def test_calibrate_and_encoder(bundle: Path, tmp_path: Path) -> None:
    snapshots = tmp_path / "recording.json"
    equal = Weights.from_shares(TOPOLOGY, np.ones(TOPOLOGY.shape))
    record(snapshots, demo_scenario(), 5, lambda window: equal, 60, "least_conn", SimulationOptions())
    fit = ("calibrate.bootstraps=2", "calibrate.replicas=1", "calibrate.rounds=1", "calibrate.workers=2")
    assert unread(calibrate.VERB, *fit, snapshots=snapshots, out=tmp_path / "runs") == []
    assert unread(encoder.CHECK, "novel_share=0.9", bundle=bundle, snapshots=snapshots) == []


@pytest.mark.parametrize("front", ["ray", "uvicorn"])
def test_serve(front: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayjobs.runs.local_ray.ray_session", lambda address: contextlib.nullcontext())
    monkeypatch.setattr("rayjobs.serve.__main__.haproxy_environment", lambda folder: {})
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0})
    for name in ("rayjobs.serve.ray_app.start", "rayjobs.serve.ray_app.deployed", "ray.serve.run", "ray.serve.delete"):
        monkeypatch.setattr(name, lambda *arguments, **more: None)
    scaled = ("max_replicas=2", "batch_size=2") if front == "ray" else ()
    options = load_options(
        ServeOptions, assignments=(*scaled, f"folder={tmp_path}", "port=0"), flags={"bundle": bundle, "front": front}
    )
    with OptionReads(options) as reads:
        settings = make_settings(reads.options)
        reads.hand_over(settings.guards, GUARDS)
        with serving(reads.options, settings):
            pass
    assert reads.unread() == []
