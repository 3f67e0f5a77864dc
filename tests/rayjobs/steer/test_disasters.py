"""Disasters in front of live traffic: clocks that jump, a full disk. Weights stay legal, no request fails."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actuators.contract.control import MAX_WEIGHT, Weights
from actuators.nginx.instance import Nginx
from actuators.processes.process import ManagedProcess
from actuators.statistics.recording import read_snapshots
from rayjobs.cli.main import main
from rayjobs.steer.controller import LEFT
from rayjobs.steer.site import Site
from rayjobs.steer.watchdog import watch
from tests.support.disasters import Clock, full, jumping_clock, small_disk
from tests.support.served import Served, served_bundles
from tests.support.steer_site import (
    INTERVAL_S,
    Drill,
    controller_process,
    decisions,
    failed_requests,
    options,
    running_site,
    steer_process,
)
from tests.support.steering_cases import trained_bundle
from tests.support.waiting import PATIENCE_S, wait_until
from tests.support.windows import window
from tuning.steering import window_json
from tuning.steering.audit import read_lines, replay

pytestmark = [pytest.mark.nginx, pytest.mark.drill]

DAY_S = 86_400


@dataclass
class World:
    """A site of which every process reads `clock`."""

    site: Site
    clock: Clock


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="ds-") as name:
        folder = Path(name)
        with jumping_clock(folder) as clock, running_site(folder) as site:
            yield World(site, clock)


@pytest.fixture
def site(world: World) -> Site:
    equal = Weights.equal(world.site.topology)
    # Whatever it was told last: a controller of an earlier test was another process.
    assert isinstance(world.site.actuator, Nginx)
    world.site.actuator.balance(world.site.actuator.method, equal)
    assert world.site.control() == equal
    wait_until(lambda: bool(world.site.load and world.site.load.poll()), "no load")
    return world.site


@pytest.mark.slow
def test_the_wall_clock_of_nginx_and_of_the_controller_jumps(world: World, site: Site, short_dir: Path) -> None:
    """A day forth, two back, and right again: for NGINX, the servers, the load engine and the controller at once."""
    trained_bundle().save(short_dir / "bundle")
    with controller_process(short_dir, site):
        wait_until(lambda: site.control() != Weights.equal(site.topology), "the controller did not act")
        for offset_s in (DAY_S, -DAY_S, 0):
            known = len(decisions(short_dir))
            world.clock.put(offset_s)
            wait_until(
                lambda known=known: _acted(short_dir, known) >= 5,
                lambda offset_s=offset_s: f"{offset_s}: {_last(short_dir)}",
            )
            told_s = decisions(short_dir)[-1]["time"] - time.time()
            assert told_s == pytest.approx(offset_s, abs=60), "the controller reads the clock that jumped"
            values = site.control().as_weights().values
            assert ((values >= 1) & (values <= MAX_WEIGHT)).all()
    lines = decisions(short_dir)
    faults = [fault["detail"] for line in lines for fault in line["window"]["faults"]]
    assert any("NGINX's clock went from" in detail for detail in faults), "NGINX reads the clock that jumped"
    assert [line["now_s"] for line in lines] == sorted(line["now_s"] for line in lines)
    assert max(line["now_s"] for line in lines) - min(line["now_s"] for line in lines) < DAY_S / 2
    assert failed_requests(site) == 0


@pytest.mark.slow
def test_the_watchdog_goes_by_no_wall_clock(world: World, site: Site, short_dir: Path) -> None:
    """It restores nothing while the controller lives, whatever the date, and the first weights when it is killed."""
    trained_bundle().save(short_dir / "bundle")
    equal, after_s = Weights.equal(site.topology), str(10 * INTERVAL_S)
    with controller_process(short_dir, site) as controller, contextlib.ExitStack() as stack:
        wait_until(lambda: site.control() != equal, "the controller did not act")
        watchdog = stack.enter_context(steer_process(short_dir, site, "watchdog", "--watchdog-after-s", after_s))
        for offset_s in (DAY_S, -DAY_S, 0):
            known = len(decisions(short_dir))
            world.clock.put(offset_s)
            wait_until(lambda known=known: _acted(short_dir, known) >= 5, lambda: str(_last(short_dir)))
        assert not _restored(short_dir)
        world.clock.put(-DAY_S)
        controller.send_signal(signal.SIGKILL)
        wait_until(lambda: site.control() == equal, lambda: watchdog.log_tail(20))
        wait_until(lambda: _restored(short_dir), "not recorded")
    world.clock.put(0)


def _restored(folder: Path) -> bool:
    """Whether the watchdog has acted."""
    return any(line["kind"] == "watchdog" for line in read_lines(folder / "audit.jsonl"))


def _collecting(site: Site, out: Path) -> ManagedProcess:
    nginx = site.actuator
    assert isinstance(nginx, Nginx)
    command = [
        sys.executable, "-m", "rayjobs.collect", str(out), "--status-url", nginx.status_url, "--interval-s", "0.05",
        "--duration-s", "1000",
    ]  # fmt: skip
    return ManagedProcess(command, name="collect", log_path=out.parent.parent / "collect.log")


def _lines(out: Path) -> list[bytes]:
    """The whole lines of a recording."""
    return [line for line in out.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if out.exists() else []


@pytest.mark.slow
def test_a_recording_goes_on_when_the_clock_jumps(world: World, site: Site, short_dir: Path) -> None:
    out = short_dir / "made" / "snapshots.jsonl"
    out.parent.mkdir()
    with _collecting(site, out) as collect:
        for offset_s in (0, DAY_S, -DAY_S, 0):
            world.clock.put(offset_s)
            known = len(_lines(out))
            wait_until(lambda known=known: len(_lines(out)) >= known + 5, lambda: collect.log_tail(20))
        collect.send_signal(signal.SIGINT)
        assert collect.wait(PATIENCE_S) == 0, collect.log_tail(20)
    recording = read_snapshots(out)
    assert (recording.skipped, recording.gaps) == (0, 0)
    jumps_s = np.diff([snapshot.now_ms / 1e3 for snapshot in recording.snapshots])
    assert (jumps_s > DAY_S / 2).sum() == 2
    assert (jumps_s < -DAY_S).sum() == 1


def test_a_full_disk_ends_a_recording_in_one_line_and_tears_nothing_else(
    site: Site, short_dir: Path, root_only: None
) -> None:
    with small_disk(short_dir / "disk") as disk:
        out = disk / "snapshots.jsonl"
        with _collecting(site, out) as collect:
            wait_until(lambda: len(_lines(out)) >= 3, lambda: collect.log_tail(20))
            with full(disk):
                assert collect.wait(PATIENCE_S) == 2, collect.log_tail(20)
            said = (short_dir / "collect.log").read_text().splitlines()
            assert said[-1] == f"deepsched collect: cannot write: No space left on device ({out}); free some space"
            assert not any("Traceback" in line for line in said)
        kept = _lines(out)
        assert len(kept) >= 3
        with _collecting(site, out) as collect:
            wait_until(lambda: len(_lines(out)) >= len(kept) + 5, lambda: collect.log_tail(20))
            collect.send_signal(signal.SIGINT)
            assert collect.wait(PATIENCE_S) == 0, collect.log_tail(20)
        assert _lines(out)[: len(kept)] == kept
        recording = read_snapshots(out)
        assert len(recording.snapshots) >= len(kept) + 4
        assert recording.skipped <= 1


def test_a_full_disk_does_not_stop_the_steering(site: Site, short_dir: Path, root_only: None) -> None:
    """Nothing can be recorded meanwhile, which is counted; afterwards the record goes on and can be replayed."""
    with small_disk(short_dir / "disk") as disk:
        drill = Drill(site, trained_bundle(), disk / "steer", options())
        drill.until(lambda step: step.applied and step.decision.source == "policy", 40)
        known = len(decisions(drill.folder.path))
        with full(disk):
            for _ in range(6):
                drill.step()
            assert drill.log.lost >= 5
            assert any("no heartbeat: No space left" in line for line in drill.said)
            assert len(decisions(drill.folder.path)) <= known + 1
        for _ in range(3):
            drill.step()
        assert len(decisions(drill.folder.path)) >= known + 3
        assert drill.folder.status()["now_s"] >= drill.lines[-1]["now_s"]
        assert all(one.intact for one in replay(drill.folder.audit))
    assert drill.failed_requests() == 0


def test_what_the_watchdog_restores_on_a_full_disk_stays_until_there_is_room(
    site: Site, short_dir: Path, root_only: None
) -> None:
    """It takes a controller without a heartbeat for dead, and can restore once only."""
    equal, over, said = Weights.equal(site.topology), threading.Event(), list[str]()

    def log(line: str) -> None:
        said.append(line)
        if "are restored" in line:
            over.set()

    with small_disk(short_dir / "disk") as disk:
        drill = Drill(site, trained_bundle(), disk / "steer", options())
        drill.until(lambda step: step.applied and step.decision.source == "policy", 40)
        with full(disk):
            drill.step()
            watch(drill.folder, lambda: site.actuator, INTERVAL_S, log, PATIENCE_S, over)
            assert over.is_set(), said
            assert any(line.startswith("not recorded") for line in said)
            for _ in range(10):
                assert not drill.step().applied
            assert site.control() == equal
            assert any(LEFT in line for line in drill.said)
        drill.until(lambda step: step.applied and step.decision.source == "policy", 40)
    assert drill.failed_requests() == 0


def test_an_order_that_a_full_disk_cannot_take_says_so(
    site: Site, short_dir: Path, root_only: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(short_dir / "disk") as disk:
        drill = Drill(site, trained_bundle(), disk / "steer", options())
        with full(disk):
            assert main(["steer", "pause", "--folder", str(drill.folder.path)]) == 2
            error = capsys.readouterr().err
            assert "No space left" in error
            assert error.count("\n") == 1
        assert main(["steer", "pause", "--folder", str(drill.folder.path)]) == 0
        assert drill.step().decision.reason == "paused by the operator"


def test_a_full_disk_keeps_the_bundle_in_use(short_dir: Path, root_only: None) -> None:
    with small_disk(short_dir / "state") as disk:
        for served in served_bundles(short_dir, "uvicorn"):
            before = served.get("/v1/policy").json()["bundle"]
            with full(disk):
                refused = served.post("/v1/bundles", {"path": "second"}, served.token)
                assert refused.status_code == 503
                assert refused.json()["detail"] == "cannot write: No space left on device"
                assert _answered(served)["bundle"] == before
            assert served.post("/v1/bundles", {"path": "second"}, served.token).status_code == 200
            assert _answered(served)["bundle"] != before


def _answered(served: Served) -> dict[str, Any]:
    answer = served.post("/v1/weights", {"windows": [window_json.to_json(window())]})
    assert answer.status_code == 200
    body: dict[str, Any] = answer.json()
    return body


def _acted(folder: Path, known: int) -> int:
    """Decisions of the policy after so many of any kind."""
    return sum(line["source"] == "policy" for line in decisions(folder)[known:])


def _last(folder: Path) -> list[str]:
    return [f"{line['source']}: {line['reason']}" for line in decisions(folder)[-8:]]
