"""Every option that is in force is read by what runs: the verbs that act on an NGINX or send load to one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actuators.contract.script import Script, ServerProfile
from actuators.contract.topology import social_network
from actuators.contract.window import AdmissionWindow, Fault
from actuators.files import write_private
from actuators.nginx.config import NginxOptions
from actuators.nginx.instance import Nginx
from actuators.options import Options
from actuators.processes.system import free_port
from envs.calibration.result import Calibration
from envs.simulator.testbed import SimulatedTestbed
from rayjobs import collect, load, service, weights
from rayjobs.admission import in_force as admission
from rayjobs.cli.config import load_options
from rayjobs.cli.main import Verb
from rayjobs.holding import in_force as holding
from rayjobs.steer.run import RUN
from rayjobs.steer.watchdog import WATCHDOG
from tests.support.http_server import ScriptedServer
from tests.support.nginx_site import answer
from tests.support.option_reads import OptionReads
from tests.support.paths import DATA
from tests.support.problems import TOPOLOGY, demo_scenario
from tests.support.stand_in_wrk2 import OUTPUT, fake_wrk2
from tests.support.steering_cases import Run, advice, times_bundle, trained_bundle
from tests.support.stock_nginx import StockSite
from tests.support.vts_documents import document
from tests.support.windows import hold_window, window
from tuning.steering.admission import AdmissionGuards, AdmissionWatch
from tuning.steering.holding import HoldGuards, HoldWatch
from tuning.steering.options import SteeringOptions

PARTS = "tests/actuators/testbed/test_parts.py::test_every_option_of_the_parts_is_read"
BODY = json.dumps(document("after_load")).encode()
RELOADS = "tests/rayjobs/test_option_reads_site.py::test_weights_set_explore_and_snippet"
NUMBERS = "tests/actuators/nginx/test_admission.py::test_limits_are_those_of_the_simulator"
ADMISSION_GUARDS = "tests/rayjobs/test_option_reads_site.py::test_a_controller_reads_its_admission_guards"
HOLD_NUMBERS = (
    "tests/actuators/nginx/test_late_binding.py::test_the_control_reads_back_and_what_does_not_fit_is_refused"
)
HOLD_GUARDS = "tests/rayjobs/test_option_reads_site.py::test_a_controller_reads_when_it_may_hold"
CALIBRATION = DATA / "runs" / "calibration.json"
GUARDS = "tests/rayjobs/test_option_reads_site.py::test_a_controller_reads_its_guards"


def status(_: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


@contextmanager
def embedded(folder: Path, options: NginxOptions) -> Iterator[tuple[Nginx, Path]]:
    """An NGINX before the groups of the trained bundle, and its configuration."""
    with ScriptedServer() as one, ScriptedServer() as two, ScriptedServer() as three:
        topology = social_network((one.address, two.address, three.address))
        with Nginx(options, topology, work_dir=folder / "own") as nginx:
            nginx.start()
            yield nginx, folder / "own" / "nginx" / "nginx.conf"


def unread(verb: Verb, *assignments: str, code: int = 0, handed: dict[str, str] | None = None, **flags: Any) -> Any:
    """Options in force that nothing has read; `handed`: path of options → the test that shows who reads them."""
    with OptionReads(load_options(verb.options, assignments=assignments, flags=flags)) as reads:
        for path, test in (handed or {}).items():
            value = attrgetter(path)(reads.options)
            assert isinstance(value, Options)
            reads.hand_over(value, test)
        assert verb.run(reads.options) == code
    return reads.unread()


def test_a_controller_reads_its_guards() -> None:
    """Ordinary windows, then novel ones, then familiar ones in both modes, then none that can be used."""
    options = load_options(SteeringOptions, assignments=["guards.reference_windows=2"], flags={"mode": "active"})
    with OptionReads(options) as reads, SimulatedTestbed(TOPOLOGY) as testbed:
        run = Run(reads.options)
        testbed.reset(demo_scenario(), 1)
        for index in range(90):
            if index == 75:
                run.steering.options = run.steering.options.model_copy(update={"mode": "canary"})
            seen = replace(testbed.advance(1.0), weight=run.steering.in_force.values)
            run.step(seen, advice(novelty=5.0 if 20 <= index < 30 else 0.3))
            testbed.apply(run.steering.in_force)
        run.step(replace(seen, faults=(Fault("gap", "no answer"),)), None)
    assert reads.unread() == []


def test_a_controller_reads_its_admission_guards() -> None:
    with OptionReads(AdmissionGuards(proving_windows=1)) as reads:
        watch = AdmissionWatch(reads.options, 0.14, proved=False)
        watch.see(replace(window(), admission=AdmissionWindow(*[np.ones(3, int)] * 7, np.ones(3), peak=1)))
        assert watch.decide("active", 10.0).percent == 0
    assert reads.unread() == []


def test_a_controller_reads_when_it_may_hold() -> None:
    with OptionReads(HoldGuards(proving_windows=1)) as reads:
        watch = HoldWatch(reads.options, proved=False)
        watch.see(replace(window(), holding=hold_window(would=50)))
        assert not watch.decide("active", 10.0).holds
    assert reads.unread() == []


@pytest.fixture
def site(short_dir: Path) -> Iterator[StockSite]:
    """Somebody's NGINX before two servers."""
    with ScriptedServer(lambda _: answer(200, "a")) as one, ScriptedServer(lambda _: answer(200, "b")) as two:
        yield StockSite(short_dir, [one.address, two.address])


@pytest.mark.nginx
def test_weights_set_explore_and_snippet(site: StockSite) -> None:
    by_reload = f"reload.config={site.folder}/nginx.conf"
    snippet = site.folder / "deepsched.conf"
    with site.start():
        one = f"app/{site.servers[0]}=3"
        assert unread(weights.SET, by_reload, changes=(one,), groups=("app",)) == []
        assert (
            unread(weights.EXPLORE, by_reload, "reload.min_reload_interval_s=0", interval_s=0.01, values=(1, 2)) == []
        )
        port = free_port("127.0.0.1")
        assert unread(weights.SNIPPET, by_reload, "memory.method=random_two", out=snippet, port=port) == []
        site.write(f"include {snippet};")
    with site.start():
        way = {"control_url": f"http://127.0.0.1:{port}/control", "token_file": Path(f"{snippet}.token")}
        assert unread(weights.GET, **way) == []
        assert unread(weights.SET, changes=(f"app/{site.servers[0]}=2",), **way) == []
        assert unread(weights.EXPLORE, interval_s=0.01, values=(1, 2), **way) == []


@pytest.mark.nginx
def test_steer_run_and_watchdog(short_dir: Path) -> None:
    """On the embedded testbed, then beside it as on somebody's NGINX, by reload and in memory."""
    bundle, folder = short_dir / "bundle", short_dir / "steer"
    trained_bundle().save(bundle)
    live = {f"live.{part}": PARTS for part in ("nginx", "service", "load", "collect")}
    port = free_port("127.0.0.1")
    served = {"serve_url": "http://127.0.0.1:9", "metrics_port": port, "bundle": bundle, "duration_s": 1.0}
    handed = {"guards": GUARDS}
    assert unread(RUN, "audit.max_bytes=1024", handed=handed | live, folder=folder, **served) == []
    with embedded(short_dir / "native", NginxOptions(actuation="reload")) as (nginx, config):
        way = {"nginx_conf": config, "status_url": nginx.status_url}
        own = {"folder": short_dir / "reload", "bundle": bundle, **way}
        # Nothing changes here, so nothing is reloaded.
        reloads = {"reload": RELOADS}
        assert unread(RUN, "audit.max_bytes=1024", handed=handed | reloads, duration_s=1.5, **own) == []
        assert unread(WATCHDOG, handed=reloads, duration_s=0.5, **own) == []
    with embedded(short_dir, NginxOptions(admission=True, late_binding=True)) as (nginx, _):
        token = short_dir / "token"
        write_private(token, nginx.token)
        memory = {"control_url": nginx.control_url, "token_file": token}
        own = {"folder": short_dir / "memory", "bundle": bundle, **memory}
        assert unread(RUN, "audit.max_bytes=1024", handed=handed, duration_s=1.5, **own) == []
        assert unread(WATCHDOG, duration_s=0.5, **own) == []
        numbers = {"admission.numbers": NUMBERS, "admission.guards": ADMISSION_GUARDS}
        own = {"folder": short_dir / "admitting", "bundle": bundle, "admission_calibration": CALIBRATION, **memory}
        assert unread(RUN, "audit.max_bytes=1024", handed=handed | numbers, duration_s=1.5, **own) == []
        assert unread(admission.SET, handed={"numbers": NUMBERS}, calibration=CALIBRATION, **memory) == []
        assert unread(admission.SHOW, control_url=nginx.control_url) == []
        assert unread(admission.OFF, **memory) == []
        times = short_dir / "times"
        times_bundle(trained=False).save(times)
        slots = {"holding.numbers": HOLD_NUMBERS, "holding.guards": HOLD_GUARDS}
        own = {"folder": short_dir / "holding", "bundle": times, "late_binding": True, "workers": 2.0, **memory}
        assert unread(RUN, "audit.max_bytes=1024", handed=handed | slots, duration_s=1.5, **own) == []
        known = short_dir / "calibration.json"
        servers = {"servers": nginx.topology.servers, "members": ()}
        Calibration.load(CALIBRATION).model_copy(update=servers).save(known)
        given = {"calibration": known, "hold": True, **memory}
        assert unread(holding.SET, handed={"numbers": HOLD_NUMBERS}, **given) == []
        assert unread(holding.SHOW, control_url=nginx.control_url) == []
        assert unread(holding.OFF, method="least_conn", **memory) == []


@pytest.mark.nginx
def test_collect_with_a_load_plan(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(short_dir)
    parts = {f"live.{part}": PARTS for part in ("nginx", "service", "load")}
    short = {"duration_s": 1.0, "interval_s": 0.2, "plan": "constant", "rate_rps": 5.0}
    assert unread(collect.VERB, handed=parts, out=short_dir / "own.json", **short) == []
    with ScriptedServer(status) as server:
        target = {"status_url": f"http://{server.address}/status", "target": f"http://{server.address}"}
        sent = {"live.load": PARTS}
        assert unread(collect.VERB, handed=sent, out=short_dir / "theirs.json", **target, **short) == []


def test_load_by_wrk2(tmp_path: Path) -> None:
    script = tmp_path / "home.lua"
    script.write_text("-- lua")
    binary = fake_wrk2(tmp_path, f"cat <<'E'\n{OUTPUT}E")
    chosen = (f"wrk2.path={binary}", f"wrk2.scripts={{home_read: {script}}}", "mix={home_read: 1}")
    flags = {"plan": "constant", "rate_rps": 1000.0, "duration_s": 12.0, "engine": "wrk2", "out": tmp_path}
    assert unread(load.VERB, *chosen, **flags) == []


def test_service_of_a_script(tmp_path: Path) -> None:
    written = Script("mine", 3, 5, (), (ServerProfile((1.0, 1.0, 1.0)),), (0.01, 0.02, 0.03))
    path = tmp_path / "script.json"
    path.write_text(json.dumps(written.to_json()))
    assert (
        unread(service.VERB, "network.users=20", "network.posts_per_user=1", script=path, servers=1, duration_s=0.1)
        == []
    )
